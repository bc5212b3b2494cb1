"""Views of images: by name, or a function of the user's own.

A view changes every image of a batch at random, in ways that its class should survive. All of it
happens on the images' device, in batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coincide._checks import ImageShape, check_image_shape, parameter_message
from coincide._names import closest, load_function
from coincide.views.transforms import (
    Blur,
    ColorJitter,
    Cutout,
    Equalize,
    OneOf,
    Outside,
    Posterize,
    Sharpness,
    Solarize,
    Transform,
    Warp,
)

_OWNER = "build_image_view"
_LARGE = 64  # SimCLR blurs ImageNet's and STL-10's images, not CIFAR's
_DRY_RUN = 4  # images


@dataclass(frozen=True)
class ImageView:
    """Transforms in a row.

    Attributes
    ----------
    kind : str
        A key of :data:`IMAGE_VIEWS`.
    image_shape : (int, int, int)
        Channels, height, width.
    transforms : tuple of callables
        From images to changed images; without any the view is the images themselves.
    """

    kind: str
    image_shape: ImageShape = field(repr=False)
    transforms: tuple[Transform, ...]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images, on the same device; the given ones stay as they are.

        Parameters
        ----------
        images : Tensor of shape (n, C, H, W), float32
            In [0, 1].

        Returns
        -------
        Tensor of shape (n, C, H, W), float32
            In [0, 1]. Drawn from torch's global generator of the device.

        Raises
        ------
        TypeError
            If the images are not float32.
        ValueError
            If they have another shape, NaN, or values outside [0, 1].
        """
        self._check(images)
        if len(images) == 0:
            return images
        # Mixed precision is the network's: matrices in bfloat16 would move pixels visibly.
        with torch.autocast(images.device.type, enabled=False):
            for transform in self.transforms:
                images = transform(images)
        return images

    def _check(self, images: Tensor) -> None:
        owner = f"The image view {self.kind!r}"
        if not isinstance(images, Tensor) or images.dtype != torch.float32:
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"{owner} takes float32 tensors. Got {got} instead.")
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            expected = f"(n, {', '.join(map(str, self.image_shape))})"
            shape = tuple(images.shape)
            raise ValueError(f"{owner} takes images of shape {expected}. Got {shape} instead.")
        if images.numel() == 0:
            return
        low, high = (float(bound) for bound in images.aminmax())
        # Written so that NaN fails.
        if not (low >= 0 and high <= 1):
            found = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            hint = " Divide them by 255." if low >= 0 and 1 < high <= 255 else ""
            raise ValueError(f"{owner} takes finite images in [0, 1]. Got {found} instead.{hint}")


@dataclass(frozen=True)
class UserView:
    """A view that the user wrote, found to return images of the shape it takes.

    Attributes
    ----------
    name : str
        How it was named, or its own name.
    function : callable
        From images ``(n, C, H, W)`` to changed images. It draws from torch's global generator;
        a run whose view draws elsewhere cannot be resumed exactly.
    """

    name: str
    function: Transform = field(repr=False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return what the function makes of the images."""
        return self.function(images)


# Kinds: from the shape of the images to their transforms


def _none(shape: ImageShape) -> tuple[Transform, ...]:
    """Leave the images as they are."""
    del shape
    return ()


def _affine(shape: ImageShape) -> tuple[Transform, ...]:
    """Rotate, shift and scale: digits and other drawings, of any number of channels."""
    return (Warp(degrees=15, shift=0.1, scale=1.15, outside=_outside(shape)),)


def _standard(shape: ImageShape) -> tuple[Transform, ...]:
    """Crop, mirror and jitter mildly: photographs."""
    return (
        _crop(shape, 0.5),
        ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, share=0.8),
    )


def _paper(shape: ImageShape) -> tuple[Transform, ...]:
    """Change every image in one way, of several.

    The paper trains with «one augmentation per image» and lists none; the list is ours.
    """
    outside = _outside(shape)
    geometry = (
        Warp(degrees=20, outside=outside),
        Warp(shift=0.15, outside=outside),
        Warp(scale=1.25, outside=outside),
        Warp(area=(0.4, 0.9), ratio=4 / 3, outside=outside),
    )
    jitter: tuple[Transform, ...] = (ColorJitter(brightness=0.4, contrast=0.4),)
    if shape[0] == 1:
        return (OneOf((*geometry, Warp(shear=0.3, outside=outside), *jitter)),)
    color = (
        Warp(flip=1.0, outside=outside),
        ColorJitter(saturation=0.4, hue=0.1),
        ColorJitter(gray=1.0),
    )
    return (OneOf((*geometry, *jitter, *color)),)


def _iic_grey(shape: ImageShape) -> tuple[Transform, ...]:
    """Crop 16, 20 or 24 of 28 and rotate half by up to 25°: IIC's for MNIST (Ji et al. 2019).

    Crops are resized to the image's own size instead of 24, and measured by its sides.
    """
    outside = _outside(shape)
    areas = [((side / 28) ** 2, (side / 28) ** 2) for side in (16, 20, 24)]
    turns = (0, 25)
    return (OneOf(tuple(Warp(degrees=t, area=a, outside=outside) for a in areas for t in turns)),)


def _iic_color(shape: ImageShape) -> tuple[Transform, ...]:
    """Crop 20 of 32, mirror and jitter: IIC's for CIFAR (Ji et al. 2019).

    Its gray and Sobel images change the channels and come after every view alike, so that they
    are the network's first layer, not part of a view.
    """
    area = (20 / 32) ** 2
    return (
        replace(_crop(shape, area), area=(area, area), ratio=1.0),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.125),
    )


def _simclr(shape: ImageShape) -> tuple[Transform, ...]:
    """Crop, mirror, jitter and turn gray: SimCLR's, with SCAN's crops.

    Chen et al. 2020; Van Gansbeke et al. 2020. Of images of 64 pixels a side and more, half are
    blurred, as SimCLR does for ImageNet.
    """
    crop = _crop(shape, 0.2)
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, share=0.8, gray=0.2)
    side = min(shape[1:])
    if side < _LARGE:
        return crop, jitter
    # A tenth of the side, made odd.
    return crop, jitter, Blur(kernel=side // 10 // 2 * 2 + 1, share=0.5)


def _strong(shape: ImageShape) -> tuple[Transform, ...]:
    """Change the place and the intensities, each in one of RandAugment's ways, and cut a hole.

    Cubuk et al. 2020, DeVries & Taylor 2017. kornia's RandAugment draws one pair of changes for a
    whole batch; here every image has its own. What turns the strokes of a drawing into their
    negative or lifts its background (solarize, equalize) is for colors only.
    """
    if min(shape[1:]) < 3:
        expected = "at least 3 pixels high and wide for the view 'strong'"
        raise ValueError(parameter_message("image_shape", _OWNER, expected, shape))
    drawing = shape[0] == 1
    place = Warp(outside="background") if drawing else _crop(shape, 0.5)
    places = (
        replace(place, degrees=30),
        replace(place, shear=0.3),
        replace(place, shift=0.2),
        replace(place, scale=1.3),
    )
    jitter = (ColorJitter(brightness=0.7), ColorJitter(contrast=0.7))
    intensities: tuple[Transform, ...] = (*jitter, Sharpness(), Posterize())
    if not drawing:
        colors = (ColorJitter(saturation=0.9), ColorJitter(hue=0.1))
        intensities = (*intensities, *colors, Solarize(), Equalize())
    hole = Cutout(side=0.3, fill="background") if drawing else Cutout(side=0.5)
    return OneOf(places), OneOf(intensities), hole


def _crop(shape: ImageShape, smallest: float) -> Warp:
    """Cut out a share of the area, ``smallest`` or more; mirror half of the color images.

    Mirroring makes another sign of a digit or a letter.
    """
    flip = 0.0 if shape[0] == 1 else 0.5
    return Warp(area=(smallest, 1.0), ratio=4 / 3, flip=flip, outside="reflection")


def _outside(shape: ImageShape) -> Outside:
    """Take one channel for a drawing on its background, more for a photograph."""
    return "background" if shape[0] == 1 else "reflection"


IMAGE_VIEWS: dict[str, Callable[[ImageShape], tuple[Transform, ...]]] = {
    "none": _none,
    "affine": _affine,
    "standard": _standard,
    "paper": _paper,
    "iic-grey": _iic_grey,
    "iic-color": _iic_color,
    "simclr": _simclr,
    "strong": _strong,
}

_ANY_CHANNELS = ("none", "affine", "iic-grey")


def build_image_view(kind: str | Transform, image_shape: ImageShape) -> ImageView | UserView:
    """Return a view of images.

    Parameters
    ----------
    kind : str or callable
        ``"auto"``: ``"standard"`` for images of three channels, ``"affine"`` for others. A key of
        :data:`IMAGE_VIEWS`. A function from images to images, or where it is:
        ``"module:function"`` or ``"path.py:function"``.
    image_shape : (int, int, int)
        Channels, height and width. Kinds that change colors need one channel or three.

    Returns
    -------
    ImageView or UserView
        From images ``(n, C, H, W)``, float32 in [0, 1], to changed images of the same shape. Its
        repr names its settings. The randomness is torch's global generator of the device.

    Raises
    ------
    ValueError
        If the kind is unknown or not for such images, or if a function of the user's fails or
        returns anything but finite float32 images of the same shape.
    ImportError
        If the kind needs kornia (``"strong"``, ``"simclr"`` from 64 pixels on) and it is missing.

    Examples
    --------
    >>> import torch
    >>> from coincide.views.images import build_image_view
    >>> view = build_image_view("auto", (1, 28, 28))
    >>> view
    ImageView(kind='affine', transforms=(Warp(degrees=15, shift=0.1, scale=1.15),))
    >>> view(torch.rand(250, 1, 28, 28)).shape
    torch.Size([250, 1, 28, 28])
    """
    shape = check_image_shape(image_shape, _OWNER)
    if not isinstance(kind, str):
        if not callable(kind):
            raise TypeError(parameter_message("kind", _OWNER, "a name or a function", kind))
        return _user_view(getattr(kind, "__qualname__", repr(kind)), kind, shape)
    if ":" in kind:
        return _user_view(kind, load_function(kind, "kind", _OWNER), shape)
    if kind == "auto":
        kind = "standard" if shape[0] == 3 else "affine"
    _check_kind(kind, shape)
    return ImageView(kind, shape, IMAGE_VIEWS[kind](shape))


def _check_kind(kind: str, shape: ImageShape) -> None:
    names = ("auto", *IMAGE_VIEWS)
    if kind not in IMAGE_VIEWS:
        listed = ", ".join(map(repr, names))
        expected = f"one of {listed}, or a function's place, 'module:function'"
        raise ValueError(parameter_message("kind", _OWNER, expected, kind, closest(kind, names)))
    if shape[0] not in (1, 3) and kind not in _ANY_CHANNELS:
        expected = ", ".join(map(repr, _ANY_CHANNELS))
        expected = f"one of {expected} for images of {shape[0]} channels"
        hint = "The others change colors, of one channel or three."
        raise ValueError(parameter_message("kind", _OWNER, expected, kind, hint))


# The user's own


def _user_view(name: str, function: Transform, shape: ImageShape) -> UserView:
    """Return the user's function as a view, after a dry run on random images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        images = torch.rand(_DRY_RUN, *shape)
        given = images.clone()
        try:
            views = function(given)
        except Exception as error:
            raise ValueError(
                f"The image view {name!r} failed on {_DRY_RUN} random images of shape {shape}:"
                f" {type(error).__name__}: {error}"
            ) from error
    expected = f"a finite float32 tensor of shape {tuple(images.shape)}, as its images are"
    if not isinstance(views, Tensor):
        got = type(views).__name__
    elif views.shape != images.shape or views.dtype != images.dtype:
        got = f"{views.dtype} of shape {tuple(views.shape)}"
    elif not bool(torch.isfinite(views).all()):
        got = "NaN or infinite values"
    elif not torch.equal(images, given):
        expected, got = "a changed copy", "the given images, changed in place"
    else:
        return UserView(name, function)
    raise ValueError(f"The image view {name!r} must return {expected}. Got {got} instead.")
