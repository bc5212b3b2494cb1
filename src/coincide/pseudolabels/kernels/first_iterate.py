"""Where the interior point starts: every row near its own central path, or near given labels.

Of the rows at hand only, ``(n, K)``, with the multipliers of the coupling fixed. Probabilities for
collision cross-entropy, their logarithms for Shannon's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import StepArrays, Vector

NEWTON_STEPS = 3  # for the level of each row, which needs no digits


def near_central_path(
    rows: Tensor, multipliers: Vector, shares: Vector, gap: float, *, collision: bool
) -> StepArrays:
    """Return labels and slacks with ``y ζ = μ``, and a small dual residual.

    ``y_k = μ_k/(d + max_j g_j - g_k)`` for the one ``d`` at which they sum to 1: one secular
    equation a row, as in EM's M-step. Of collision cross-entropy ``g = σ/x``, where ``x`` is at
    least ``σ_max/(1 + Σμ)`` (EM's M-step) and about that of the shares.

    Parameters
    ----------
    rows : Tensor of shape (n, K)
    multipliers : array of shape (K,)
    shares : array of shape (K,)
        ``μ/Σμ``, positive.
    gap : float
        ``Σμ``.
    collision : bool
    """
    # Class by class, where sums over the classes are quick for few of them, too.
    own = rows.T.double().contiguous()
    w, shared = (torch.from_numpy(vector).to(own)[:, None] for vector in (multipliers, shares))
    target = gap * shared
    coincidence = torch.maximum((own * shared).sum(0), own.amax(0) / (1 + gap))
    below = _pull(own, w, coincidence, collision=collision).neg_()
    below -= below.amin(0)
    least = torch.where(below == 0, target, 0.0).amax(0)
    level, y = least, torch.empty_like(below)
    for _ in range(NEWTON_STEPS):
        torch.add(below, level, out=y).reciprocal_()
        slope = (y * y).mul_(target).sum(0)
        mass = y.mul_(target).sum(0)
        # A step on 1 - 1/mass.
        level = torch.maximum(level + (mass - 1) * mass / slope, least).clamp_max(gap)
    torch.add(below, level, out=y).reciprocal_().mul_(target)
    y /= y.sum(0)
    return StepArrays(y.T, (target / y).T)


def near_labels(
    rows: Tensor, multipliers: Vector, labels: Tensor, warmth: float, *, collision: bool
) -> StepArrays:
    """Return ``(1 - warmth) y + warmth/K``, and slacks of at least 1 without a dual residual.

    Parameters
    ----------
    rows, multipliers, collision
        As in :func:`near_central_path`.
    labels : Tensor of shape (n, K)
    warmth : float
    """
    own, n_classes = rows.T.double().contiguous(), rows.shape[1]
    w = torch.from_numpy(multipliers).to(own)[:, None]
    y = torch.lerp(labels.T.double(), 1 / own.new_tensor(n_classes), warmth)
    pull = _pull(own, w, (own * y).sum(0), collision=collision)
    return StepArrays(y.T, (1 + pull.amax(0) - pull).T)


def _pull(rows: Tensor, w: Tensor, coincidence: Tensor, *, collision: bool) -> Tensor:
    """Return minus the row gradients of loss and coupling, ``g_i + w``, class by class."""
    return rows / coincidence + w if collision else rows + w
