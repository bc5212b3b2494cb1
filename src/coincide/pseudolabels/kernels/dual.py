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

from coincide.pseudolabels.kernels.contract import Minimizers, Vector

_MOST_ROUNDS = 200
_ROUNDING = 1e-15


class TorchMinimizers:
    """The minimizing labels of every row for given multipliers, on any device.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        float32 or float64; every row has a positive entry. Zeros are met exactly.
    """

    def __init__(self, probs: Tensor) -> None:
        self._probs = probs.double()
        steep = self._probs.argmax(1)
        self._pair = torch.stack((steep, steep), 1)  # the flat and the steep line

    def minimize(self, multipliers: Vector) -> Minimizers:
        """Return the minimizers for ``w``, searched from those of the last call.

        Adding a constant ``c`` to ``w`` lowers every value by ``c``.
        """
        # The constant is taken out first: it would cost digits next to the small differences.
        top = float(multipliers.max())
        intercepts = torch.from_numpy(multipliers - top).to(self._probs)
        level = torch.empty_like(self._probs[:, 0])
        values = torch.empty_like(level)
        open_rows = torch.arange(len(level), device=level.device)
        rows, pair = self._probs, self._pair
        self._pair = pair.clone()
        # Any t gives a valid bound, so rounding can cost tightness but never correctness.
        for _ in range(_MOST_ROUNDS):
            slopes = rows.gather(1, pair)
            best = _best_level(slopes, intercepts[pair])
            heights = torch.addcmul(intercepts, rows, (1 / best)[:, None])
            height, highest = heights.max(1)
            settled = height - heights.gather(1, pair).amax(1) <= _ROUNDING * (1 + height.abs())
            level[open_rows] = best
            values[open_rows] = 1 - best.log() - height
            self._pair[open_rows] = pair
            pair = _replace(rows, pair, slopes, highest, best)[~settled]
            open_rows, rows = open_rows[~settled], rows[~settled]
            if not open_rows.numel():
                break
        flat, steep = self._pair.unbind(1)
        low, high = self._probs.gather(1, self._pair).unbind(1)
        alone = (intercepts[steep] >= intercepts[flat]).to(level)
        share = torch.where(high > low, (level - low) / (high - low), alone)
        return Minimizers(values - top, steep, flat, share)


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


def summed_answer(answer: Minimizers, weights: Tensor, n_classes: int) -> tuple[Vector, Vector]:
    """Return the rows' mean label and their mean value."""
    on_steep = weights * answer.share
    mean_label = torch.bincount(answer.steep, on_steep, n_classes)
    mean_label += torch.bincount(answer.flat, weights - on_steep, n_classes)
    return mean_label.cpu().numpy(), (weights @ answer.values).cpu().numpy()


def answer_curvature(answer: Minimizers, weights: Tensor, multipliers: Vector) -> Vector:
    """Return minus the second derivative of the rows' mean value."""
    split = (answer.share > 0) & (answer.share < 1)
    steep, flat = answer.steep[split], answer.flat[split]
    w = torch.from_numpy(multipliers).to(weights.device)
    return laplacian(steep, flat, weights[split] / (w[steep] - w[flat]) ** 2, len(multipliers))


def laplacian(steep: Tensor, flat: Tensor, weights: Tensor, n_classes: int) -> Vector:
    """Return the Laplacian of a graph of the classes."""
    edges = torch.add(flat, steep, alpha=n_classes)
    graph = torch.bincount(edges, weights, n_classes**2).double().cpu().numpy()
    graph = graph.reshape(n_classes, n_classes)
    found: Vector = -graph - graph.T
    found.flat[:: n_classes + 1] -= found.sum(1)
    return found
