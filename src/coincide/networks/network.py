"""A network in two parts, backbone and head, the images it is built for, its learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coincide._checks import ImageShape, check_integer, check_real, parameter_message

SMALL_SIDE = 64


class Network(nn.Module):
    """Logits in two steps, ``head(backbone(images))``.

    Parameters
    ----------
    backbone : nn.Module
        From images ``(n, C, H, W)`` to features ``(n, D)``, see :func:`build_image_network`.
    head : nn.Module
        From features to logits ``(n, K)``, such as :func:`linear_head` gives.
    width : int
        ``D``, the features that the head sees.

    Examples
    --------
    >>> import torch
    >>> from coincide.networks import Network, build_image_network, linear_head
    >>> backbone, width = build_image_network("small-conv", (1, 8, 8), mean=[0.3], std=[0.4])
    >>> network = Network(backbone, linear_head(width, n_clusters=10), width)
    >>> network(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.width = check_integer(width, "width", "Network", low=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class Normalize(nn.Module):
    """Images of mean 0 and standard deviation 1: ``(x_c - mean_c) / std_c`` in channel ``c``.

    A part of the network, so that a saved model meets new images as it met the old ones.

    Parameters
    ----------
    mean, std : sequence of C floats
        Of every channel, of pixels in [0, 1]. ``std`` is positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", _by_channel(mean, "mean"))
        self.register_buffer("std", _by_channel(std, "std"))
        if len(self.mean) != len(self.std):
            expected = f"as long as 'mean', {len(self.mean)}"
            raise ValueError(parameter_message("std", "Normalize", expected, std))
        if not (self.std > 0).all():
            expected = "positive; 1 leaves a constant channel as it is"
            raise ValueError(parameter_message("std", "Normalize", expected, std))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images ``(n, C, H, W)`` normalized, in the memory format they came in."""
        check_images(images, n_channels=len(self.mean))
        return (images - self.mean) / self.std


def _by_channel(values: Sequence[float], name: str) -> Tensor:
    """Return a number for every channel as ``(C, 1, 1)``, or refuse what is none."""
    expected = "a sequence of finite numbers, one for every channel"
    try:
        channels = torch.as_tensor(values, dtype=torch.float32, device="cpu").clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(parameter_message(name, "Normalize", expected, values)) from error
    if channels.ndim != 1 or not len(channels) or not bool(channels.isfinite().all()):
        raise ValueError(parameter_message(name, "Normalize", expected, values))
    return channels.view(-1, 1, 1)


def check_images(images: Tensor, n_channels: int) -> None:
    """Refuse what is no batch of images with so many channels."""
    if images.ndim != 4 or images.shape[1] != n_channels or not images.is_floating_point():
        expected = f"a float tensor (n, {n_channels}, H, W) with pixels in [0, 1]"
        got = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise ValueError(f"A batch of images must be {expected}. Got {got} instead.")


def linear_head(width: int, n_clusters: int) -> nn.Linear:
    """Return the usual head, one linear layer: weights as PyTorch draws them, biases zero.

    The weights are Kaiming's, uniform within ``±1/√D``: on features of unit size the first logits
    differ by little, yet enough to tell images apart. No cluster starts with a bias in its favor.

    Parameters
    ----------
    width : int
        ``D``, the features of the backbone.
    n_clusters : int
        ``K``, the logits.
    """
    head = nn.Linear(
        check_integer(width, "width", "linear_head", low=1),
        check_integer(n_clusters, "n_clusters", "linear_head", low=2),
    )
    nn.init.zeros_(head.bias)
    return head


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    backbone_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    *,
    decay_all: bool = True,
) -> list[dict[str, Any]]:
    """Return what an optimizer of torch takes: first the backbone's parameters, then the head's.

    Parameters
    ----------
    network : nn.Module
        A :class:`Network`; any other module is taken for a head alone. Frozen parameters, which
        require no gradient, are in no group; no group is empty.
    learning_rate : float
        Of the head.
    backbone_learning_rate : float, optional
        Of the backbone; that of the head without it.
    weight_decay : float
        Of both.
    decay_all : bool
        Whether biases and normalization layers decay as well. So they do in PyTorch's optimizers
        by default, and so the paper's coefficients are read.

    Examples
    --------
    >>> import torch
    >>> from coincide.networks import Network, linear_head, parameter_groups
    >>> network = Network(torch.nn.Linear(4, 8), linear_head(8, 3), width=8)
    >>> groups = parameter_groups(network, 5e-2, backbone_learning_rate=1e-5, weight_decay=1e-4)
    >>> [group["lr"] for group in torch.optim.Adam(groups).param_groups]
    [1e-05, 0.05]
    """
    owner = "parameter_groups"
    rate = check_real(learning_rate, "learning_rate", owner, open_low=True)
    decay = check_real(weight_decay, "weight_decay", owner)
    name, backbone_rate = "backbone_learning_rate", rate
    if backbone_learning_rate is not None:
        backbone_rate = check_real(backbone_learning_rate, name, owner, open_low=True)
    if isinstance(network, Network):
        parts = [(network.backbone, backbone_rate), (network.head, rate)]
    elif backbone_learning_rate is None:
        parts = [(network, rate)]
    else:
        expected = "None for a network without a backbone"
        raise ValueError(parameter_message(name, owner, expected, backbone_learning_rate))
    groups = []
    for part, part_rate in parts:
        parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        # Biases, and the scales of normalization layers, are vectors.
        decayed = [parameter for parameter in parameters if decay_all or parameter.ndim > 1]
        spared = [parameter for parameter in parameters if not decay_all and parameter.ndim <= 1]
        groups += [
            {"params": members, "lr": part_rate, "weight_decay": share}
            for members, share in ((decayed, decay), (spared, 0.0))
            if members
        ]
    return groups


def is_small(image_shape: ImageShape) -> bool:
    """Return whether the shorter side has at most 64 pixels."""
    return min(image_shape[1:]) <= SMALL_SIDE
