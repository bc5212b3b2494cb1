"""Backbones for images, by name: from pixels to the features that a head sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from coincide._checks import ImageShape, check_image_shape, parameter_message
from coincide._names import closest
from coincide.networks.convolutional import small_conv, vgg4
from coincide.networks.external import OWNER, PACKAGES, load_model, unfit, user_network
from coincide.networks.network import Normalize, check_images
from coincide.networks.resnet import ResNet18
from coincide.networks.vectors import hidden_layers


def _linear(image_shape: ImageShape) -> nn.Module:
    """Return the pixels themselves."""
    del image_shape
    return nn.Flatten()


def _mlp(image_shape: ImageShape) -> nn.Module:
    """Return two hidden layers of 256 on the pixels."""
    n_channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), *hidden_layers(n_channels * height * width))


IMAGE_NETWORKS: dict[str, Callable[[ImageShape], nn.Module]] = {
    "vgg4": vgg4,
    "resnet18": ResNet18,
    "small-conv": small_conv,
    "mlp": _mlp,
    "linear": _linear,
}
"""The project's own backbones, by name: functions of the image shape (C, H, W)."""


def build_image_network(
    kind: str | nn.Module,
    image_shape: ImageShape,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[nn.Module, int]:
    """Return a backbone for images of one shape, and the number of features it gives.

    The backbone takes float images ``(n, C, H, W)`` with pixels in [0, 1] in any memory format,
    normalizes them (:class:`Normalize`) and returns features ``(n, D)``. Where the network itself
    gives maps ``(n, D, H', W')`` they are averaged over the positions; other outputs with more
    than two axes, such as tokens ``(n, T, D')``, are flattened.

    Parameters
    ----------
    kind : str or nn.Module
        One of :data:`IMAGE_NETWORKS`: ``"vgg4"`` (the paper's), ``"resnet18"``, ``"small-conv"``
        (for tiny images), ``"mlp"``, ``"linear"``; ``"module:function"`` or
        ``"path.py:function"`` of the user's own, called with ``n_channels`` and ``image_size`` as
        far as it names them; ``"torchvision:resnet50"``, ``"timm:vit_small_patch16_224"``, and
        with weights ``"torchvision:resnet50:pretrained"``; or a module, which is copied.
    image_shape : (C, H, W)
        Channels, height and width.
    mean, std : sequence of C floats
        Of the images' channels. Pretrained networks bring the ones they were trained with, and
        these are taken instead. Models of torchvision and timm see one channel as three.

    Returns
    -------
    backbone : nn.Module
        In training mode, on the CPU, or where a module was.
    width : int
        ``D``, found by a dry run on two images in evaluation mode.

    Raises
    ------
    ValueError, TypeError
        If there is no such network, or it does not turn two images of this shape into two rows
        of finite features.
    ImportError
        If the network needs a package that is not installed.

    Examples
    --------
    >>> from coincide.networks import build_image_network
    >>> backbone, width = build_image_network("vgg4", (1, 28, 28), mean=[0.13], std=[0.31])
    >>> width == 512 * 3 * 3
    True
    """
    image_shape = check_image_shape(image_shape, OWNER)
    normalize = Normalize(mean, std)
    if len(normalize.mean) != image_shape[0]:
        expected = f"as long as the images have channels, {image_shape[0]}"
        raise ValueError(parameter_message("mean", OWNER, expected, mean))
    normalization, network = _find_network(kind, image_shape, normalize)
    backbone = ImageBackbone(normalization.to(_device(network)), network)
    return backbone, _find_width(backbone, kind, image_shape)


def _find_network(
    kind: str | nn.Module, image_shape: ImageShape, normalize: Normalize
) -> tuple[nn.Module, nn.Module]:
    """Return the network of that name, behind the normalization that it wants."""
    if isinstance(kind, nn.Module):
        return normalize, copy.deepcopy(kind)
    if not isinstance(kind, str):
        raise TypeError(parameter_message("kind", OWNER, "a name or a torch.nn.Module", kind))
    if kind in IMAGE_NETWORKS:
        return normalize, IMAGE_NETWORKS[kind](image_shape)
    if kind.partition(":")[0] in PACKAGES:
        model = load_model(kind)
        return _in_color(kind, normalize, model.normalization), model.network
    if ":" in kind:
        return normalize, user_network(kind, image_shape)
    known = ", ".join(repr(name) for name in IMAGE_NETWORKS)
    expected = f"one of {known}, 'module:function', 'torchvision:name' or 'timm:name'"
    raise unfit(kind, expected, closest(kind, IMAGE_NETWORKS))


class ImageBackbone(nn.Module):
    """Normalization, a network, and what :func:`as_features` makes of its output."""

    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(n, D)`` of a batch of images."""
        return as_features(self.network(self.normalize(images)))


def as_features(output: object) -> Tensor:
    """Return a network's output ``(n, D, ...)`` as rows: maps averaged, tokens flattened."""
    expected = "A network for images must return a float tensor (n, D, ...)."
    if not isinstance(output, Tensor):
        raise TypeError(f"{expected} Got {type(output).__name__} instead.")
    if output.ndim < 2 or not output.is_floating_point():
        got = f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
        raise ValueError(f"{expected} Got {got} instead.")
    return output.flatten(2).mean(2) if output.ndim > 3 else output.flatten(1)


class _GrayToColor(nn.Module):
    """One channel as three equal ones."""

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, n_channels=1)
        return images.expand(-1, 3, -1, -1)


def _in_color(
    kind: str, normalize: Normalize, trained_on: tuple[Sequence[float], Sequence[float]] | None
) -> nn.Module:
    """Return what makes the three normalized channels that a model of a package sees.

    ``trained_on`` are mean and deviation of the pixels that the model's weights know.
    """
    n_channels = len(normalize.mean)
    if n_channels not in (1, 3):
        expected = "a network of another kind for images with neither 1 nor 3 channels"
        raise unfit(kind, expected, f"The images have {n_channels}.")
    in_color = None if trained_on is None else Normalize(*trained_on)
    if n_channels == 3:
        return normalize if in_color is None else in_color
    if in_color is None:
        return nn.Sequential(normalize, _GrayToColor())
    return nn.Sequential(_GrayToColor(), in_color)


def _find_width(backbone: nn.Module, kind: str | nn.Module, image_shape: ImageShape) -> int:
    """Return the features of two images in evaluation mode; leave the modes as they were."""
    modes = [(module, module.training) for module in backbone.modules()]
    pixels = torch.linspace(0, 1, 2 * math.prod(image_shape), device=_device(backbone))
    expected = f"a network that gives a row of features for every image of shape {image_shape}"
    named = kind if isinstance(kind, str) else type(kind).__name__
    try:
        with torch.no_grad():
            features = backbone.eval()(pixels.view(2, *image_shape))
    except Exception as error:
        raise unfit(named, expected, f"It failed: {error}") from error
    for module, training in modes:
        module.training = training
    if len(features) != 2 or features.shape[1] == 0:
        raise unfit(named, expected, f"Two images became features {tuple(features.shape)}.")
    if not bool(features.isfinite().all()):
        raise unfit(named, expected, "Two images became NaN or infinite features.")
    return int(features.shape[1])


def _device(module: nn.Module) -> torch.device:
    """Return where a module's parameters are."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
