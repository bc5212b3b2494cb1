"""Tables: what is a feature, a label, an id; headers, separators, formats; as pandas reads them."""

import gzip
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from coincide.data import SourceError, load_source
from coincide.data.columns import numbers_rows
from written_sources import lists, refusal, saved

ROWS = 30
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(size=(ROWS, 2)).round(3)
CLASSES = RANDOM.integers(0, 3, ROWS)
CLASSES[:3] = [0, 1, 2]


def frame(**more):
    """Return a frame of two features and other columns."""
    return pd.DataFrame({"a": VALUES[:, 0], "b": VALUES[:, 1], **more})


def written(frame, folder, suffix):
    """Write a frame as pandas does."""
    path = folder / f"t.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    elif suffix == "json":
        frame.to_json(path, orient="records", double_precision=15)
    elif suffix == "feather":
        pa.feather.write_feather(pa.Table.from_pandas(frame), path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    return path


EVERY_FORMAT = ["csv", "tsv", "csv.gz", "parquet", "feather", "jsonl", "json"]


# Labels and ids


@pytest.mark.parametrize("suffix", EVERY_FORMAT)
@pytest.mark.parametrize("name", ["label", "Label", "labels", " label", "class", "TARGET", "y"])
def test_labels_are_never_features(tmp_path, suffix, name):
    found = load_source(written(frame(**{name: CLASSES}), tmp_path, suffix))
    np.testing.assert_array_equal(found.features, VALUES)
    np.testing.assert_array_equal(found.labels, CLASSES)
    assert any(f"{name!r} as the labels" in sentence for sentence in found.said)


@pytest.mark.parametrize("suffix", EVERY_FORMAT)
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("id", 7 * RANDOM.permutation(ROWS)),
        ("PassengerId", np.repeat(3, ROWS)),
        ("Unnamed: 0", RANDOM.permutation(ROWS)),
        ("sample_id", np.array([f"s{row}" for row in RANDOM.permutation(ROWS)])),
        ("number", np.arange(ROWS)),
        ("time", np.arange(ROWS) ** 2.0),
        ("order", RANDOM.permutation(ROWS) + 5),
        ("title", np.array([f"of {row}" for row in RANDOM.permutation(ROWS)])),
    ],
)
def test_ids_are_never_features(tmp_path, suffix, name, ids):
    found = load_source(written(frame(**{name: ids}), tmp_path, suffix))
    np.testing.assert_array_equal(found.features, VALUES)
    assert found.id_name == name
    assert found.ids.tolist() == ids.tolist()
    assert any(repr(name) in sentence for sentence in found.said)
    if ids.dtype.kind in "if":
        asked = load_source(written(frame(**{name: ids}), tmp_path, suffix), columns=[name, "a"])
        np.testing.assert_array_equal(asked.features, np.c_[ids, VALUES[:, 0]])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_index_that_pandas_wrote_is_an_id(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    held = frame().set_index(RANDOM.permutation(ROWS) + 5)
    held.to_csv(path) if suffix == "csv" else held.to_parquet(path)
    found = load_source(path)
    np.testing.assert_array_equal(found.features, VALUES)
    assert found.ids.tolist() == held.index.tolist()


@pytest.mark.parametrize(
    "name", ["acid", "humid", "refractive index", "class_size", "y2", "grid", "Idaho", "labelled"]
)
def test_features_that_only_sound_like_others_stay(tmp_path, name):
    values = RANDOM.normal(size=ROWS)
    found = load_source(written(frame(**{name: values}), tmp_path, "parquet"))
    np.testing.assert_array_equal(found.features, np.c_[VALUES, values])
    assert (found.labels, found.ids, found.said) == (None, None, ())


def test_coordinates_are_no_labels(tmp_path):
    path = written(pd.DataFrame(VALUES, columns=["x", "y"]), tmp_path, "csv")
    assert load_source(path).columns == ("x", "y")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(10), True),
        (np.arange(9), False),
        (np.arange(10.0)[::-1], True),
        (np.arange(10) ** 2, True),
        (np.r_[np.arange(9), 10][::-1], False),
        (np.r_[np.arange(9), 8], False),
        (np.arange(10) + 0.5, False),
        (np.r_[np.nan, np.arange(9)], False),
    ],
)
def test_what_numbers_rows(values, expected):
    assert numbers_rows(values) is expected


def test_several_labels_are_refused_and_the_other_is_left_out_when_one_is_named(tmp_path):
    path = written(frame(fine_label=CLASSES, coarse_label=CLASSES // 2), tmp_path, "parquet")
    assert "several columns that could be the labels, 'fine_label', 'coarse_label'" in refusal(path)
    found = load_source(path, label_column="coarse_label")
    assert found.columns == ("a", "b")
    assert any("left out 'fine_label'" in sentence for sentence in found.said)


def test_ids_can_be_named(tmp_path):
    path = written(
        frame(id=np.arange(ROWS), code=[f"c{row % 9}" for row in range(ROWS)]), tmp_path, "csv"
    )
    found = load_source(path, id_column="code")
    assert (found.id_name, found.ids[:2].tolist(), found.columns) == (
        "code",
        ["c0", "c1"],
        ("a", "b"),
    )
    assert "no column 'kode'. Did you mean 'code'?" in refusal(path, id_column="kode")
    assert "both a feature and the ids" in refusal(path, id_column="a", columns=["a"])


@pytest.mark.parametrize("suffix", EVERY_FORMAT)
@pytest.mark.parametrize("blank", [[None] * ROWS, [-1] * ROWS])
def test_labels_that_are_all_blank_are_none(tmp_path, suffix, blank):
    found = load_source(written(frame(label=blank), tmp_path, suffix))
    assert (found.labels, found.label_names) == (None, None)
    assert any(f"{ROWS} of {ROWS} rows have no label" in sentence for sentence in found.said)


def test_a_table_of_one_column_that_counts_is_its_feature(tmp_path):
    found = load_source(written(pd.DataFrame({"t": np.arange(ROWS)}), tmp_path, "csv"))
    assert (found.columns, found.ids) == (("t",), None)


# Arrays, by the numbers of their columns


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_column_of_an_array_that_numbers_the_rows_is_an_id(tmp_path, place):
    array = np.insert(VALUES, place, np.arange(ROWS), axis=1)
    found = load_source(saved(tmp_path, "a.npy", array))
    np.testing.assert_array_equal(found.features, VALUES)
    assert found.columns == tuple(str(number) for number in range(3) if number != place)
    assert found.ids.tolist() == list(range(ROWS))
    again = load_source(saved(tmp_path, "a.npy", array), columns=["0", "1", "2"])
    np.testing.assert_array_equal(again.features, array)


def test_an_archive_says_what_it_took(tmp_path):
    arrays = {"emb": VALUES, "Label": CLASSES, "uuid": np.arange(ROWS)[::-1], "other": np.eye(2)}
    path = saved(tmp_path, "a.npz", arrays)
    assert "It holds 'emb' (30, 2)" in refusal(path)
    found = load_source(path, columns=["emb"])
    np.testing.assert_array_equal(found.labels, CLASSES)
    assert found.ids.tolist() == arrays["uuid"].tolist()
    assert any("not used: 'other'" in sentence for sentence in found.said)


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_sparse_archives_are_written_out(tmp_path, form):
    sparse.save_npz(tmp_path / "s.npz", sparse.coo_array(VALUES).asformat(form))
    np.testing.assert_array_equal(load_source(tmp_path / "s.npz").features, VALUES)


# Numbers in other clothes


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([True, False] * 15), [1, 0] * 15),
        (pa.array([1, 2] * 15).cast(pa.decimal128(24, 2)), [1.0, 2.0] * 15),
        (pa.array([1, 2] * 15).cast(pa.float16()), [1.0, 2.0] * 15),
        (pa.array(["[1, 2.5]", "[3 4]", "(5,6)"] * 10), [[1, 2.5], [3, 4], [5, 6]] * 10),
    ],
)
def test_numbers_in_other_clothes(tmp_path, column, expected):
    found = load_source(saved(tmp_path, "a.parquet", pa.table({"c": column})))
    np.testing.assert_array_equal(found.features, np.reshape(expected, (ROWS, -1)))


def test_an_id_beside_one_column_of_lists(tmp_path):
    table = pa.table({"id": [5, 6], "text": ["u", "v"], "embedding": lists([[1, 2], [3, 4]])})
    path = saved(tmp_path, "a.parquet", table)
    assert "as in --columns embedding" in refusal(path)
    found = load_source(path, columns=["embedding"])
    assert (found.features.tolist(), found.ids.tolist()) == ([[1, 2], [3, 4]], [5, 6])
    found = load_source(saved(tmp_path, "b.parquet", table.drop_columns("text")))
    assert (found.columns, found.ids.tolist()) == (("embedding",), [5, 6])


# Text


@pytest.mark.parametrize(
    ("text", "columns", "first", "words"),
    [
        ("a;b\n1,5;2\n0,25;3\n", ("a", "b"), [1.5, 2], "commas were taken as decimal points"),
        ("1,5;2\n0,25;3\n", ("f0", "f1"), [1.5, 2], "was taken as data"),
        ("a\tb\n1\t2\n", ("a", "b"), [1, 2], "separated by tabs"),
        ("a|b\n1|2\n", ("a", "b"), [1, 2], "separated by bars"),
        (" x   y\n 1.5   2\n 10.0  3\n", ("x", "y"), [1.5, 2], "separated by blanks"),
        ("a b,c d\n1,2\n", ("a b", "c d"), [1, 2], None),
        ("0,1\n0.5,0.25\n0.3,0.1\n", ("0", "1"), [0.5, 0.25], "for it counts"),
        ("0,1\n1,1\n0,1\n", ("f0", "f1"), [0, 1], "was taken as data"),
        (",0,1\n4,0.5,0.25\n9,0.3,0.1\n", ("0", "1"), [0.5, 0.25], "for it counts"),
        ("1.5,2.5\n0.3,0.1\n", ("f0", "f1"), [1.5, 2.5], "--header takes it as names"),
        ("file id;b\na.png;1,5\nb.png;2,25\n", ("b",), [1.5], "separated by semicolons"),
        ("1,2,3\n2,4,6\n3,6,9\n4,8,12\n5,9,11\n", ("f0", "f1", "f2"), [1, 2, 3], "as data"),
    ],
)  # fmt: skip
def test_layouts_of_text(tmp_path, text, columns, first, words):
    found = load_source(saved(tmp_path, "a.csv", text))
    assert (found.columns, found.features[0].tolist()) == (columns, first)
    assert words is None or any(words in sentence for sentence in found.said)


def test_wavelengths_name_columns(tmp_path):
    spectra = pd.DataFrame(RANDOM.random((8, 6)), columns=[400, 412, 430, 451, 475, 500])
    found = load_source(written(spectra, tmp_path, "csv"))
    assert (found.columns[:2], len(found.features)) == (("400", "412"), 8)
    forced = load_source(written(spectra, tmp_path, "csv"), header=False)
    assert (forced.columns[:2], len(forced.features)) == (("f0", "f1"), 9)


@pytest.mark.parametrize("classes", [CLASSES, np.array(["u", "v", "w"])[CLASSES]])
@pytest.mark.parametrize("header", ["0", "class", None])
def test_a_file_of_labels_has_a_header_or_not(tmp_path, classes, header):
    lines = ([] if header is None else [header]) + [str(label) for label in classes]
    path = saved(tmp_path, "y.csv", "\n".join(lines) + "\n")
    found = load_source(saved(tmp_path, "x.npy", VALUES), labels=path)
    np.testing.assert_array_equal(found.labels, CLASSES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    path = saved(tmp_path, "a.csv", f"größe,b{end}1,2{end}3,4{end}".encode(encoding))
    found = load_source(path)
    assert (found.columns, found.features.tolist()) == (("größe", "b"), [[1, 2], [3, 4]])


# Folders


@pytest.mark.parametrize("suffix", ["parquet", "pq", "parq"])
@pytest.mark.parametrize("deeper", ["", "below/"])
def test_parts_are_all_read_and_in_the_order_that_people_count(tmp_path, suffix, deeper):
    (tmp_path / deeper).mkdir(exist_ok=True)
    for number in range(12):
        table = pa.table({"a": [number / 2]})
        pq.write_table(table, tmp_path / deeper / f"part-{number}.{suffix}")
    (tmp_path / "notes.txt").write_text("not a part")
    found = load_source(tmp_path)
    assert found.features.ravel().tolist() == [number / 2 for number in range(12)]
    assert any("notes.txt" in sentence for sentence in found.said)


def test_the_order_of_parts_in_several_folders_is_said(tmp_path):
    for number, name in enumerate(["b/2.parquet", "b/10.parquet", "a/3.parquet", "1.parquet"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"a": [float(number)]}), tmp_path / name)
    found = load_source(tmp_path)
    assert found.features.ravel().tolist() == [3, 2, 0, 1]
    order = "'1.parquet', 'a/3.parquet', 'b/2.parquet', 'b/10.parquet'"
    assert any(order in sentence for sentence in found.said)


def test_splits_are_not_mixed(tmp_path):
    for split, value in (("train", 1.0), ("test", 2.0)):
        pq.write_table(
            pa.table({"a": [value, value]}), tmp_path / f"{split}-00000-of-00001.parquet"
        )
    found = load_source(tmp_path)
    assert found.features.tolist() == [[1], [1]]
    assert any("read the split 'train'; --split takes 'test'" in said for said in found.said)
    assert load_source(tmp_path, split="test").features.tolist() == [[2], [2]]
    assert "no split 'dev'" in refusal(tmp_path, split="dev")


def test_partitions_are_refused(tmp_path):
    (tmp_path / "label=1").mkdir()
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "label=1" / "p.parquet")
    assert "is partitioned" in refusal(tmp_path)


def test_what_save_to_disk_wrote_is_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"a": VALUES[:, 0], "label": CLASSES}).select(range(9, 20))
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "d")
    found = load_source(tmp_path / "d")
    np.testing.assert_array_equal(found.features[:, 0], VALUES[9:20, 0])
    assert len(load_source(tmp_path / "d", split="test").features) == 1


def test_a_name_on_the_hub_is_a_table(monkeypatch):
    datasets = pytest.importorskip("datasets")
    library = pytest.importorskip("huggingface_hub")
    held = datasets.Dataset.from_dict({"a": VALUES[:, 0], "label": CLASSES, "id": range(ROWS)})
    monkeypatch.setattr(library.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: held if split else None)
    found = load_source("someone/rows")
    assert (found.name, found.columns, found.id_name) == ("rows", ("a",), "id")
    np.testing.assert_array_equal(found.labels, CLASSES)


# Any small table


NAMES = st.sampled_from(
    ["a", "b", "c d", "Größe", "1", "0", "x", "y", "label", "Class", "id", "Unnamed: 0", "rate,%"]
)
CELLS = {
    "int": st.integers(-1000, 1000),
    "float": st.floats(-1e6, 1e6).map(lambda value: round(value, 4)),
    "bool": st.booleans(),
    "text": st.sampled_from(["u", "v", "a b", "w,x", "ä"]),
    "gaps": st.one_of(st.none(), st.floats(-9, 9)),
    "numbers of rows": st.just(None),
}


@st.composite
def frames(draw):
    """Draw a small frame of columns of any kind."""
    rows = draw(st.integers(2, 14))
    columns = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(list(CELLS)))
        cells = draw(st.lists(CELLS[kind], min_size=rows, max_size=rows))
        columns[name] = np.arange(rows) if kind == "numbers of rows" else cells
    return pd.DataFrame(columns)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    held=frames(),
    form=st.sampled_from(["csv", "semicolons", "tabs", "gz", "utf-16", "parquet", "jsonl"]),
)
def test_pandas_reads_the_same_or_we_refuse(tmp_path_factory, held, form):
    folder = tmp_path_factory.mktemp("any")
    if form in ("parquet", "jsonl"):
        path = written(held, folder, form)
        theirs = pd.read_parquet(path) if form == "parquet" else pd.read_json(path, lines=True)
    else:
        path = folder / ("t.csv.gz" if form == "gz" else "t.csv")
        separator = {"semicolons": ";", "tabs": "\t"}.get(form, ",")
        encoding = "utf-16" if form == "utf-16" else "utf-8"
        held.to_csv(path, index=False, sep=separator, encoding=encoding)
        theirs = pd.read_csv(path, sep=separator, encoding=encoding)
    theirs.columns = [str(name) for name in theirs.columns]
    # Numbers over numbers can be either: pandas takes them for names, whatever they are.
    numeric = all(name.isdigit() for name in theirs.columns)
    header = True if numeric and form not in ("parquet", "jsonl") else None
    found = None
    with suppress(SourceError):
        found = load_source(path, header=header)
    if found is None:
        assert str(path) in refusal(path, header=header)
        return
    assert set(found.columns) <= set(theirs.columns)
    np.testing.assert_allclose(
        found.features, theirs[list(found.columns)].to_numpy(float), rtol=1e-12, atol=0
    )
    for name in set(theirs.columns) - set(found.columns):
        assert any(repr(name) in sentence for sentence in found.said), name


def test_compressed_text_that_is_cut_short_is_refused(tmp_path):
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 5000)
    assert "cannot be read as CSV" in refusal(saved(tmp_path, "a.csv.gz", whole[:-20]))
