"""The row kernels over a few candidate classes a row, compiled by Numba.

See :mod:`coincide.pseudolabels.kernels.contract` for the mathematics. Candidates are few, so a row
lies in one piece and every pass finishes it while it is in cache; what is summed over the rows goes
straight to its class. Ranges of rows run on threads, each with sums of its own (the compiled code
releases the GIL).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide._compiled_rows import BlockedRows, compiled
from coincide.pseudolabels.kernels.contract import (
    MOST_BEND,
    Extents,
    Factors,
    Minimizers,
    Prediction,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.numba_row_system import NumbaRowSystem

Array = NDArray[Any]

# Of a row: 1 + q·e, κ, Σb, Σe, q·e.
_DENOMINATOR, _KAPPA, _TOTAL, _SUM_E, _CURVATURE = range(5)
_SCALARS = 5


@compiled
def _project(dr, er, known):
    """Return ``β`` and ``γ`` of ``P r`` for a row, from ``d·r`` and ``e·r``."""
    beta = (dr - known[_KAPPA] * er) / known[_TOTAL]
    return beta, er / known[_DENOMINATOR] - known[_KAPPA] * beta


@compiled
def _factor(rows, p, w, k, y, zeta, lead, scalars, g, iy, iz, gram, pull, mean):
    """Fill ``g``, ``1/y``, ``1/ζ``; add ``-Σ ω P`` above the diagonal, ``Σ ω P g``, ``Σ ω y``."""
    n = p.shape[1]
    b, e = np.empty(n), np.empty(n)
    complementarity = 0.0
    for i in range(rows[0], rows[1]):
        known = scalars[i]
        top, coincidence = 0, 0.0
        for c in range(n):
            coincidence += p[i, c] * y[i, c]
            if y[i, c] > y[i, top]:
                top = c
        lead[i] = top
        scale, peak = 1 / coincidence, p[i, top]
        sum_d, sum_e, curvature, product = 0.0, 0.0, 0.0, 0.0
        for c in range(n):
            g[i, c] = (p[i, c] - peak) * scale
            iy[i, c] = 1 / y[i, c]
            iz[i, c] = 1 / zeta[i, c]
            b[c] = y[i, c] * iz[i, c]
            e[c] = b[c] * g[i, c]
            sum_d += b[c]
            sum_e += e[c]
            curvature += e[c] * g[i, c]
            product += y[i, c] * zeta[i, c]
        complementarity += w[i] * product
        known[_SUM_E], known[_CURVATURE] = sum_e, curvature
        known[_DENOMINATOR] = 1 + curvature
        known[_KAPPA] = kappa = sum_e / known[_DENOMINATOR]
        known[_TOTAL] = sum_d - kappa * sum_e
        # For r = g: d·r = Σe and e·r = q·e.
        beta, gamma = _project(sum_e, curvature, known)
        root_b, root_e = np.sqrt(w[i] / known[_TOTAL]), np.sqrt(w[i] / known[_DENOMINATOR])
        for c in range(n):
            pull[k[i, c]] += w[i] * (b[c] * (g[i, c] - beta) - e[c] * gamma)
            mean[k[i, c]] += w[i] * y[i, c]
            b[c] = (b[c] - e[c] * kappa) * root_b
            e[c] *= root_e
        for c in range(1, n if len(gram) else 0):
            row = gram[k[i, c]]
            for a in range(c):
                row[k[i, a]] += b[c] * b[a] + e[c] * e[a]
    return complementarity


@compiled
def _predict(rows, w, k, y, zeta, lead, scalars, g, iy, iz, shift, ratio, center, turn, sums):
    """Find ``ratio = Δy/y`` of the affine direction and sum what the corrector needs."""
    n = y.shape[1]
    low, high, first, second = np.inf, -np.inf, 0.0, 0.0
    for i in range(rows[0], rows[1]):
        known, top = scalars[i], lead[i]
        level, peak = shift[k[i, top]], iy[i, top]
        dr, er = known[_SUM_E], known[_CURVATURE]
        dc, ec = 0.0, 0.0
        for c in range(n):
            d = y[i, c] * iz[i, c]
            moved = d * (shift[k[i, c]] - level)
            dr += moved
            er += moved * g[i, c]
            moved = d * (iy[i, c] - peak)
            dc += moved
            ec += moved * g[i, c]
        beta, gamma = _project(dr, er, known)
        beta_c, gamma_c = _project(dc, ec, known)
        rho = -beta * iz[i, top]
        bent_top = zeta[i, top] * min(rho * (1 + rho), MOST_BEND)
        dt, et, row_first, row_second = 0.0, 0.0, 0.0, 0.0
        for c in range(n):
            d = y[i, c] * iz[i, c]
            rho = (g[i, c] + (shift[k[i, c]] - level) - beta - g[i, c] * gamma) * iz[i, c]
            ratio[i, c] = rho
            low, high = min(low, rho), max(high, rho)
            row_first += y[i, c] * zeta[i, c] * rho
            row_second += y[i, c] * zeta[i, c] * rho * rho
            moved = d * (zeta[i, c] * min(rho * (1 + rho), MOST_BEND) - bent_top)
            dt += moved
            et += moved * g[i, c]
            center[k[i, c]] += w[i] * d * (iy[i, c] - peak - beta_c - g[i, c] * gamma_c)
        first += w[i] * row_first
        second += w[i] * row_second
        beta, gamma = _project(dt, et, known)
        for c in range(n):
            d, rho = y[i, c] * iz[i, c], ratio[i, c]
            bent = zeta[i, c] * min(rho * (1 + rho), MOST_BEND) - bent_top
            turn[k[i, c]] += w[i] * d * (bent - beta - g[i, c] * gamma)
    sums[0], sums[1], sums[2], sums[3] = low, high, first, second


@compiled
def _correct(rows, k, y, zeta, lead, scalars, g, iy, iz, shift, target, ratio, primal, sums):
    """Turn ``ratio`` into ``Δζ/ζ`` and fill ``primal = Δy/y`` of the corrected direction."""
    n = y.shape[1]
    low_primal, low_dual = np.inf, np.inf
    for i in range(rows[0], rows[1]):
        known, top = scalars[i], lead[i]
        dr, er = known[_SUM_E], known[_CURVATURE]
        rho = ratio[i, top]
        bent = zeta[i, top] * min(rho * (1 + rho), MOST_BEND)
        level = shift[k[i, top]] + target * iy[i, top] + bent
        for c in range(n):
            rho = ratio[i, c]
            bent = zeta[i, c] * min(rho * (1 + rho), MOST_BEND)
            r = shift[k[i, c]] + target * iy[i, c] + bent - level
            primal[i, c] = r + g[i, c]
            moved = y[i, c] * iz[i, c] * r
            dr += moved
            er += moved * g[i, c]
        beta, gamma = _project(dr, er, known)
        for c in range(n):
            rho = ratio[i, c]
            step = (primal[i, c] - beta - g[i, c] * gamma) * iz[i, c]
            turn = target * iy[i, c] * iz[i, c] + min(rho * (1 + rho), MOST_BEND) - 1 - step
            primal[i, c], ratio[i, c] = step, turn
            low_primal, low_dual = min(low_primal, step), min(low_dual, turn)
    sums[0], sums[1] = low_primal, low_dual


@compiled
def _advance(rows, y, zeta, primal, dual, primal_length, dual_length):
    """Move along the direction and put the labels back on the simplex."""
    n = y.shape[1]
    for i in range(rows[0], rows[1]):
        mass = 0.0
        for c in range(n):
            y[i, c] *= 1 + primal_length * primal[i, c]
            zeta[i, c] *= 1 + dual_length * dual[i, c]
            mass += y[i, c]
        mass = 1 / mass
        for c in range(n):
            y[i, c] *= mass


class NumbaCandidateRows:
    """Row kernels over a few candidates a row, compiled: entry ``(i, c)`` is ``classes[i, c]``.

    The row loss is collision cross-entropy.

    Parameters
    ----------
    probs : Tensor of shape (R, C), float64
    weights : Tensor of shape (R,), float64
    classes : Tensor of shape (R, C), int64
        Descending within a row.
    n_classes : int
        K.
    apart : bool, optional
        Whether to give the rows as they are, not their K×K sum.
    """

    by_class = False

    def __init__(
        self,
        probs: Tensor,
        weights: Tensor,
        classes: Tensor,
        n_classes: int,
        *,
        apart: bool = False,
    ) -> None:
        self._probs: Array = np.ascontiguousarray(probs.numpy())
        self._weights: Array = weights.numpy()
        # Unsigned indices need no test for negative ones.
        self._classes: Array = classes.numpy().astype(np.uint32, order="C")
        self._n_classes = n_classes
        n_rows, width = self._probs.shape
        self._lead = np.zeros(n_rows, np.int64)
        self._scalars = np.empty((n_rows, _SCALARS))
        # Work arrays: minus the gradient, 1/y, 1/ζ, then (ratio, -), then (dual, primal).
        self._g, self._iy, self._iz, self._first, self._second = (
            np.empty_like(self._probs) for _ in range(5)
        )
        self._work = BlockedRows(n_rows, width)
        # A thread pays where it has more products to add up than a K×K sum of its own has entries.
        many = n_classes**2 <= n_rows * width**2
        self._products = BlockedRows(n_rows, width**2 if many else 1)
        self._system = None
        if apart:
            self._products = self._work
            self._system = NumbaRowSystem(self._weights, self._classes, n_classes)

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the kernels' own from here on."""
        self._y, self._zeta = (np.array(a.numpy(), order="C") for a in (labels, slacks))
        return self._iterate()

    def _iterate(self) -> StepArrays:
        return StepArrays(torch.from_numpy(self._y), torch.from_numpy(self._zeta))

    def _vectors(self, work: BlockedRows) -> Array:
        return np.zeros((work.count, 2, self._n_classes))

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        vectors = self._vectors(self._products)
        size = 0 if self._system else self._n_classes
        grams = np.zeros((self._products.count, size, size))

        def work(number: int, rows: tuple[int, int]) -> float:
            return float(
                _factor(
                    rows, self._probs, self._weights, self._classes, self._y, self._zeta,
                    self._lead, self._scalars, self._g, self._iy, self._iz,
                    grams[number], vectors[number, 0], vectors[number, 1],
                )
            )  # fmt: skip

        complementarity = sum(self._products.each(work))
        pull, mean_label = self._products.summed(vectors)
        if self._system:
            self._system.weigh(self._y, self._iz, self._g, self._lead)
            return Factors(self._system, pull, mean_label, complementarity)
        return Factors(self._products.summed(grams), pull, mean_label, complementarity)

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        vectors, relative = self._vectors(self._work), shift - shift.max()
        sums = np.empty((self._work.count, 4))

        def work(number: int, rows: tuple[int, int]) -> None:
            _predict(
                rows, self._weights, self._classes, self._y, self._zeta, self._lead,
                self._scalars, self._g, self._iy, self._iz, relative, self._first,
                vectors[number, 0], vectors[number, 1], sums[number],
            )  # fmt: skip

        self._work.each(work)
        low, high, first, second = zip(*sums.tolist(), strict=True)
        center, bend = self._work.summed(vectors)
        return Prediction(min(low), max(high), sum(first), sum(second), center, bend)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        relative, sums = shift - shift.max(), np.empty((self._work.count, 2))

        def work(number: int, rows: tuple[int, int]) -> None:
            _correct(
                rows, self._classes, self._y, self._zeta, self._lead, self._scalars, self._g,
                self._iy, self._iz, relative, target, self._first, self._second, sums[number],
            )  # fmt: skip

        self._work.each(work)
        return Extents(*map(min, zip(*sums.tolist(), strict=True)))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in place."""

        def work(number: int, rows: tuple[int, int]) -> None:
            del number
            _advance(rows, self._y, self._zeta, self._second, self._first, primal, dual)

        self._work.each(work)
        return self._iterate()


@compiled
def _count_near(span, p, start, steep, flat, share, slack, near):
    """Count the classes whose lines come within ``slack`` of the envelope where the row answers."""
    for i in range(span[0], span[1]):
        row, high, low = p[i], steep[i], flat[i]
        t = 1 / (share[i] * row[high] + (1 - share[i]) * row[low])
        least = max(row[high] * t + start[high], row[low] * t + start[low]) - slack
        count = 0.0
        for k in range(row.shape[0]):
            count += 1.0 if row[k] * t + start[k] >= least else 0.0
        near[i] = count


@compiled
def _pick_highest(span, p, start, steep, flat, share, rows, classes):
    """Fill ``classes`` with the classes of the highest lines of ``rows``, the highest first."""
    most = classes.shape[1]
    heights = np.empty(most)
    for n in range(span[0], span[1]):
        i = rows[n]
        row, picked = p[i], classes[n]
        t = 1 / (share[i] * row[steep[i]] + (1 - share[i]) * row[flat[i]])
        heights[:] = -np.inf
        for k in range(row.shape[0]):
            height = row[k] * t + start[k]
            if height <= heights[most - 1]:
                continue
            c = most - 1
            while c > 0 and height > heights[c - 1]:
                heights[c], picked[c] = heights[c - 1], picked[c - 1]
                c -= 1
            heights[c], picked[c] = height, k


def near_candidates(
    probs: Tensor,
    multipliers: Vector,
    answer: Minimizers,
    *,
    slack: float,
    most: int,
    least: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the rows with more than one class near, and their nearest classes.

    See :func:`coincide.pseudolabels.kernels.candidates.near_candidates`.
    """
    p, start = np.ascontiguousarray(probs.numpy()), multipliers - multipliers.max()
    steep, flat, share = (part.numpy() for part in (answer.steep, answer.flat, answer.share))
    near = np.empty(len(p), np.int64)
    scan = BlockedRows(*p.shape)
    scan.each(lambda _, span: _count_near(span, p, start, steep, flat, share, slack, near))
    rows = np.flatnonzero(near > 1)
    classes = np.zeros((len(rows), min(most, int(near.max(initial=least)))), np.int64)
    pick = BlockedRows(len(rows), p.shape[1])
    pick.each(lambda _, span: _pick_highest(span, p, start, steep, flat, share, rows, classes))
    return torch.from_numpy(rows), torch.from_numpy(classes)
