"""Encoded images to one array of bytes: look at the headers, settle size and channels, decode.

Every image passes through two hands. The first reads its header alone, so that size and channels
can be settled for all of them; the second decodes it straight to those. Both work in a pool of
threads on a few chunks at a time: never are all the encoded images held, and the order is kept.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coincide._threads import allowed_threads
from coincide.data.errors import Array, SourceError, first_line
from coincide.data.images.cache import Decoded, ImageStore

CHUNK = 64  # images that a thread takes at once

# An encoded image, the file that holds it, or its pixels (H, W) or (H, W, 3 or 4); None for none.
Item: TypeAlias = bytes | Path | Array | None
Chunks: TypeAlias = Callable[[], Iterator[list[Item]]]
Size: TypeAlias = tuple[int, int]  # height, width

_DEFAULT_SIDE = 64
_LARGEST_KEPT_SIDE = 256  # photos straight from a camera are of one size too
_SMALLEST_SIDE = 2
_BLOCK_BYTES = 32 << 20  # of pixels that a thread makes at once
_ORIENTATION = 0x0112  # the EXIF tag; values above 4 exchange height and width
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_GREY = ("1", "L", "LA", "La", *_DEEP_GREY)
_FREQUENT = ("JPEG", "PNG")
_UNSAFE = {"EPS"}  # decoded by running a program, Ghostscript

_Input = TypeVar("_Input")
_Result = TypeVar("_Result")


class _UnfitImageError(ValueError):
    """An image that cannot be used, with the reason."""


@dataclass(frozen=True)
class _Header:
    size: Size  # as seen: after turning by the EXIF orientation
    grey: bool


@dataclass(frozen=True)
class _Plan:
    size: Size
    channels: int


def decode_images(
    chunks: Chunks,
    count: int,
    store: ImageStore,
    *,
    image_size: Size | None = None,
    channels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Return all images that can be read, as one array (n, C, H, W) of uint8.

    Grey stays grey if all are; transparency is laid on white; 16-bit grey is scaled to 8 bits;
    the EXIF orientation is applied. What has another size is resized with antialiasing, its
    aspect kept, and the center cut out. The size is by default the common one, if no side is above
    256; else a square, its side the smaller of 64 and the median of the shorter sides.

    ``chunks`` starts over and yields the images in order, ``count`` of them; ``store`` is where the
    array goes, and ``progress`` is called with the number of images decoded and of all.
    """
    with _pillow_refuses_bombs():
        headers, reasons = _read_headers(chunks, count)
        while True:
            plan = _settle(headers.values(), image_size, channels)
            if plan is None:
                return Decoded(np.empty((0, 1, 1, 1), np.uint8), reasons)
            images = store.collect(
                _decoded_blocks(chunks, headers, reasons, plan, progress),
                len(headers),
                (plan.channels, *plan.size),
            )
            # A file whose damage shows only now must have no say in size and channels.
            headers = {row: seen for row, seen in headers.items() if row not in reasons}
            if _settle(headers.values(), image_size, channels) in (plan, None):
                return Decoded(images, dict(sorted(reasons.items())), _note(headers, plan))


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are tried, the frequent ones first."""
    Image.init()
    return (*_FREQUENT, *(name for name in Image.ID if name not in {*_FREQUENT, *_UNSAFE}))


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files that are tried, in lower case."""
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in formats()
    )


# All images


def _read_headers(chunks: Chunks, count: int) -> tuple[dict[int, _Header], dict[int, str]]:
    """Return what the headers say, and why some cannot be used, by the number of the image."""
    headers: dict[int, _Header] = {}
    reasons: dict[int, str] = {}
    row = 0
    for seen in _mapped(lambda items: [_attempt(_header, item) for item in items], chunks()):
        for found in seen:
            if isinstance(found, str):
                reasons[row] = found
            else:
                headers[row] = found
            row += 1
    if row != count:
        raise SourceError(f"The source says that it has {count} images but holds {row}.")
    return headers, reasons


def _settle(
    headers: Iterable[_Header], image_size: Size | None, channels: int | None
) -> _Plan | None:
    """Return the size and channels for these images; None if there are none."""
    headers = list(headers)
    if not headers:
        return None
    sizes = {header.size for header in headers}
    first = headers[0].size
    if image_size is None and len(sizes) == 1 and max(first) <= _LARGEST_KEPT_SIDE:
        image_size = first
    elif image_size is None:
        median = int(np.median([min(header.size) for header in headers]))
        side = min(_DEFAULT_SIDE, median)
        image_size = side, side
    if channels is None:
        channels = 1 if all(header.grey for header in headers) else 3
    return _Plan(image_size, channels)


def _note(headers: dict[int, _Header], plan: _Plan) -> str:
    """Say what was resized; empty if nothing was."""
    resized = [header.size for header in headers.values() if header.size != plan.size]
    if not resized:
        return ""
    height, width = plan.size
    sides = [min(size) for size in resized]
    return (
        f"{len(resized)} of {len(headers)} images were resized to {height}x{width} pixels, their"
        f" centers kept (shorter sides were {min(sides)} to {max(sides)} pixels)."
    )


def _decoded_blocks(
    chunks: Chunks,
    headers: dict[int, _Header],
    reasons: dict[int, str],
    plan: _Plan,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Array]:
    """Yield decoded images (n, C, H, W) in order; add to ``reasons`` why others cannot be."""
    step = max(1, _BLOCK_BYTES // (plan.channels * plan.size[0] * plan.size[1]))

    def wanted() -> Iterator[list[tuple[int, Item]]]:
        row = 0
        for items in chunks():
            kept = [(row + i, item) for i, item in enumerate(items) if row + i in headers]
            yield from (kept[start : start + step] for start in range(0, len(kept), step))
            row += len(items)

    done = 0
    for images, failed in _mapped(partial(_decode_chunk, plan), wanted()):
        reasons.update(failed)
        yield images
        done += len(images) + len(failed)
        if progress is not None:
            progress(done, len(headers))


def _decode_chunk(plan: _Plan, numbered: list[tuple[int, Item]]) -> tuple[Array, dict[int, str]]:
    images = np.empty((len(numbered), plan.channels, *plan.size), np.uint8)
    failed: dict[int, str] = {}
    count = 0
    for row, item in numbered:
        found = _attempt(partial(_pixels, plan), item)
        if isinstance(found, str):
            failed[row] = found
        else:
            images[count] = found
            count += 1
    return images[:count], failed


def _mapped(function: Callable[[_Input], _Result], inputs: Iterable[_Input]) -> Iterator[_Result]:
    """Yield the results in order from a pool of threads, with few inputs in flight."""
    workers = min(8, allowed_threads())
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for each in inputs:
            waiting.append(pool.submit(function, each))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _pillow_refuses_bombs() -> Iterator[None]:
    """Make an error of the warning that an image is suspiciously large; drop the other ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


# One image


def _attempt(function: Callable[[Item], _Result], item: Item) -> _Result | str:
    """Return the result, or the reason why there is none."""
    try:
        return function(item)
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    return first_line(error)


def _open(item: Item) -> Image.Image:
    """Return the image with its header read."""
    if item is None:
        raise _UnfitImageError("there is no image")
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    if (item.stat().st_size if isinstance(item, Path) else len(item)) == 0:
        raise _UnfitImageError("it is empty")
    image = Image.open(item if isinstance(item, Path) else BytesIO(item), formats=formats())
    if min(image.size) < _SMALLEST_SIDE:
        image.close()
        width, height = image.size
        raise _UnfitImageError(f"{height}x{width} pixels are too few")
    return image


def _header(item: Item) -> _Header:
    with _open(item) as image:
        width, height = image.size
        # Pillow itself turns TIFF files.
        turns = "exif" in image.info and image.format != "TIFF"
        if turns and image.getexif().get(_ORIENTATION, 1) > 4:
            width, height = height, width
        return _Header((height, width), _is_grey(image))


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA") and image.palette is not None:
        colors = np.reshape(image.getpalette("RGB") or [], (-1, 3))
        return bool((colors == colors[:, :1]).all())
    return image.mode in _GREY


def _pixels(plan: _Plan, item: Item) -> Array:
    """Return an image as the plan has it, (C, H, W)."""
    height, width = plan.size
    with _open(item) as opened:
        if opened.size != (width, height):
            # JPEG is then decoded at a smaller scale, still twice as large as needed.
            side = 2 * max(plan.size)
            opened.draft(None, (side, side))
        opened.load()
        image: Image.Image = opened
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image = _flat(image, "L" if plan.channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.frombuffer(image.tobytes(), np.uint8)
    return pixels.reshape(height, width, plan.channels).transpose(2, 0, 1)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in 8 bits and the given mode, what is transparent on white."""
    if image.mode in _DEEP_GREY:
        image = _eight_bits(image)
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return deep grey scaled to 8 bits: 65535, or 1.0, becomes 255."""
    values = np.asarray(image)
    top = 1 if image.mode == "F" else 65535
    if not bool(((values >= 0) & (values <= top)).all()):
        kind = "numbers" if image.mode == "F" else "32-bit integers"
        raise _UnfitImageError(f"it holds {kind} outside 0 to {top}")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
