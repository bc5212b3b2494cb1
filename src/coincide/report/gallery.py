"""The gallery of an image run: the most and the least certain images of every cluster.

Two files in ``gallery/``, which stay small however many images and clusters there are:
``images.png`` holds one line of images for each cluster that is not empty, the most certain first,
the least certain last; ``index.json`` says what they are.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from coincide._checks import UNKNOWN, check_integer, parameter_message
from coincide._files import replacing, write_text
from coincide.report.labels import check_clusters, check_column, check_finite
from coincide.report.run_folder import GALLERY, SCHEMA

IMAGES = "images.png"
INDEX = "index.json"
MAX_SIDE, SMALL_SIDE = 64, 32  # pixels
FEW = 4  # images of a cluster, before they are made smaller than MAX_SIDE
# Bytes of all pixels before compression: in base64 they still fit a page of 10 MB.
BUDGET = 6_200_000

_OWNER = "write_gallery"

Array = NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One image of the gallery: its row, its confidence, and the name of its class if known."""

    row: int
    confidence: float
    name: str | None


@dataclass(frozen=True)
class Majority:
    """The most frequent class among the rows of a cluster whose class is known."""

    name: str
    rows: int
    known: int

    @property
    def purity(self) -> float:
        """The share of the class among the rows whose class is known."""
        return self.rows / self.known


@dataclass(frozen=True)
class ClusterImages:
    """One cluster: what the gallery says of it, and its images.

    ``most`` holds the most certain images, the most certain first, ``least`` the least certain, the
    least certain first. No image is in both. A cluster with few images has them all, in ``most``.
    """

    cluster: int
    size: int
    mean_confidence: float
    majority: Majority | None
    most: tuple[Entry, ...]
    least: tuple[Entry, ...]


@dataclass(frozen=True)
class Gallery:
    """The gallery of a run folder: the clusters that are not empty, by id, and their images.

    Line ``i`` of the tiles, (lines, columns, H, W, C) of uint8, holds those of ``clusters[i]``:
    ``most``, then ``least``.
    """

    clusters: tuple[ClusterImages, ...]
    tiles: Array


@dataclass(frozen=True)
class _Told:
    """What is known of all rows: arrays of shape (M,), and the names of the classes."""

    clusters: Array
    confidence: NDArray[np.float64]
    classes: NDArray[np.int64]
    names: list[str]

    def entry(self, row: int) -> Entry:
        """Return what the gallery says of one image."""
        known = self.classes[row] != UNKNOWN
        name = self.names[self.classes[row]] if known else None
        return Entry(int(row), float(self.confidence[row]), name)

    def majority(self, rows: NDArray[np.intp]) -> Majority | None:
        """Return the most frequent class of some rows; of equal ones the first."""
        seen = self.classes[rows]
        counts = np.bincount(seen[seen != UNKNOWN])
        if not len(counts):
            return None
        largest = int(counts.argmax())
        return Majority(self.names[largest], int(counts[largest]), int(counts.sum()))


def write_gallery(
    folder: str | Path,
    images: Array,
    clusters: ArrayLike,
    confidence: ArrayLike,
    *,
    known: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    per_cluster: int = 12,
) -> Path:
    """Write ``gallery/``, the most and the least certain images of every cluster, and return it.

    Parameters
    ----------
    folder : path
        The run folder; made if it is not there.
    images : ndarray of shape (M, C, H, W), uint8
        Grey (C = 1) or RGB (C = 3). Of a memory map only the images shown are read.
    clusters, confidence : array-like of shape (M,)
        The cluster of each image, from 0, and its probability.
    known : array-like of shape (M,), optional
        The class of each image, from 0, -1 where unknown.
    names : sequence of str, optional
        What the classes are called; by default as they are numbered.
    per_cluster : int >= 1
        Images of a cluster at most: the first half the most certain, the others the least. A
        cluster that has no more is shown whole.

    Notes
    -----
    Images larger than 64 pixels are shrunk to that. The gallery of many clusters is kept to 6.2 MB
    of pixels: first there are fewer images of each, down to 4; then they are smaller, down to 32
    pixels; then there are 2 of each; then they are smaller still. 1,000 clusters of RGB images
    get 2 images of 32 pixels each.

    Both files are written whole or not at all, ``index.json`` last, with a checksum of the other.
    """
    _check_images(images)
    ids = check_column(check_clusters(clusters, _OWNER), "clusters", _OWNER, len(images))
    stated = check_column(confidence, "confidence", _OWNER, len(images)).astype(np.float64)
    check_finite(stated, "confidence", _OWNER)
    per_cluster = check_integer(per_cluster, "per_cluster", _OWNER, low=1)

    told = _Told(ids, stated, *_checked_classes(known, names, len(images)))
    members = _by_certainty(ids, stated)
    count, size = _plan(len(members), per_cluster, images.shape[1:])
    chosen = [_describe(rows, told, count) for rows in members]
    sprite = _sprite(images, chosen, count, size)
    path = Path(folder) / GALLERY
    with replacing(path / IMAGES) as temporary:
        temporary.write_bytes(sprite)
    index = {
        "schema": SCHEMA,
        "size": size,
        "crc32": zlib.crc32(sprite),
        "clusters": [asdict(cluster) for cluster in chosen],
    }
    write_text(path / INDEX, json.dumps(index, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_gallery(folder: Path, n_clusters: int) -> Gallery | None:
    """Return the folder's gallery, None if it has none, or say in a sentence what ails it."""
    path = folder / GALLERY
    if not (path / INDEX).is_file():
        return None
    way_out = f"Remove the folder {GALLERY}, or run the command again."
    try:
        index = json.loads((path / INDEX).read_bytes())
        clusters = tuple(_read_cluster(item) for item in index["clusters"])
        height, width = index["size"]
        sprite = (path / IMAGES).read_bytes()
        if zlib.crc32(sprite) != index["crc32"]:
            raise ValueError(f"{IMAGES} is not the one it describes")
        with Image.open(io.BytesIO(sprite), formats=["PNG"]) as image:
            pixels = np.asarray(image)
        lines, columns = pixels.shape[0] // height, pixels.shape[1] // width
        tiles = pixels.reshape(lines, height, columns, width, -1).swapaxes(1, 2)
        if lines != len(clusters) or any(len(c.most + c.least) > columns for c in clusters):
            raise ValueError(f"{IMAGES} has no place for all that it names")
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{path / INDEX} is not the index of a gallery that can be read"
            f" ({' '.join(str(error).split())}). {way_out}"
        ) from error
    if any(not 0 <= cluster.cluster < n_clusters for cluster in clusters):
        raise ValueError(f"{path / INDEX} must hold clusters from 0 to {n_clusters - 1}. {way_out}")
    return Gallery(clusters, tiles)


def _read_cluster(item: dict[str, Any]) -> ClusterImages:
    majority = item["majority"]
    most, least = (
        tuple(
            Entry(
                int(entry["row"]),
                float(entry["confidence"]),
                None if entry["name"] is None else str(entry["name"]),
            )
            for entry in item[end]
        )
        for end in ("most", "least")
    )
    if not most:
        raise ValueError("a cluster has no images")
    return ClusterImages(
        int(item["cluster"]),
        int(item["size"]),
        float(item["mean_confidence"]),
        None
        if majority is None
        else Majority(str(majority["name"]), int(majority["rows"]), int(majority["known"])),
        most,
        least,
    )


def _check_images(images: Array) -> None:
    expected = "a uint8 array (M, C, H, W) that is not empty, with 1 or 3 channels"
    if not isinstance(images, np.ndarray):
        raise TypeError(parameter_message("images", _OWNER, expected, type(images).__name__))
    got = f"{images.dtype} {images.shape}"
    if images.dtype != np.uint8:
        raise TypeError(parameter_message("images", _OWNER, expected, got))
    if images.ndim != 4 or images.size == 0 or images.shape[1] not in (1, 3):
        raise ValueError(parameter_message("images", _OWNER, expected, got))


def _checked_classes(
    known: ArrayLike | None, names: Sequence[str] | None, M: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the class of each row, -1 where unknown, and the names of the classes."""
    if known is None:
        return np.full(M, UNKNOWN), []
    classes = check_column(known, "known", _OWNER, M)
    if classes.dtype.kind not in "iu":
        raise TypeError(parameter_message("known", _OWNER, "of integers", str(classes.dtype)))
    highest = int(classes.max())
    called = [str(code) for code in range(highest + 1)] if names is None else list(map(str, names))
    outside = (classes < UNKNOWN) | (classes >= len(called))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"The 'known' parameter of {_OWNER} must hold classes from 0 to {len(called) - 1},"
            f" or {UNKNOWN} where unknown. Row {row} is {classes[row]}."
        )
    return classes.astype(np.int64), called


def _by_certainty(ids: Array, confidence: Array) -> list[NDArray[np.intp]]:
    """Return the rows of each cluster that has any, the most certain first.

    Equal confidence is settled by the earlier row.
    """
    order = np.lexsort([-confidence, ids])  # a stable sort
    return np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)


def _plan(lines: int, per_cluster: int, shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Return how many images a cluster gets and their size, so that all keep to the budget."""
    channels, height, width = shape
    longer = max(height, width)
    pixels = BUDGET / (lines * channels)  # of all images of one cluster

    def scale(count: int) -> float:
        return min(1.0, MAX_SIDE / longer, math.sqrt(pixels / (count * height * width)))

    whole = min(1.0, MAX_SIDE / longer)
    few = min(FEW, per_cluster)
    if scale(few) == whole:
        count = next(n for n in range(per_cluster, 0, -1) if scale(n) == whole)
    else:
        count = few if scale(few) * longer >= SMALL_SIDE else min(2, few)
    found = scale(count)
    # Rounded down, to keep to the budget, but for the last bit of 64 / 96 * 96.
    return count, (max(1, int(found * height + 1e-6)), max(1, int(found * width + 1e-6)))


def _describe(rows: NDArray[np.intp], told: _Told, count: int) -> ClusterImages:
    """Return what the gallery says of a cluster whose ``rows`` come in order of certainty."""
    n_least = count // 2 if len(rows) > count else 0
    return ClusterImages(
        cluster=int(told.clusters[rows[0]]),
        size=len(rows),
        mean_confidence=float(told.confidence[rows].mean()),
        majority=told.majority(rows),
        most=tuple(told.entry(row) for row in rows[: count - n_least]),
        least=tuple(told.entry(row) for row in rows[::-1][:n_least]),
    )


def _sprite(images: Array, chosen: list[ClusterImages], count: int, size: tuple[int, int]) -> bytes:
    """Return the PNG with one line of images for each cluster."""
    channels = images.shape[1]
    height, width = size
    columns = max(len(cluster.most) + len(cluster.least) for cluster in chosen)
    assert columns <= count
    sprite = np.full((len(chosen) * height, columns * width, channels), 255, np.uint8)
    for line, cluster in enumerate(chosen):
        for column, entry in enumerate(cluster.most + cluster.least):
            top, left = line * height, column * width
            # One at a time: a memory map may hold large ones.
            sprite[top : top + height, left : left + width] = _shrunk(images[entry.row], size)
    return encode_png(sprite)


def _shrunk(image: Array, size: tuple[int, int]) -> Array:
    """Return an image (C, H, W) as (h, w, C) of the size asked for."""
    pixels = np.moveaxis(np.asarray(image), 0, -1)
    if pixels.shape[:2] == size:
        return pixels
    channels = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.LANCZOS))
        for channel in np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    ]
    return np.stack(channels, axis=-1)


def encode_png(pixels: Array) -> bytes:
    """Return an image (H, W, C) as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    grey = pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
