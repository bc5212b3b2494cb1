"""Images that are arrays already, rows of them for the network, and their statistics."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from coincide.data.images import ImageRows, channel_statistics, read_images
from photos import refusal


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


# Arrays


def test_digits_fill_the_range_of_bytes():
    found = read_images("digits")
    data, target = load_digits(return_X_y=True)
    np.testing.assert_array_equal(found.images.reshape(-1, 64), np.rint(data * 255 / 16))
    np.testing.assert_array_equal(found.labels, target)
    assert found.label_names == tuple("0123456789")
    assert found.ids[-1] == "1796"


GREY = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (5, 3, 6, 7), np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (COLOR, COLOR),
        (np.moveaxis(COLOR, 1, 3), COLOR),
        (COLOR / np.float32(255), COLOR),
        (COLOR / 255, COLOR),
        (GREY > 99, 255 * (GREY[:, None] > 99)),
    ],
    ids=["mhw", "m1hw", "mhw1", "mchw", "mhwc", "float32", "float64", "bool"],
)
@pytest.mark.parametrize("stored", [False, True])
def test_arrays_of_every_layout(tmp_path, array, expected, stored):
    if stored:
        np.save(tmp_path / "a.npy", array)
    found = read_images(tmp_path / "a.npy" if stored else array)
    np.testing.assert_array_equal(found.images, expected)
    assert found.images.dtype == np.uint8
    assert (found.labels, found.ids) == (None, tuple("01234"))


def test_resized_arrays_keep_their_pixels_where_nothing_changes():
    found = read_images(COLOR, image_size=(6, 7), channels=3)
    np.testing.assert_array_equal(found.images, COLOR)
    opaque = np.concatenate([np.moveaxis(COLOR, 1, 3), np.full((5, 6, 7, 1), 255, np.uint8)], 3)
    np.testing.assert_array_equal(read_images(opaque).images, COLOR)
    np.testing.assert_array_equal(read_images(GREY, channels=3).images, GREY[:, None].repeat(3, 1))


def test_labels_can_be_given():
    found = read_images(GREY, labels=["b", None, "a", "", "b"])
    np.testing.assert_array_equal(found.labels, [1, -1, 0, -1, 1])
    assert found.label_names == ("a", "b")
    assert "one for each of 5 images. Got shape (2,)" in refusal(GREY, labels=[0, 1])


@pytest.mark.parametrize(
    ("arrays", "split", "labels"),
    [
        ({"images": GREY, "labels": np.arange(5)}, "train", [0, 1, 2, 3, 4]),
        ({"x_train": GREY, "y_train": np.arange(5), "x_test": COLOR}, "train", [0, 1, 2, 3, 4]),
        ({"x_train": COLOR, "x_test": GREY, "y_test": -np.ones(5)}, "test", None),
        ({"val_images": GREY, "val_labels": np.array([[4], [9], [4], [4], [-1]])}, "val",
         [0, 1, 0, 0, -1]),
        ({"anything": GREY}, "train", None),
    ],
)  # fmt: skip
def test_archives(tmp_path, arrays, split, labels):
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_images(tmp_path / "a.npz", split=split)
    np.testing.assert_array_equal(found.images, GREY[:, None])
    if labels is None:
        assert found.labels is None
    else:
        np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (GREY.astype(np.int64), "must hold uint8, or floats in [0, 1]. Got int64"),
        (GREY.astype(float), "must lie in [0, 1] where it holds floats. Image 0 has"),
        (np.where(np.arange(5)[:, None, None] == 3, np.nan, GREY / 255), "Image 3 has nan"),
        (-GREY / 255 - 0.01, "must lie in [0, 1]"),
        (GREY[0], "must have the shape (M, H, W)"),
        (GREY[:1], "must hold at least 2 images. Got shape (1, 6, 7)"),
        (GREY[:, :1], "sides of at least 2. Got (5, 1, 7)"),
        (np.zeros((5, 3, 8, 3), np.uint8), "either axis could be the channels"),
        (np.zeros((5, 2, 8, 8), np.uint8), "with 1 or 3 channels"),
        (None, "must have the shape"),
        ([[1, 2], [3]], "is no array of images"),
    ],
)
def test_arrays_that_are_no_images(array, sentence):
    assert sentence in refusal(array)


def test_pickles_are_never_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=np.array([{}], object))
    assert "pickled" in refusal(tmp_path / "a.npy")
    assert "pickled" in refusal(tmp_path / "a.npz")


# Rows and statistics


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_are_floats_of_the_images(tmp_path, mapped):
    np.save(tmp_path / "a.npy", COLOR)
    images = np.load(tmp_path / "a.npy", mmap_mode="r") if mapped else COLOR
    rows = ImageRows(images[:], torch.device("cpu"))
    assert len(rows) == 5
    expected = torch.from_numpy(COLOR.astype(np.float32) / 255)
    for index in (torch.tensor([3, 0, 3]), slice(1, 4), slice(None), torch.tensor([], dtype=int)):
        picked = rows[index]
        assert picked.dtype == torch.float32
        torch.testing.assert_close(picked, expected[index], rtol=0, atol=0)
    rows[slice(0, 2)].zero_()
    torch.testing.assert_close(rows[slice(0, 2)], expected[:2], rtol=0, atol=0)


@pytest.mark.filterwarnings("error")
def test_rows_of_any_array():
    frozen = COLOR.copy()
    frozen.setflags(write=False)
    for images in (frozen, COLOR[::-1], np.moveaxis(np.moveaxis(COLOR, 1, 3).copy(), 3, 1)):
        picked = ImageRows(images, torch.device("cpu"))[torch.tensor([1])]
        np.testing.assert_array_equal(picked.numpy(), images[1:2] / np.float32(255))


def test_statistics_are_exact():
    mean, std = channel_statistics(COLOR)
    values = COLOR.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-13)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-13)


def test_a_constant_channel_has_the_spread_one():
    images = COLOR.copy()
    images[:, 1] = 77
    mean, std = channel_statistics(images)
    assert mean[1] == pytest.approx(77 / 255)
    assert std[1] == 1
    assert 0 < std[0] < 1


def test_statistics_spread_over_all_rows():
    ramp = np.repeat(np.arange(30_000) // 15_000 * 200, 4).astype(np.uint8).reshape(-1, 1, 2, 2)
    mean, std = channel_statistics(ramp)
    assert mean[0] == pytest.approx(100 / 255, rel=1e-3)
    assert std[0] == pytest.approx(100 / 255, rel=1e-3)


@pytest.mark.parametrize("images", [COLOR[0], COLOR / 255, COLOR[:0]])
def test_only_bytes_of_four_axes(images):
    for owner in (channel_statistics, lambda held: ImageRows(held, torch.device("cpu"))):
        with pytest.raises(ValueError, match="must be a uint8 array"):
            owner(images)
