"""The row kernels compiled by Numba: one pass over the iterate each, for the CPU.

See :mod:`coincide.pseudolabels.kernels.contract` for the mathematics. Between passes there are the
predictions as they came, the labels, the slacks and a few scalars a row, nothing else of size
M×K: a pass works on blocks of rows that stay in the cache, and what it needs of an earlier one,
such as the predictor, it computes again from the scalars. That is quicker than to store it.

Labels and slacks lie class by class, ``(K, M)``: the innermost loops run along the rows of a
block, so they are vectorized without a horizontal sum whatever K is. Predictions may be float32;
all arithmetic is in float64. Ranges of rows run on threads (the compiled code releases the GIL).
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
    Prediction,
    StepArrays,
    Vector,
)

Array = NDArray[Any]

# Of a row: scale and offset of g = p·scale - offset, 1 + q·e, κ, Σb, Σe, q·e; then of the
# predictor and of the corrected direction ``(r + g·slope - level)/ζ``.
_SCALE, _OFFSET, _DENOMINATOR, _KAPPA, _TOTAL, _SUM_E, _CURVATURE = range(7)
_LEVEL, _SLOPE, _NEXT_LEVEL, _NEXT_SLOPE = range(7, 11)
_SCALARS = 11

# Of the rows that go into a Gram matrix at once: enough of them for BLAS, few enough for the cache.
_ENTRIES_PER_PRODUCT = 1 << 17
_LEAST_ROWS_PER_PRODUCT = 512


@compiled
def _load(p, first, known, g):
    """Fill ``g`` with minus the gradients of a block of rows, class by class, zero at the lead."""
    for k in range(p.shape[1]):
        gk = g[k]
        for j in range(known.shape[1]):
            gk[j] = p[first + j, k] * known[_SCALE, j] - known[_OFFSET, j]


@compiled
def _find_lead(p, first, y, known, lead, g, lanes, collision):
    """Find every row's largest label, and the gradients relative to it."""
    n = lead.shape[0]
    lanes[:3] = 0
    for k in range(p.shape[1]):
        gk, yk, own = g[k], y[k], float(k)
        for j in range(n):
            gk[j] = p[first + j, k]
        for j in range(n):
            lanes[0, j] += gk[j] * yk[j]
            larger = yk[j] > lanes[1, j]
            lanes[2, j] = own if larger else lanes[2, j]
            lanes[1, j] = yk[j] if larger else lanes[1, j]
    for j in range(n):
        lead[j] = int(lanes[2, j])
        known[_SCALE, j] = 1 / lanes[0, j] if collision else 1.0
        known[_OFFSET, j] = g[lead[j], j] * known[_SCALE, j]
    for k in range(p.shape[1]):
        gk = g[k]
        for j in range(n):
            gk[j] = gk[j] * known[_SCALE, j] - known[_OFFSET, j]


@compiled
def _project(dr, er, known, bend, beta, gamma):
    """Find ``β`` and ``γ`` of ``P r`` for a block of rows, from ``d·r`` and ``e·r``."""
    for j in range(known.shape[1]):
        beta[j] = (dr[j] - bend * known[_KAPPA, j] * er[j]) / known[_TOTAL, j]
        gamma[j] = bend * (er[j] / known[_DENOMINATOR, j] - known[_KAPPA, j] * beta[j])


@compiled
def _factor(rows, p, w, y, zeta, collision, block, lead, scalars, product, pull, mean):
    """Fill ``e √(ω/(1+q·e))`` and ``b √(ω/Σb)``, side by side; add ``Σ ω P g`` and ``Σ ω y``."""
    classes, many = y.shape[0], rows[1] - rows[0]
    bend = 1.0 if collision else 0.0
    g, d = np.empty((classes, block)), np.empty((classes, block))
    lanes = np.empty((10, block))
    complementarity = 0.0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part, start = slice(first, first + n), first - rows[0]
        known, weight = scalars[:, part], w[part]
        _find_lead(p, first, y[:, part], known, lead[part], g, lanes, collision)
        lanes[:4] = 0
        for k in range(classes):
            yk, zk, gk, dk = y[k, part], zeta[k, part], g[k], d[k]
            for j in range(n):
                dk[j] = yk[j] / zk[j]
            for j in range(n):
                e = dk[j] * gk[j]
                lanes[0, j] += dk[j]
                lanes[1, j] += e
                lanes[2, j] += e * gk[j]
                lanes[3, j] += yk[j] * zk[j]
        for j in range(n):
            known[_SUM_E, j] = lanes[1, j]
            known[_CURVATURE, j] = lanes[2, j]
            known[_DENOMINATOR, j] = 1 + bend * lanes[2, j]
            known[_KAPPA, j] = bend * lanes[1, j] / known[_DENOMINATOR, j]
            known[_TOTAL, j] = lanes[0, j] - known[_KAPPA, j] * lanes[1, j]
            lanes[4, j] = bend * np.sqrt(weight[j] / known[_DENOMINATOR, j])
            lanes[5, j] = np.sqrt(weight[j] / known[_TOTAL, j])
            lanes[8, j], lanes[9, j] = known[_KAPPA, j], weight[j]
            complementarity += weight[j] * lanes[3, j]
        # For r = g: d·r = Σe and e·r = q·e.
        _project(lanes[1], lanes[2], known, bend, lanes[6], lanes[7])
        for k in range(classes):
            yk, gk, dk = y[k, part], g[k], d[k]
            bk = product[k, start : start + n]
            ek = product[k, many + start : many + start + n]
            for j in range(n):
                bk[j] = dk[j] * (1 - gk[j] * lanes[8, j]) * lanes[5, j]
            if collision:
                for j in range(n):
                    ek[j] = dk[j] * gk[j] * lanes[4, j]
            moved, held = 0.0, 0.0
            for j in range(n):
                moved += lanes[9, j] * dk[j] * (gk[j] - lanes[6, j] - gk[j] * lanes[7, j])
                held += lanes[9, j] * yk[j]
            pull[k] += moved
            mean[k] += held
    return complementarity


@compiled
def _predict(rows, p, w, y, zeta, collision, block, lead, scalars, shift, center, turn, sums):
    """Find the affine direction and sum what the corrector needs."""
    classes = y.shape[0]
    bend = 1.0 if collision else 0.0
    g, inverse, bent = (
        np.empty((classes, block)),
        np.empty((classes, block)),
        np.empty((classes, block)),
    )
    # Sums and levels of r = g + shift, of 1/y, and of the bend.
    lanes = np.empty((17, block))
    dr, er, beta, gamma = lanes[0], lanes[1], lanes[2], lanes[3]
    dc, ec, beta_c, gamma_c = lanes[4], lanes[5], lanes[6], lanes[7]
    top, top_center = lanes[8], lanes[9]
    lanes[10:14] = 0
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known, weight, leads = scalars[:, part], w[part], lead[part]
        _load(p, first, known, g)
        for j in range(n):
            dr[j], er[j], dc[j], ec[j] = known[_SUM_E, j], known[_CURVATURE, j], 0.0, 0.0
            top[j], top_center[j] = shift[leads[j]], 1 / y[leads[j], first + j]
            lanes[14, j] = weight[j]
        for k in range(classes):
            yk, zk, gk, jk, sk = y[k, part], zeta[k, part], g[k], inverse[k], shift[k]
            for j in range(n):
                jk[j] = 1 / zk[j]
            for j in range(n):
                moved = yk[j] * jk[j] * (sk - lanes[8, j])
                lanes[0, j] += moved
                lanes[1, j] += moved * gk[j]
                moved = jk[j] * (1 - yk[j] * lanes[9, j])
                lanes[4, j] += moved
                lanes[5, j] += moved * gk[j]
        _project(dr, er, known, bend, beta, gamma)
        _project(dc, ec, known, bend, beta_c, gamma_c)
        for j in range(n):
            known[_LEVEL, j] = lanes[15, j] = beta[j] + top[j]
            known[_SLOPE, j] = lanes[16, j] = 1 - gamma[j]
            beta_c[j] += top_center[j]
            rho = -beta[j] * inverse[leads[j], j]
            top[j] = zeta[leads[j], first + j] * min(rho * (1 + rho), MOST_BEND)
        lanes[:2] = 0
        for k in range(classes):
            yk, zk, gk, jk, tk = y[k, part], zeta[k, part], g[k], inverse[k], bent[k]
            sk, moved = shift[k], 0.0
            for j in range(n):
                rho = (gk[j] * lanes[16, j] + sk - lanes[15, j]) * jk[j]
                lanes[10, j] = min(lanes[10, j], rho)
                lanes[11, j] = max(lanes[11, j], rho)
                along = lanes[14, j] * yk[j] * zk[j] * rho
                lanes[12, j] += along
                lanes[13, j] += along * rho
                t = zk[j] * min(rho * (1 + rho), MOST_BEND) - lanes[8, j]
                tk[j] = t
                t *= yk[j] * jk[j]
                lanes[0, j] += t
                lanes[1, j] += t * gk[j]
            for j in range(n):
                moved += lanes[14, j] * jk[j] * (1 - yk[j] * (lanes[6, j] + gk[j] * lanes[7, j]))
            center[k] += moved
        _project(dr, er, known, bend, beta, gamma)
        for k in range(classes):
            yk, gk, jk, tk, moved = y[k, part], g[k], inverse[k], bent[k], 0.0
            for j in range(n):
                moved += lanes[14, j] * yk[j] * jk[j] * (tk[j] - lanes[2, j] - gk[j] * lanes[3, j])
            turn[k] += moved
    sums[0], sums[1] = lanes[10].min(), lanes[11].max()
    sums[2], sums[3] = lanes[12].sum(), lanes[13].sum()


@compiled
def _correct(rows, p, y, zeta, collision, block, lead, scalars, affine, shift, target, sums):
    """Find the levels of the corrected direction and its smallest entries."""
    classes = y.shape[0]
    bend = 1.0 if collision else 0.0
    g, inverses, rest = (
        np.empty((classes, block)),
        np.empty((classes, block)),
        np.empty((classes, block)),
    )
    lanes = np.empty((9, block))
    dr, er, beta, gamma, top = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    lanes[5:7] = np.inf
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known, leads = scalars[:, part], lead[part]
        _load(p, first, known, g)
        for j in range(n):
            k, i = leads[j], first + j
            rho = (affine[k] - known[_LEVEL, j]) / zeta[k, i]
            bent = zeta[k, i] * min(rho * (1 + rho), MOST_BEND)
            top[j] = shift[k] + target / y[k, i] + bent
            lanes[7, j], lanes[8, j] = known[_LEVEL, j], known[_SLOPE, j]
        lanes[:2] = 0
        for k in range(classes):
            yk, zk, gk, jk, rk = y[k, part], zeta[k, part], g[k], inverses[k], rest[k]
            ak, sk = affine[k], shift[k]
            for j in range(n):
                inverse = 1 / (yk[j] * zk[j])
                jk[j] = inverse
                rho = (gk[j] * lanes[8, j] + ak - lanes[7, j]) * yk[j] * inverse
                drift = target * inverse + min(rho * (1 + rho), MOST_BEND)
                rk[j] = drift
                r = sk + zk[j] * drift - lanes[4, j] + gk[j]
                moved = yk[j] * yk[j] * inverse * r
                lanes[0, j] += moved
                lanes[1, j] += moved * gk[j]
        _project(dr, er, known, bend, beta, gamma)
        for j in range(n):
            known[_NEXT_LEVEL, j] = lanes[7, j] = beta[j] + top[j]
            known[_NEXT_SLOPE, j] = lanes[8, j] = 1 - gamma[j]
        for k in range(classes):
            yk, zk, gk, jk, rk = y[k, part], zeta[k, part], g[k], inverses[k], rest[k]
            sk = shift[k]
            for j in range(n):
                r = sk + zk[j] * rk[j] + gk[j] * lanes[8, j] - lanes[7, j]
                primal = r * yk[j] * jk[j]
                lanes[5, j] = min(lanes[5, j], primal)
                lanes[6, j] = min(lanes[6, j], rk[j] - 1 - primal)
    sums[0], sums[1] = lanes[5].min(), lanes[6].min()


@compiled
def _advance(rows, p, y, zeta, block, scalars, affine, shift, target, primal_length, dual_length):
    """Move along the corrected direction and put the labels back on the simplex."""
    classes = y.shape[0]
    g, lanes = np.empty((classes, block)), np.empty((5, block))
    for first in range(rows[0], rows[1], block):
        n = min(block, rows[1] - first)
        part = slice(first, first + n)
        known = scalars[:, part]
        _load(p, first, known, g)
        for j in range(n):
            lanes[0, j], lanes[1, j], lanes[2, j] = 0, known[_LEVEL, j], known[_SLOPE, j]
            lanes[3, j], lanes[4, j] = known[_NEXT_LEVEL, j], known[_NEXT_SLOPE, j]
        for k in range(classes):
            yk, zk, gk, ak, sk = y[k, part], zeta[k, part], g[k], affine[k], shift[k]
            for j in range(n):
                inverse = 1 / (yk[j] * zk[j])
                rho = (gk[j] * lanes[2, j] + ak - lanes[1, j]) * yk[j] * inverse
                drift = target * inverse + min(rho * (1 + rho), MOST_BEND)
                r = sk + zk[j] * drift + gk[j] * lanes[4, j] - lanes[3, j]
                primal = r * yk[j] * inverse
                yk[j] *= 1 + primal_length * primal
                zk[j] *= 1 + dual_length * (drift - 1 - primal)
                lanes[0, j] += yk[j]
        for j in range(n):
            lanes[0, j] = 1 / lanes[0, j]
        for k in range(classes):
            yk = y[k, part]
            for j in range(n):
                yk[j] *= lanes[0, j]


class NumbaRows:
    """Row kernels of the interior point, compiled, on CPU tensors.

    Parameters
    ----------
    rows : Tensor of shape (M, K), float32 or float64
        Probabilities for collision cross-entropy, their logarithms for Shannon's.
    weights : Tensor of shape (M,)
    collision : bool
    """

    by_class = True

    def __init__(self, rows: Tensor, weights: Tensor, *, collision: bool) -> None:
        self._rows: Array = rows.contiguous().numpy()
        self._weights: Array = weights.double().numpy()
        self._collision = collision
        n_rows, self._classes = rows.shape
        self._lead = np.zeros(n_rows, np.int64)
        self._scalars = np.empty((_SCALARS, n_rows))
        self._affine = self._shift = np.zeros(self._classes)
        self._target = 0.0
        self._work = BlockedRows(n_rows, self._classes)
        self._block = self._work.block

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; float64 arrays that lie class by class are not copied."""
        self._y, self._zeta = (
            np.ascontiguousarray(array.double().numpy().T) for array in (labels, slacks)
        )
        self._arrays = StepArrays(torch.from_numpy(self._y).T, torch.from_numpy(self._zeta).T)
        return self._arrays

    def _vectors(self) -> Array:
        return np.zeros((self._work.count, 2, self._classes))

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        vectors = self._vectors()
        size = max(_LEAST_ROWS_PER_PRODUCT, _ENTRIES_PER_PRODUCT // self._classes)

        def work(number: int, rows: tuple[int, int]) -> tuple[float, Array]:
            gram = np.zeros((self._classes, self._classes))
            most = (1 + self._collision) * min(size, rows[1] - rows[0])
            room = np.empty(self._classes * most)
            complementarity = 0.0
            for first in range(*rows, size):
                last = min(first + size, rows[1])
                entries = self._classes * (1 + self._collision) * (last - first)
                product = room[:entries].reshape(self._classes, -1)
                complementarity += _factor(
                    (first, last), self._rows, self._weights, self._y, self._zeta,
                    self._collision, self._block, self._lead, self._scalars, product,
                    vectors[number, 0], vectors[number, 1],
                )  # fmt: skip
                gram += product @ product.T
            return complementarity, gram

        parts = self._work.each(work)
        gram = self._work.summed(part for _, part in parts)
        pull, mean_label = self._work.summed(vectors)
        return Factors(gram, pull, mean_label, sum(part for part, _ in parts))

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        # Constants are free and cost digits.
        self._affine = shift - shift.max()
        vectors, sums = self._vectors(), np.empty((self._work.count, 4))

        def work(number: int, rows: tuple[int, int]) -> None:
            _predict(
                rows, self._rows, self._weights, self._y, self._zeta, self._collision,
                self._block, self._lead, self._scalars, self._affine, vectors[number, 0],
                vectors[number, 1], sums[number],
            )  # fmt: skip

        self._work.each(work)
        low, high, first, second = zip(*sums.tolist(), strict=True)
        center, bend = self._work.summed(vectors)
        return Prediction(min(low), max(high), sum(first), sum(second), center, bend)

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        self._shift, self._target = shift - shift.max(), target
        sums = np.empty((self._work.count, 2))

        def work(number: int, rows: tuple[int, int]) -> None:
            _correct(
                rows, self._rows, self._y, self._zeta, self._collision, self._block,
                self._lead, self._scalars, self._affine, self._shift, target, sums[number],
            )  # fmt: skip

        self._work.each(work)
        return Extents(*map(min, zip(*sums.tolist(), strict=True)))

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in place."""

        def work(number: int, rows: tuple[int, int]) -> None:
            del number
            _advance(
                rows, self._rows, self._y, self._zeta, self._block, self._scalars,
                self._affine, self._shift, self._target, primal, dual,
            )  # fmt: skip

        self._work.each(work)
        return self._arrays
