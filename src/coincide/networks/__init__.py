"""Networks: from feature vectors or images to logits, and where they start from.

``vectors`` has the networks of the estimator; ``network`` the backbone and head that all image
training sees; ``images`` finds a backbone by name, in ``convolutional`` and ``resnet`` or, by
``external``, among those of the user and of other packages. A new network is one function of the
image shape, and one line in :data:`IMAGE_NETWORKS`.
"""

from __future__ import annotations

from coincide.networks.images import IMAGE_NETWORKS, build_image_network
from coincide.networks.network import Network, Normalize, linear_head, parameter_groups
from coincide.networks.vectors import NETWORKS, build_network, check_network, start_from_centers

__all__ = [
    "IMAGE_NETWORKS",
    "NETWORKS",
    "Network",
    "Normalize",
    "build_image_network",
    "build_network",
    "check_network",
    "linear_head",
    "parameter_groups",
    "start_from_centers",
]
