"""Images from folders: what comes out equals what was drawn, whatever its mode, size and damage."""

import os

import numpy as np
import pytest
from PIL import Image

from coincide.data.images import decoding, read_images
from photos import (
    bomb_png,
    damaged_png,
    drawn,
    encoded,
    odd_folder,
    photo,
    refusal,
    save,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def single(tmp_path, image, name="a.png", **options):
    """Return the pixels of an image that is read twice from a folder."""
    content = image if isinstance(image, bytes) else None
    for copy in ("1", "2"):
        path = tmp_path / "photos" / (copy + name)
        if content is None:
            save(image, path, **options)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    images = read_images(tmp_path / "photos").images
    np.testing.assert_array_equal(images[0], images[1])
    return images[0]


# Folders


def test_class_folders_give_sorted_names_and_paths(tmp_path):
    root = tmp_path / "pets"
    drawings = {}
    for seed, place in enumerate(["dog/b.png", "dog/a.png", "cat/deep/c.png", "ant/d.png"]):
        drawings[place] = photo(8, 10, seed=seed)
        save(drawings[place], root / place)
    found = read_images(root)
    assert found.name == "pets"
    assert found.label_names == ("ant", "cat", "dog")
    assert found.ids == ("ant/d.png", "cat/deep/c.png", "dog/a.png", "dog/b.png")
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 2])
    assert found.labels.dtype == np.int64
    assert found.images.shape == (4, 3, 8, 10)
    for name, image in zip(found.ids, found.images, strict=True):
        np.testing.assert_array_equal(image, drawn(drawings[name]))
    assert (found.note, found.skipped) == ("", ())


def test_flat_folder_has_no_labels(tmp_path):
    for name in "ba":
        save(photo(4, 4, "L"), tmp_path / "flat" / f"{name}.png")
    found = read_images(tmp_path / "flat")
    assert (found.labels, found.label_names) == (None, None)
    assert found.ids == ("a.png", "b.png")
    assert found.images.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("place", ["unlabeled/x.png", "Unlabelled/x.png", "-1/x.png", "x.png"])
def test_images_without_a_class_are_unknown(tmp_path, place):
    root = tmp_path / "half"
    for name in ("b/1.png", "a/2.png", place):
        save(photo(4, 4), root / name)
    found = read_images(root)
    classes = dict(zip(found.ids, found.labels, strict=True))
    assert classes == {"a/2.png": 0, "b/1.png": 1, place: -1}
    assert found.label_names == ("a", "b")


def test_one_class_alone_is_no_label(tmp_path):
    for name in "ab":
        save(photo(4, 4), tmp_path / "set" / "images" / f"{name}.png")
    assert read_images(tmp_path / "set").labels is None


@pytest.mark.parametrize("names", [[str(number) for number in range(12)], ["c1", "c2", "c10"]])
def test_folders_and_files_are_in_the_order_of_their_numbers(tmp_path, names):
    for seed, name in enumerate(reversed(names)):
        for file in ("10.png", "9.png"):
            save(photo(4, 4, seed=seed), tmp_path / "set" / name / file)
    found = read_images(tmp_path / "set")
    assert found.label_names == tuple(names)
    assert found.ids == tuple(f"{name}/{file}.png" for name in names for file in ("9", "10"))


@pytest.mark.parametrize(("folder", "asked"), [("val", "validation"), ("test", "test")])
def test_splits_are_folders(tmp_path, folder, asked):
    root = tmp_path / "set"
    for place in ("train/a/1.png", "train/b/2.png", f"{folder}/a/3.png", f"{folder}/b/4.png"):
        save(photo(4, 4), root / place)
    save(photo(4, 4), root / "unlabeled" / "5.png")
    save(photo(4, 4), root / "cover.png")
    train, other = read_images(root), read_images(root, split=asked)
    assert set(train.ids) == {"train/a/1.png", "train/b/2.png", "unlabeled/5.png"}
    assert train.label_names == ("a", "b")
    assert sorted(train.labels) == [-1, 0, 1]
    assert other.ids == (f"{folder}/a/3.png", f"{folder}/b/4.png")
    assert other.skipped == (("cover.png", "outside the folders of splits"),)
    missing = {"val": "test", "test": "validation"}[folder]
    assert f"has no split {missing!r}" in refusal(root, split=missing)


def write_set(root, *places):
    """Write a small image to each place, and a few bytes where it is none."""
    for place in places:
        if place.endswith(".png"):
            save(photo(4, 4), root / place)
        else:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text("<xml/>") if place[-1] != "/" else (root / place).mkdir()
    return root


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("train_set", "test_set"),
        ("TrainSet", "ValSet"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "val2017"),
        ("all/data/train", "all/data/dev"),
        ("set/train/images", "set/valid/images"),
    ],
)
@pytest.mark.parametrize(
    ("strays", "skipped"),
    [
        ((), {}),
        (("empty/",), {}),
        (("__MACOSX/train/._1.png", "__MACOSX/x"), {"__MACOSX": "no images, but another file"}),
        (("notes/a.xml", "notes/b/c.json"), {"notes": "it holds no images, but 2 other files"}),
        (("seg_pred/1.png",), {"seg_pred": "beside the folders of splits"}),
        (("read.me",), {"read.me": "not an image"}),
    ],
    ids=["alone", "empty", "hidden", "annotations", "third", "file"],
)
def test_splits_are_told_by_the_words_of_their_names(tmp_path, train, test, strays, skipped):
    base = train.split("train")[0].split("Train")[0].removesuffix("seg_")
    held = [f"{part}/{place}" for part in (train, test) for place in ("cat/1.png", "dog/2.png")]
    root = write_set(tmp_path / "set", *held, *(base + stray for stray in strays))
    found = read_images(root)
    assert found.ids == (f"{train}/cat/1.png", f"{train}/dog/2.png")
    assert found.label_names == ("cat", "dog")
    others = [name for name in test.split("/") if name not in ("all", "data", "set")]
    assert found.note.endswith(f"'; --split takes {others[0]!r}.")
    assert len(found.skipped) == len(skipped)
    for (name, reason), (stray, why) in zip(found.skipped, skipped.items(), strict=True):
        assert (name, why in reason) == (base + stray, True)
    assert read_images(root, split=others[0]).ids == (f"{test}/cat/1.png", f"{test}/dog/2.png")


@pytest.mark.parametrize(
    "names",
    [
        ("plane", "train"),
        ("bus", "car", "train"),
        ("bus", "car", "ship", "test_tube", "train_station"),
        ("tests", "trainer"),
    ],
)
def test_a_class_may_be_called_train(tmp_path, names):
    root = write_set(tmp_path / "set", *(f"{name}/1.png" for name in names), "notes/a.xml", "none/")
    found = read_images(root)
    assert found.label_names == names
    assert found.skipped == (("notes", "it holds no images, but another file"),)


def test_the_very_name_of_a_folder_is_a_split(tmp_path):
    places = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    root = write_set(tmp_path / "set", *places)
    found = read_images(root, split="b")
    assert (found.ids, found.labels) == (("b/1.png", "b/2.png"), None)
    assert found.note == f"{root}: read the split 'b'; --split takes 'a'."
    assert "has no split 'c'" in refusal(root, split="c")
    for part in ("x-train", "test", "pred"):
        write_set(tmp_path / "parts" / part, *places)
    assert read_images(tmp_path / "parts", split="pred").label_names == ("a", "b")
    assert read_images(tmp_path / "parts", split=".").label_names == ("pred", "test", "x-train")


def test_two_folders_of_one_split_are_refused(tmp_path):
    places = (f"{part}/{name}.png" for part in ("train2014", "train2017", "val") for name in "ab")
    root = write_set(tmp_path / "set", *places)
    assert "several parts for the split 'train', 'train2014', 'train2017': say" in refusal(root)
    assert read_images(root, split="train2017").ids == ("train2017/a.png", "train2017/b.png")


def test_parts_of_unusual_names_are_refused(tmp_path):
    places = [f"part{number}/{name}/1.png" for number in (1, 2, 10) for name in ("cat", "dog")]
    root = write_set(tmp_path / "set", *places, "notes/a.xml")
    sentence = refusal(root)
    assert "'part1', 'part2', 'part10' in" in sentence
    assert sentence.endswith("--split part1, or another one; if they are the classes, --split .")
    assert read_images(root, split="part1").label_names == ("cat", "dog")
    assert read_images(root, split=".").label_names == ("part1", "part2", "part10")
    one_each = [f"{name}/images/{number}.png" for name in ("cat", "dog") for number in "12"]
    assert read_images(write_set(tmp_path / "nested", *one_each)).label_names == ("cat", "dog")


def test_links_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "set"
    save(photo(4, 4), root / "a" / "1.png")
    save(photo(4, 4), tmp_path / "elsewhere" / "2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / "gone.png").symlink_to(root / "nothing")
    found = read_images(root)
    assert found.ids == ("a/1.png", "b/2.png")
    assert dict(found.skipped) == {
        "a/up": "a link to a folder that is read elsewhere",
        "a/self.png": "not a file",
        "a/gone.png": "not a file",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    for name in "ab":
        save(photo(4, 4), tmp_path / "set" / f"{name}.png")
    os.mkfifo(tmp_path / "set" / "c.png")
    assert read_images(tmp_path / "set").skipped == (("c.png", "not a file"),)


def test_twenty_odd_photos(tmp_path):
    root = odd_folder(tmp_path / "odd")
    (root / ".hidden.png").write_bytes(b"nothing")
    found = read_images(root)
    assert dict(found.skipped) == {
        "17.png": "image file is truncated",
        "18.png": "1x1 pixels are too few",
        "19.jpg": "not an image that Pillow can read",
        "20.txt": "not an image",
    }
    assert len(found.ids) == 16
    assert found.images.shape[:2] == (16, 3)
    assert found.images.shape[2] == found.images.shape[3] <= 64
    assert "16 of 16 images were resized" in found.note
    np.testing.assert_array_equal(found.images, read_images(root, cache=False).images)


# Modes


def test_grey_stays_grey_when_all_is(tmp_path):
    save(photo(6, 6, "L"), tmp_path / "set" / "a.png")
    palette = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "L").convert("P")
    palette.putpalette([value for grey in range(256) for value in [255 - grey] * 3])
    save(palette, tmp_path / "set" / "b.png")
    images = read_images(tmp_path / "set").images
    assert images.shape == (2, 1, 6, 6)
    np.testing.assert_array_equal(images[1].ravel(), 255 - np.arange(36))
    save(photo(6, 6), tmp_path / "set" / "c.png")
    mixed = read_images(tmp_path / "set").images
    assert mixed.shape == (3, 3, 6, 6)
    np.testing.assert_array_equal(mixed[0], images[0].repeat(3, 0))


def test_damaged_color_has_no_say_in_size_and_channels(tmp_path):
    for seed in range(3):
        save(photo(6, 6, "L", seed), tmp_path / "set" / f"{seed}.png")
    (tmp_path / "set" / "bad.png").write_bytes(damaged_png())  # 40x40 RGB
    found = read_images(tmp_path / "set")
    assert found.images.shape == (3, 1, 6, 6)
    for seed in range(3):
        np.testing.assert_array_equal(found.images[seed], drawn(photo(6, 6, "L", seed)))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_color_spaces_become_rgb(tmp_path, mode):
    image = photo(8, 8, mode)
    name = "a.jpg" if mode == "YCbCr" else "a.tiff"
    found = single(tmp_path, image, name, **({"quality": 100} if mode == "YCbCr" else {}))
    assert found.shape == (3, 8, 8)
    if mode == "CMYK":
        np.testing.assert_array_equal(found, drawn(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = photo(8, 8, mode)
    pixels = drawn(image).astype(float)
    alpha = pixels[-1:] / 255
    expected = pixels[:-1] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(single(tmp_path, image), expected, atol=1.01)


def test_transparent_color_of_a_palette_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.paste(0, (0, 0, 2, 4))
    found = single(tmp_path, image, transparency=0)
    np.testing.assert_array_equal(
        found[:, 0], [[255, 255, 200, 200], [255, 255, 100, 100], [255, 255, 0, 0]]
    )


def test_floats_of_a_tiff_must_lie_in_the_unit_interval(tmp_path):
    save(Image.fromarray(np.full((4, 4), 0.5, np.float32)), tmp_path / "set" / "a.tiff")
    save(Image.fromarray(np.full((4, 4), 1.0, np.float32)), tmp_path / "set" / "b.tiff")
    save(Image.fromarray(np.full((4, 4), 2.0, np.float32)), tmp_path / "set" / "c.tiff")
    found = read_images(tmp_path / "set")
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [128, 255])
    assert found.skipped == (("c.tiff", "it holds numbers outside 0 to 1"),)


def test_one_bit_is_black_and_white(tmp_path):
    image = photo(8, 8, "L").convert("1")
    np.testing.assert_array_equal(single(tmp_path, image)[0], 255 * np.asarray(image))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, turn, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(6, 8)
    lossless = {"lossless": True} if kind == "webp" else {}
    found = single(tmp_path, image, f"a.{kind}", exif=exif, **lossless)
    np.testing.assert_array_equal(found, np.rot90(drawn(image), turn, (1, 2)))


# Sizes


def test_equal_sizes_are_kept_and_the_median_is_used_otherwise(tmp_path):
    for seed, size in enumerate([(20, 30), (40, 24), (90, 50)]):
        save(photo(*size, seed=seed), tmp_path / "set" / f"{seed}.png")
    found = read_images(tmp_path / "set")
    assert found.images.shape == (3, 3, 24, 24)  # shorter sides 20, 24, 50
    assert found.note == (
        "3 of 3 images were resized to 24x24 pixels, their centers kept (shorter sides were 20 to"
        " 50 pixels)."
    )


@pytest.mark.parametrize("sizes", [[(100, 300), (200, 160)], [(200, 300)] * 2])
def test_large_photos_become_64_pixels(tmp_path, sizes):
    for seed, size in enumerate(sizes):
        save(photo(*size, seed=seed), tmp_path / "set" / f"{seed}.jpg")
    assert read_images(tmp_path / "set").images.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_center_is_kept_and_the_aspect_too(tmp_path, monkeypatch, kind):
    image = Image.new("RGB", (400, 100), "red")
    image.paste((0, 0, 255), (150, 0, 250, 100))  # a blue square in the middle
    save(image, tmp_path / "set" / f"a.{kind}")
    save(Image.new("RGB", (100, 100), "blue"), tmp_path / "set" / f"b.{kind}")
    monkeypatch.setattr(decoding, "_BLOCK_BYTES", 1)  # every image is a block
    found = read_images(tmp_path / "set", image_size=10).images
    inner = np.broadcast_to(np.array([0, 0, 255]).reshape(3, 1, 1), (3, 10, 8))
    np.testing.assert_allclose(found[0][:, :, 1:-1], inner, atol=4)


def test_resizing_averages_what_it_drops(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    save(Image.fromarray(stripes), tmp_path / "set" / "a.png")
    save(Image.fromarray(stripes.T.copy()), tmp_path / "set" / "b.png")
    found = read_images(tmp_path / "set", image_size=(8, 8)).images
    np.testing.assert_allclose(found, 127.5, atol=6)  # nearest neighbors would give 0 or 255


def test_size_and_channels_can_be_asked_for(tmp_path):
    for name in "ab":
        save(photo(9, 9, "L"), tmp_path / "set" / f"{name}.png")
    assert read_images(tmp_path / "set", image_size=(5, 7), channels=3).images.shape == (2, 3, 5, 7)
    assert read_images("digits", image_size=16).images.shape == (1797, 1, 16, 16)


# Damage


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "not an image that Pillow can read"),
        (damaged_png(), "image file is truncated"),
        (bomb_png(), "it has more than"),
        (encoded(photo(1, 9)), "1x9 pixels are too few"),
        (encoded(photo(40, 40), "JPEG")[:-200], "image file is truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
    ids=["empty", "text", "truncated", "bomb", "thin", "truncated-jpeg", "postscript"],
)
def test_bad_images_are_named(tmp_path, content, reason):
    for name in "ab":
        save(photo(4, 4), tmp_path / "set" / f"{name}.png")
    (tmp_path / "set" / "bad.png").write_bytes(content)
    found = read_images(tmp_path / "set")
    assert found.ids == ("a.png", "b.png")
    ((name, why),) = found.skipped
    assert name == "bad.png"
    assert reason in why


def test_labels_stay_beside_their_images_when_some_are_bad(tmp_path):
    for label, name in enumerate("abcd"):
        save(photo(4, 4, seed=label), tmp_path / "set" / name / "1.png")
    (tmp_path / "set" / "b" / "1.png").write_bytes(b"")
    found = read_images(tmp_path / "set")
    np.testing.assert_array_equal(found.labels, [0, 2, 3])
    np.testing.assert_array_equal(found.rows, [0, 2, 3])
    assert found.label_names == ("a", "b", "c", "d")
    for image, label in zip(found.images, found.labels, strict=True):
        np.testing.assert_array_equal(image, drawn(photo(4, 4, seed=int(label))))


def test_a_source_of_which_nothing_can_be_read_is_refused_with_reasons(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(5):
        (tmp_path / "set" / f"{number}.png").write_bytes(b"")
    sentence = refusal(tmp_path / "set")
    assert "None of 5 images in set can be read: 0.png (it is empty)" in sentence
    assert sentence.endswith("and 2 more.")
    assert not list((tmp_path / ".cache").rglob("*.npy"))
