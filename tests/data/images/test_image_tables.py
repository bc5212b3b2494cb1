"""Images in Parquet and in Hugging Face sets, and the labels beside them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv

from coincide.data import SourceError
from coincide.data.images import read_images
from coincide.data.labels import encode_labels
from photos import (
    drawn,
    encoded,
    photo,
    refusal,
    save,
    write_parquet,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


# Labels


@pytest.mark.parametrize(
    ("values", "names", "expected", "found"),
    [
        ([3, None, 1, -1], None, [1, -1, 0, -1], ("1", "3")),
        ([2.0, float("nan"), 7.0], None, [0, -1, 1], ("2", "7")),
        ([2, None, -1], ["a", "b", "c"], [2, -1, -1], ("a", "b", "c")),
        (["x", " ", None, "w"], None, [1, -1, -1, 0], ("w", "x")),
        ([True, False], None, [1, 0], ("False", "True")),
    ],
)
def test_labels_are_codes(values, names, expected, found):
    labels, label_names = encode_labels(values, "there", names)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int64
    assert label_names == found


@pytest.mark.parametrize("values", [[], [None, -1], ["", None]])
def test_nothing_known_is_no_labels(values):
    assert encode_labels(values, "there") == (None, None)


@pytest.mark.parametrize(
    ("values", "names", "sentence"),
    [
        ([0, -2], None, "Row 1 has -2"),
        ([0, 1.5], None, "Row 1 has 1.5"),
        ([0, [1]], None, "Row 1 has [1]"),
        ([0, float("inf")], None, "Row 1 has inf"),
        ([0, "a"], None, "either all numbers or all text"),
        ([0, 3], ["a", "b"], "must lie below 2, the number of its classes. Row 1 has 3"),
    ],
)
def test_bad_labels_are_refused(values, names, sentence):
    with pytest.raises(SourceError) as caught:
        encode_labels(values, "there", names)
    assert sentence in str(caught.value)


# Parquet


def test_parquet_in_the_layout_of_datasets(tmp_path):
    photos = [photo(6, 6, seed=seed) for seed in range(7)]
    items = [encoded(image) for image in photos]
    labels = pa.array([2, None, 0, -1, 1, 1, 1])
    write_parquet(tmp_path / "set" / "train-00000-of-00002.parquet", items[:4], labels[:4], "xyz")
    write_parquet(tmp_path / "set" / "train-00001-of-00002.parquet", items[4:], labels[4:], "xyz")
    write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", items[:2], labels[:2], "xyz")
    found = read_images(tmp_path / "set")
    np.testing.assert_array_equal(found.images, [drawn(image) for image in photos])
    np.testing.assert_array_equal(found.labels, [2, -1, 0, -1, 1, 1, 1])
    assert found.label_names == ("x", "y", "z")
    assert found.ids == tuple("0123456")
    assert len(read_images(tmp_path / "set", split="test").images) == 2
    assert "has no split 'val'. It has 'test', 'train'" in refusal(tmp_path / "set", split="val")


def test_parquet_rows_without_an_image_are_named(tmp_path):
    items = [None, encoded(photo(4, 4)), b"junk", encoded(photo(4, 4))]
    path = write_parquet(tmp_path / "a.parquet", items, ["u", "v", "v", "w"])
    found = read_images(path)
    assert found.ids == ("1", "3")
    assert found.label_names == ("u", "v", "w")
    np.testing.assert_array_equal(found.labels, [1, 2])
    assert found.skipped == (
        ("row 0", "there is no image"),
        ("row 2", "not an image that Pillow can read"),
    )


def test_parquet_may_name_files_or_hold_plain_bytes(tmp_path):
    save(photo(4, 4), tmp_path / "photos" / "a.png")
    records = [{"bytes": None, "path": "photos/a.png"}, {"bytes": None, "path": "photos/no.png"}]
    records.append({"bytes": encoded(photo(4, 4)), "path": "ignored.png"})
    pq.write_table(pa.table({"picture": records}), tmp_path / "a.parquet")
    found = read_images(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.images[0], found.images[1])
    assert found.ids == ("photos/a.png", "ignored.png")
    np.testing.assert_array_equal(found.rows, [0, 2])
    assert found.skipped == (("photos/no.png", "No such file or directory"),)
    pq.write_table(pa.table({"img": [encoded(photo(4, 4))] * 2}), tmp_path / "b.parquet")
    assert read_images(tmp_path / "b.parquet").images.shape == (2, 3, 4, 4)


def test_a_file_that_a_row_names_is_read_anew_when_it_changes(tmp_path):
    records = [{"bytes": None, "path": f"{name}.png"} for name in "ab"]
    pq.write_table(pa.table({"picture": records}), tmp_path / "a.parquet")
    for seed in (0, 1):
        save(photo(4, 4, seed=seed), tmp_path / "a.png")
        save(photo(4, 4, seed=2), tmp_path / "b.png")
        images = read_images(tmp_path / "a.parquet").images
        np.testing.assert_array_equal(images[0], drawn(photo(4, 4, seed=seed)))


ITEMS = [encoded(photo(4, 4, seed=seed)) for seed in range(3)]


@pytest.mark.parametrize(
    ("column", "values", "ids"),
    [
        ("file_name", ["b.png", "a.png", "c.png"], ("b.png", "a.png", "c.png")),
        (" ID ", ["x", "y", "z"], ("x", "y", "z")),
        ("id", [7, 8, 9], tuple("012")),
        ("path", ["same", "same", "other"], tuple("012")),
        ("image_path", ["a", None, "b"], tuple("012")),
        ("words", ["a", "b", "c"], tuple("012")),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_rows_that_say_their_names(tmp_path, column, values, ids, saved):
    source = tmp_path / "a.parquet"
    write_parquet(source, [ITEMS[0], b"junk", ITEMS[2]], pa.array(values), label=column)
    if saved:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset(pq.read_table(source).replace_schema_metadata(None))
        source = tmp_path / "saved"
        table.save_to_disk(source)
    found = read_images(source)
    assert found.ids == (ids[0], ids[2])
    np.testing.assert_array_equal(found.rows, [0, 2])
    assert found.skipped[0][0] == ("row 1" if ids[1] == "1" else ids[1])


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 11):
        item = encoded(Image.new("L", (4, 4), number))
        write_parquet(tmp_path / "set" / f"part-{number}.parquet", [item])
    assert list(read_images(tmp_path / "set").images[:, 0, 0, 0]) == [9, 10, 11]


# Columns of labels: of tables, and of tables beside images.


def of_parquet(folder, columns):
    table = {"image": ITEMS, **columns}
    pq.write_table(pa.table(table), folder / "meta.parquet")
    return folder / "meta.parquet"


def beside_images(folder, columns, name="metadata.csv"):
    """Write images, and a table beside them."""
    names = [f"images/{number}.png" for number in range(3)]
    for place, item in zip(names, ITEMS, strict=True):
        (folder / "set" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / place).write_bytes(item)
    table = pa.table({"file_name": names, **columns})
    if name == "metadata.jsonl":
        rows = (json.dumps(row) for row in table.to_pylist())
        (folder / "set" / name).write_text("\n".join(rows))
    else:
        (csv.write_csv if name == "metadata.csv" else pq.write_table)(table, folder / "set" / name)
    return folder / "set"


@pytest.mark.parametrize("write", [of_parquet, beside_images])
@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        ({"label": ["b", "a", "b"]}, None, ("label", [1, 0, 1])),
        ({" Class": ["10", "9", None]}, None, (" Class", [1, 0, -1])),
        ({"other": [1, 2, 3], "TARGET": [5, -1, 5]}, None, ("TARGET", [0, -1, 0])),
        ({"fine_label": [1, 2, 3], "label": [4, 4, 5]}, None, ("label", [0, 0, 1])),
        (
            {"fine_label": [4, 4, 5], "x": [1, 1, 1], "y": [1, 2, 3]},
            None,
            ("fine_label", [0, 0, 1]),
        ),
        ({"fine ": ["x", " ", "y"], "class": [1, 2, 3]}, "fine", (None, [0, -1, 1])),
        ({"label": [None, None, None]}, None, ("label", None)),
        ({"label": [-1, -1, -1]}, None, ("label", None)),
        ({"label": ["", "  ", ""]}, "label", (None, None)),
    ],
)
def test_the_column_of_labels_is_found_and_said(tmp_path, write, columns, asked, expected):
    taken, labels = expected
    found = read_images(write(tmp_path, columns), label_column=asked)
    if labels is None:
        assert (found.labels, found.label_names) == (None, None)
    else:
        np.testing.assert_array_equal(found.labels, labels)
    assert ("The labels are the column" in found.note) == (taken is not None)
    assert taken is None or f"the column {taken!r} of meta" in found.note


@pytest.mark.parametrize("write", [of_parquet, beside_images])
def test_columns_of_which_none_is_taken(tmp_path, write):
    found = read_images(write(tmp_path, {"fine": [1, 0, 1], "width": [4, 4, 4]}))
    assert found.labels is None
    assert "was taken for labels. It has 'fine', 'width'." in found.note
    several = write(tmp_path, {"class": [1, 0, 1], "Target": [4, 4, 5]})
    assert "that could be the labels, 'class', 'Target': name one" in refusal(several)
    assert "Did you mean 'class'?" in refusal(several, label_column="clas")
    found = read_images(several, labels=["a", "b", "a"], label_column="class")
    assert (found.label_names, found.note) == (("a", "b"), "")


def test_columns_that_are_said_to_be_classes(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ITEMS, [1, 0, 1], "ab", label="fine")
    np.testing.assert_array_equal(read_images(path).labels, [1, 0, 1])
    assert read_images(path).note == "The labels are the column 'fine' of a."
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["a", "b"])
    kinds = {"image": datasets.Image(), "fine_label": classes, "coarse_label": classes}
    images = [{"bytes": item, "path": None} for item in ITEMS]
    table = {"image": images, "fine_label": [0, 1, 1], "coarse_label": [0, 0, 1]}
    whole = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    whole.save_to_disk(tmp_path / "a")
    assert "could be the labels, 'fine_label', 'coarse_label': name one" in refusal(tmp_path / "a")
    found = read_images(tmp_path / "a", label_column="coarse_label")
    np.testing.assert_array_equal(found.labels, [0, 0, 1])


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_tables_beside_images(tmp_path, name):
    root = beside_images(tmp_path, {"label": ["10", "9", "10"], "age": [1, 2, 3]}, name)
    (root / "images" / "1.png").unlink()
    save(photo(4, 4), root / "images" / "new.png")
    found = read_images(root)
    assert found.ids == ("images/0.png", "images/2.png", "images/new.png")
    np.testing.assert_array_equal(found.labels, [0, 0, -1])
    assert found.label_names == ("10",)
    assert found.skipped == (("images/1.png", "listed in the metadata, but not there"),)
    assert found.note == (
        f"The labels are the column 'label' of {name}. 1 of 3 images are not listed there, and have"
        " no class."
    )


def test_a_table_of_another_country(tmp_path):
    root = beside_images(tmp_path, {})
    text = "\ufefffile_name;Class ;size\r\nimages/0.png;hot;1\r\nimages/2.png;;2\r\n"
    (root / "metadata.csv").write_text(text)
    found = read_images(root)
    np.testing.assert_array_equal(found.labels, [0, -1, -1])
    assert "semicolons" in found.note


def test_a_table_beside_images_is_no_table_of_images(tmp_path):
    root = beside_images(tmp_path, {"label": ["a", "b", "a"]})
    pq.write_table(pa.table({"x": [1.0]}), root / "embeddings.parquet")
    found = read_images(root)
    assert found.label_names == ("a", "b")
    assert found.skipped == (("embeddings.parquet", "not an image"),)
    write_parquet(root / "data" / "train.parquet", ITEMS, list("xyz"))
    (root / "embeddings.parquet").unlink()
    assert read_images(root).label_names == ("x", "y", "z")


def test_the_nearest_table_holds_and_other_parts_have_theirs(tmp_path):
    for part, classes in (("train", "xy"), ("test", "zw")):
        beside_images(tmp_path / part, {"label": [classes[0], classes[1], classes[0]]})
    near = tmp_path / "test" / "set" / "images" / "metadata.csv"
    near.write_text("file_name,label\n2.png,near\n")
    found = read_images(tmp_path)
    assert found.label_names == ("x", "y")
    np.testing.assert_array_equal(found.labels, [0, 1, 0])
    assert read_images(tmp_path, split="test").label_names == ("near", "w", "z")


def test_tables_that_name_no_images(tmp_path):
    root = beside_images(tmp_path, {"label": ["a", "b", "a"]})
    (root / "metadata.csv").write_text("file,label\nimages/0.png,a\n")
    found = read_images(root)
    assert found.labels is None
    said = "metadata.csv was not read: it has no column 'file_name', only 'file', 'label'."
    assert found.note == said
    assert said in refusal(root, label_column="label")
    (root / "metadata.csv").write_text("file_name,label\na.png,1\na.png,2\n")
    assert "lists 'a.png' twice, of different classes" in refusal(root)
    (root / "metadata.csv").write_text("file_name,label\nz.png,1\nb.png,0.5\n")
    assert "metadata.csv must be integers >= 0 or text" in refusal(root)
    assert refusal(root).endswith("Row 1 has 0.5.")
    (root / "metadata.csv").write_text("file_name,label,label\na.png,1,2\n")
    assert "could be the labels, 'label', 'label'" in refusal(root)
    assert "several columns 'label': rename" in refusal(root, label_column="label")
    (root / "metadata.csv").write_text("file_name,label\na.png,1,2\n")
    assert "metadata.csv has 3 cells where 2 are expected" in refusal(root)
    (root / "metadata.csv").unlink()
    assert "without a metadata.csv: it has no column 'label'" in refusal(root, label_column="label")


def test_many_rows_keep_their_order(tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, 700)
    items = [encoded(Image.new("L", (2, 2), int(shade))) for shade in shades]
    images = read_images(write_parquet(tmp_path / "a.parquet", items)).images
    np.testing.assert_array_equal(images[:, 0, 0, 0], shades)


def test_sources_that_are_none(tmp_path):
    write_parquet(tmp_path / "two" / "x" / "a.parquet", [])
    write_parquet(tmp_path / "two" / "y" / "a.parquet", [])
    pq.write_table(pa.table({"a": [1.0], "b": [2.0]}), tmp_path / "vectors.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    (tmp_path / "a.zip").write_bytes(b"")
    assert "several sets, 'x', 'y'" in refusal(tmp_path / "two")
    assert "no column of images. It has 'a', 'b'" in refusal(tmp_path / "vectors.parquet")
    assert "cannot be read as Parquet" in refusal(tmp_path / "bad.parquet")
    assert refusal(tmp_path / "empty") == f"{tmp_path / 'empty'} holds no images."
    assert "holds no images, only 'a.txt'" in refusal(tmp_path / "text")
    assert "is one file" in refusal(tmp_path / "a.zip")
    for missing in (tmp_path / "no", "./no", "/no/such/folder", "no.npy", ""):
        assert "does not exist" in refusal(missing)
    assert "has no split 'test'" in refusal("digits", split="test")


@pytest.mark.parametrize("size", [0, 1, -3, (8, 8, 8), (8, 0)])
def test_bad_sizes(size):
    assert "'image_size' parameter" in refusal("digits", ValueError, image_size=size)


def test_bad_options():
    assert "'image_size' parameter" in refusal("digits", TypeError, image_size="64")
    assert "'image_size' parameter" in refusal("digits", TypeError, image_size=8.0)
    assert "must be 1, 3 or None" in refusal("digits", ValueError, channels=2)


# Hugging Face


def test_a_set_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    photos = [photo(5, 5, seed=seed) for seed in range(4)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    whole = datasets.Dataset.from_dict(
        {"image": photos, "label": [1, None, 0, -1]}, features=datasets.Features(kinds)
    )
    parts = datasets.DatasetDict(train=whole, validation=whole.select([2, 0]))
    whole.save_to_disk(str(tmp_path / "whole"))
    parts.save_to_disk(str(tmp_path / "parts"))
    for folder in ("whole", "parts"):
        found = read_images(tmp_path / folder)
        np.testing.assert_array_equal(found.images, [drawn(image) for image in photos])
        np.testing.assert_array_equal(found.labels, [1, -1, 0, -1])
        assert (found.name, found.label_names) == (folder, ("a", "b"))
    other = read_images(tmp_path / "parts", split="val")
    np.testing.assert_array_equal(other.images, [drawn(photos[2]), drawn(photos[0])])
    assert "has no split 'test'" in refusal(tmp_path / "parts", split="test")


@pytest.fixture
def hub(monkeypatch):
    """The libraries of the hub, which has every set, and cannot load any."""
    datasets = pytest.importorskip("datasets")
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(library.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", raising(ValueError("Unknown split\nand more")))
    return library


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_hub_errors_take_one_line(hub, monkeypatch):
    assert refusal("someone/set") == "The set 'someone/set' cannot be loaded (Unknown split)."
    monkeypatch.setattr(hub.HfApi, "dataset_info", raising(TimeoutError("No answer\nat all")))
    assert refusal("someone/set").endswith("hub cannot be reached within 5 seconds (No answer).")
    assert refusal("digit").endswith("Did you mean the built-in source 'digits'?")


def test_a_name_that_the_hub_does_not_know(hub, monkeypatch, tmp_path):
    response = SimpleNamespace(headers={}, request=None)
    absent = hub.errors.RepositoryNotFoundError("404", response=response)
    monkeypatch.setattr(hub.HfApi, "dataset_info", raising(absent))
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal("photo") == (
        "'photo' is no file or folder here, and the Hugging Face hub has no such set. Did you mean"
        " 'photos'?"
    )


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_name_is_asked_for_its_split(hub, monkeypatch, reached):
    datasets = pytest.importorskip("datasets")
    asked = []

    def offline():
        return hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE

    def load(name, split):
        asked.append((name, split, *offline()))
        kinds = datasets.Features({"image": datasets.Image()})
        return datasets.Dataset.from_dict({"image": [photo(4, 4)] * 2}, features=kinds)

    monkeypatch.setattr(datasets, "load_dataset", load)
    if not reached:  # what was downloaded before is read
        monkeypatch.setattr(hub.HfApi, "dataset_info", raising(ConnectionError()))
    before = offline()
    found = read_images("someone/set", split="test")
    assert asked == [("someone/set", "test", *(before if reached else (True, True)))]
    assert offline() == before
    assert (found.name, found.images.shape) == ("set", (2, 3, 4, 4))


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        ("data/photo", ". Did you mean 'photos'?"),
        ("./data/photo", ". Did you mean 'photos'?"),
        ("dta/photos/train", ": there is no 'dta'. Did you mean 'data'?"),
        ("data/photo/train", ": there is no 'data/photo'. Did you mean 'photos'?"),
        ("photo.zip", "."),
        ("~/no-such-photos", "."),
        ("/no-such/folder", ": there is no '/no-such'."),
        ("", "."),
        ("dat.npy", "."),
        (Path("photos"), "."),
    ],
)
def test_a_path_that_leads_nowhere_does_not_ask_the_hub(hub, monkeypatch, tmp_path, source, rest):
    monkeypatch.setattr(hub.HfApi, "dataset_info", raising(AssertionError("asked")))
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert refusal(source) == f"The source {str(source)!r} does not exist{rest}"


def test_missing_datasets_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({}))
    assert 'pip install "coincide[images]"' in refusal(tmp_path / "saved")
