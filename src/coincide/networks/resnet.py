"""ResNet-18 (He et al. 2016), under the names that torchvision gives its parameters."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import ImageShape
from coincide.networks.network import is_small

_CLASSIFIER = "fc."


class ResNet18(nn.Module):
    """Four stages of two residual blocks, 64 to 512 channels, averaged over the pixels.

    The standard stem, a 7×7 convolution of stride 2 and max-pooling, leaves a quarter of an
    image's side. On small images, with a shorter side of up to 64 pixels, a 3×3 convolution takes
    its place, as SCAN and SimCLR have it for CIFAR.

    Torchvision's weights load by ``load_state_dict`` as they are: their classifier ``fc`` is left
    out, the names of all else must fit. They are of the standard stem and three channels.

    He, Zhang, Ren and Sun, Deep residual learning for image recognition, CVPR 2016, Table 1.
    """

    def __init__(self, image_shape: ImageShape) -> None:
        super().__init__()
        n_channels = image_shape[0]
        self.conv1: nn.Module
        self.maxpool: nn.Module
        if is_small(image_shape):
            self.conv1 = nn.Conv2d(n_channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(n_channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.register_load_state_dict_pre_hook(_drop_classifier)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(n, 512)``."""
        pixels: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        pixels = self.layer4(self.layer3(self.layer2(self.layer1(pixels))))
        return pixels.mean((2, 3))


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut around them."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Module = nn.Identity()
        if n_in != n_out:
            projection = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(n_out))

    def forward(self, pixels: Tensor) -> Tensor:
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(pixels)))))
        return F.relu(changed + self.downsample(pixels))


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(n_in, n_out, stride), _Block(n_out, n_out, 1))


def _drop_classifier(_: nn.Module, state: dict[str, Any], prefix: str, *_rest: object) -> None:
    """Take torchvision's classifier out of the weights to be loaded."""
    for name in [name for name in state if name.startswith(prefix + _CLASSIFIER)]:
        del state[name]
