"""The dual of one row: ``g(w) = min_y [f(y) - w·y]`` over the simplex, exactly.

For collision cross-entropy the minimum is a maximum over one scalar ``t = 1/σ·y``,

    g(w) = max_{t>0} [1 + ln t - max_k(σ_k t + w_k)],

a concave function over the upper envelope of ``K`` lines. A finite active-set search finds it:
solve for the best ``t`` on two lines, let the line highest there replace one of them, stop when
none is higher. Every round is one pass over the rows that are not settled yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_ROUNDS = 200
_ROUNDING = 1e-15


def dual_rows(probs: Tensor, multipliers: Tensor, *, collision: bool) -> Tensor:
    """Return ``g_i(w)`` for every row.

    Parameters
    ----------
    probs : Tensor of shape (M, K), float64
        Predictions; every row has a positive entry. Zeros are met exactly.
    multipliers : Tensor of shape (K,), float64
        ``w``, finite; adding a constant ``c`` lowers every ``g_i`` by ``c``.
    collision : bool
        The row loss: collision cross-entropy, or Shannon's (then ``g = min_k(-ln σ_k - w_k)``).

    Returns
    -------
    Tensor of shape (M,), float64
    """
    if not collision:
        return -(probs.log() + multipliers).amax(1)
    # The constant is taken out first: it would cost digits next to the lines' small differences.
    top = multipliers.max()
    return _collision_rows(probs, multipliers - top) - top


def _collision_rows(probs: Tensor, intercepts: Tensor) -> Tensor:
    steep = probs.argmax(1)
    flat = steep
    values = torch.empty(probs.shape[0], dtype=probs.dtype, device=probs.device)
    open_rows = torch.arange(probs.shape[0], device=probs.device)
    rows = probs
    # Any t gives a valid bound, so rounding can cost tightness but never correctness.
    for _ in range(_MOST_ROUNDS):
        if not open_rows.numel():
            break
        flat_slope, steep_slope = _at(rows, flat), _at(rows, steep)
        level = _best_level(flat_slope, steep_slope, intercepts[flat], intercepts[steep])
        heights = torch.addcmul(intercepts, rows, (1 / level)[:, None])
        height, highest = heights.max(1)
        pair = torch.maximum(
            heights.gather(1, flat[:, None]), heights.gather(1, steep[:, None])
        ).squeeze(1)
        settled = height - pair <= _ROUNDING * (1 + height.abs())
        values[open_rows] = 1 - level.log() - height
        flat, steep = _replace(rows, flat, steep, highest, level, flat_slope, steep_slope)
        open_rows, rows = open_rows[~settled], rows[~settled]
        flat, steep = flat[~settled], steep[~settled]
    return values


def _at(rows: Tensor, column: Tensor) -> Tensor:
    return rows.gather(1, column[:, None]).squeeze(1)


def _best_level(
    flat_slope: Tensor, steep_slope: Tensor, flat_start: Tensor, steep_start: Tensor
) -> Tensor:
    """Return ``1/t`` at the maximum over the envelope of two lines: a tie, or one line alone."""
    lead = flat_start - steep_start
    tie = (steep_slope - flat_slope) / lead
    # Without a head start of the flat line the steep one is higher for every t > 0.
    tie = torch.where(lead > 0, tie, torch.inf)
    return tie.clamp(flat_slope, steep_slope)


def _replace(
    rows: Tensor,
    flat: Tensor,
    steep: Tensor,
    highest: Tensor,
    level: Tensor,
    flat_slope: Tensor,
    steep_slope: Tensor,
) -> tuple[Tensor, Tensor]:
    """Put the highest line beside the one it leaves on the other side of the maximum."""
    slope = _at(rows, highest)
    on_steep = level >= steep_slope
    on_flat = (level <= flat_slope) & ~on_steep
    keep = torch.where(on_steep, steep, torch.where(on_flat | (slope >= level), flat, steep))
    kept_slope = _at(rows, keep)
    above = slope > kept_slope
    return torch.where(above, keep, highest), torch.where(above, highest, keep)
