"""Images that are arrays already: from Python, ``.npy`` and ``.npz`` files, and ``digits``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coincide.data import vectors
from coincide.data.errors import Array, SourceError, check_known, first_line
from coincide.data.images.listing import check_only_split
from coincide.data.labels import encode_labels

_SUFFIXES = (".npy", ".npz")
_BLOCK_BYTES = 16 << 20  # of floats turned into bytes together


@dataclass(frozen=True)
class Pixels:
    """Images as bytes, (M, C, H, W) of uint8, and their labels as in an image source."""

    name: str
    images: Array
    labels: NDArray[np.int64] | None = None
    label_names: tuple[str, ...] | None = None

    def fits(self, size: tuple[int, int] | None, channels: int | None) -> bool:
        """Whether the images already have this size and as many channels."""
        _, found, *sides = self.images.shape
        return size in (None, tuple(sides)) and found in (
            (1, 3) if channels is None else (channels,)
        )


def read_pixels(
    source: str | Path | ArrayLike, split: str, label_column: str | None
) -> Pixels | None:
    """Return the images of an array source, or None if the source is of another kind.

    The split is that of an ``.npz``: arrays such as ``x_train`` or ``test_images``; its labels are
    by default in an array of one of the usual names.
    """
    if not isinstance(source, str | Path):
        found = Pixels("array", _as_bytes(_array(source), "The array"))
    elif str(source) in vectors.BUILT_IN:
        found = _read_digits()
    elif (path := Path(source).expanduser()).suffix.lower() in _SUFFIXES and not path.is_dir():
        if not path.exists():
            raise SourceError(f"The source {str(source)!r} does not exist.")
        if path.suffix.lower() == ".npz":
            return _read_archive(path, split, label_column)
        found = Pixels(path.stem, _as_bytes(vectors.open_npy(path), str(path)))
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
    return Pixels("digits", images, digits.labels, digits.label_names)


def _read_archive(path: Path, split: str, label_column: str | None) -> Pixels:
    """Read the images of an archive, ``x_train`` or ``images``, and the labels beside them."""
    arrays = vectors.open_npz(path)
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
    found = Pixels(path.stem, _as_bytes(arrays[chosen], f"{chosen!r} in {path}"))
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


def _as_bytes(array: Array, where: str) -> Array:
    images = _channels_first(array, where)
    if len(images) < 2:
        raise SourceError(f"{where} must hold at least 2 images. Got shape {array.shape} instead.")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "bf":
        raise SourceError(
            f"{where} must hold uint8, or floats in [0, 1]. Got {images.dtype} instead: scale to"
            " 0 ... 255 and save with .astype(np.uint8)."
        )
    scaled = np.empty(images.shape, np.uint8)
    step = max(1, _BLOCK_BYTES // (images[0].size * images.itemsize))
    for start in range(0, len(images), step):
        block = images[start : start + step]
        fine = (block >= 0) & (block <= 1)  # NaN fails both
        if not fine.all():
            row = int(np.argmin(fine.reshape(len(block), -1).all(1)))
            raise SourceError(
                f"{where} must lie in [0, 1] where it holds floats. Image {start + row} has"
                f" {block[row][~fine[row]][0]}."
            )
        scaled[start : start + step] = np.rint(block * np.float32(255))
    return scaled


def _channels_first(array: Array, where: str) -> Array:
    """Return a view (M, C, H, W) of (M, H, W), (M, H, W, C) or (M, C, H, W)."""
    images = array
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
