"""Images that are arrays already, rows of them for the network, and their statistics."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from coincide.data.images import ImageRows, channel_statistics, read_images
from photos import deep_png, deep_tiff, encoded, refusal, save


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
        (COLOR[:, 0, :4, :4], COLOR[:, :1, :4, :4]),
        (GREY > 99, 255 * (GREY[:, None] > 99)),
    ],
    ids=["mhw", "m1hw", "mhw1", "mchw", "mhwc", "float32", "float64", "m44", "bool"],
)
@pytest.mark.parametrize("stored", [False, True])
def test_arrays_of_every_layout(tmp_path, array, expected, stored):
    if stored:
        np.save(tmp_path / "a.npy", array)
    found = read_images(tmp_path / "a.npy" if stored else array)
    np.testing.assert_array_equal(found.images, expected)
    assert found.images.dtype == np.uint8
    assert (found.labels, found.ids) == (None, tuple("01234"))
    np.testing.assert_array_equal(found.rows, range(5))


def test_resized_arrays_keep_their_pixels_where_nothing_changes():
    found = read_images(COLOR, image_size=(6, 7), channels=3)
    np.testing.assert_array_equal(found.images, COLOR)
    opaque = np.concatenate([np.moveaxis(COLOR, 1, 3), np.full((5, 6, 7, 1), 255, np.uint8)], 3)
    np.testing.assert_array_equal(read_images(opaque).images, COLOR)
    np.testing.assert_array_equal(read_images(GREY, channels=3).images, GREY[:, None].repeat(3, 1))


def test_one_picture_is_a_source(tmp_path):
    picture = np.moveaxis(COLOR[0], 0, -1)
    np.testing.assert_array_equal(read_images(picture[None]).images, COLOR[:1])
    save(Image.fromarray(picture), tmp_path / "set" / "a.png")
    np.testing.assert_array_equal(read_images(tmp_path / "set").images, COLOR[:1])


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
        (GREY.astype(complex), "must hold integers from 0, or floats in [0, 1]. Got complex128"),
        (GREY.astype(float), "divide by what is white, such as 255. Image 0 has"),
        (np.arange(-8, 112).reshape(5, 4, 6) // 24, "must hold integers from 0 to white, 7. Image"),
        (np.where(np.arange(5)[:, None, None] == 3, np.nan, GREY / 255), "Image 3 has nan"),
        (-GREY / 255 - 0.01, "must lie in [0, 1]"),
        (GREY[0], "must have the shape (M, H, W)"),
        (GREY[:0], "holds no images: its shape is (0, 6, 7)"),
        (GREY[:, :1], "sides of at least 2. Got (5, 1, 7)"),
        (np.zeros((5, 3, 8, 3), np.uint8), "either axis could be the channels"),
        (np.zeros((5, 2, 8, 8), np.uint8), "with 1 or 3 channels"),
        (np.zeros((8, 9, 3), np.uint8), "(8, 9, 3): one color picture is array[None], and 8 grey"),
        (np.zeros((8, 9, 4)), "one color picture is array[None]"),
        (None, "must have the shape"),
        ([[1, 2], [3]], "is no array of images"),
    ],
)
def test_arrays_that_are_no_images(array, sentence):
    assert sentence in refusal(array)


def unaligned(array):
    """Return an array whose numbers begin at odd bytes."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def read_only(array):
    frozen = array.copy()
    frozen.setflags(write=False)
    return frozen


LAYOUTS = {
    "reversed": lambda array: array[::-1, :, ::-1][::-1, :, ::-1],
    "strided": lambda array: array.repeat(2, 0)[::2],
    "fortran": np.asfortranarray,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "read-only": read_only,
    "unaligned": unaligned,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float16, np.float64, bool])
@pytest.mark.parametrize("size", [None, 4])
def test_arrays_of_any_memory(layout, dtype, size):
    array = (COLOR / 255).astype(dtype) if dtype(0.5) in (0.5, True) else COLOR.astype(dtype)
    found = read_images(LAYOUTS[layout](array), image_size=size, labels=np.arange(5)[::-1])
    np.testing.assert_array_equal(found.images, read_images(array, image_size=size).images)
    rows = ImageRows(found.images, torch.device("cpu"))
    np.testing.assert_array_equal(rows[slice(0, 5)].numpy(), found.images / np.float32(255))
    channel_statistics(found.images)


# White


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int64])
@pytest.mark.parametrize(("top", "white"), [(1, 1), (2, 3), (90, 127), (200, 255), (4000, 4095)])
def test_white_is_the_largest_number_of_as_many_bits(dtype, top, white):
    if top > np.iinfo(dtype).max:
        return
    array = np.zeros((4, 4, 6), dtype)
    array[2, 1, 3], array[0, 0, 0] = top, top // 2
    found = read_images(array)
    assert found.white == white
    assert found.images[2, 0, 1, 3] == round(255 * top / white)
    assert found.images[0, 0, 0, 0] == round(255 * (top // 2) / white)
    said = f"bit{'s' * (white > 1)}: {white} is white."
    assert found.note.endswith(said) if white < np.iinfo(dtype).max else found.note == ""
    again = read_images(array[:3], white=found.white)
    np.testing.assert_array_equal(again.images, found.images[:3])
    darker = read_images(array // 2, white=found.white)
    assert darker.images.max() <= 128


@pytest.mark.parametrize(
    ("array", "white"),
    [(GREY, 255), (GREY.astype(np.uint16) * 257, 65535), (GREY / 255, np.inf), (GREY > 9, np.inf)],
)
def test_a_full_depth_needs_no_note(array, white):
    found = read_images(array)
    assert (found.white, found.note) == (white, "")
    for given in (white, np.inf):
        np.testing.assert_array_equal(read_images(array, white=given).images, found.images)


def test_all_black_is_black():
    found = read_images(np.zeros((3, 4, 4), np.uint8))
    assert (found.white, found.note, found.images.max()) == (255, "", 0)


def test_bytes_that_fill_their_range_are_not_copied():
    assert np.shares_memory(read_images(GREY).images, GREY)
    assert read_images(GREY, white=4095).white == 255  # that of deeper images


def test_values_above_a_given_white_are_refused():
    deep = np.zeros((3, 4, 4), np.uint16)
    deep[1, 2, 2] = 256
    sentence = "must hold integers from 0 to white, 255. Image 1 has 256."
    assert sentence in refusal(deep, white=255)
    assert "says nothing of its depth" in refusal(deep.astype(np.int64), white=np.inf)
    for bad in (0, -1, np.nan):
        assert "'white' parameter" in refusal(GREY, ValueError, white=bad)


def grey16(values):
    return encoded(Image.fromarray(values.astype(np.uint16)))


def color16(values):
    return deep_png(np.stack([values, values // 2, values // 3], -1))


def alpha16(values):
    return deep_png(np.stack([values, values, values, np.full_like(values, 65535)], -1))


def tiff16(values):
    return deep_tiff(np.stack([values, values // 2, values // 3], -1), packed=False)


def packed16(values):
    return deep_tiff(np.stack([values, values // 2, values // 3], -1), packed=True)


def grey32(values):
    return encoded(Image.fromarray(values.astype(np.int32)), "TIFF")


@pytest.mark.parametrize("write", [grey16, color16, alpha16, tiff16, packed16, grey32])
@pytest.mark.parametrize("top", [1, 100, 255, 4095, 4000, 65535])
def test_deep_pictures_keep_all_of_their_depth(tmp_path, write, top):
    root = tmp_path / "set"
    root.mkdir()
    values = np.rint(np.linspace(0, top, 64)).astype(np.int64).reshape(8, 8)
    for name, held in (("a", values // 2), ("b", values), ("c", values)):
        (root / f"{name}.png").write_bytes(write(held))
    found = read_images(root)
    white = 2 ** int(top).bit_length() - 1
    assert found.white == white
    assert (f"{white} is white." in found.note) == (white < 65535)
    for image, held in zip(found.images, (values // 2, values), strict=False):
        np.testing.assert_array_equal(image[0], np.rint(held * (255 / white)))
    assert_same_source(read_images(root), found)  # from the cache
    (root / "c.png").unlink()
    (root / "b.png").unlink()
    (root / "d.png").write_bytes(write(values // 3))
    assert_same_white(read_images(root, white=found.white), found)


def assert_same_source(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    assert (one.white, one.note, one.ids) == (other.white, other.note, other.ids)


def assert_same_white(darker, found):
    """The darker of two sources has found's white, so that its first image is the same."""
    np.testing.assert_array_equal(darker.images[0], found.images[0])
    assert darker.white == found.white


def test_brighter_pictures_than_a_given_white_are_named(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for number, top in enumerate([4095, 255, 5000, 100]):
        (root / f"{number}.png").write_bytes(grey16(np.full((4, 4), top)))
    found = read_images(root, white=4095)
    assert found.skipped == (("2.png", "it holds 5000, above 4095, which is white"),)
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [255, 16, 6])
    np.testing.assert_array_equal(found.rows, [0, 1, 3])
    sentence = (
        "None of 4 images in set can be read: 0.png (it holds 4095, above 63, which is white)"
    )
    assert sentence in refusal(root, white=63)
    full = read_images(root, white=np.inf)
    np.testing.assert_array_equal(full.images[:, 0, 0, 0], [16, 1, 19, 0])


def test_bytes_beside_deep_pictures_keep_their_white(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(grey16(np.full((4, 4), 9)))
    save(Image.new("L", (4, 4), 200), tmp_path / "set" / "b.png")
    np.testing.assert_array_equal(read_images(tmp_path / "set").images[:, 0, 0, 0], [9, 200])
    (tmp_path / "set" / "a.png").write_bytes(grey16(np.full((4, 4), 4095)))
    found = read_images(tmp_path / "set")
    assert found.white == 4095
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [255, 200])


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_masks_are_stretched_before_they_are_resized(tmp_path, mode):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, ::2] = 1
    for name in "ab":
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([0, 0, 0, 1, 1, 1])
        save(image if mode == "P" else image.convert(mode), tmp_path / "set" / f"{name}.png")
    found = read_images(tmp_path / "set")
    np.testing.assert_array_equal(found.images[0, 0], 255 * mask)
    assert (found.white, found.note) == (1, "The values take 1 bit: 1 is white.")
    assert_same_source(read_images(tmp_path / "set"), found)
    small = read_images(tmp_path / "set", image_size=4)
    np.testing.assert_allclose(small.images, 127.5, atol=10)  # else it were 0
    save(Image.new("L", (16, 16), 2), tmp_path / "set" / "c.png")
    dark = read_images(tmp_path / "set")
    assert (dark.white, dark.note, dark.images.max()) == (255, "", 2)
    told = read_images(tmp_path / "set", white=1)
    assert told.skipped == (("c.png", "it holds 2, above 1, which is white"),)
    np.testing.assert_array_equal(told.images, found.images)


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
