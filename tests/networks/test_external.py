"""Networks by name and from elsewhere: the user's modules and functions, stand-in packages."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from coincide.networks import build_image_network

SHAPE = (3, 8, 8)


def build(kind, shape=SHAPE):
    return build_image_network(kind, shape, [0.5] * shape[0], [0.25] * shape[0])


class Applied(nn.Module):
    """A function of normalized images as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, pixels):
        return self.function(pixels)


# -- Names


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("vgg-4", "vgg4"),
        ("resnet-18", "resnet18"),
        ("smallconv", "small-conv"),
        ("VGG4", "vgg4"),
        ("xyz", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(kind, meant):
    with pytest.raises(ValueError, match="must be one of 'vgg4', 'resnet18'") as refusal:
        build(kind)
    assert f"Got {kind!r} instead." in str(refusal.value)
    assert str(refusal.value).endswith(f"Did you mean {meant!r}?" if meant else "instead.")


def test_what_is_no_name_is_refused():
    with pytest.raises(TypeError, match=r"must be a name or a torch\.nn\.Module"):
        build(nn.Flatten)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 0), (3, 8, 8.0), None])
def test_an_unfit_image_shape_is_refused(shape):
    with pytest.raises((ValueError, TypeError), match="'image_shape' parameter"):
        build_image_network("vgg4", shape, [0.0], [1.0])


def test_statistics_of_other_images_are_refused():
    with pytest.raises(ValueError, match="as long as the images have channels, 3"):
        build_image_network("vgg4", (3, 8, 8), [0.0], [1.0])


def test_images_too_small_are_refused():
    with pytest.raises(
        ValueError, match=r"every image of shape \(1, 7, 7\).* It failed: .*too small"
    ):
        build("vgg4", (1, 7, 7))


# -- The user's modules


def test_a_module_is_copied_and_sees_normalized_images():
    linear = nn.Linear(3 * 8 * 8, 5)
    backbone, width = build(nn.Sequential(nn.Flatten(), linear))
    batch = torch.rand(4, *SHAPE)
    expected = linear(((batch - 0.5) / 0.25).flatten(1))
    assert width == 5
    assert torch.allclose(backbone(batch), expected, atol=1e-6)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    assert bool(linear.weight.any())


def test_a_lazy_module_gets_its_width():
    backbone, width = build(nn.Sequential(nn.Flatten(), nn.LazyLinear(6)))
    assert width == 6
    assert backbone(torch.rand(2, *SHAPE)).shape == (2, 6)


def test_the_modes_of_a_module_stay_as_they_were():
    frozen = nn.BatchNorm2d(3).eval()
    backbone, _ = build(nn.Sequential(frozen, nn.Dropout()))
    assert [module.training for module in backbone.network] == [False, True]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.flatten(1), lambda x: x.flatten(1)),
        (lambda x: x, lambda x: x.sum((2, 3)) / 64),  # maps are averaged
        (lambda x: x[..., None], lambda x: x.sum((2, 3)) / 64),
        (lambda x: x.flatten(2), lambda x: x.flatten(1)),  # tokens are flattened
    ],
)
def test_outputs_become_rows_of_features(function, expected):
    backbone, width = build(Applied(function))
    batch = torch.rand(4, *SHAPE)
    rows = expected((batch - 0.5) / 0.25)
    assert width == rows.shape[1]
    assert torch.allclose(backbone(batch), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x: (x, x), r"must return a float tensor \(n, D, ...\). Got tuple instead."),
        (lambda x: None, "Got NoneType instead."),
        (lambda x: x.mean(), r"Got float32 \(\) instead."),
        (lambda x: x.mean((1, 2, 3)), r"Got float32 \(2,\) instead."),
        (lambda x: x.argmax(1), r"Got int64 \(2, 8, 8\) instead."),
        (lambda x: x[:1], r"Two images became features \(1, 3\)."),
        (lambda x: x.flatten(1)[:, :0], r"Two images became features \(2, 0\)."),
        (lambda x: x.log(), "Two images became NaN or infinite features."),
        (nn.Conv2d(1, 2, 3), "It failed: .*expected input.* to have 1 channels"),
    ],
)
def test_a_module_that_gives_no_features_is_refused(function, sentence):
    with pytest.raises(ValueError, match=f"Got 'Applied' instead. .*{sentence}"):
        build(Applied(function))


def test_a_module_that_changes_its_output_in_training_is_told():
    class Fickle(nn.Module):
        def forward(self, pixels):
            return (pixels,) if self.training else pixels

    backbone, _ = build(Fickle())
    with pytest.raises(TypeError, match="Got tuple instead"):
        backbone(torch.rand(2, *SHAPE))


# -- The user's functions


SOURCE = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

@dataclass
class Sizes:
    width: int = 4

def build(n_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_channels * image_size**2, Sizes().width))

def by_name(image_size, hidden=2, n_channels=99):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_channels * image_size**2, hidden))

def of_channels(*, n_channels):
    return nn.Conv2d(n_channels, 7, 3)

def of_nothing(hidden=11):
    return nn.Conv2d(3, hidden, 3)

def demanding(width, depth):
    return nn.Flatten()

def forgetful():
    nn.Flatten()

class Net(nn.Conv2d):
    def __init__(self, n_channels):
        super().__init__(n_channels, 13, 1)

not_callable = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Put the module ``mynets`` on the path, and return how to name it as a file."""
    (tmp_path / "mynets.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield str(tmp_path / "mynets.py")
    sys.modules.pop("mynets", None)
    sys.modules.pop("coincide_user_mynets", None)


WIDTHS = {"build": 4, "by_name": 2, "of_channels": 7, "of_nothing": 11, "Net": 13}


@pytest.mark.parametrize("function", WIDTHS)
def test_a_function_gets_what_it_names(user_module, function):
    assert build(f"mynets:{function}")[1] == WIDTHS[function]
    assert build(f"{user_module}:{function}")[1] == WIDTHS[function]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("demanding", "of n_channels and image_size, .* missing a required argument: 'width'"),
        ("forgetful", "returns a torch.nn.Module. .* It returned NoneType."),
        ("not_callable", "must be a function that .*mynets.* has"),
        ("biuld", "Did you mean 'build'?"),
        ("", "must be a function"),
    ],
)
def test_an_unfit_function_is_refused(user_module, function, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(f"{user_module}:{function}")


def test_a_side_is_given_for_square_images_only(user_module):
    with pytest.raises(ValueError, match=r"The images are not square, 8 x 9\."):
        build("mynets:build", (3, 8, 9))
    assert build("mynets:of_channels", (3, 8, 9))[1] == 7


def test_missing_modules_and_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="No module is called 'nosuchnets'"):
        build("nosuchnets:build")
    with pytest.raises(ValueError, match=r"There is no file nosuchnets\.py"):
        build("nosuchnets.py:build")
    with pytest.raises(ValueError, match=r"'module:function' or 'path\.py:function'"):
        build("no such nets:build")
    (tmp_path / "nosuchnets.py").write_text(SOURCE, encoding="utf-8")
    with pytest.raises(ValueError, match=r"For the file here write 'nosuchnets\.py:build'"):
        build("nosuchnets:build")
    assert build("nosuchnets.py:build")[1] == 4
    del sys.modules["coincide_user_nosuchnets"]


def test_a_file_may_bear_the_name_of_another_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text("from torch import nn\ndef build(): return nn.Flatten()", encoding="utf-8")
    known = sys.modules.get("json")
    assert build(f"{path}:build")[1] == 3 * 8 * 8
    assert sys.modules.get("json") is known
    del sys.modules["coincide_user_json"]


def test_errors_of_the_users_own_code_come_through(tmp_path, monkeypatch):
    path = tmp_path / "brokennets.py"
    path.write_text("import nosuchpackage", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for kind in (f"{path}:build", "brokennets:build"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'nosuchpackage'"):
            build(kind)
    assert "coincide_user_brokennets" not in sys.modules


# -- Models of other packages, by stand-ins


class Classifier(nn.Module):
    """A convolution, an average and a classifier; remembers with what it was made."""

    def __init__(self, made_with, n_classes=1000):
        super().__init__()
        self.made_with = made_with
        self.features = nn.Conv2d(3, 6, 3)
        self.inner = nn.Linear(6, 10)
        self.fc = nn.Linear(10, n_classes) if n_classes else nn.Identity()

    def forward(self, pixels):
        return self.fc(self.inner(self.features(pixels).mean((2, 3))))


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.fixture
def torchvision(monkeypatch):
    weights = SimpleNamespace(transforms=lambda: SimpleNamespace(mean=MEAN, std=STD))
    models = ModuleType("torchvision.models")
    sets = SimpleNamespace(__members__={"IMAGENET1K_V1": weights, "DEFAULT": weights})
    models.list_models = lambda module: ["resnet50", "squeeze"] if module is models else ["detect"]
    models.get_model_weights = {"resnet50": sets, "squeeze": sets}.__getitem__
    models.get_model = lambda name, weights: (
        Classifier(weights) if name == "resnet50" else nn.Conv2d(3, 4, 1)
    )
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return weights


@pytest.fixture
def timm(monkeypatch):
    stand_in = ModuleType("timm")
    stand_in.is_model = lambda name: name.partition(".")[0] == "vit_small_patch16_224"
    stand_in.list_models = lambda: ["vit_small_patch16_224"]
    stand_in.create_model = lambda name, pretrained, num_classes: Classifier(
        pretrained, num_classes
    )
    stand_in.data = SimpleNamespace(
        resolve_model_data_config=lambda model: {"mean": MEAN, "std": STD}
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)


def features_of(backbone, normalized):
    model = backbone.network
    return model.inner(model.features(normalized).mean((2, 3)))


PLAIN = ["torchvision:resnet50", "timm:vit_small_patch16_224"]
PRETRAINED = [
    "torchvision:resnet50:pretrained",
    "torchvision:resnet50:IMAGENET1K_V1",
    "timm:vit_small_patch16_224:pretrained",
    "timm:vit_small_patch16_224.augreg:pretrained",
]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_model_without_weights_normalizes_by_the_images(kind, n_channels, torchvision, timm):
    backbone, width = build(kind, (n_channels, 8, 8))
    batch = torch.rand(2, n_channels, 8, 8)
    assert width == 10  # the classifier is gone, the linear layer before it is not
    assert not backbone.network.made_with
    expected = features_of(backbone, ((batch - 0.5) / 0.25).expand(2, 3, 8, 8))
    assert torch.allclose(backbone(batch), expected, atol=1e-6)


@pytest.mark.parametrize("kind", PRETRAINED)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_pretrained_model_normalizes_as_it_was_trained(kind, n_channels, torchvision, timm):
    backbone, width = build(kind, (n_channels, 8, 8))
    batch = torch.rand(2, n_channels, 8, 8)
    normalized = torch.stack(
        [(batch[:, min(c, n_channels - 1)] - MEAN[c]) / STD[c] for c in range(3)], dim=1
    )
    assert width == 10
    assert backbone.network.made_with in (True, torchvision)
    assert torch.allclose(backbone(batch), features_of(backbone, normalized), atol=1e-6)


def test_a_model_for_gray_images_refuses_color(torchvision):
    for kind in ("torchvision:resnet50", "torchvision:resnet50:pretrained"):
        backbone, _ = build(kind, (1, 8, 8))
        with pytest.raises(ValueError, match=r"must be a float tensor \(n, 1, H, W\)"):
            backbone(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("torchvision:resnet5", "a classifier that torchvision has.* Did you mean 'resnet50'?"),
        ("torchvision:resnet50:V3", "one of 'pretrained', 'IMAGENET1K_V1', 'DEFAULT'"),
        ("torchvision:squeeze", "a model that ends in a linear layer"),
        ("timm:vit_smal_patch16", "a model that timm has.* Did you mean 'vit_small_patch16_224'?"),
        ("timm:vit_small_patch16_224:augreg", "'timm:vit_small_patch16_224:pretrained'"),
    ],
)
def test_unfit_models_are_refused(kind, sentence, torchvision, timm):
    with pytest.raises(ValueError, match=sentence):
        build(kind)


def test_a_model_of_colors_refuses_four_channels(torchvision):
    with pytest.raises(ValueError, match=r"neither 1 nor 3 channels.* The images have 4\."):
        build("torchvision:resnet50", (4, 8, 8))


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}: pip install {package}"):
        build(f"{package}:resnet50")


def test_a_misspelt_package_is_named():
    with pytest.raises(ValueError, match=r"Did you mean 'torchvision'\?"):
        build("torchvison:resnet50")


def test_what_a_package_itself_lacks_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text("import nosuchpackage", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nosuchpackage'"):
        build("timm:vit_small_patch16_224")
