"""Views of images by name: of the right shape and range, repeatable, refused in a sentence."""

import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coincide._names import load_function
from coincide.views.images import IMAGE_VIEWS, build_image_view

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 14), (3, 70, 64)]
KINDS_AND_SHAPES = [(kind, shape) for kind in ("auto", *IMAGE_VIEWS) for shape in SHAPES]
CHANGES = [kind for kind in IMAGE_VIEWS if kind != "none"]


def images_of(shape, n=6, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def same(left, right, atol=2e-6):
    torch.testing.assert_close(left, right, atol=atol, rtol=0)


# Every kind


@pytest.mark.parametrize(("kind", "shape"), KINDS_AND_SHAPES)
def test_views_keep_shape_dtype_and_range(kind, shape):
    images = images_of(shape, 40)
    images[0], images[1] = 0, 1  # an empty and a full image
    before = images.clone()
    view = build_image_view(kind, shape)
    for _ in range(3):
        views = view(images)
        assert views.shape == images.shape
        assert views.dtype == torch.float32
        assert 0 <= float(views.min()) <= float(views.max()) <= 1  # NaN fails
    assert torch.equal(images, before)
    assert len(view(images[:0])) == 0
    assert view(images[:1]).shape == (1, *shape)


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_equal_images_get_different_views(kind, shape):
    torch.manual_seed(0)
    image = images_of(shape, 1)
    views = build_image_view(kind, shape)(image.expand(30, -1, -1, -1)).flatten(1)
    distinct = {tuple(view.tolist()) for view in views}
    # In 'paper' a ninth is mirrored and a ninth turned gray, and nothing else.
    assert len(distinct) >= (18 if kind == "paper" else 30)


@pytest.mark.parametrize(("kind", "shape"), KINDS_AND_SHAPES)
def test_the_seed_and_a_restored_state_repeat_a_view(kind, shape):
    images, view = images_of(shape, 20), build_image_view(kind, shape)
    elsewhere = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(7)
    view(images)
    state = torch.get_rng_state()
    second = view(images)
    torch.manual_seed(7)
    view(images)
    assert torch.equal(view(images), second)
    torch.set_rng_state(state)
    again = build_image_view(kind, shape)  # a new process has a new view
    assert torch.equal(again(images), second)
    if view.transforms:
        assert not torch.equal(again(images), second)
    assert elsewhere == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("kind", CHANGES)
def test_mixed_precision_gradients_and_memory_format_do_not_touch_a_view(kind, shape):
    images, view = images_of(shape, 12), build_image_view(kind, shape)
    torch.manual_seed(0)
    expected = view(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = view(images.clone().requires_grad_())
    assert torch.equal(views, expected)
    assert not views.requires_grad
    torch.manual_seed(0)
    same(view(images.to(memory_format=torch.channels_last)), expected, atol=1e-5)


def test_none_is_the_images():
    images = images_of((4, 5, 6))
    assert torch.equal(build_image_view("none", (4, 5, 6))(images), images)


@pytest.mark.parametrize(
    ("shape", "kind"), [((1, 28, 28), "affine"), ((3, 32, 32), "standard"), ((4, 9, 9), "affine")]
)
def test_auto_goes_by_the_channels(shape, kind):
    assert build_image_view("auto", shape) == build_image_view(kind, shape)


def test_drawings_are_not_mirrored():
    for kind in IMAGE_VIEWS:
        assert "flip" not in repr(build_image_view(kind, (1, 28, 28)))


def test_blur_waits_for_large_images_and_fits_into_them():
    assert "Blur" not in repr(build_image_view("simclr", (3, 32, 32)))
    assert "Blur(kernel=9" in repr(build_image_view("simclr", (3, 96, 120)))


def test_a_view_shows_its_settings_and_can_be_sent_to_another_process():
    view = build_image_view("affine", (1, 28, 28))
    settings = "Warp(degrees=15, shift=0.1, scale=1.15)"
    assert repr(view) == f"ImageView(kind='affine', transforms=({settings},))"
    assert pickle.loads(pickle.dumps(view)) == view


# Refusals


@pytest.mark.parametrize(
    ("kind", "shape", "sentence"),
    [
        ("afine", (1, 8, 8), "Did you mean 'affine'?"),
        ("iic_color", (3, 8, 8), "Did you mean 'iic-color'?"),
        ("zzz", (3, 8, 8), "one of 'auto', 'none', 'affine'"),
        ("simclr", (4, 8, 8), "'none', 'affine', 'iic-grey' for images of 4 channels"),
        ("strong", (1, 2, 8), "at least 3 pixels"),
        ("affine", (28, 28), "channels, height, width"),
        ("affine", (1, 0, 28), "an integer >= 1"),
        (":", (1, 8, 8), "'module:function' or 'path.py:function'"),
        ("affine:", (1, 8, 8), "'module:function' or 'path.py:function'"),
        ("no_such_module:view", (1, 8, 8), "a module that can be imported"),
        ("no_such.module:view", (1, 8, 8), "a module that can be imported"),
        ("no_such_file.py:view", (1, 8, 8), "a file that is there"),
        ("math:sqr", (1, 8, 8), "Did you mean 'sqrt'?"),
        ("math:pi", (1, 8, 8), "a function that math has"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(kind, shape, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_image_view(kind, shape)


@pytest.mark.parametrize(("kind", "shape"), [(None, (1, 8, 8)), (3, (1, 8, 8))])
def test_a_kind_of_another_type_is_refused(kind, shape):
    with pytest.raises(TypeError, match="a name or a function"):
        build_image_view(kind, shape)


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "torch.uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.float64), TypeError, "takes float32 tensors"),
        (np.zeros((2, 1, 8, 8), np.float32), TypeError, "ndarray"),
        (torch.zeros(2, 8, 8), ValueError, "(n, 1, 8, 8). Got (2, 8, 8)"),
        (torch.zeros(2, 3, 8, 8), ValueError, "(n, 1, 8, 8)"),
        (
            torch.full((2, 1, 8, 8), 255.0),
            ValueError,
            "from 255 to 255 instead. Divide them by 255.",
        ),
        (torch.full((2, 1, 8, 8), -0.5), ValueError, "values from -0.5 to -0.5"),
        (torch.full((2, 1, 8, 8), torch.nan), ValueError, "NaN"),
        (torch.full((2, 1, 8, 8), torch.inf), ValueError, "values from inf"),
    ],
)
@pytest.mark.parametrize("kind", ["affine", "none"])
def test_images_it_cannot_take_are_refused_not_clipped(kind, images, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        build_image_view(kind, (1, 8, 8))(images)


def test_one_nan_among_many_values_is_seen():
    images = images_of((1, 8, 8), 50)
    images[31, 0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        build_image_view("affine", (1, 8, 8))(images)


def test_a_missing_kornia_is_named_when_the_view_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    for kind in ("auto", "affine", "standard", "paper", "iic-grey", "iic-color", "simclr"):
        build_image_view(kind, (3, 32, 32))(images_of((3, 32, 32)))
    for kind, shape in (("strong", (3, 32, 32)), ("simclr", (3, 96, 96))):
        with pytest.raises(ImportError, match=re.escape('pip install "coincide[images]"')):
            build_image_view(kind, shape)


def test_kornia_is_imported_at_use_only():
    program = (
        "import sys, coincide.views.images as views; views.build_image_view('auto', (3, 8, 8));"
        "assert 'kornia' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# The user's own

OWN = """
import torch

def negative(images):
    return 1 - images

def noisy(images):
    return images + torch.rand_like(images)

def halves(images):
    return images[:, :, ::2]

def double(images):
    return images.double()

def nothing(images):
    pass

def holes(images):
    return images / 0

def in_place(images):
    return images.neg_().add_(1)

def fails(images):
    raise RuntimeError("out of paint")
"""


@pytest.fixture
def own(tmp_path):
    # A name that another module has already.
    path = tmp_path / "random.py"
    path.write_text(OWN)
    return path


def test_a_function_of_the_users_is_a_view(own):
    images = images_of((3, 6, 6))
    for kind in (f"{own}:negative", lambda images: 1 - images):
        same(build_image_view(kind, (3, 6, 6))(images), 1 - images)
    assert (
        repr(build_image_view(f"{own}:negative", (3, 6, 6))) == f"UserView(name='{own}:negative')"
    )
    assert sys.modules["random"] is random


def test_a_function_can_stand_in_an_installed_module():
    assert load_function("torch.nn.functional:relu", "kind", "build_image_view") is F.relu
    images = images_of((1, 6, 6))
    same(build_image_view("torch.nn.functional:relu", (1, 6, 6))(images), images)


def test_the_dry_run_leaves_the_random_state(own):
    state = torch.get_rng_state()
    build_image_view(f"{own}:noisy", (1, 6, 6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("halves", "Got torch.float32 of shape (4, 1, 3, 6) instead"),
        ("double", "torch.float64"),
        ("nothing", "Got NoneType instead"),
        ("holes", "NaN or infinite values"),
        ("in_place", "changed in place"),
        ("fails", "RuntimeError: out of paint"),
        ("negativ", "Did you mean 'negative'?"),
    ],
)
def test_a_function_that_is_no_view_is_refused(own, function, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_image_view(f"{own}:{function}", (1, 6, 6))


def test_what_a_users_module_raises_comes_through(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("needs_more:view", f"{tmp_path / 'needs_more.py'}:view"):
        with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
            build_image_view(place, (1, 6, 6))
