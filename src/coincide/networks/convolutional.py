"""Plain convolutional backbones: VGG-4 of the paper, and a small one for tiny images.

Layers are convolution (no bias, as batch normalization takes it away), batch normalization, ReLU,
with PyTorch's own start. Features are the last layer's pixels, flattened.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from coincide._checks import ImageShape
from coincide.networks.network import is_small


def vgg4(image_shape: ImageShape) -> nn.Sequential:
    """Return the backbone of Table 8: four 5×5 convolutions, with 2×2 max-pooling between them.

    Adapted there (Zhang and Boykov, arXiv 2303.07321) from IIC's. The table has a column for each
    of its data sets, and other images take the nearest:

    ==================================  ======  ====================  ====================
    Images                              Stride  Channels              Features (at)
    ==================================  ======  ====================  ====================
    small, one channel (MNIST)          1       64, 128, 256, 512     512·3·3 (28 × 28)
    small, more channels (CIFAR)        1       32, 64, 128, 256      256·4·4 (32 × 32)
    large (STL10)                       2       128, 256, 512, 1024   1024·1·1 (96 × 96)
    ==================================  ======  ====================  ====================

    Small is a shorter side of up to 64 pixels, and of 8 at least. Pooling halves a side and drops
    an odd last pixel, so that ``⌊s/8⌋`` is left of a small image's side ``s``; 224 × 224 gives
    1024·2·2 features.
    """
    small = is_small(image_shape)
    first = (64 if image_shape[0] == 1 else 32) if small else 128
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((image_shape[0], first, 2 * first, 4 * first, 8 * first)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        layers += _convolution(n_in, n_out, kernel_size=5, stride=1 if small else 2)
    return nn.Sequential(*layers, nn.Flatten())


def small_conv(image_shape: ImageShape) -> nn.Sequential:
    """Return three 3×3 convolutions of 32, 64 and 128 channels, for images as small as 4 × 4.

    2×2 max-pooling follows the first and the third, so that the 8×8 digits give 128·2·2 features.
    """
    return nn.Sequential(
        *_convolution(image_shape[0], 32, kernel_size=3),
        nn.MaxPool2d(2),
        *_convolution(32, 64, kernel_size=3),
        *_convolution(64, 128, kernel_size=3),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def _convolution(n_in: int, n_out: int, *, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size at stride 1, normalized, with ReLU."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(n_in, n_out, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    ]
