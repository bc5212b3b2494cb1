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

from coincide.pseudolabels.rows.contract import Minimizers, Vector

_MOST_ROUNDS = 200
_ROUNDING = 1e-15
_ENTRIES_PER_BLOCK = 1 << 22


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
    """Return minus the second derivative of the rows' mean value, ``(K, K)``.

    A row that is split between ``k`` and ``l`` moves mass at the rate ``1/(w_k - w_l)²``, whatever
    its predictions are; the others do not move.
    """
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


def near_candidates(
    probs: Tensor,
    multipliers: Vector,
    answer: Minimizers,
    *,
    slack: float,
    most: int,
    least: int = 1,
    kept: Tensor | None = None,
    within: Vector | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the rows with more than one candidate, and their candidates.

    Close to the multipliers a row can answer only with lines that are nearly as high there.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
    multipliers : array of shape (K,)
        Finite.
    answer : Minimizers
        The rows' answer to them.
    slack : float
        A class is a candidate of a row when its line comes this close to the envelope where the
        row answers, in units of the loss.
    most, least : int
        Bounds of the candidates of a row, at most K.
    kept : Tensor of shape (M, L), int64, optional
        Classes that are candidates however far they are.
    within : array of shape (K,), optional
        How close each class has to be to come first, with those kept.

    Returns
    -------
    rows : Tensor of shape (R,), int64
    classes : Tensor of shape (R, C), int64
        The nearest first; ``C`` is the largest number of a row's candidates, within the bounds.
    """
    starts, t, envelope = _envelope(probs, multipliers, answer)
    always = torch.full_like(starts, -1) if within is None else torch.from_numpy(within).to(starts)
    open_rows, picked, widest = [], [], least
    size = max(1, _ENTRIES_PER_BLOCK // probs.shape[1])
    for start in range(0, len(probs), size):
        part = slice(start, start + size)
        heights = torch.addcmul(starts, probs[part].double(), t[part, None])
        if kept is not None:
            heights.scatter_(1, kept[part], torch.inf)
        heights[heights + always >= envelope[part, None]] = torch.inf
        near = (heights >= envelope[part, None] - slack).sum(1)
        rows = (near > 1).nonzero().squeeze(1)
        widest = max(widest, min(most, int(near.max())))
        open_rows.append(rows + start)
        picked.append(heights[rows].topk(most, 1).indices)
    return torch.cat(open_rows), torch.cat(picked)[:, :widest].contiguous()


def nearest_rows(
    probs: Tensor, multipliers: Vector, answer: Minimizers, counts: Vector
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every class the rows whose envelope its line comes nearest to, and how near.

    Parameters
    ----------
    probs, multipliers, answer
        As in :func:`near_candidates`.
    counts : array of shape (K,)
        How many rows each class gets; all M where it is more.

    Returns
    -------
    rows, classes : Tensor of shape (N,), int64
    distances : Tensor of shape (N,), float64
    """
    starts, t, envelope = _envelope(probs, multipliers, answer)
    wanted = torch.from_numpy(counts).to(probs.device).long().clamp_max(len(probs))
    classes = wanted.nonzero().squeeze(1)
    found = [(classes[:0], classes[:0], starts[:0])]
    size = max(1, _ENTRIES_PER_BLOCK // max(1, len(probs)))
    for part in (classes[i : i + size] for i in range(0, len(classes), size)):
        below = envelope[:, None] - torch.addcmul(starts[part], probs[:, part].double(), t[:, None])
        distances, rows = below.topk(int(wanted[part].max()), 0, largest=False)
        asked = torch.arange(len(rows), device=rows.device)[:, None] < wanted[part]
        found.append((rows[asked], part.expand_as(rows)[asked], distances[asked]))
    rows, of_classes, distances = map(torch.cat, zip(*found, strict=True))
    return rows, of_classes, distances


def _envelope(
    probs: Tensor, multipliers: Vector, answer: Minimizers
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intercepts of the lines, every row's best ``t``, and its envelope there."""
    starts = torch.from_numpy(multipliers - multipliers.max()).to(probs.device)
    pair = torch.stack((answer.steep, answer.flat), 1)
    slopes = probs.gather(1, pair).double()
    t = 1 / torch.lerp(slopes[:, 1], slopes[:, 0], answer.share)
    return starts, t, torch.addcmul(starts[pair], slopes, t[:, None]).amax(1)
