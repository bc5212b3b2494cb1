"""Transforms of images: exact where the change is known, evenly spread where it is random."""

import math

import pytest
import torch
import torch.nn.functional as F
from kornia import color, enhance, filters

from coincide.views.transforms import (
    Blur,
    ColorJitter,
    Cutout,
    Equalize,
    OneOf,
    Posterize,
    Sharpness,
    Solarize,
    Warp,
    adjust_colors,
    affine_maps,
    chroma_maps,
    warp,
)

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 14), (3, 70, 64)]
TRANSFORMS = [
    Warp(degrees=20, shift=0.1, scale=1.2, shear=0.2, area=(0.3, 0.9), ratio=1.5, flip=0.5),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2),
    Blur(kernel=5, sigma=(0.5, 2.0)),
    Sharpness(),
    Posterize(),
    Solarize(),
    Cutout(),
]


def images_of(shape, n=6, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def seen(images, outside="reflection", **changes):
    """The images through one known affine map."""
    n, _, height, width = images.shape
    still = {"angle": 0.0, "zoom": 1.0, "mirrored": False}
    still |= {"part": (1.0, 1.0), **dict.fromkeys(("shear", "shift", "place"), (0.0, 0.0))}
    # One value for every image, along x and y in the first dimension where there are two.
    values = {
        name: torch.tensor(value).expand(n, *torch.tensor(value).shape).movedim(0, -1)
        for name, value in (still | changes).items()
    }
    return warp(images, affine_maps(**values, aspect=height / width), outside)


def same(left, right, atol=2e-6):
    torch.testing.assert_close(left, right, atol=atol, rtol=0)


# Geometry: what is known exactly


@pytest.mark.parametrize("outside", ["background", "reflection"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_warp_without_strength_is_the_identity(shape, outside):
    images = images_of(shape)
    same(Warp(outside=outside)(images), images, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_by_quarter_turns_is_rot90(turns):
    images = images_of((3, 12, 12))
    same(seen(images, angle=turns * math.pi / 2), images.rot90(turns, (2, 3)), atol=1e-5)


def test_rotation_keeps_the_shape_of_things_in_oblong_images():
    images = images_of((1, 6, 10))
    turned = seen(images, angle=math.pi / 2)
    same(turned[..., 2:8], images[..., 2:8].rot90(1, (2, 3)), atol=1e-5)


def test_mirroring_is_flip():
    images = images_of((3, 9, 14))
    same(seen(images, mirrored=True), images.flip(3))
    same(Warp(flip=1.0)(images), images.flip(3))


def test_mirroring_comes_after_rotation():
    images = images_of((1, 12, 12))
    both = seen(images, angle=math.pi / 2, mirrored=True)
    same(both, images.rot90(1, (2, 3)).flip(3), atol=1e-5)


def test_a_shift_by_whole_pixels_moves_the_columns_and_leaves_the_background():
    images = images_of((1, 8, 10))
    images[..., 0, :] = images[..., -1, :] = images[..., 0] = images[..., -1] = 0.25
    moved = seen(images, shift=(0.2, 0.0), outside="background")
    same(moved[..., 2:], images[..., :-2])
    same(moved[..., :2], torch.full_like(moved[..., :2], 0.25))
    down = seen(images, shift=(0.0, 0.25), outside="background")
    same(down[..., 2:, :], images[..., :-2, :])
    # The shift is the view's own, whatever the mirror and the rotation.
    turned = seen(images, shift=(0.2, 0.0), mirrored=True, angle=math.pi, outside="background")
    same(turned[..., 2:], images.flip(3).rot90(2, (2, 3))[..., :-2], atol=1e-5)


def test_the_background_of_a_drawing_follows_its_paper():
    """Ink on white paper is the negative of light on black: so are their views."""
    light = torch.zeros(4, 1, 12, 12)
    light[:, :, 3:9, 4:7] = 1
    for angle in (0.3, 0.8):
        shown = seen(light, angle=angle, zoom=0.8, outside="background")
        same(seen(1 - light, angle=angle, zoom=0.8, outside="background"), 1 - shown)


def test_the_whole_image_as_the_part_is_the_identity():
    images = images_of((3, 32, 32))
    same(seen(images, part=(1.0, 1.0), place=(0.7, -0.3)), images, atol=1e-5)


@pytest.mark.parametrize("place", [(-1.0, -1.0), (1.0, -1.0), (0.0, 1.0)])
def test_a_part_is_cut_out_and_resized(place):
    images = images_of((2, 16, 24))
    height, width = 8, 12
    top, left = round((place[1] + 1) / 2 * height), round((place[0] + 1) / 2 * width)
    part = images[:, :, top : top + height, left : left + width]
    expected = F.interpolate(part, size=(16, 24), mode="bilinear", align_corners=False)
    inner = (..., slice(1, -1), slice(1, -1))  # at its edges a part is blended with its neighbors
    same(seen(images, part=(0.5, 0.5), place=place)[inner], expected[inner], atol=1e-5)


def test_zoom_enlarges_around_the_center():
    images = images_of((1, 16, 16))
    same(seen(images, zoom=2.0), seen(images, part=(0.5, 0.5)))


def test_shear_moves_rows_by_their_distance_to_the_center():
    images = images_of((1, 9, 21))
    sheared = seen(images, shear=(1.0, 0.0))
    for row in range(9):
        offset = row - 4
        same(sheared[..., row, 5:-5], images[..., row, 5 + offset : 16 + offset], atol=1e-5)


def test_cut_out_parts_have_the_asked_area_and_ratio():
    torch.manual_seed(0)
    u = torch.rand(2, 4000)
    width, height = Warp(area=(0.2, 0.5), ratio=4 / 3)._parts(u[0], u[1])
    area, ratio = width * height, width / height
    assert 0.2 <= float(area.min()) < 0.21
    assert 0.49 < float(area.max()) <= 0.5
    assert float(area.mean()) == pytest.approx(0.35, abs=0.01)
    assert 3 / 4 - 1e-5 <= float(ratio.min()) < float(ratio.max()) <= 4 / 3 + 1e-5
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.02)


def test_rotations_and_shifts_spread_evenly_to_both_sides():
    """A wide and thin bar tells its angle, its middle the shift."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    bar = ((rows.abs() < 2) & (columns.abs() < 11)).float().expand(1500, 1, 33, 33)
    shown = Warp(degrees=30, shift=0.1)(bar)[:, 0]
    mass = shown.sum((1, 2))
    x, y = (shown * columns).sum((1, 2)) / mass, (shown * rows).sum((1, 2)) / mass
    dx, dy = columns - x[:, None, None], rows - y[:, None, None]
    angle = 0.5 * torch.atan2(
        2 * (shown * dx * dy).sum((1, 2)), (shown * (dx**2 - dy**2)).sum((1, 2))
    )
    for value, largest in ((angle, math.radians(30)), (x, 3.3), (y, 3.3)):
        assert float(value.abs().max()) == pytest.approx(largest, rel=0.05)
        assert float(value.mean()) == pytest.approx(0, abs=0.06 * largest)
        assert float(value.std()) == pytest.approx(largest / 3**0.5, rel=0.05)


# Colors


def ones(n=6):
    return torch.ones(n)


def test_jitter_without_strength_is_the_identity():
    for shape in ((1, 8, 8), (3, 8, 8)):
        same(ColorJitter()(images_of(shape)), images_of(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_are_kornias(channels):
    images, factor = images_of((channels, 8, 8)), torch.linspace(0.4, 1.6, 6)
    bright = adjust_colors(images, factor, ones(), ones(), 0 * factor)
    same(bright, enhance.adjust_brightness_accumulative(images, factor))
    harsh = adjust_colors(images, ones(), factor, ones(), 0 * factor)
    same(harsh, enhance.adjust_contrast_with_mean_subtraction(images, factor), atol=1e-5)


def test_saturation_is_kornias_and_none_of_it_is_gray():
    images, factor = images_of((3, 8, 8)), torch.linspace(0, 1.5, 6)
    dull = adjust_colors(images, ones(), ones(), factor, 0 * factor)
    same(dull, enhance.adjust_saturation_with_gray_subtraction(images, factor), atol=1e-5)
    gray = ColorJitter(gray=1.0)(images)
    same(gray, color.rgb_to_grayscale(images).expand_as(gray), atol=1e-5)


def test_all_four_are_one_after_the_other():
    """Pale images, so that nothing leaves [0, 1] on the way."""
    images = 0.4 + 0.2 * images_of((3, 8, 8))
    b, c, s = (torch.linspace(low, high, 6) for low, high in ((0.8, 1.2), (1.3, 0.7), (0.5, 1.5)))
    angle = torch.linspace(-0.7, 0.7, 6)
    once = adjust_colors(images, b, c, s, angle)
    step = adjust_colors(images, b, ones(), ones(), 0 * b)
    step = adjust_colors(step, ones(), c, ones(), 0 * b)
    step = adjust_colors(step, ones(), ones(), s, 0 * b)
    same(once, adjust_colors(step, ones(), ones(), ones(), angle), atol=1e-5)


def test_turning_the_hue_keeps_luma_and_grays_and_adds_up():
    angle = torch.linspace(-3, 3, 7)
    maps = chroma_maps(ones(7), angle)
    luma = torch.tensor([0.299, 0.587, 0.114])
    same(luma @ maps, luma.expand(7, 3), atol=1e-5)
    same(maps.sum(2), torch.ones(7, 3), atol=1e-5)
    same(maps @ maps, chroma_maps(ones(7), 2 * angle), atol=1e-5)
    same(chroma_maps(ones(1), torch.tensor([2 * math.pi]))[0], torch.eye(3), atol=1e-5)


@pytest.mark.parametrize("turn", [-0.1, 0.1])
def test_the_hue_turns_as_in_hsv(turn):
    """Adding gray leaves the hue of HSV, and a circle is nearly its hexagon."""
    wheel = torch.stack((torch.linspace(0, 2 * math.pi, 13)[:-1], 0.3 * ones(12), 0.6 * ones(12)))
    images = color.hsv_to_rgb(wheel.T[:, :, None, None].contiguous())
    angle = torch.full((12,), 2 * math.pi * turn)
    turned = adjust_colors(images, ones(12), ones(12), ones(12), angle)
    hue = color.rgb_to_hsv(turned)[:, 0, 0, 0] - wheel[0]
    moved = torch.atan2(hue.sin(), hue.cos())
    assert bool((moved * math.copysign(1, turn) > 0).all())
    assert float((moved - angle).abs().max()) < math.radians(2)


def test_jitter_brightens_and_darkens_alike():
    """Pale gray, which no factor takes out of [0, 1]: the mean of a view is its factor."""
    torch.manual_seed(0)
    images = torch.full((8000, 1, 2, 2), 0.5)
    factor = ColorJitter(brightness=0.4, share=0.8)(images).mean((1, 2, 3)) / 0.5
    changed = factor[factor != 1]
    assert len(changed) / 8000 == pytest.approx(0.8, abs=0.02)
    assert float(factor.mean()) == pytest.approx(1, abs=0.01)
    assert float(changed.std()) == pytest.approx(0.4 / 3**0.5, rel=0.03)
    assert float(changed.min()) == pytest.approx(0.6, abs=0.005)
    assert float(changed.max()) == pytest.approx(1.4, abs=0.005)


def test_contrast_keeps_the_mean_of_an_image():
    torch.manual_seed(0)
    images = 0.4 + 0.2 * images_of((3, 8, 8), 400)
    views = ColorJitter(contrast=0.5)(images)
    luma = color.rgb_to_grayscale
    same(luma(views).mean((1, 2, 3)), luma(images).mean((1, 2, 3)), atol=1e-5)
    spread = views.std((1, 2, 3)) / images.std((1, 2, 3))
    assert float(spread.mean()) == pytest.approx(1, abs=0.06)
    assert float(spread.std()) > 0.2


def test_a_share_of_the_images_turns_gray():
    torch.manual_seed(0)
    views = ColorJitter(gray=0.2)(images_of((3, 4, 4), 5000))
    gray = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-5
    assert float(gray.float().mean()) == pytest.approx(0.2, abs=0.02)


def test_jitter_of_one_channel_ignores_saturation_hue_and_gray():
    images = images_of((1, 8, 8))
    same(ColorJitter(saturation=0.9, hue=0.5, gray=1.0)(images), images)


# Intensities, holes, choice


def test_blur_is_kornias_for_the_share_that_is_blurred():
    torch.manual_seed(0)
    images = images_of((3, 12, 12), 400)
    views = Blur(kernel=5, sigma=(1.0, 1.0), share=0.3)(images)
    blurred = (views != images).flatten(1).any(1)
    assert float(blurred.float().mean()) == pytest.approx(0.3, abs=0.06)
    expected = filters.gaussian_blur2d(images, 5, (1.0, 1.0))
    same(views[blurred], expected[blurred], atol=1e-5)


def test_sharpness_without_strength_is_the_identity():
    images = images_of((3, 8, 8))
    same(Sharpness(strength=0.0)(images), images)


def test_solarize_turns_what_is_above_a_threshold():
    images = images_of((1, 8, 8), 50)
    views = Solarize(lowest=0.5)(images)
    turned = views != images
    assert bool(turned.any())
    assert float(images[turned].min()) >= 0.5
    same(views[turned], 1 - images[turned])


def test_posterize_leaves_few_levels():
    views = Posterize(bits=3)(images_of((1, 40, 40), 30))
    levels = {len(view.unique()) for view in views}
    assert min(levels) <= 9
    assert max(levels) <= 129


def test_equalize_flattens_the_histogram():
    dark = images_of((1, 32, 32)) ** 3
    assert float(Equalize()(dark).mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("fill", ["mean", "background"])
def test_cutout_takes_out_one_square(fill):
    torch.manual_seed(0)
    images = images_of((3, 20, 20), 300)
    views = Cutout(side=0.3, fill=fill)(images)
    hole = (views != images).any(1)
    sizes = hole.sum((1, 2))
    assert int(sizes.max()) == 36
    assert int(sizes.min()) >= 9 - 3  # around a corner a quarter lies in the image
    for view, image, where in zip(views, images, hole, strict=True):
        rows, columns = where.any(1).sum(), where.any(0).sum()
        assert int(rows * columns) == int(where.sum())
        shown = view[:, where]
        same(shown, shown[:, :1].expand_as(shown))
        if fill == "mean":
            same(shown[:, 0], image.mean((1, 2)))


def test_one_of_gives_every_image_one_change_and_every_change_its_share():
    torch.manual_seed(0)
    images = images_of((1, 4, 4), 3000)
    changes = tuple((lambda x, k=k: x * 0.5**k) for k in range(1, 4))
    factor = (OneOf(changes)(images) / images).flatten(1)
    same(factor, factor[:, :1].expand_as(factor), atol=1e-5)
    shares = torch.stack([(factor[:, 0] - 0.5**k).abs() < 1e-4 for k in range(1, 4)])
    assert shares.float().mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert int(shares.sum()) == 3000


def test_a_batch_smaller_than_the_choice():
    assert OneOf((Warp(flip=1.0),) * 5)(images_of((1, 4, 4), 1)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_every_transform_changes_images_within_bounds(transform):
    images = images_of((3, 12, 12), 30)
    images[0], images[1] = 0, 1
    changed = transform(images)
    assert not torch.equal(changed, images)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
