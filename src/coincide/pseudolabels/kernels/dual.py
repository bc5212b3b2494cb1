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
    values = torch.empty(probs.shape[0], dtype=probs.dtype, device=probs.device)
    open_rows = torch.arange(probs.shape[0], device=probs.device)
    rows = probs
    steep = probs.argmax(1)
    pair = torch.stack((steep, steep), 1)  # the flat and the steep line
    # Any t gives a valid bound, so rounding can cost tightness but never correctness.
    for _ in range(_MOST_ROUNDS):
        if not open_rows.numel():
            break
        slopes = rows.gather(1, pair)
        level = _best_level(slopes, intercepts[pair])
        heights = torch.addcmul(intercepts, rows, (1 / level)[:, None])
        height, highest = heights.max(1)
        settled = height - heights.gather(1, pair).amax(1) <= _ROUNDING * (1 + height.abs())
        values[open_rows] = 1 - level.log() - height
        pair = _replace(rows, pair, slopes, highest, level)
        open_rows, rows, pair = open_rows[~settled], rows[~settled], pair[~settled]
    return values


def _best_level(slopes: Tensor, starts: Tensor) -> Tensor:
    """Return ``1/t`` at the maximum over the envelope of two lines: a tie, or one line alone."""
    flat, steep = slopes.unbind(1)
    lead = starts[:, 0] - starts[:, 1]
    # Without a head start of the flat line the steep one is higher for every t > 0.
    tie = torch.where(lead > 0, (steep - flat) / lead, torch.inf)
    return tie.clamp(flat, steep)


def _replace(rows: Tensor, pair: Tensor, slopes: Tensor, highest: Tensor, level: Tensor) -> Tensor:
    """Put the highest line beside the one it leaves on the other side of the maximum."""
    slope = rows.gather(1, highest[:, None]).squeeze(1)
    on_steep = level >= slopes[:, 1]
    on_flat = (level <= slopes[:, 0]) & ~on_steep
    keeps_flat = on_flat | (~on_steep & (slope >= level))
    keep = torch.where(keeps_flat, pair[:, 0], pair[:, 1])
    above = slope > rows.gather(1, keep[:, None]).squeeze(1)
    return torch.stack((torch.where(above, keep, highest), torch.where(above, highest, keep)), 1)
