"""Which value of a source is white, so that no part of its depth is lost.

Cameras and scanners use a part of what their files can hold, such as 12 bits of 16, and masks hold
0 and 1. White, which becomes 255, is

    2^b - 1  with the fewest bits b that hold the largest value of the whole source,

never of one image: what is brighter than another stays so. Floats have no bits: they lie in [0, 1].
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from coincide.data.errors import Array

BYTE = 255
DEEP = 65535  # what a picture of more than 8 bits can hold, unless it holds more
OWN = math.inf  # white of sources without integers, and of those of which none is known

DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# How Pillow unpacks colors of 16 bits, of which it keeps the high byte: how the low one is kept.
_LOW_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in _OTHER_BYTE.items()
}


def find_white(top: int) -> float:
    """Return white for a source whose largest value is ``top``."""
    return float(2 ** max(1, top.bit_length()) - 1)


def to_bytes(values: Array, white: float) -> Array:
    """Return values from 0 to white as bytes."""
    scaled = np.multiply(values, BYTE / white, dtype=np.float64)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def table(white: float) -> list[int]:
    """Return what becomes of each byte where white is below 255."""
    values = np.minimum(np.arange(BYTE + 1), white)
    return [int(value) for value in to_bytes(values, white)]


def describe_white(white: float, full: float) -> str:
    """Say which value is white, in a sentence; empty where the full depth is used."""
    if white in (full, OWN):
        return ""
    bits = int(white).bit_length()
    return f"The values take {bits} bit{'' if bits == 1 else 's'}: {white:.0f} is white."


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet holds integers of more than 8 bits."""
    return image.mode in DEEP_GREY or _raw_mode(image) in _LOW_BYTE


def deep_values(image: Image.Image, again: Callable[[], Image.Image]) -> Array:
    """Decode a deep image to integers, (H, W) or (H, W, 3 or 4); ``again`` opens it once more."""
    if image.mode in DEEP_GREY:
        return np.asarray(image)
    with again() as low:
        other = _LOW_BYTE[_raw_mode(low)]
        tiles = _tiles(low)
        for number, tile in enumerate(tiles):
            args = (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other
            # Before Pillow 11 a tile is a plain tuple.
            named = hasattr(tile, "_replace")
            tiles[number] = tile._replace(args=args) if named else (*tile[:3], args)
        low_bytes: Array = np.asarray(low)
    return 256 * np.asarray(image).astype(np.uint16) + low_bytes


def _raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an image that is not decoded yet lie in its file."""
    modes = {args[0] if isinstance(args, tuple) and args else args for *_, args in _tiles(image)}
    mode = modes.pop() if len(modes) == 1 else ""
    return mode if isinstance(mode, str) else ""


def _tiles(image: Image.Image) -> list[Any]:
    tiles: list[Any] = getattr(image, "tile", [])  # only images of files have them
    return tiles
