"""The dual of the rows compiled by Numba: every row's active-set search in cache.

The mathematics is that of :mod:`coincide.pseudolabels.rows.torch_dual`. A pair of lines is settled
when no line rises above it; that check is a sum, not a maximum, because a sum vectorizes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coincide._threads import BlockedRows, compiled
from coincide.pseudolabels.rows.contract import Minimizers, Vector

_MOST_ROUNDS = 200
_ROUNDING = 1e-14


@compiled
def _best_level(row, start, flat, steep):
    """Return ``1/t`` at the maximum over the envelope of two lines."""
    level = np.float64(row[steep])
    if start[flat] > start[steep]:
        tie = (level - row[flat]) / (start[flat] - start[steep])
        level = min(max(tie, np.float64(row[flat])), level)
    return level


@compiled
def _excess(row, start, t, height):
    """Return how far the lines rise above ``height`` at ``t``, summed."""
    total = 0.0
    for k in range(row.shape[0]):
        total += max(row[k] * t + start[k] - height, 0.0)
    return total


@compiled
def _highest(row, start, t):
    """Return the line that is highest at ``t``."""
    best = 0
    for k in range(1, row.shape[0]):
        if row[k] * t + start[k] > row[best] * t + start[best]:
            best = k
    return best


@compiled
def _minimize_rows(rows, p, start, top, values, steep, flat, share):
    """Search from the pairs in ``steep`` and ``flat``, for ``w = start + top``, ``start`` <= 0."""
    for i in range(rows[0], rows[1]):
        row = p[i]
        if steep[i] < 0:
            steep[i] = flat[i] = np.argmax(row)
        high, low = steep[i], flat[i]
        level, height = 1.0, 0.0
        for _ in range(_MOST_ROUNDS):
            level = _best_level(row, start, low, high)
            t = 1 / level
            height = max(row[low] * t + start[low], row[high] * t + start[high])
            excess = _excess(row, start, t, height)
            if excess <= _ROUNDING * (1 + abs(height)):
                height += excess  # rounding costs tightness, never correctness
                break
            highest = _highest(row, start, t)
            # The highest line stands beside the one it leaves on the other side of the maximum.
            keep = low
            if level >= row[high] or (level > row[low] and row[highest] < level):
                keep = high
            low, high = (keep, highest) if row[highest] > row[keep] else (highest, keep)
        values[i] = 1 - np.log(level) - height - top
        steep[i], flat[i] = high, low
        width = np.float64(row[high]) - row[low]
        alone = 1.0 if start[high] >= start[low] else 0.0
        share[i] = (level - row[low]) / width if width > 0 else alone


@compiled
def _sum_answer(values, steep, flat, share, weights, mean):
    """Add ``Σ ω y`` to ``mean`` and return ``Σ ω g``."""
    total = 0.0
    for i in range(len(steep)):
        on_steep = weights[i] * share[i]
        mean[steep[i]] += on_steep
        mean[flat[i]] += weights[i] - on_steep
        total += weights[i] * values[i]
    return total


@compiled
def _add_edge(graph, one, other, weight):
    """Add an edge to the Laplacian of a graph."""
    graph[one, one] += weight
    graph[other, other] += weight
    graph[one, other] -= weight
    graph[other, one] -= weight


@compiled
def _add_edges(steep, flat, weights, graph):
    """Add all edges to the Laplacian of a graph."""
    for i in range(len(steep)):
        _add_edge(graph, steep[i], flat[i], weights[i])


@compiled
def _add_split_rows(steep, flat, share, weights, w, graph):
    """Add an edge for every row that is split, with the rate at which it moves mass."""
    for i in range(len(steep)):
        if 0 < share[i] < 1:
            rate = weights[i] / (w[steep[i]] - w[flat[i]]) ** 2
            _add_edge(graph, steep[i], flat[i], rate)


class NumbaMinimizers:
    """The minimizing labels of every row for given multipliers, on the CPU.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        float32 or float64; every row has a positive entry.
    """

    def __init__(self, probs: Tensor) -> None:
        self._p = np.ascontiguousarray(probs.numpy())
        n_rows = len(self._p)
        self._work = BlockedRows(*self._p.shape)
        self._steep = np.full(n_rows, -1, np.int64)
        self._flat = np.full(n_rows, -1, np.int64)

    def minimize(self, multipliers: Vector) -> Minimizers:
        """Return the minimizers for ``w``, searched from those of the last call."""
        top = multipliers.max()
        start = multipliers - top
        values, share = np.empty((2, len(self._p)))
        self._steep, self._flat = self._steep.copy(), self._flat.copy()
        found = values, self._steep, self._flat, share
        self._work.each(lambda _, rows: _minimize_rows(rows, self._p, start, top, *found))
        return Minimizers(*map(torch.from_numpy, found))


def summed_answer(answer: Minimizers, weights: Tensor, n_classes: int) -> tuple[Vector, Vector]:
    """Return the rows' mean label and their mean value."""
    mean = np.zeros(n_classes)
    value = _sum_answer(*(part.numpy() for part in answer), weights.numpy(), mean)
    return mean, np.array(value)


def answer_curvature(answer: Minimizers, weights: Tensor, multipliers: Vector) -> Vector:
    """Return minus the second derivative of the rows' mean value."""
    graph = np.zeros((len(multipliers), len(multipliers)))
    rows = (part.numpy() for part in answer[1:])
    _add_split_rows(*rows, weights.numpy(), multipliers, graph)
    return graph


def laplacian(steep: Tensor, flat: Tensor, weights: Tensor, n_classes: int) -> Vector:
    """Return the Laplacian of a graph of the classes."""
    graph = np.zeros((n_classes, n_classes))
    _add_edges(steep.numpy(), flat.numpy(), weights.numpy(), graph)
    return graph


@compiled
def _heights(row, start, high, low, share, kept, within, heights):
    """Find the lines' heights where a row answers, infinite if kept; return the envelope."""
    t = 1 / (share * row[high] + (1 - share) * row[low])
    envelope = max(row[high] * t + start[high], row[low] * t + start[low])
    for k in range(row.shape[0]):
        height = row[k] * t + start[k]
        heights[k] = np.inf if height + within[k] >= envelope else height
    for c in kept:
        heights[c] = np.inf
    return envelope


@compiled
def _count_near(span, p, start, steep, flat, share, slack, kept, within, near):
    """Count the candidates of every row."""
    heights = np.empty(p.shape[1])
    for i in range(span[0], span[1]):
        least = _heights(p[i], start, steep[i], flat[i], share[i], kept[i], within, heights) - slack
        count = 0.0
        for k in range(len(heights)):
            count += 1.0 if heights[k] >= least else 0.0
        near[i] = count


@compiled
def _pick_highest(span, p, start, steep, flat, share, slack, kept, within, rows, classes):
    """Fill ``classes`` with the highest lines of ``rows``, the highest first."""
    most = classes.shape[1]
    best, heights = np.empty(most), np.empty(p.shape[1])
    for n in range(span[0], span[1]):
        i, picked = rows[n], classes[n]
        _heights(p[i], start, steep[i], flat[i], share[i], kept[i], within, heights)
        best[:] = -np.inf
        for k in range(len(heights)):
            if heights[k] <= best[most - 1]:
                continue
            c = most - 1
            while c > 0 and heights[k] > best[c - 1]:
                best[c], picked[c] = best[c - 1], picked[c - 1]
                c -= 1
            best[c], picked[c] = heights[k], k


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

    See :func:`coincide.pseudolabels.rows.torch_dual.near_candidates`.
    """
    p, start = np.ascontiguousarray(probs.numpy()), multipliers - multipliers.max()
    of_rows = tuple(part.numpy() for part in (answer.steep, answer.flat, answer.share))
    near, always = np.empty(len(p), np.int64), np.empty((len(p), 0), np.int64)
    if kept is not None:
        always = np.ascontiguousarray(kept.numpy())
    close = np.full(len(start), -1.0) if within is None else within
    given = p, start, *of_rows, slack, always, close
    scan = BlockedRows(*p.shape)
    scan.each(lambda _, span: _count_near(span, *given, near))
    rows = np.flatnonzero(near > 1)
    classes = np.zeros((len(rows), min(most, int(near.max(initial=least)))), np.int64)
    pick = BlockedRows(len(rows), p.shape[1])
    pick.each(lambda _, span: _pick_highest(span, *given, rows, classes))
    return torch.from_numpy(rows), torch.from_numpy(classes)


@compiled
def sum_labels(rows, p, y, weights, block, mean):
    """Add ``Σ ω y`` to ``mean`` and return ``Σ ω (-ln σ·y)``."""
    lanes, total = np.empty((2, block)), 0.0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        lanes[0] = 0.0
        for j in range(n):
            lanes[1, j] = weights[first + j]
        for k in range(p.shape[1]):
            held = 0.0
            for j in range(n):
                own = np.float64(y[first + j, k])
                lanes[0, j] += np.float64(p[first + j, k]) * own
                held += lanes[1, j] * own
            mean[k] += held
        for j in range(n):
            total -= lanes[1, j] * np.log(lanes[0, j])
    return total
