"""Networks from elsewhere, by name: a function of the user's, torchvision's and timm's models.

``mynets.py:build`` is a function in a file, ``package.module:build`` one that can be imported;
``torchvision:resnet50`` and ``timm:vit_small_patch16_224`` are models of these packages, with
``:pretrained`` behind the name if their weights are to be fetched as well.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from coincide._checks import ImageShape, parameter_message
from coincide._names import closest, load_function

OWNER = "build_image_network"
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Model:
    """A model of another package, without its classifier, for images of three channels.

    Its normalization is the mean and the standard deviation of the pixels that its weights were
    trained on; None for a model without weights.
    """

    network: nn.Module
    normalization: tuple[Sequence[float], Sequence[float]] | None


def unfit(kind: object, expected: str, why: str = "") -> ValueError:
    """Return the error of a network that cannot be built, ``why`` being a sentence of its own."""
    return ValueError(parameter_message("kind", OWNER, expected, kind, why))


# -- A function of the user's


def user_network(kind: str, image_shape: ImageShape) -> nn.Module:
    """Return what the function named by ``module:function`` or ``path.py:function`` builds.

    It is called with those of ``n_channels`` and ``image_size`` (the side in pixels; for square
    images) that its parameters name, and returns a module from normalized images
    ``(n, C, H, W)`` to features. Importing it runs the code of its module.
    """
    function = load_function(kind, "kind", OWNER, PACKAGES)
    network = function(**_arguments(function, kind, image_shape))
    if not isinstance(network, nn.Module):
        returned = f"It returned {type(network).__name__}."
        raise unfit(kind, "a function that returns a torch.nn.Module", returned)
    return network


def _arguments(
    function: Callable[..., object], kind: str, image_shape: ImageShape
) -> dict[str, int]:
    """Return what the function asks for by its parameters' names."""
    n_channels, height, width = image_shape
    expected = "a function of n_channels and image_size, of one of them, or of nothing"
    try:
        signature = inspect.signature(function)
        offered = {"n_channels": n_channels, "image_size": height}
        asked = {name: offered[name] for name in offered if name in signature.parameters}
        signature.bind(**asked)
    except (TypeError, ValueError) as error:
        raise unfit(kind, expected, f"It cannot be called so: {error}.") from error
    if "image_size" in asked and height != width:
        why = f"The images are not square, {height} x {width}."
        raise unfit(kind, "a function without image_size", why)
    return asked


# -- Models of other packages


def load_model(kind: str) -> Model:
    """Return the model named by ``package:name`` or ``package:name:weights``.

    ``weights`` is ``pretrained``, or for torchvision the name of a set of weights such as
    ``IMAGENET1K_V1``. The package fetches and keeps them in its own way.
    """
    package, _, rest = kind.partition(":")
    name, _, weights = rest.partition(":")
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"The network {kind!r} needs {package}: pip install {package}"
        raise ImportError(message) from error
    return PACKAGES[package](name, weights, kind)


def _torchvision(name: str, weights: str, kind: str) -> Model:
    models = importlib.import_module("torchvision.models")
    names = models.list_models(module=models)
    if name not in names:
        raise unfit(kind, "a classifier that torchvision has", closest(name, names))
    if not weights:
        return Model(_without_classifier(models.get_model(name, weights=None), kind), None)
    sets = models.get_model_weights(name).__members__
    asked = "DEFAULT" if weights == PRETRAINED else weights
    if asked not in sets:
        known = ", ".join(repr(known) for known in (PRETRAINED, *sets))
        raise unfit(kind, f"'torchvision:{name}:' and weights that it has, one of {known}")
    transform = sets[asked].transforms()
    network = _without_classifier(models.get_model(name, weights=sets[asked]), kind)
    return Model(network, (transform.mean, transform.std))


def _without_classifier(model: nn.Module, kind: str) -> nn.Module:
    """Take the last linear layer out of a model: in torchvision's, the classifier."""
    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise unfit(kind, "a model that ends in a linear layer")
    model.set_submodule(linear[-1], nn.Identity())
    return model


def _timm(name: str, weights: str, kind: str) -> Model:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise unfit(kind, "a model that timm has", closest(name, timm.list_models()))
    if weights not in ("", PRETRAINED):
        raise unfit(kind, f"'timm:{name}' or 'timm:{name}:{PRETRAINED}'")
    network = timm.create_model(name, pretrained=bool(weights), num_classes=0)
    if not weights:
        return Model(network, None)
    config: dict[str, Any] = timm.data.resolve_model_data_config(network)
    return Model(network, (config["mean"], config["std"]))


PACKAGES: dict[str, Callable[[str, str, str], Model]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
"""How to get a model of a package by its name, its weights and the whole ``kind``."""
