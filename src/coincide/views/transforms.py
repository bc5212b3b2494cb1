"""Random changes of image batches: warps, colors, blur, holes.

A transform maps images ``(n, C, H, W)``, float32 in [0, 1], to images of the same shape and range
and draws different parameters for every image, all from torch's global generator of the images'
device: the seed, or a restored state of that generator, repeats a change exactly.

kornia changes the images where it is fast. Where it is not, a comment says how it compares on 250
images of 3x32x32 and one CPU core.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Transform: TypeAlias = Callable[[Tensor], Tensor]
Outside: TypeAlias = Literal["background", "reflection"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL, torchvision and kornia


class _Settings:
    """A transform whose repr names the settings that are not the default."""

    def __repr__(self) -> str:
        named = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(named)})"


class _KorniaSettings(_Settings):
    """A transform that cannot do without kornia, and says so when it is made."""

    def __post_init__(self) -> None:
        _kornia()


def _kornia() -> ModuleType:
    """Import kornia, or say how to get it."""
    try:
        import kornia  # noqa: PLC0415  # optional, and slow to import
    except ImportError as missing:
        raise ImportError(
            'Some image views need kornia. Install it with: pip install "coincide[images]"'
        ) from missing
    return kornia


def _symmetric(uniform: Tensor, largest: float) -> Tensor:
    """Return numbers from [0, 1) spread over [-largest, largest)."""
    return (2 * uniform - 1) * largest


def _change_some(images: Tensor, chosen: Tensor, transform: Transform) -> Tensor:
    """Return the images with those ``chosen``, a mask ``(n,)``, transformed."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    changed = images.clone()
    changed[rows] = transform(images[rows])
    return changed


# Warps: any number of geometric changes, one sampling


@dataclass(frozen=True, repr=False)
class Warp(_Settings):
    """A random affine map of every image: cut out, mirror, rotate, shear, shift, scale.

    Every change is a factor of one matrix, so that the images are interpolated once.

    Parameters
    ----------
    degrees : float
        Largest rotation to either side.
    shift : float
        Largest shift along each axis, as a share of the side.
    scale : float
        Largest factor, ``>= 1``; factors are log-uniform between its inverse and it.
    shear : float
        Largest shear along each axis: the tangent of the angle.
    area : (float, float)
        Bounds of the share of the image that is cut out and resized to the whole.
    ratio : float
        Largest ratio of the two sides' shares of that part, ``>= 1``. A part that would be
        longer than the image is cut to it.
    flip : float
        Share of the images mirrored left to right.
    outside : {"background", "reflection"}
        What lies around an image: its background, the median of its outermost pixels, as fits
        digits and drawings; or its mirror image, as fits photographs.
    """

    degrees: float = 0.0
    shift: float = 0.0
    scale: float = 1.0
    shear: float = 0.0
    area: tuple[float, float] = (1.0, 1.0)
    ratio: float = 1.0
    flip: float = 0.0
    outside: Outside = "background"

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        n, _, height, width = images.shape
        u = torch.rand(11, n, device=images.device)
        maps = affine_maps(
            angle=_symmetric(u[0], math.radians(self.degrees)),
            zoom=torch.exp(_symmetric(u[1], math.log(self.scale))),
            shear=_symmetric(u[2:4], self.shear),
            shift=_symmetric(u[4:6], self.shift),
            part=self._parts(u[6], u[7]),
            place=_symmetric(u[8:10], 1.0),
            mirrored=u[10] < self.flip,
            aspect=height / width,
        )
        return warp(images, maps, self.outside)

    def _parts(self, u_area: Tensor, u_ratio: Tensor) -> Tensor:
        """Return the shares of width and height that are cut out, ``(2, n)``."""
        low, high = self.area
        area = low + (high - low) * u_area
        ratio = torch.exp(_symmetric(u_ratio, math.log(self.ratio)))
        return torch.stack((area * ratio, area / ratio)).sqrt().clamp(max=1.0)


def affine_maps(
    *,
    angle: Tensor,
    zoom: Tensor,
    shear: Tensor,
    shift: Tensor,
    part: Tensor,
    place: Tensor,
    mirrored: Tensor,
    aspect: float,
) -> Tensor:
    """Return the map from every point of a view to the point of the image that it shows.

    ``x = center + part ∘ R(angle) S(shear) F (p - 2 shift) / zoom`` with ``F`` the mirror, both in
    coordinates from -1 to 1; rotation and shear act on pixels, whatever the sides.

    Angles are in radians, counterclockwise as seen on the screen; a zoom above 1 enlarges. Shear
    and shift, ``(2, n)``, are along x and y, the shift as a share of the side to the right and
    down. ``part`` are the shares of width and height that the view shows, and ``place`` where it
    lies: -1 at the left or upper edge, 1 at the other. ``aspect`` is height over width. The maps,
    ``(n, 2, 3)``, are as :func:`torch.nn.functional.affine_grid` takes them.
    """
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    sign = torch.where(mirrored, -1.0, 1.0)
    # The rows of R(angle) S(shear), then pixels turned into coordinates from -1 to 1.
    x_row = torch.stack(((cos - sin * shear[1]) * sign, (cos * shear[0] - sin) * aspect))
    y_row = torch.stack(((sin + cos * shear[1]) * sign / aspect, sin * shear[0] + cos))
    rows = []
    for row, share, at in ((x_row, part[0], place[0]), (y_row, part[1], place[1])):
        offset = at * (1 - share) - 2 * share * (row * shift).sum(0)
        rows.append(torch.stack((share * row[0], share * row[1], offset)))
    # affine_grid takes four times as long for a matrix that does not lie in one piece.
    return torch.stack(rows).permute(2, 0, 1).contiguous()


def warp(images: Tensor, maps: Tensor, outside: Outside) -> Tensor:
    """Return the images seen through :func:`affine_maps`, bilinearly interpolated."""
    # kornia's random crop, affine map and flip, one after the other, interpolate twice and take
    # 4.3 times as long as a Warp of all three.
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    if outside == "reflection":
        seen = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    else:
        empty = _background(images)
        seen = F.grid_sample(images - empty, grid, padding_mode="zeros", align_corners=False)
        seen += empty
    return seen.clamp_(0, 1)


def _background(images: Tensor) -> Tensor:
    """Return the median of the outermost pixels of every image and channel, ``(n, C, 1, 1)``."""
    edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    # Sorting, unlike torch.median, is deterministic on every device.
    frame = torch.cat(edges, -1).sort(-1).values
    return frame[:, :, frame.shape[-1] // 2, None, None]


# Colors: one affine map of the color space for every image


@dataclass(frozen=True, repr=False)
class ColorJitter(_Settings):
    """Random brightness, contrast, saturation and hue, some images turned gray.

    ``x ← C (c b x) + (1 - c) b m`` with ``m`` the mean luma of the image, ``b`` and ``c`` factors
    of brightness and contrast and ``C`` the :func:`chroma_maps` of saturation and hue; values that
    leave [0, 1] are set to its nearer end once, after all four. Images of one channel have
    brightness and contrast only.

    Parameters
    ----------
    brightness, contrast, saturation : float
        Largest departure of the factor from 1, in [0, 1].
    hue : float
        Largest turn to either side, as a share of the color circle, in [0, .5].
    share : float
        Share of the images jittered.
    gray : float
        Share of the images turned gray, jittered or not.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    share: float = 1.0
    gray: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images, of one or three channels."""
        u = torch.rand(6, len(images), device=images.device)
        jittered = u[0] < self.share
        brightness = 1 + _symmetric(u[1], self.brightness) * jittered
        contrast = 1 + _symmetric(u[2], self.contrast) * jittered
        saturation = (1 + _symmetric(u[3], self.saturation) * jittered) * (u[4] >= self.gray)
        angle = _symmetric(u[5], 2 * math.pi * self.hue) * jittered
        return adjust_colors(images, brightness, contrast, saturation, angle)


def adjust_colors(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor
) -> Tensor:
    """Return images under given factors ``(n,)`` and turns of the hue in radians ``(n,)``.

    The formula stands in :class:`ColorJitter`.
    """
    # kornia's jitter and random gray take 18 times as long, adjust_hue alone 12 times: it goes
    # through the HSV color space, while a turn of the chroma is one matrix with all the rest.
    pixels = images.flatten(2)
    if images.shape[1] == 1:
        mean_luma = pixels.mean(2)
        maps = torch.ones_like(mean_luma)[:, :, None]
    else:
        mean_luma = pixels.mean(2) @ images.new_tensor(_LUMA)[:, None]
        maps = chroma_maps(saturation, angle)
    offset = ((1 - contrast) * brightness)[:, None, None] * mean_luma[:, :, None]
    maps = maps * (contrast * brightness)[:, None, None]
    return torch.baddbmm(offset, maps, pixels).clamp_(0, 1).view_as(images)


def chroma_maps(saturation: Tensor, angle: Tensor) -> Tensor:
    """Return the matrices, ``(n, 3, 3)``, that scale and turn the chroma and leave the luma.

    ``L + s (cos θ (I - L) + sin θ J)`` with ``L x`` the gray of the luma of ``x`` and ``J`` a
    quarter turn about the axis of grays, moved along it to luma 0. Grays stay as they are. A
    positive angle turns red towards yellow, as in HSV, whose hue it moves by the same angle within
    two degrees.
    """
    luma = saturation.new_tensor(_LUMA).expand(3, 3)
    chroma = torch.eye(3, device=luma.device) - luma
    axis = luma.new_tensor(((0, -1, 1), (1, 0, -1), (-1, 1, 0))) / 3**0.5
    cos, sin = (saturation * angle.cos())[:, None, None], (saturation * angle.sin())[:, None, None]
    return luma + cos * chroma + sin * (chroma @ axis)


# Intensities


@dataclass(frozen=True, repr=False)
class Blur(_KorniaSettings):
    """A Gaussian blur of random width.

    Parameters
    ----------
    kernel : int
        Side of the kernel in pixels, odd and no longer than the image.
    sigma : (float, float)
        Bounds of the standard deviation in pixels.
    share : float
        Share of the images blurred.
    """

    kernel: int
    sigma: tuple[float, float] = (0.1, 2.0)
    share: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        chosen = torch.rand(len(images), device=images.device) < self.share
        return _change_some(images, chosen, self._blur)

    def _blur(self, images: Tensor) -> Tensor:
        low, high = self.sigma
        sigma = low + (high - low) * torch.rand(len(images), 1, device=images.device)
        blur = _kornia().filters.gaussian_blur2d
        blurred: Tensor = blur(images, self.kernel, sigma.expand(-1, 2))
        return blurred.clamp_(0, 1)


@dataclass(frozen=True, repr=False)
class Sharpness(_KorniaSettings):
    """Sharper or softer: the difference to a smoothed copy times ``1 ± strength`` at most."""

    strength: float = 0.9

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images, of 3 pixels a side at least."""
        factor = 1 + _symmetric(torch.rand(len(images), device=images.device), self.strength)
        changed: Tensor = _kornia().enhance.sharpness(images, factor)
        return changed


@dataclass(frozen=True, repr=False)
class Posterize(_KorniaSettings):
    """Fewer levels a channel: between ``2**bits`` and 128 of the 256."""

    bits: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        bits = torch.randint(self.bits, 8, (len(images),), device=images.device)
        changed: Tensor = _kornia().enhance.posterize(images, bits)
        return changed


@dataclass(frozen=True, repr=False)
class Solarize(_KorniaSettings):
    """Values above a random threshold, ``lowest`` or more, turned to their negative."""

    lowest: float = 0.5

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        u = torch.rand(len(images), device=images.device)
        changed: Tensor = _kornia().enhance.solarize(images, self.lowest + (1 - self.lowest) * u)
        return changed


@dataclass(frozen=True, repr=False)
class Equalize(_KorniaSettings):
    """Every channel's histogram made flat."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        changed: Tensor = _kornia().enhance.equalize(images)
        return changed


@dataclass(frozen=True, repr=False)
class Cutout(_Settings):
    """A square around a random point taken out of every image (DeVries & Taylor 2017).

    Parameters
    ----------
    side : float
        Side of the square as a share of the image's shorter side; it may reach out of the image.
    fill : {"background", "mean"}
        What the hole shows: the background, as :class:`Warp` has it, or the image's mean color.
    """

    side: float = 0.5
    fill: Literal["background", "mean"] = "mean"

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        # kornia's RandomErasing places its boxes inside the image and fills with a constant.
        n, _, height, width = images.shape
        u = torch.rand(2, n, 1, device=images.device)
        half = self.side * min(height, width) / 2
        rows = torch.arange(height, device=images.device) + 0.5
        columns = torch.arange(width, device=images.device) + 0.5
        in_rows = (rows - u[0] * height).abs() < half
        in_columns = (columns - u[1] * width).abs() < half
        hole = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        mean = self.fill == "mean"
        shown = images.mean((2, 3), keepdim=True) if mean else _background(images)
        return torch.where(hole, shown, images)


# Choice


@dataclass(frozen=True, repr=False)
class OneOf(_Settings):
    """One of several transforms for every image, each as likely as the others."""

    transforms: tuple[Transform, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images."""
        choice = torch.randint(len(self.transforms), (len(images),), device=images.device)
        counts = torch.bincount(choice, minlength=len(self.transforms)).tolist()
        order = choice.argsort(stable=True)
        parts = torch.split(images.index_select(0, order), counts)
        pairs = zip(self.transforms, parts, strict=True)
        changed = torch.cat([transform(part) for transform, part in pairs if len(part)])
        return changed.index_select(0, order.argsort())
