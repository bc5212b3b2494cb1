"""Images that are arrays already: from Python, ``.npy`` and ``.npz`` files, and ``digits``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coincide.data import vectors
from coincide.data.arrays import open_npy, open_npz
from coincide.data.errors import Array, SourceError, check_known, first_line, missing_source
from coincide.data.images import depth
from coincide.data.labels import encode_labels
from coincide.data.splits import check_only_split

_SUFFIXES = (".npy", ".npz")
_BLOCK_BYTES = 16 << 20  # of floats turned into bytes together


@dataclass(frozen=True)
class Pixels:
    """Images as bytes, (M, C, H, W) of uint8, and their labels as in an image source.

    ``white`` is the value that became 255, ``note`` says so where it needs saying.
    """

    name: str
    images: Array
    white: float = depth.OWN
    note: str = ""
    labels: NDArray[np.int64] | None = None
    label_names: tuple[str, ...] | None = None

    def fits(self, size: tuple[int, int] | None, channels: int | None) -> bool:
        """Whether the images already have this size and as many channels."""
        _, found, *sides = self.images.shape
        return size in (None, tuple(sides)) and found in (
            (1, 3) if channels is None else (channels,)
        )


def read_pixels(
    source: str | Path | ArrayLike, split: str, label_column: str | None, white: float | None
) -> Pixels | None:
    """Return the images of an array source, or None if the source is of another kind.

    The split is that of an ``.npz``: arrays such as ``x_train`` or ``test_images``; its labels are
    by default in an array of one of the usual names.
    """
    if not isinstance(source, str | Path):
        found = _pixels("array", _array(source), "The array", white)
    elif str(source) in vectors.BUILT_IN:
        found = _read_digits()
    elif (path := Path(source).expanduser()).suffix.lower() in _SUFFIXES and not path.is_dir():
        if not path.exists():
            raise missing_source(source)
        if path.suffix.lower() == ".npz":
            return _read_archive(path, split, label_column, white)
        found = _pixels(path.stem, open_npy(path), str(path), white)
    else:
        return None
    check_only_split(found.name, split)
    if label_column is not None:
        raise SourceError(f"{found.name} has no named columns: give labels=... instead.")
    return found


def _array(source: ArrayLike) -> Array:
    try:
        return np.asarray(source)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SourceError(f"The source is no array of images ({first_line(error)}).") from error


def _read_digits() -> Pixels:
    digits = vectors.load_source("digits")
    images = np.rint(digits.features.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Pixels("digits", images, labels=digits.labels, label_names=digits.label_names)


def _read_archive(path: Path, split: str, label_column: str | None, white: float | None) -> Pixels:
    """Read the images of an archive, ``x_train`` or ``images``, and the labels beside them."""
    arrays = open_npz(path)
    of_split = [f"{name}_{split}" for name in ("x", "X")] + [f"{split}_images"]
    single = [name for name, array in arrays.items() if array.ndim >= 3]
    named = [name for name in (*of_split, "images", "x", "X") if name in arrays]
    if not named and len(single) != 1:
        held = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise SourceError(
            f"{path} must hold one array of images, or one named {of_split[0]!r} or 'images'. It"
            f" holds {held}."
        )
    chosen = (named or single)[0]
    if chosen not in of_split:
        check_only_split(path, split)
    found = _pixels(path.stem, arrays[chosen], f"{chosen!r} in {path}", white)
    beside = [f"y_{split}", f"{split}_labels"] if chosen in of_split else ["labels", "label", "y"]
    if label_column is not None:
        check_known([label_column], list(arrays), str(path), "array")
        beside = [label_column]
    labels = next((arrays[name] for name in beside if name in arrays), None)
    return found if labels is None else _with_labels(found, labels, path)


def _with_labels(found: Pixels, labels: Array, path: Path) -> Pixels:
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if column.shape != (len(found.images),):
        raise SourceError(
            f"The labels in {path} must be 1-D, one for each of {len(found.images)} images."
            f" Got shape {labels.shape} instead."
        )
    codes, names = encode_labels(column, str(path))
    return replace(found, labels=codes, label_names=names)


# From any array to (M, C, H, W) of uint8


def _pixels(name: str, array: Array, where: str, white: float | None) -> Pixels:
    """Return an array's images; white is found where it is not given."""
    images = _channels_first(array, where)
    if len(images) == 0:
        raise SourceError(f"{where} holds no images: its shape is {array.shape}.")
    kind = images.dtype.kind
    if kind not in "biuf":
        raise SourceError(
            f"{where} must hold integers from 0, or floats in [0, 1]. Got {images.dtype} instead."
        )
    if kind == "f":
        way_out = "divide by what is white, such as 255"
        _check(images, where, 1, f"must lie in [0, 1] where it holds floats: {way_out}")
    if kind in "bf":
        return Pixels(name, _scaled(images, 1))
    full = float(np.iinfo(images.dtype).max)
    if white is None:
        top = _top(images)
        white = depth.find_white(top) if top > 0 else full
    elif white == depth.OWN and images.dtype.itemsize > 2:
        raise SourceError(
            f"{where} holds {images.dtype}, which says nothing of its depth: save it with"
            " .astype(np.uint8) or .astype(np.uint16)."
        )
    elif white == depth.OWN:
        white = full
    if images.dtype == np.uint8:
        white = min(white, depth.BYTE)
    _check(images, where, white, f"must hold integers from 0 to white, {white:.0f}")
    whole = images.dtype == np.uint8 and white == depth.BYTE
    note = depth.describe_white(white, full)
    return Pixels(name, images if whole else _scaled(images, white), white, note)


def _blocks(images: Array) -> Iterator[tuple[int, Array]]:
    """Yield a few images at a time, and the number of the first."""
    step = max(1, _BLOCK_BYTES // (8 * images[0].size))
    for start in range(0, len(images), step):
        yield start, images[start : start + step]


def _top(images: Array) -> int:
    """Return the largest value, or one of as many bits as there can be."""
    top, full = 0, int(np.iinfo(images.dtype).max)
    for _, block in _blocks(images):
        top = max(top, int(block.max()))
        if top > full // 2:
            break
    return top


def _check(images: Array, where: str, white: float, rule: str) -> None:
    """Refuse values outside 0 to white, with the first image that has one."""
    if images.dtype == np.uint8 and white >= depth.BYTE:
        return
    for start, block in _blocks(images):
        fine = (block >= 0) & (block <= white)  # NaN fails both
        if not fine.all():
            row = int(np.argmin(fine.reshape(len(block), -1).all(1)))
            raise SourceError(
                f"{where} {rule}. Image {start + row} has {block[row][~fine[row]][0]}."
            )


def _scaled(images: Array, white: float) -> Array:
    scaled = np.empty(images.shape, np.uint8)
    for start, block in _blocks(images):
        scaled[start : start + len(block)] = depth.to_bytes(block, white)
    return scaled


def _channels_first(array: Array, where: str) -> Array:
    """Return a view (M, C, H, W) of (M, H, W), (M, H, W, C) or (M, C, H, W)."""
    images = array
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[1] > 4:
        raise SourceError(
            f"{where} has shape {array.shape}: one color picture is array[None], and"
            f" {array.shape[0]} grey ones are array[:, None]."
        )
    if array.ndim == 3:
        images = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3, 4)
        if first and last:
            raise SourceError(
                f"{where} has shape {array.shape}: either axis could be the channels."
            )
        images = np.moveaxis(array, 3, 1) if last else array
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or min(images.shape[2:]) < 2:
        raise SourceError(
            f"{where} must have the shape (M, H, W), (M, H, W, C) or (M, C, H, W) with 1 or 3"
            f" channels, and sides of at least 2. Got {array.shape} instead."
        )
    return images
