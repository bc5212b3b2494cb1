"""Images from anywhere as one array of bytes: folders, `datasets`, Parquet, arrays, ``digits``.

Images are decoded once, to uint8 of one size, and the result is cached. What cannot be read is
passed over and reported by name; what cannot be trained on as it stands is refused in a sentence;
what was taken for what is said in the note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from platformdirs import user_cache_path
from torch import Tensor

from coincide._checks import check_integer, parameter_message
from coincide.data import formats
from coincide.data.errors import Array, SourceError
from coincide.data.hub import is_saved
from coincide.data.images import depth, folders, hub, tables
from coincide.data.images.arrays import Pixels, read_pixels
from coincide.data.images.cache import Decoded, ImageStore, fingerprint
from coincide.data.images.decoding import CHUNK, Item, Size, Wanted, decode_images
from coincide.data.images.listing import Listing
from coincide.data.labels import encode_labels

_OWNER = "read_images"
_STATISTICS_ROWS = 10_000


@dataclass(frozen=True)
class ImageSource:
    """Images of one size, and their classes where they are known.

    Attributes
    ----------
    name : str
        What the source is called: ``"digits"``, the folder's or the file's name.
    images : ndarray of shape (M, C, H, W), uint8
        Grey (C = 1) or RGB (C = 3); a memory map when large.
    labels : ndarray of shape (M,), int64, or None
        Class codes, -1 where unknown; None if no class is known.
    label_names : tuple of str, or None
        What the codes 0, 1, … stand for.
    ids : tuple of M str
        The path of each image within the folder, or its row in the source.
        Where a table names its images, each differently, those names.
    rows : ndarray of shape (M,), int64
        The number of each image in the source, counting those that could not be read.
    skipped : tuple of (str, str)
        What could not be read, by name, and why.
    note : str
        What was taken for what, and done to the images, in sentences; empty if nothing was.
    white : float
        The integer that became 255: 255 itself for bytes that use their depth, 4095 for 12 bits,
        1 for masks of 0 and 1. ``inf`` for floats, whose white is 1.
    """

    name: str
    images: Array
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    ids: tuple[str, ...]
    rows: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...] = ()
    note: str = ""
    white: float = depth.OWN


def read_images(
    source: str | Path | ArrayLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    split: str = "train",
    label_column: str | None = None,
    labels: ArrayLike | None = None,
    channels: int | None = None,
    white: float | None = None,
    cache: bool | str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSource:
    """Read images, and labels where there are some.

    Parameters
    ----------
    source : str, Path or array
        ``"digits"`` (scikit-learn's handwritten digits); a folder with one folder of images
        per class, or with images alone; a folder or file of Parquet in the layout of Hugging
        Face's ``datasets``, or what its ``save_to_disk`` wrote; an ``.npy`` or ``.npz``; the
        name of a set on the Hugging Face hub; an array (M, H, W), (M, H, W, C) or
        (M, C, H, W) of integers from 0, or of floats in [0, 1]. In a folder, images in
        ``unlabeled/`` or beside the folders of classes have no class; a ``metadata.csv`` with a
        column ``file_name`` says the classes instead.
    image_size : int or (height, width), optional
        By default the common size of the images, up to 256; else a square of at most 64.
        Other sizes are resized with their aspect kept, and the center cut out.
    split : str
        The part to read of a source that has several, such as folders ``train/`` and ``test/``,
        ``seg_train/`` and ``seg_test/``; or the very name of a folder; ``"."`` for a folder as it
        is, its folders classes whatever they are called.
    label_column : str, optional
        The column of a table, or the array of an ``.npz``, that holds the labels. By default the
        column ``label``, or else ``labels``, ``class`` or ``target``, or the one of classes.
    labels : array of shape (M,), optional
        Labels instead of those of the source: integers or text; -1, None or blank where unknown.
    channels : {1, 3}, optional
        Grey or RGB. By default grey if all images are.
    white : float, optional
        The integer that becomes 255, as in the images that a network was trained on: its
        ``ImageSource.white``. By default 2^b - 1 with the fewest bits b that hold the largest
        value of the source. ``inf`` for the largest that bytes and 16 bits can hold.
    cache : bool, str or Path, optional
        Where decoded images are kept for the next time: a folder; by default that of the system's
        caches, such as ``~/.cache/coincide``; False to keep none.
    progress : callable, optional
        Called with the number of images decoded and of all.

    Returns
    -------
    ImageSource

    Raises
    ------
    SourceError
        If there is no such source, it holds no images, none can be read, or the labels do not
        fit.

    Examples
    --------
    >>> from coincide.data.images import read_images
    >>> digits = read_images("digits")
    >>> digits.images.shape, int(digits.images.max()), len(digits.label_names)
    ((1797, 1, 8, 8), 255, 10)
    """
    size = _check_size(image_size)
    if channels not in (None, 1, 3):
        raise ValueError(parameter_message("channels", _OWNER, "1, 3 or None", channels))
    if white is not None and not white >= 1:
        raise ValueError(parameter_message("white", _OWNER, "a number of at least 1", white))
    pixels = read_pixels(source, split, label_column, white)
    if pixels is None:
        assert isinstance(source, str | Path)
        listing = _find(source, split, label_column)
        wanted = Wanted(size, channels, white)
        store = _store(listing, (wanted, split), cache)
        decoded = _decode(listing, store, wanted, progress)
    else:
        listing, decoded = _list_pixels(pixels), Decoded(pixels.images)
        if not pixels.fits(size, channels):
            wanted = Wanted(size, channels, depth.BYTE)  # their white is found
            decoded = _decode(listing, ImageStore(), wanted, progress)
        decoded = replace(decoded, white=pixels.white)
    return _assemble(listing, decoded, labels)


def _check_size(image_size: int | tuple[int, int] | None) -> Size | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        expected = "an integer or a pair (height, width)"
        raise ValueError(parameter_message("image_size", _OWNER, expected, image_size))
    height, width = (check_integer(side, "image_size", _OWNER, low=2) for side in sides)
    return height, width


def _find(source: str | Path, split: str, label_column: str | None) -> Listing:
    """Return what a source that is no array holds."""
    path = Path(source).expanduser()
    if not str(source) or not path.exists():
        return hub.list_hub(source, split, label_column)
    if path.is_file():
        return tables.list_parquet(path, split, label_column)
    if is_saved(path):
        return hub.list_saved(path, split, label_column)
    # A table beside images is one thing, a table of images another.
    if tables.has_images(path) or (formats.parquet_parts(path) and not folders.holds_images(path)):
        return tables.list_parquet(path, split, label_column)
    return folders.list_folder(path, split, label_column) or hub.list_loadable(
        path, split, label_column
    )


def _list_pixels(pixels: Pixels) -> Listing:
    """Return an array as a source of images, to be resized like any other."""
    images = pixels.images

    def chunks() -> Iterator[list[Item]]:
        for start in range(0, len(images), CHUNK):
            block = np.moveaxis(images[start : start + CHUNK], 1, -1)
            rows = block[..., 0] if block.shape[-1] == 1 else block
            yield [np.ascontiguousarray(row) for row in rows]

    ids = [str(row) for row in range(len(images))]
    names = pixels.label_names
    return Listing(pixels.name, ids, chunks, pixels.labels, names, note=pixels.note)


def _store(listing: Listing, options: object, cache: bool | str | Path | None) -> ImageStore:
    if cache is False or listing.files is None:
        return ImageStore()
    folder = user_cache_path("coincide", appauthor=False)
    if isinstance(cache, str | Path):
        folder = Path(cache).expanduser()
    return ImageStore(folder, fingerprint(listing.files, (len(listing.ids), options)))


def _decode(
    listing: Listing,
    store: ImageStore,
    wanted: Wanted,
    progress: Callable[[int, int], None] | None,
) -> Decoded:
    """Return the images from the cache, or decode and cache them."""
    decoded = store.load()
    if decoded is not None:
        return decoded
    decoded = decode_images(listing.chunks, len(listing.ids), store, wanted, progress)
    if len(decoded.images) == 0:
        store.discard()
        raise SourceError(_none_read(listing, decoded))
    return store.save(decoded)


def _none_read(listing: Listing, decoded: Decoded) -> str:
    bad = [f"{_shown(listing, row)} ({reason})" for row, reason in decoded.reasons.items()]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    listed = f": {', '.join(bad[:3])}{more}" if bad else ""
    return f"None of {len(listing.ids)} images in {listing.name} can be read{listed}."


def _assemble(listing: Listing, decoded: Decoded, given: ArrayLike | None) -> ImageSource:
    """Return the images that can be read, with their labels, and the others by name."""
    classes, names, told = listing.labels, listing.label_names, listing.label_note
    if given is not None:
        values = np.asarray(given, dtype=None if isinstance(given, np.ndarray) else object)
        if values.shape != (len(listing.ids),):
            raise SourceError(
                f"The labels must be 1-D, one for each of {len(listing.ids)} images."
                f" Got shape {values.shape} instead."
            )
        classes, names = encode_labels(values, "labels=...")
        told = ""
    kept = [row for row in range(len(listing.ids)) if row not in decoded.reasons]
    unread = [(_shown(listing, row), reason) for row, reason in decoded.reasons.items()]
    return ImageSource(
        listing.name,
        decoded.images,
        None if classes is None else classes[kept],
        names,
        tuple(listing.ids[row] for row in kept),
        np.array(kept, np.int64),
        (*listing.skipped, *unread),
        " ".join(note for note in (listing.note, told, decoded.note) if note),
        decoded.white,
    )


def _shown(listing: Listing, row: int) -> str:
    """Return the path of an image, or say that its name is the number of a row."""
    return f"row {row}" if listing.ids[row] == str(row) else listing.ids[row]


class ImageRows:
    """Images as float32 tensors in [0, 1] on a device, by the numbers of their rows.

    Images in memory, (M, C, H, W) of uint8, go to the device once, as bytes; of a memory map only
    the rows asked for are read.
    """

    def __init__(self, images: Array, device: torch.device) -> None:
        _check_images(images, "ImageRows")
        self._images = images
        self._device = device
        self._kept: Tensor | None = None
        if not _is_mapped(images):
            self._kept = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if self._kept is not None:
            picked = self._kept[rows.to(self._device) if isinstance(rows, Tensor) else rows]
        else:
            index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
            picked = torch.from_numpy(np.array(self._images[index], order="C")).to(self._device)
        return picked.float().div_(255)


def channel_statistics(images: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of every channel, in [0, 1], ``(C,)`` of float64.

    Exact on at most 10,000 images spread evenly over all. A channel that is constant gets the
    standard deviation 1, so that dividing by it changes nothing.
    """
    _check_images(images, "channel_statistics")
    chosen = np.linspace(0, len(images) - 1, min(len(images), _STATISTICS_ROWS)).astype(np.int64)
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(chosen), CHUNK):
        block = images[chosen[start : start + CHUNK]]
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return mean, np.where((counts > 0).sum(1) > 1, std, 1.0)


def _check_images(images: Array, owner: str) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
        expected = "a uint8 array (M, C, H, W) that is not empty"
        got = f"{images.dtype} {images.shape}"
        raise ValueError(parameter_message("images", owner, expected, got))


def _is_mapped(images: Array) -> bool:
    """Whether an array is a memory map, or a view of one."""
    base: object = images
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False
