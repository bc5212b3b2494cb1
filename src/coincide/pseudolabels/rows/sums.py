"""Sums over the rows part by part, so that they need little memory beside their input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from coincide.pseudolabels.rows.contract import Vector

# Of a part of the rows: work arrays of its size are all that a pass needs beside its input.
_ENTRIES_PER_PART = {"cpu": 1 << 17}
_ENTRIES_ON_DEVICE = 1 << 26


def row_parts(rows: Tensor) -> Iterator[slice]:
    """Yield all rows, so many at a time that a pass over them needs little memory."""
    n_rows, n_classes = rows.shape
    entries = _ENTRIES_PER_PART.get(rows.device.type, _ENTRIES_ON_DEVICE)
    size = max(1, entries // n_classes)
    for first in range(0, max(1, n_rows), size):
        yield slice(first, min(first + size, n_rows))


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """Return ``Σ_i ω_i rows_i``, ``(K,)``, float64."""
    first, *others = (weights[part].double() @ rows[part].double() for part in row_parts(rows))
    return sum(others, first)


def summed_labels(
    probs: Tensor, weights: Tensor, labels: Tensor, *, collision: bool
) -> tuple[Vector, Vector]:
    """Return ``Σ_i ω_i f_i(y_i)`` and ``Σ_i ω_i y_i``, ``(K,)``, float64; 0 ln 0 = 0.

    Parameters
    ----------
    probs, labels : Tensor of shape (M, K)
    weights : Tensor of shape (M,)
    collision : bool
        The row loss: collision cross-entropy, or Shannon's.
    """
    loss = weights.new_zeros((), dtype=torch.float64)
    for part in row_parts(labels):
        own, y = probs[part].double(), labels[part].double()
        losses = torch.linalg.vecdot(own, y).log() if collision else torch.xlogy(y, own).sum(1)
        loss -= weights[part].double() @ losses
    return loss.cpu().numpy(), weighted_sum(weights, labels).cpu().numpy()
