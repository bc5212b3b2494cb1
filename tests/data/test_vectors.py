"""Reading sources: what comes out equals what was written, and bad input gets its own sentence."""

import io
import json
import sys
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits

from array_layouts import LAYOUTS
from coincide.data import SourceError, load_source, vectors
from coincide.data.vectors import is_table
from written_sources import lists, refusal, saved

NUMBERS = np.arange(12.0).reshape(4, 3) / 4


# What comes out


def test_digits_are_those_of_scikit_learn():
    found = load_source("digits")
    data, target = load_digits(return_X_y=True)
    np.testing.assert_array_equal(found.features, data)
    np.testing.assert_array_equal(found.labels, target)
    assert found.name == "digits"
    assert found.label_names == tuple("0123456789")
    assert found.columns is None


@pytest.mark.parametrize(
    "dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
)
def test_npy_keeps_its_dtype_and_stays_on_disk(tmp_path, dtype):
    array = np.arange(12).reshape(4, 3).astype(dtype)
    found = load_source(saved(tmp_path, "points.npy", array))
    assert isinstance(found.features, np.memmap)
    assert found.features.dtype == array.dtype
    np.testing.assert_array_equal(found.features, array)
    assert (found.name, found.labels, found.columns) == ("points", None, None)


def test_npy_in_the_other_byte_order_holds_the_same_numbers(tmp_path):
    swapped = NUMBERS.astype(np.dtype(float).newbyteorder("S"))
    found = load_source(saved(tmp_path, "a.npy", swapped)).features
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, NUMBERS)


def test_folder_of_features_and_labels(tmp_path):
    saved(tmp_path, "features.npy", NUMBERS)
    assert load_source(tmp_path).labels is None
    saved(tmp_path, "labels.npy", np.array([7, 5, 7, 9]))
    found = load_source(tmp_path)
    np.testing.assert_array_equal(found.features, NUMBERS)
    assert found.labels.tolist() == [1, 0, 1, 2]
    assert found.labels.dtype == np.int64
    assert found.label_names == ("5", "7", "9")
    assert found.name == tmp_path.name


@pytest.mark.parametrize("name", ["features", "X", "x", "the_only_matrix"])
def test_npz_finds_the_features(tmp_path, name):
    arrays = {name: NUMBERS, "y": np.array(["b", "a", "b", "b"])}
    if name != "the_only_matrix":
        arrays["other"] = NUMBERS + 1
    found = load_source(saved(tmp_path, "a.npz", arrays))
    np.testing.assert_array_equal(found.features, NUMBERS)
    assert found.labels.tolist() == [1, 0, 1, 1]
    assert found.label_names == ("a", "b")


def test_npz_takes_the_named_labels(tmp_path):
    path = saved(tmp_path, "a.npz", {"X": NUMBERS, "y": np.zeros(4, int), "z": np.arange(4)})
    assert load_source(path, label_column="z").labels.tolist() == [0, 1, 2, 3]
    assert "no array 'zz'. Did you mean 'z'?" in refusal(path, label_column="zz")


CSV = "a,b,species\n0,0.5,cat\n1,1.5,dog\n2,2.5,cat\n"


def test_csv_with_text_labels(tmp_path):
    found = load_source(saved(tmp_path, "pets.csv", CSV), label_column="species")
    np.testing.assert_array_equal(found.features, [[0, 0.5], [1, 1.5], [2, 2.5]])
    assert found.columns == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0]
    assert found.label_names == ("cat", "dog")
    assert found.name == "pets"


def test_columns_are_taken_in_the_order_asked_for(tmp_path):
    found = load_source(saved(tmp_path, "pets.csv", CSV), columns=["b", "a"])
    np.testing.assert_array_equal(found.features, [[0.5, 0], [1.5, 1], [2.5, 2]])
    assert found.columns == ("b", "a")
    assert found.labels is None


def test_integers_stay_integers(tmp_path):
    assert load_source(saved(tmp_path, "a.tsv", "a\tb\n1\t2\n")).features.dtype == np.int64


def test_the_column_label_is_no_feature_unless_asked_for(tmp_path):
    path = saved(tmp_path, "a.csv", "a,label\n1,5\n2,6\n")
    found = load_source(path)
    assert (found.columns, found.labels.tolist()) == (("a",), [0, 1])
    found = load_source(path, columns=["a", "label"])
    assert (found.columns, found.labels) == (("a", "label"), None)


@pytest.mark.parametrize(
    ("text", "columns", "first"),
    [
        ("1,2\n3,4\n", ("f0", "f1"), [1, 2]),
        ("\n1,2\n3,4\n", ("f0", "f1"), [1, 2]),
        ("1,2\n", ("f0", "f1"), [1, 2]),
        ("nan_share,2020\n3,4\n", ("nan_share", "2020"), [3, 4]),
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), [5, 6, 7]),  # as pandas names columns
        ("\ufeffa,b\r\n3,4\r\n", ("a", "b"), [3, 4]),
        ('"a,b","c"\n3,4\n', ("a,b", "c"), [3, 4]),
    ],
)
def test_csv_header_is_told_from_data(tmp_path, text, columns, first):
    found = load_source(saved(tmp_path, "a.csv", text.encode()))
    assert found.columns == columns
    assert found.features[0].tolist() == first


def test_header_less_rows_that_end_in_text_are_data(tmp_path):
    path = saved(tmp_path, "iris.csv", "5.1,3.5,setosa\n4.9,3.0,setosa\n6.3,3.3,virginica\n")
    found = load_source(path, label_column="f2")
    assert found.features[0].tolist() == [5.1, 3.5]
    assert found.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("width", [-1, 2])
def test_parquet_lists_become_features(tmp_path, width):
    table = pa.table({"embedding": lists([[1, 2], [3, 4], [5, 6]], width), "label": [2, 0, 2]})
    found = load_source(saved(tmp_path, "a.parquet", table))
    assert found.features.dtype == np.float32
    assert found.features.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (found.columns, found.labels.tolist()) == (("embedding",), [1, 0, 1])


def test_parquet_lists_and_numbers_side_by_side_when_named(tmp_path):
    table = pa.table({"age": [7, 8], "e": lists([[1, 2], [3, 4]])})
    path = saved(tmp_path, "a.parquet", table)
    assert load_source(path, columns=["e", "age"]).features.tolist() == [[1, 2, 7], [3, 4, 8]]
    assert "lists ('e') beside single values ('age')" in refusal(path)


def test_parquet_row_groups_and_parts_keep_their_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    for part, rows in (("a-1", values[600:]), ("a-0", values[:600])):
        table = pa.table({"e": lists(rows.tolist(), 3), "label": np.arange(len(rows))})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=70)
    found = load_source(tmp_path)
    np.testing.assert_array_equal(found.features, values)
    assert found.labels[[0, 599, 600]].tolist() == [0, 599, 0]


def test_parquet_half_precision_is_kept(tmp_path):
    table = pa.table({"e": lists(np.float16([[1, 2], [3, 4]]).tolist(), 2, "float16")})
    assert load_source(saved(tmp_path, "a.parquet", table)).features.dtype == np.float16


def test_parquet_categories_are_labels(tmp_path):
    table = pa.table({"a": [1.0, 2.0], "kind": pa.array(["x", "y"]).dictionary_encode()})
    found = load_source(saved(tmp_path, "a.parquet", table), label_column="kind")
    assert (found.labels.tolist(), found.label_names) == ([0, 1], ("x", "y"))


def test_class_names_of_hugging_face_are_read(tmp_path):
    described = {"info": {"features": {"label": {"names": ["cat", "dog", "cow"]}}}}
    table = pa.table({"e": lists([[1], [2]]), "label": [2, 0]}).replace_schema_metadata(
        {"huggingface": json.dumps(described)}
    )
    found = load_source(saved(tmp_path, "a.parquet", table))
    assert (found.labels.tolist(), found.label_names) == ([2, 0], ("cat", "dog", "cow"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("y.npy", np.array([3, 1, 1, 3])),
        ("y.npy", np.array(["u", "t", "t", "u"])),
        ("y.npy", np.array([3.0, 1.0, 1.0, 3.0])),
        ("y.csv", "class\nu\nt\nt\nu\n"),
        ("y.csv", "row,label\n0,u\n1,t\n2,t\n3,u\n"),
        ("y.parquet", pa.table({"label": [3, 1, 1, 3]})),
    ],
)
def test_labels_from_a_file(tmp_path, name, content):
    path = saved(tmp_path, "x.npy", NUMBERS)
    found = load_source(path, labels=saved(tmp_path, name, content))
    assert found.labels.tolist() == [1, 0, 0, 1]


def test_constant_features_load_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_source(saved(tmp_path, "a.npy", np.ones((3, 2)))).features.tolist()[0] == [1, 1]


def test_tables_are_told_from_arrays(tmp_path):
    saved(tmp_path, "part.parquet", pa.table({"a": [1]}))
    assert is_table(tmp_path)
    assert is_table("a.CSV")
    assert not is_table("digits")
    assert not is_table("a.npy")


def test_cells_are_read_by_anndata(tmp_path, monkeypatch):
    cells = pd.DataFrame({"Label": ["T", "B", "T", "T"], "n": [3, 4, 3, 3]}, index=list("wxyz"))
    held = SimpleNamespace(
        X=sparse.csr_array(NUMBERS),
        obsm={"X_pca": NUMBERS[:, :2]},
        obs=cells,
        obs_names=cells.index,
        var_names=pd.Index(["g", "h", "i"]),
    )
    path = saved(tmp_path, "cells.h5ad", b"read by the library alone")
    monkeypatch.setitem(sys.modules, "anndata", None)
    assert "pip install anndata" in refusal(path)
    monkeypatch.setitem(sys.modules, "anndata", SimpleNamespace(read_h5ad=lambda path: held))
    found = load_source(path)
    np.testing.assert_array_equal(found.features, NUMBERS)
    assert (found.labels.tolist(), found.label_names) == ([1, 0, 1, 1], ("B", "T"))
    assert found.ids.tolist() == list("wxyz")
    found = load_source(path, columns=["X_pca"], label_column="n")
    np.testing.assert_array_equal(found.features, NUMBERS[:, :2])
    assert found.label_names == ("3", "4")
    assert found.feature_names == ("X_pca[0]", "X_pca[1]")
    assert load_source(path, like=found.feature_names).columns == ("X_pca",)
    np.testing.assert_array_equal(load_source(path, like=["i", "g"]).features, NUMBERS[:, [2, 0]])
    assert "Did you mean 'X_pca'?" in refusal(path, columns=["X_pcs"])


@st.composite
def stored_arrays(draw):
    """Draw a small array as NumPy can store it."""
    kind = draw(st.sampled_from(["b1", "i1", "u2", "i8", "f2", "f4", "f8", "c8", "U2"]))
    shape = draw(st.lists(st.integers(0, 5), min_size=0, max_size=3))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, shape).astype(kind)
    array = array.astype(array.dtype.newbyteorder(draw(st.sampled_from("<>"))))
    return draw(st.sampled_from([*LAYOUTS.values(), lambda same: same]))(array) if shape else array


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(array=stored_arrays(), suffix=st.sampled_from(["npy", "npz"]))
def test_any_small_array_is_read_as_numpy_does_or_refused(tmp_path, array, suffix):
    path = saved(tmp_path, f"a.{suffix}", array if suffix == "npy" else {"X": array})
    if array.ndim == 2 and array.size and array.dtype.kind in "biuf":
        found = load_source(path).features
        np.testing.assert_array_equal(found, array)
        assert found.dtype.isnative
    else:
        assert str(path) in refusal(path)


# What is refused


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("absent.npy", "'absent.npy' does not exist."),
        ("./digit", "Did you mean the built-in source 'digits'?"),
    ],
)
def test_missing_sources(source, words):
    assert words in refusal(source)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", "1 2", "has the suffix '.xlsx': a source must be .npy, .npz, .h5ad, .csv"),
        ("a.npy.gz", "1 2", "has the suffix '.gz'"),
        ("plain", "1 2", "has no suffix"),
        ("a.npy", b"", "is empty"),
        ("a.npz", b"", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", "\n\n", "cannot be read as CSV"),
        ("a.csv", "a,b\n", "has no rows"),
        ("a.parquet", pa.table({"a": pa.array([], pa.int64())}), "has no rows"),
        ("a.npy", np.zeros((0, 3)), "has no rows: its shape is (0, 3)"),
        ("a.npy", np.zeros((3, 0)), "has no columns"),
        ("a.parquet", pa.table({"label": [1, 2]}), "has no columns of features"),
        ("a.parquet", pa.table({"e": lists([[], []])}), "has no columns"),
        ("a.npy", np.zeros(5), "1-D array of shape (5,) instead: for one feature per point"),
        ("a.npy", np.zeros((2, 3, 4)), "3-D array of shape (2, 3, 4) instead: flatten each"),
        ("a.npy", np.zeros((2, 2), complex), "Got complex128 instead"),
        ("a.npy", np.zeros((2, 2), "M8[s]"), "Got datetime64[s] instead"),
        ("a.npy", np.zeros((2, 2), "U3"), "Got <U3 instead"),
        ("a.npy", np.zeros((2, 2), np.longdouble), "at most 64 bits"),
        ("a.npy", np.zeros((2, 2), object), "pickled Python objects"),
        ("a.npz", {"a": np.zeros((2, 2), object)}, "pickled Python objects"),
        ("a.npz", {"a": NUMBERS, "b": NUMBERS}, "It holds 'a' (4, 3), 'b' (4, 3)."),
        ("a.npz", {}, "It holds nothing."),
        ("a.npy", b"no array at all", "cannot be read as .npy"),
        ("a.npz", b"no archive at all", "cannot be read as .npz"),
        ("a.parquet", b"PAR1 no table at all PAR1", "cannot be read as Parquet"),
        ("a.csv", "a,b\n1,2\n3\n5,6\n", "Row 3 of"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", "has 3 cells where 2 are expected"),
        ("a.csv", "a,b\n1,\n3,4\n", "Column 'b' of"),
        ("a.csv", "a,b\n1,2\n3,NA\n", "has no value in row 1"),
        ("a.csv", "a,b\n1,\n3,\n", "is empty"),
        ("a.csv", "a,a\n1,2\n", "several columns named 'a'"),
        ("a.csv", "a,b\n1,x\n2,x\n", "holds text ('x'), not numbers: name the numeric ones, as in"),
        ("a.csv", "a,b\n1,nan\n3,4\n", "has no value in row 0"),
        ("a.csv.gz", "a,b\n1,2\n", "cannot be read as CSV"),
        ("a.jsonl", '{"a": 1}\n{"a":', "cannot be read as JSON"),
        ("a.json", "[1, 2]", "cannot be read as JSON"),
        ("a.json", '{"a": [1, 2]}', "it is one object, not a list of records"),
        ("a.csv", "a,target\n1,0.5\n2,0.7\n", "Row 0 has 0.5 (2 such rows). Is it a feature?"),
        ("a.feather", "no table", "cannot be read as Feather"),
        ("a.npz", {"format": b"csr", "shape": [2, 2], "data": [1.0]}, "cannot be read as .npz"),
        ("a.csv", "e\n[1 2]\n[1 x]\n", "The list of row 1"),
        ("a.csv", "day,a\n2024-01-01,1\n2024-01-02,2\n", "date32[day] values, not numbers"),
        ("a.csv", b"a,\xff\n1,2\n", "not UTF-8"),
        ("a.parquet", pa.table({"e": lists([[1, 2], [3]])}), "Row 1 has 1 entries"),
        ("a.parquet", pa.table({"e": lists([[1, 2], None])}), "has no value in row 1"),
        ("a.parquet", pa.table({"e": lists([[1, 2], [3, None]])}), "The list of row 1"),
        ("a.parquet", pa.table({"image": [{"bytes": b"", "path": ""}]}), "holds records"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    sentence = refusal(saved(tmp_path, name, content))
    assert words in sentence
    assert name in sentence


def test_text_columns_are_refused_by_name_with_the_way_out(tmp_path):
    path = saved(tmp_path, "a.csv", CSV)
    sentence = refusal(path)
    assert "'species'" in sentence
    assert "holds text" in sentence
    assert "--columns" in sentence
    assert "--label-column" in sentence
    assert "compute feature vectors first" in refusal(path, columns=["species"])


def test_one_unlike_list_far_into_the_file_is_found(tmp_path):
    rows = [[1.0, 2.0]] * 200_000
    rows[150_000] = [1.0]
    path = saved(tmp_path, "a.parquet", pa.table({"e": lists(rows)}))
    assert "Row 150000 has 1 entries" in refusal(path)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted_and_the_first_is_named(tmp_path, value, suffix, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", 48)  # two rows of three float64
    array = np.zeros((7, 3))
    array[[3, 3, 6], [2, 1, 0]] = value
    table = pa.table(dict(zip("abc", array.T, strict=True)))
    path = saved(tmp_path, f"x.{suffix}", array if suffix == "npy" else table)
    sentence = refusal(path)
    assert "2 of 7 rows" in sentence
    column = "1" if suffix == "npy" else "'b'"
    assert f"row 3, column {column} ({value})" in sentence


def test_a_truncated_npy_is_refused(tmp_path):
    path = saved(tmp_path, "a.npy", NUMBERS)
    saved(tmp_path, "a.npy", path.read_bytes()[:-8])
    assert "cannot be read as .npy" in refusal(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_damaged_bytes_never_escape_as_other_errors(tmp_path, name):
    content = {
        "a.npy": NUMBERS,
        "a.npz": {"X": NUMBERS, "y": np.arange(4)},
        "a.parquet": pa.table({"a": [1.0, 2.0], "label": ["u", "v"]}),
    }[name]
    good = saved(tmp_path, name, content).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for place in random.integers(0, len(good), size=3):
            damaged[place] = random.integers(256)
        try:
            load_source(saved(tmp_path, name, bytes(damaged)))
        except SourceError:
            refused += 1
    assert refused > 50


def test_an_npz_with_a_damaged_member(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("X.npy", b"no array")
    assert "a.npz" in refusal(saved(tmp_path, "a.npz", buffer.getvalue()))


def test_parts_of_unlike_columns(tmp_path):
    saved(tmp_path, "0.parquet", pa.table({"a": [1.0]}))
    saved(tmp_path, "1.parquet", pa.table({"b": [1.0]}))
    assert "1.parquet has other columns or types than 0.parquet" in refusal(tmp_path)


def test_an_empty_folder(tmp_path):
    assert "holds neither features.npy nor *.parquet" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": ["aa"]}, "no column 'aa'. Did you mean 'a'?"),
        ({"columns": ["q"]}, "no column 'q'. It has 'a', 'b', 'species'."),
        ({"columns": ["a", "a"]}, "'a' more than once"),
        ({"columns": []}, "names no columns"),
        ({"label_column": "specie"}, "Did you mean 'species'?"),
        ({"columns": ["a"], "label_column": "a"}, "both a feature and the labels"),
        ({"label_column": "a", "labels": "y.npy"}, "not both"),
    ],
)
def test_unfit_column_names(tmp_path, options, words):
    assert words in refusal(saved(tmp_path, "a.csv", CSV), **options)


def test_arrays_have_no_column_names(tmp_path):
    path = saved(tmp_path, "a.npy", NUMBERS)
    assert "no column 'a'. It has '0', '1', '2'." in refusal(path, columns=["a"])
    assert "with --labels" in refusal(path, label_column="a")
    assert "no columns to choose from" in refusal("digits", columns=["a"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(3, int), "4 rows of features but 3 labels"),
        (np.zeros((4, 2), int), "must be 1-D. Got shape (4, 2)"),
        (np.array([0, 1, np.inf, -2]), "Row 2 has inf (2 such rows)"),
        (np.array([0, 1, 0.5, 1]), "Row 2 has 0.5."),
        (np.zeros(4, complex), "Got complex128"),
        (np.zeros(4, object), "pickled"),
    ],
)
def test_unfit_labels(tmp_path, labels, words):
    path = saved(tmp_path, "x.npy", NUMBERS)
    assert words in refusal(path, labels=saved(tmp_path, "y.npy", labels))


def test_unfit_files_of_labels(tmp_path):
    path = saved(tmp_path, "x.npy", NUMBERS)
    assert "does not exist" in refusal(path, labels=tmp_path / "y.npy")
    assert "must have one column" in refusal(path, labels=saved(tmp_path, "y.csv", CSV))
    assert "must be .npy or a table" in refusal(path, labels=saved(tmp_path, "y.npz", {"y": [1]}))


def test_a_semicolon_separates_where_no_comma_does(tmp_path):
    path = saved(tmp_path, "european.csv", "a;b\n1;2\n3.5;4\n")
    np.testing.assert_array_equal(load_source(path).features, [[1, 2], [3.5, 4]])
