"""What an objective needs of labels: their mean loss, and the mean label."""

from __future__ import annotations

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector
from coincide.pseudolabels.kernels.parts import row_parts, weighted_sum


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
