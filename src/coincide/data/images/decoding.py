"""Encoded images to one array of bytes: look at the headers, settle size and channels, decode.

Every image passes through two hands. The first reads its header alone, and the values of deep ones,
so that size, channels and white can be settled for all of them; the second decodes it straight to
those. Both work in a pool of threads on a few chunks at a time: never are all the encoded images
held, and the order is kept.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coincide._threads import allowed_threads
from coincide.data.errors import Array, SourceError, first_line
from coincide.data.images import depth
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
_GREY = ("1", "L", "LA", "La", "F", *depth.DEEP_GREY)
_FREQUENT = ("JPEG", "PNG")
_UNSAFE = {"EPS"}  # decoded by running a program, Ghostscript

_Input = TypeVar("_Input")
_Result = TypeVar("_Result")


class _UnfitImageError(ValueError):
    """An image that cannot be used, with the reason."""


@dataclass(frozen=True)
class Wanted:
    """How the images are to be; None is to be settled by what they are."""

    size: Size | None = None
    channels: int | None = None
    white: float | None = None


@dataclass(frozen=True)
class _Failure:
    reason: str
    passing: bool  # of the system, not of the file: it may be gone the next time


@dataclass(frozen=True)
class _Header:
    size: Size  # as seen: after turning by the EXIF orientation
    grey: bool
    full: int  # the largest integer that it can hold; 0 where black and white have no number
    top: int  # the largest that it holds, as far as that matters


@dataclass(frozen=True)
class _Plan:
    size: Size
    channels: int
    white: float


@dataclass(frozen=True)
class _Block:
    images: Array
    failed: dict[int, _Failure]
    top: int  # the largest value of pictures of 8 bits, up to 2


@dataclass
class _Found:
    """What shows on the way: failures by the number of the image, the top of those in 8 bits."""

    failures: dict[int, _Failure]
    top: int = 0


def decode_images(
    chunks: Chunks,
    count: int,
    store: ImageStore,
    wanted: Wanted,
    progress: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Return all images that can be read, as one array (n, C, H, W) of uint8.

    Grey stays grey if all are; transparency is laid on white; the EXIF orientation is applied. What
    has another size is resized with antialiasing, its aspect kept, and the center cut out. The size
    is by default the common one, if no side is above 256; else a square, its side the smaller of 64
    and the median of the shorter sides.

    White is by default found (:mod:`~coincide.data.images.depth`), for pictures of 8 bits only
    where none in the source has a value above 1. If it is given, it holds for deep pictures, and
    where it is below 255 for those of 8 bits; brighter ones are refused.

    ``chunks`` starts over and yields the images in order, ``count`` of them; ``store`` is where the
    array goes, and ``progress`` is called with the number of images decoded and of all.
    """
    with _pillow_refuses_bombs():
        headers, found = _read_headers(chunks, count, look_deep=wanted.white is None)
        while True:
            plan = _settle(headers.values(), wanted)
            if plan is None:
                return _decoded(np.empty((0, 1, 1, 1), np.uint8), found)
            images = store.collect(
                _decoded_blocks(chunks, headers, found, plan, progress),
                len(headers),
                (plan.channels, *plan.size),
            )
            # A file whose damage shows only now must have no say in size and channels.
            headers = {row: seen for row, seen in headers.items() if row not in found.failures}
            if wanted.white is None and _are_masks(headers.values(), found.top):
                wanted = replace(wanted, white=1.0)
            elif _settle(headers.values(), wanted) in (plan, None):
                return _decoded(images, found, plan.white, _note(headers, plan))


def _decoded(images: Array, found: _Found, white: float = depth.OWN, note: str = "") -> Decoded:
    reasons = {row: found.failures[row].reason for row in sorted(found.failures)}
    passing = any(failure.passing for failure in found.failures.values())
    return Decoded(images, reasons, note, white, passing)


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


def _read_headers(
    chunks: Chunks, count: int, *, look_deep: bool
) -> tuple[dict[int, _Header], _Found]:
    """Return what the headers say, and why some cannot be used, by the number of the image."""
    headers: dict[int, _Header] = {}
    failures: dict[int, _Failure] = {}
    read = partial(_header, look_deep=look_deep)
    row = 0
    for seen in _mapped(lambda items: [_attempt(read, item) for item in items], chunks()):
        for found in seen:
            if isinstance(found, _Failure):
                failures[row] = found
            else:
                headers[row] = found
            row += 1
    if row != count:
        raise SourceError(f"The source says that it has {count} images but holds {row}.")
    return headers, _Found(failures)


def _settle(headers: Iterable[_Header], wanted: Wanted) -> _Plan | None:
    """Return the size, the channels and white for these images; None if there are none."""
    headers = list(headers)
    if not headers:
        return None
    image_size, channels, white = wanted.size, wanted.channels, wanted.white
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
    if white is None:
        full, top = _depth(headers)
        white = depth.find_white(top or full) if full else depth.OWN
    return _Plan(image_size, channels, white)


def _depth(headers: Iterable[_Header]) -> tuple[int, int]:
    """Return the largest value that the images can hold, and the largest that they do."""
    return max(header.full for header in headers), max(header.top for header in headers)


def _are_masks(headers: Iterable[_Header], top: int) -> bool:
    """Whether pictures of 8 bits have no value but 0 and 1."""
    return top == 1 and _depth(headers)[0] == depth.BYTE


def _note(headers: dict[int, _Header], plan: _Plan) -> str:
    """Say what was resized, and which value is white; empty if nothing was done."""
    if not headers:
        return ""
    full, _ = _depth(headers.values())
    held = plan.white if full > depth.BYTE else min(plan.white, full)
    white = depth.describe_white(held, full) if full else ""
    resized = [header.size for header in headers.values() if header.size != plan.size]
    if not resized:
        return white
    height, width = plan.size
    sides = [min(size) for size in resized]
    return (
        f"{len(resized)} of {len(headers)} images were resized to {height}x{width} pixels, their"
        f" centers kept (shorter sides were {min(sides)} to {max(sides)} pixels). {white}"
    ).rstrip()


def _decoded_blocks(
    chunks: Chunks,
    headers: dict[int, _Header],
    found: _Found,
    plan: _Plan,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Array]:
    """Yield decoded images (n, C, H, W) in order; add to ``found`` why others cannot be."""
    step = max(1, _BLOCK_BYTES // (plan.channels * plan.size[0] * plan.size[1]))

    def kept() -> Iterator[list[tuple[int, Item]]]:
        row = 0
        for items in chunks():
            good = [(row + i, item) for i, item in enumerate(items) if row + i in headers]
            yield from (good[start : start + step] for start in range(0, len(good), step))
            row += len(items)

    done = 0
    for block in _mapped(partial(_decode_chunk, plan), kept()):
        found.failures.update(block.failed)
        found.top = max(found.top, block.top)
        yield block.images
        done += len(block.images) + len(block.failed)
        if progress is not None:
            progress(done, len(headers))


def _decode_chunk(plan: _Plan, numbered: list[tuple[int, Item]]) -> _Block:
    images = np.empty((len(numbered), plan.channels, *plan.size), np.uint8)
    failed: dict[int, _Failure] = {}
    count = top = 0
    for row, item in numbered:
        found = _attempt(partial(_pixels, plan), item)
        if isinstance(found, _Failure):
            failed[row] = found
        else:
            images[count], highest = found
            top = max(top, highest)
            count += 1
    return _Block(images[:count], failed, top)


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


def _attempt(function: Callable[[Item], _Result], item: Item) -> _Result | _Failure:
    """Return the result, or the reason why there is none."""
    try:
        return function(item)
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        # Pillow's own OSErrors have no number.
        of_system = isinstance(error, OSError) and error.errno is not None
        return _Failure(_reason(error), of_system or isinstance(error, MemoryError))


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


def _header(item: Item, *, look_deep: bool) -> _Header:
    with _open(item) as image:
        width, height = image.size
        # Pillow itself turns TIFF files.
        turns = "exif" in image.info and image.format != "TIFF"
        if turns and image.getexif().get(_ORIENTATION, 1) > 4:
            width, height = height, width
        grey = _is_grey(image)
        full = 0 if image.mode in ("1", "F") else depth.BYTE
        top = full
        if depth.is_deep(image):
            full = top = depth.DEEP
            if look_deep:
                top = int(_integers(image, item)[..., :3].max())
        return _Header((height, width), grey, full, top)


def _integers(image: Image.Image, item: Item) -> Array:
    """Return the values of a deep image, (H, W, 1, 3 or 4)."""
    values = depth.deep_values(image, partial(_open, item))
    if int(values.min()) < 0:
        raise _UnfitImageError("it holds numbers below 0")
    return values[..., None] if values.ndim == 2 else values


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA") and image.palette is not None:
        colors = np.reshape(image.getpalette("RGB") or [], (-1, 3))
        return bool((colors == colors[:, :1]).all())
    return image.mode in _GREY


def _pixels(plan: _Plan, item: Item) -> tuple[Array, int]:
    """Return an image as the plan has it, (C, H, W), and its largest value up to 2."""
    height, width = plan.size
    mode = "L" if plan.channels == 1 else "RGB"
    with _open(item) as opened:
        if opened.size != (width, height):
            # JPEG is then decoded at a smaller scale, still twice as large as needed.
            side = 2 * max(plan.size)
            opened.draft(None, (side, side))
        deep = depth.is_deep(opened)
        opened.load()
        image: Image.Image = opened
        if deep or opened.mode == "F":
            image = _eight_bits(opened, item, plan.white)
        shallow = not deep and opened.mode not in ("1", "F")
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image = whole = _flat(image, mode)
        if shallow and plan.white < depth.BYTE:
            _check_white(_top(whole), plan.white)
            image = image.point(depth.table(plan.white) * plan.channels)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.frombuffer(image.tobytes(), np.uint8)
        top = 0 if not shallow else 2 if pixels.max() > 1 else min(2, _top(whole))
    return pixels.reshape(height, width, plan.channels).transpose(2, 0, 1), top


def _top(image: Image.Image) -> int:
    """Return the largest value of an image of 8 bits."""
    return int(np.max(image.getextrema()))


def _check_white(top: int, white: float) -> None:
    if top > white:
        raise _UnfitImageError(f"it holds {top}, above {white:.0f}, which is white")


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in the given mode, what is transparent on white."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image, item: Item, white: float) -> Image.Image:
    """Return a deep image, or one of floats, in 8 bits: white becomes 255."""
    if image.mode == "F":
        values = np.asarray(image)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise _UnfitImageError("it holds numbers outside 0 to 1")
        found = depth.to_bytes(values, 1)
    else:
        values = _integers(image, item)
        white = depth.DEEP if white == depth.OWN else white
        _check_white(int(values[..., :3].max()), white)
        found = depth.to_bytes(values[..., :3], white)
        if values.shape[-1] == 4:
            found = np.concatenate([found, depth.to_bytes(values[..., 3:], depth.DEEP)], -1)
        found = found[..., 0] if found.shape[-1] == 1 else found
    shallow = Image.fromarray(found)
    if "exif" in image.info:
        shallow.info["exif"] = image.info["exif"]
    return shallow
