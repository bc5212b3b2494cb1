"""The shape of the images that a network is built for."""

from __future__ import annotations

from typing import TypeAlias

from coincide._checks import check_integer, parameter_message

ImageShape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""

SMALL_SIDE = 64


def is_small(image_shape: ImageShape) -> bool:
    """Return whether the shorter side has at most 64 pixels."""
    return min(image_shape[1:]) <= SMALL_SIDE


def check_image_shape(image_shape: object, owner: str) -> ImageShape:
    """Return channels, height and width as a tuple of ints, or refuse them."""
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3:
        expected = "three integers, channels, height and width"
        raise ValueError(parameter_message("image_shape", owner, expected, image_shape))
    n_channels, height, width = (
        check_integer(number, "image_shape", owner, low=1) for number in image_shape
    )
    return n_channels, height, width
