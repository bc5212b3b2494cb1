"""Learn from uncertain labels by maximizing the probability that two classes coincide.

The public names, loaded on first use so that ``import coincide`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from coincide import losses, metrics, pseudolabels
    from coincide.cluster import CollisionClustering
    from coincide.losses import CollisionCrossEntropyLoss, collision_cross_entropy
    from coincide.pseudolabels import PseudoLabels, solve_pseudo_labels

_HOME = {
    "CollisionClustering": "coincide.cluster",
    "CollisionCrossEntropyLoss": "coincide.losses",
    "PseudoLabels": "coincide.pseudolabels",
    "collision_cross_entropy": "coincide.losses",
    "solve_pseudo_labels": "coincide.pseudolabels",
}
_MODULES = ("losses", "metrics", "pseudolabels")

__all__ = [
    "CollisionClustering",
    "CollisionCrossEntropyLoss",
    "PseudoLabels",
    "collision_cross_entropy",
    "losses",
    "metrics",
    "pseudolabels",
    "solve_pseudo_labels",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"coincide.{name}")
    raise AttributeError(f"module 'coincide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
