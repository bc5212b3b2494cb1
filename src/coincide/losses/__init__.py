"""Losses, and the information measures they are made of.

``collision`` holds the loss from logits, for training; ``information`` the entropies,
cross-entropies and divergences of probability vectors, for looking at the results: ``p`` and ``q``,
the target and the prediction, of shape ``(..., K)``, give one of shape ``(...)``. Their ``order``
is Rényi's ``α``, which may be ``math.inf``.
"""

from __future__ import annotations

from coincide.losses.collision import CollisionCrossEntropyLoss, collision_cross_entropy
from coincide.losses.information import (
    bhattacharyya_distance,
    collision_cross_entropy_of_probs,
    collision_entropy,
    cross_entropy,
    entropy,
    kl_divergence,
    natural_renyi_cross_entropy,
    renyi_divergence,
    renyi_entropy,
    shifted_renyi_cross_entropy,
)

__all__ = [
    "CollisionCrossEntropyLoss",
    "bhattacharyya_distance",
    "collision_cross_entropy",
    "collision_cross_entropy_of_probs",
    "collision_entropy",
    "cross_entropy",
    "entropy",
    "kl_divergence",
    "natural_renyi_cross_entropy",
    "renyi_divergence",
    "renyi_entropy",
    "shifted_renyi_cross_entropy",
]
