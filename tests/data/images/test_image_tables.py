"""Images in Parquet and in Hugging Face sets, and the labels beside them."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

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
    assert found.skipped == (("row 1", "No such file or directory"),)
    pq.write_table(pa.table({"img": [encoded(photo(4, 4))] * 2}), tmp_path / "b.parquet")
    assert read_images(tmp_path / "b.parquet").images.shape == (2, 3, 4, 4)


def test_label_columns(tmp_path):
    items = [encoded(photo(4, 4))] * 3
    path = write_parquet(tmp_path / "a.parquet", items, [1, 0, 1], "ab", label="fine")
    np.testing.assert_array_equal(read_images(path).labels, [1, 0, 1])
    assert "Did you mean 'fine'?" in refusal(path, label_column="fin")
    plain = write_parquet(tmp_path / "b.parquet", items, [1, 0, 1], label="fine")
    assert read_images(plain).labels is None
    np.testing.assert_array_equal(read_images(plain, label_column="fine").labels, [1, 0, 1])


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


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("Couldn't reach it\nand more"), "the Hugging Face hub cannot be reached"),
        (FileNotFoundError("Not there"), "the Hugging Face hub has no such set"),
        (ValueError("Unknown split"), "cannot be loaded (Unknown split)"),
    ],
)
def test_hub_errors_take_one_line(monkeypatch, error, sentence):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert sentence in refusal("someone/set")
    if not isinstance(error, ValueError):
        assert refusal("digit").endswith("Did you mean the built-in source 'digits'?")


def test_a_hub_name_is_asked_for_its_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        kinds = datasets.Features({"image": datasets.Image()})
        return datasets.Dataset.from_dict({"image": [photo(4, 4)] * 2}, features=kinds)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_images("someone/set", split="test")
    assert asked == [("someone/set", "test")]
    assert (found.name, found.images.shape) == ("set", (2, 3, 4, 4))


def test_missing_datasets_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({}))
    assert 'pip install "coincide[images]"' in refusal(tmp_path / "saved")
