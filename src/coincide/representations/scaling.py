"""Bring feature vectors to the scale that a fresh network expects, batch by batch.

``"unit-norm"`` centers the columns, gives every row unit length and multiplies by ``√D``: the
entries have unit variance, and only the direction of a row counts, as it should for embeddings.
``"standard"`` centers and divides by the standard deviation, column by column. ``"isotropic"``
centers and divides all columns by one number: their distances keep their proportions. ``"none"``
leaves the features as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.representations.rows import Features, exact_dtype, row_blocks

SCALINGS = ("unit-norm", "standard", "isotropic", "none")

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Scaling:
    """A fitted scaling: what to subtract, what to divide by.

    Attributes
    ----------
    kind : {"unit-norm", "standard", "isotropic", "none"}
    mean, spread : Tensor of shape (D,), float64
        Weighted mean and standard deviation of the columns the scaling was fitted on.
    mass : float
        Sum of the weights of those rows.
    """

    kind: str
    mean: Tensor
    spread: Tensor
    mass: float

    def __call__(self, rows: Tensor) -> Tensor:
        """Return scaled float32 rows; a row that equals the mean becomes zero."""
        if self.kind == "none":
            return rows.float()
        centered = rows - self.mean.to(rows)
        if self.kind == "standard":
            spread = self.spread.to(rows)
            return (centered / torch.where(spread > 0, spread, 1.0)).float()
        if self.kind == "isotropic":
            return (centered / self.spread.square().mean().sqrt().clamp_min(_TINY).to(rows)).float()
        length = torch.linalg.vector_norm(centered, dim=1, keepdim=True)
        unit = centered / torch.where(length > 0, length, 1.0)
        return (unit * math.sqrt(rows.shape[1])).float()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a saved model keeps beside the kind."""
        mass = torch.tensor(self.mass, dtype=torch.float64)
        return {"mean": self.mean, "spread": self.spread, "mass": mass}

    @classmethod
    def from_tensors(cls, kind: str, tensors: dict[str, Tensor]) -> Scaling:
        """Return the scaling that :meth:`tensors` was of."""
        return cls(kind, tensors["mean"], tensors["spread"], float(tensors["mass"]))

    def merge(self, other: Scaling) -> Scaling:
        """Return the scaling of both sets of rows together."""
        mass = self.mass + other.mass
        share = other.mass / mass
        apart = other.mean - self.mean
        mean = self.mean + share * apart
        variance = (1 - share) * self.spread**2 + share * other.spread**2
        spread = (variance + share * (1 - share) * apart**2).sqrt()
        return Scaling(self.kind, mean, spread, mass)


def fit_scaling(
    features: Features, kind: str, weights: NDArray[np.float64] | None = None
) -> Scaling:
    """Return the scaling of these features, (M, D), from one pass with sums in float64."""
    width = features.shape[1]
    total, first, second = 0.0, np.zeros(width), np.zeros(width)
    # Shifted by one row, so that a large common offset costs no digits.
    dtype = exact_dtype(features)
    origin = np.asarray(features[0], dtype)
    for block in row_blocks(*features.shape):
        rows = np.asarray(features[block], dtype) - origin
        mass = np.ones(len(rows), dtype) if weights is None else weights[block]
        total += float(mass.sum())
        first += mass @ rows
        second += mass @ (rows * rows)
    mean = first / total
    spread = np.sqrt(np.maximum(second / total - mean**2, 0))
    return Scaling(
        kind,
        torch.from_numpy(origin + mean),
        torch.from_numpy(spread),
        total,
    )
