"""The cache of decoded images: found again, made anew when anything changed, never in the way."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from coincide.data import SourceError
from coincide.data.images import cache as cache_module
from coincide.data.images import read_images
from coincide.data.images.cache import fingerprint
from photos import damaged_png, odd_folder, photo, save


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed in range(5):
        save(photo(6, 6, seed=seed), tmp_path / "set" / f"{seed % 2}" / f"{seed}.png")
    return tmp_path / "set"


def read(folder, **options):
    """Return the source, and whether it was decoded."""
    calls = []
    found = read_images(folder, progress=lambda *counts: calls.append(counts), **options)
    if calls:
        assert calls[-1][0] == calls[-1][1] > 0
    return found, bool(calls)


def entries(folder):
    """Return the names of the files in the cache beside the folder."""
    return sorted(path.suffix for path in (folder.parent / "cache").rglob("*") if path.is_file())


def assert_same(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    assert (one.ids, one.skipped, one.note) == (other.ids, other.skipped, other.note)
    assert one.white == other.white
    np.testing.assert_array_equal(one.rows, other.rows)


def test_the_second_reading_decodes_nothing(folder):
    first, decoded = read(folder)
    assert decoded
    again, decoded = read(folder)
    assert not decoded
    assert_same(first, again)
    assert entries(folder) == [".json", ".npy"]


def test_what_was_skipped_and_noted_is_remembered(folder):
    odd_folder(folder / "odd")
    first, _ = read(folder)
    again, decoded = read(folder)
    assert not decoded
    assert len(again.skipped) == 4
    assert again.note
    assert_same(first, again)
    np.testing.assert_array_equal(first.labels, again.labels)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone", "json", "json-cut"])
def test_a_damaged_entry_is_made_anew(folder, monkeypatch, damage, large):
    if large:
        monkeypatch.setattr(cache_module, "LARGE", 100)
    first, _ = read(folder)
    (array,) = (folder.parent / "cache").rglob("*.npy")
    (about,) = (folder.parent / "cache").rglob("*.json")
    whole = array.read_bytes()
    expected = first.images.copy()
    del first
    array.unlink()
    if damage != "gone":
        kept = {"cut": whole[:-9], "longer": whole + b"0", "empty": b""}
        array.write_bytes(kept.get(damage, whole))
    if damage == "json":
        about.write_text("[]")
    elif damage == "json-cut":
        about.write_text(about.read_text()[:-5])
    again, decoded = read(folder)
    assert decoded
    np.testing.assert_array_equal(again.images, expected)
    assert not read(folder)[1]


def test_any_change_is_noticed(folder):
    read(folder)
    path = folder / "0" / "0.png"
    about = path.stat()
    save(photo(6, 6, seed=99), path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # as cp -p and archives do
    assert path.stat().st_size == about.st_size
    found, decoded = read(folder)
    assert decoded
    assert (found.images[0].transpose(1, 2, 0) == np.asarray(photo(6, 6, seed=99))).all()
    save(photo(6, 6), folder / "0" / "new.png")
    assert read(folder)[1]
    (folder / "0" / "new.png").unlink()
    assert not read(folder)[1]
    for options in ({"image_size": 4}, {"channels": 1}):
        assert read(folder, **options)[1]
        assert not read(folder, **options)[1]


def test_the_same_bytes_are_the_same_images(folder, tmp_path):
    read(folder)
    for path in folder.rglob("*.png"):
        again = tmp_path / "copy.png"
        again.write_bytes(path.read_bytes())
        again.replace(path)  # another file, written now
    assert not read(folder)[1]


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("moved", [False, True])
def test_large_files_are_looked_at_in_places(tmp_path, place, moved):
    path = tmp_path / "large"
    content = bytearray(1 << 20)
    path.write_bytes(content)
    before, about = fingerprint([path], None), path.stat()
    assert fingerprint([path], None) == before
    content[int(place * (len(content) - 1))] = 1
    (tmp_path / "other").write_bytes(content)
    if moved:
        (tmp_path / "other").replace(path)
    else:
        path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert fingerprint([path], None) != before


@pytest.mark.parametrize("begin", np.linspace(0, (1 << 20) - 40_000, 7).astype(int))
def test_large_files_that_the_system_takes_for_the_same(tmp_path, monkeypatch, begin):
    about = SimpleNamespace(st_size=1 << 20, st_mtime_ns=1, st_ctime_ns=1, st_ino=1)
    monkeypatch.setattr(os, "fstat", lambda _: about)
    content = bytearray(1 << 20)
    (tmp_path / "large").write_bytes(content)
    before = fingerprint([tmp_path / "large"], None)
    content[begin : begin + 40_000] = b"1" * 40_000
    (tmp_path / "large").write_bytes(content)
    assert fingerprint([tmp_path / "large"], None) != before


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "?")])
@pytest.mark.parametrize("large", [False, True])
def test_what_the_system_refuses_is_tried_again(folder, monkeypatch, error, large):
    if large:
        monkeypatch.setattr(cache_module, "LARGE", 100)
    whole = Image.open

    def denied(file, *rest, **options):
        if str(file).endswith("3.png"):
            raise error
        return whole(file, *rest, **options)

    monkeypatch.setattr(Image, "open", denied)
    found, _ = read(folder)
    assert found.skipped == (("1/3.png", error.strerror),)
    assert len(found.images) == 4
    assert entries(folder) == []
    monkeypatch.setattr(Image, "open", whole)
    assert len(read(folder)[0].images) == 5


def test_a_file_that_cannot_be_opened_has_a_fingerprint(folder):
    gone = folder / "gone.png"
    before = fingerprint([gone], None)
    save(photo(6, 6), gone)
    assert fingerprint([gone], None) != before


def test_no_cache(folder):
    assert read(folder, cache=False)[1]
    assert read(folder, cache=False)[1]
    assert entries(folder) == []


def test_another_folder(folder, tmp_path):
    assert read(folder, cache=tmp_path / "mine")[1]
    assert not read(folder, cache=str(tmp_path / "mine"))[1]
    assert entries(folder) == []


def test_a_cache_that_cannot_be_written_is_noted(folder, tmp_path):
    (tmp_path / "file").write_text("")
    found, _ = read(folder, cache=tmp_path / "file")
    assert len(found.images) == 5
    assert "could not be cached" in found.note


def test_arrays_leave_nothing_behind(folder):
    read_images("digits", image_size=4)
    assert entries(folder) == []


# Large sources


@pytest.mark.parametrize("cache", [None, False])
def test_large_images_are_mapped(folder, monkeypatch, cache):
    expected, _ = read(folder, cache=False)
    monkeypatch.setattr(cache_module, "LARGE", 5 * 3 * 6 * 6 - 1)
    for first in (True, False):
        found, decoded = read(folder, cache=cache)
        assert isinstance(found.images, np.memmap)
        assert decoded == (first or cache is False)
        assert_same(found, expected)
    assert entries(folder) == ([] if cache is False else [".json", ".npy"])


def test_the_limit_itself_stays_in_memory(folder, monkeypatch):
    monkeypatch.setattr(cache_module, "LARGE", 5 * 3 * 6 * 6)
    assert not isinstance(read(folder, cache=False)[0].images, np.memmap)


def test_a_large_array_is_as_long_as_its_good_images(folder, monkeypatch):
    (folder / "0" / "1.png").write_bytes(damaged_png())
    monkeypatch.setattr(cache_module, "LARGE", 1)
    for _ in range(2):
        found, _ = read(folder)
        assert found.images.shape == (5, 3, 6, 6)
        assert found.skipped == (("0/1.png", "image file is truncated"),)
    assert entries(folder) == [".json", ".npy"]


def test_a_full_disk_is_said(folder, monkeypatch):
    monkeypatch.setattr(cache_module, "LARGE", 1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "_write_header", full)
    with pytest.raises(SourceError, match=r"No space left.*smaller image_size"):
        read(folder)
    assert entries(folder) == []


def test_an_interrupted_reading_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(cache_module, "LARGE", 1)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_images(folder, progress=stop)
    assert entries(folder) == []
