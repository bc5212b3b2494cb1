"""The row kernels compiled by Numba: one fused pass over the rows each, for the CPU.

See :mod:`coincide.pseudolabels.kernels.contract` for the mathematics. The arrays lie class by
class, ``(K, M)``, and every pass works on blocks of rows that fit the cache: the innermost loops
run along the rows of a block, so they are vectorized without a horizontal sum whatever K is. The
scalars of a row are found once, in the first pass. Ranges of rows run on threads (the compiled
code releases the GIL).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.pseudolabels.kernels.blas import one_blas_thread
from coincide.pseudolabels.kernels.contract import (
    Extents,
    Factors,
    Prediction,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.numba_blocks import BlockedRows, compiled

Array = NDArray[Any]

# Of a row: scale and offset of g = p·scale - offset, 1 + q·e, κ, Σb, Σe, q·e.
_SCALE, _OFFSET, _DENOMINATOR, _KAPPA, _TOTAL, _SUM_E, _CURVATURE = range(7)
_SCALARS = 7

# Every innermost loop below writes to one array at most: with more, the compiler cannot prove
# that they do not overlap, and gives up vectorizing. Computing d and g anew is cheaper.


@compiled
def _factor(
    rows, p, w, y, zeta, collision, block, lead, scalars, iy, iz, scaled_e, scaled_b, pull, mean
):
    """Fill ``1/y``, ``1/ζ``, ``e √(ω/(1+q·e))``, ``b √(ω/Σb)``; add ``Σ ω P g`` and ``Σ ω y``."""
    classes = p.shape[0]
    one = p.dtype.type(1)
    bend = one if collision else p.dtype.type(0)
    complementarity = 0.0
    for first in range(rows[0], rows[1], block):
        part = slice(first, min(first + block, rows[1]))
        scale, offset = scalars[_SCALE, part], scalars[_OFFSET, part]
        weight = w[part]
        _find_lead(p[:, part], y[:, part], lead[part], scale, offset, collision)
        sums = np.zeros((4, weight.shape[0]), p.dtype)
        sum_d, sum_e, curvature, product = sums[0], sums[1], sums[2], sums[3]
        for k in range(classes):
            pk, yk, zk, ik, jk = p[k, part], y[k, part], zeta[k, part], iy[k, part], iz[k, part]
            for j in range(pk.shape[0]):
                ik[j] = one / yk[j]
            for j in range(pk.shape[0]):
                jk[j] = one / zk[j]
            for j in range(pk.shape[0]):
                sum_d[j] += yk[j] * jk[j]
            for j in range(pk.shape[0]):
                sum_e[j] += yk[j] * jk[j] * (pk[j] * scale[j] - offset[j])
            for j in range(pk.shape[0]):
                g = pk[j] * scale[j] - offset[j]
                curvature[j] += yk[j] * jk[j] * g * g
            for j in range(pk.shape[0]):
                product[j] += yk[j] * zk[j]
        denominator, kappa = scalars[_DENOMINATOR, part], scalars[_KAPPA, part]
        total = scalars[_TOTAL, part]
        scalars[_SUM_E, part] = sum_e
        scalars[_CURVATURE, part] = curvature
        denominator[:] = one + bend * curvature
        kappa[:] = bend * sum_e / denominator
        total[:] = sum_d - kappa * sum_e
        # For r = g: d·r = sum_e and e·r = curvature.
        beta, gamma = _project(sum_e, curvature, scalars[:, part], bend)
        root_e = bend * np.sqrt(weight / denominator)
        root_b = np.sqrt(weight / total)
        complementarity += np.sum(weight * product)
        for k in range(classes):
            pk, yk, jk = p[k, part], y[k, part], iz[k, part]
            ek, bk = scaled_e[k, part], scaled_b[k, part]
            for j in range(pk.shape[0]):
                ek[j] = yk[j] * jk[j] * (pk[j] * scale[j] - offset[j]) * root_e[j]
            for j in range(pk.shape[0]):
                g = pk[j] * scale[j] - offset[j]
                bk[j] = yk[j] * jk[j] * (one - g * kappa[j]) * root_b[j]
            moved = p.dtype.type(0)
            for j in range(pk.shape[0]):
                g = pk[j] * scale[j] - offset[j]
                moved += weight[j] * yk[j] * jk[j] * (g - beta[j] - g * gamma[j])
            pull[k] += moved
            held = p.dtype.type(0)
            for j in range(pk.shape[0]):
                held += weight[j] * yk[j]
            mean[k] += held
    return complementarity


@compiled
def _find_lead(p, y, lead, scale, offset, collision):
    """Find every row's largest label; ``g = p · scale - offset`` is zero there."""
    scale[:] = 0
    lead[:] = 0
    most = y[0].copy()
    for k in range(p.shape[0]):
        pk, yk = p[k], y[k]
        for j in range(pk.shape[0]):
            scale[j] += pk[j] * yk[j]
        for j in range(pk.shape[0]):
            lead[j] = k if yk[j] > most[j] else lead[j]
        for j in range(pk.shape[0]):
            most[j] = max(most[j], yk[j])
    for j in range(scale.shape[0]):
        scale[j] = 1 / scale[j] if collision else 1
        offset[j] = p[lead[j], j] * scale[j]


@compiled
def _project(dr, er, scalars, bend):
    """Return ``β`` and ``γ`` of ``P r`` for a block of rows, from ``d·r`` and ``e·r``."""
    beta = (dr - bend * scalars[_KAPPA] * er) / scalars[_TOTAL]
    gamma = bend * (er / scalars[_DENOMINATOR] - scalars[_KAPPA] * beta)
    return beta, gamma


@compiled
def _predict(
    rows, p, w, y, zeta, collision, block, lead, scalars, iy, iz, shift, ratio, center, turn, sums
):
    """Find ``ratio = Δy/y`` of the affine direction and sum what the corrector needs."""
    classes = p.shape[0]
    one = p.dtype.type(1)
    bend = one if collision else p.dtype.type(0)
    low, high, first_sum, second_sum = np.inf, -np.inf, 0.0, 0.0
    for first in range(rows[0], rows[1], block):
        part = slice(first, min(first + block, rows[1]))
        weight, leads, known = w[part], lead[part], scalars[:, part]
        scale, offset = known[_SCALE], known[_OFFSET]
        n = weight.shape[0]
        top, top_center = np.empty(n, p.dtype), np.empty(n, p.dtype)
        for j in range(n):
            top[j] = shift[leads[j]]
            top_center[j] = iy[leads[j], first + j]
        dots = np.zeros((4, n), p.dtype)
        dr, er, dc, ec = dots[0], dots[1], dots[2], dots[3]
        dr[:] = known[_SUM_E]
        er[:] = known[_CURVATURE]
        for k in range(classes):
            pk, yk, jk = p[k, part], y[k, part], iz[k, part]
            sk = shift[k]
            for j in range(n):
                dr[j] += yk[j] * jk[j] * (sk - top[j])
            for j in range(n):
                er[j] += yk[j] * jk[j] * (pk[j] * scale[j] - offset[j]) * (sk - top[j])
            for j in range(n):
                dc[j] += jk[j] * (one - yk[j] * top_center[j])
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                ec[j] += jk[j] * (one - yk[j] * top_center[j]) * g
        beta, gamma = _project(dr, er, known, bend)
        beta_c, gamma_c = _project(dc, ec, known, bend)
        beta_c += top_center
        top_turn = np.empty(n, p.dtype)
        for j in range(n):
            rho = -beta[j] * iz[leads[j], first + j]
            top_turn[j] = zeta[leads[j], first + j] * rho * (one + rho)
        beta += top
        lanes = np.zeros((7, n), p.dtype)
        lows, highs, firsts, seconds = lanes[0], lanes[1], lanes[2], lanes[3]
        dt, et, t = lanes[4], lanes[5], lanes[6]
        for k in range(classes):
            pk, yk, jk, zk, rk = p[k, part], y[k, part], iz[k, part], zeta[k, part], ratio[k, part]
            sk = shift[k]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                rk[j] = (g + sk - beta[j] - g * gamma[j]) * jk[j]
            for j in range(n):
                lows[j] = min(lows[j], rk[j])
            for j in range(n):
                highs[j] = max(highs[j], rk[j])
            for j in range(n):
                firsts[j] += yk[j] * zk[j] * rk[j]
            for j in range(n):
                seconds[j] += yk[j] * zk[j] * rk[j] * rk[j]
            for j in range(n):
                t[j] = yk[j] * jk[j] * (zk[j] * rk[j] * (one + rk[j]) - top_turn[j])
            for j in range(n):
                dt[j] += t[j]
            for j in range(n):
                et[j] += (pk[j] * scale[j] - offset[j]) * t[j]
            moved = p.dtype.type(0)
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                moved += weight[j] * jk[j] * (one - yk[j] * (beta_c[j] + g * gamma_c[j]))
            center[k] += moved
        beta, gamma = _project(dt, et, known, bend)
        beta += top_turn
        for k in range(classes):
            pk, yk, jk, zk, rk = p[k, part], y[k, part], iz[k, part], zeta[k, part], ratio[k, part]
            moved = p.dtype.type(0)
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                bent = zk[j] * rk[j] * (one + rk[j])
                moved += weight[j] * yk[j] * jk[j] * (bent - beta[j] - g * gamma[j])
            turn[k] += moved
        low = min(low, lows.min())
        high = max(high, highs.max())
        first_sum += np.sum(weight * firsts)
        second_sum += np.sum(weight * seconds)
    sums[0], sums[1], sums[2], sums[3] = low, high, first_sum, second_sum


@compiled
def _correct(
    rows, p, y, zeta, collision, block, lead, scalars, iy, iz, shift, target, ratio, primal, sums
):
    """Turn ``ratio`` into ``Δζ/ζ`` and fill ``primal = Δy/y`` of the corrected direction."""
    classes = p.shape[0]
    one = p.dtype.type(1)
    bend = one if collision else p.dtype.type(0)
    low_primal, low_dual = np.inf, np.inf
    for first in range(rows[0], rows[1], block):
        part = slice(first, min(first + block, rows[1]))
        leads, known = lead[part], scalars[:, part]
        scale, offset = known[_SCALE], known[_OFFSET]
        n = leads.shape[0]
        top = np.empty(n, p.dtype)
        for j in range(n):
            k, i = leads[j], first + j
            top[j] = shift[k] + target * iy[k, i] + zeta[k, i] * ratio[k, i] * (one + ratio[k, i])
        lanes = np.zeros((4, n), p.dtype)
        dr, er, lows, duals = lanes[0], lanes[1], lanes[2], lanes[3]
        for k in range(classes):
            pk, yk, zk = p[k, part], y[k, part], zeta[k, part]
            ik, jk, ak, rk = iy[k, part], iz[k, part], ratio[k, part], primal[k, part]
            sk = shift[k]
            for j in range(n):
                rk[j] = sk + target * ik[j] + zk[j] * ak[j] * (one + ak[j]) - top[j]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                dr[j] += yk[j] * jk[j] * (rk[j] + g)
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                er[j] += yk[j] * jk[j] * g * (rk[j] + g)
        beta, gamma = _project(dr, er, known, bend)
        for k in range(classes):
            pk, ik, jk = p[k, part], iy[k, part], iz[k, part]
            ak, rk = ratio[k, part], primal[k, part]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                rk[j] = (rk[j] + g - beta[j] - g * gamma[j]) * jk[j]
            for j in range(n):
                ak[j] = target * ik[j] * jk[j] + ak[j] * (one + ak[j]) - one - rk[j]
            for j in range(n):
                lows[j] = min(lows[j], rk[j])
            for j in range(n):
                duals[j] = min(duals[j], ak[j])
        low_primal = min(low_primal, lows.min())
        low_dual = min(low_dual, duals.min())
    sums[0], sums[1] = low_primal, low_dual


@compiled
def _advance(rows, y, zeta, primal, dual, length, block):
    """Move along the direction and put the labels back on the simplex."""
    classes = y.shape[0]
    one = y.dtype.type(1)
    for first in range(rows[0], rows[1], block):
        part = slice(first, min(first + block, rows[1]))
        mass = np.zeros_like(y[0, part])
        for k in range(classes):
            yk, zk, pk, dk = y[k, part], zeta[k, part], primal[k, part], dual[k, part]
            for j in range(yk.shape[0]):
                yk[j] *= one + length * pk[j]
            for j in range(yk.shape[0]):
                zk[j] *= one + length * dk[j]
            for j in range(yk.shape[0]):
                mass[j] += yk[j]
        mass = one / mass
        for k in range(classes):
            yk = y[k, part]
            for j in range(yk.shape[0]):
                yk[j] *= mass[j]


class NumbaRows:
    """Row kernels of the interior point, compiled, on CPU tensors."""

    name = "numba"

    def __init__(self, rows: Tensor, weights: Tensor, *, collision: bool) -> None:
        self._probs: Array = np.ascontiguousarray(rows.numpy().T)
        self._weights: Array = weights.numpy()
        self._collision = collision
        classes, n_rows = self._probs.shape
        self._lead = np.zeros(n_rows, np.int64)
        self._scalars = np.empty((_SCALARS, n_rows), self._probs.dtype)
        # Work arrays: 1/y, 1/ζ, and two that hold (e, b), then (ratio, -), then (dual, primal).
        self._iy, self._iz, self._first, self._second = (
            np.empty_like(self._probs) for _ in range(4)
        )
        self._work = BlockedRows(n_rows, classes)
        self._block = self._work.block

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Return the iterate in this backend's layout; the caller's tensors stay untouched."""
        self._y, self._zeta = (a.numpy().T.copy() for a in (labels, slacks))
        return StepArrays(torch.from_numpy(self._y).T, torch.from_numpy(self._zeta).T)

    def _vectors(self) -> Array:
        return np.zeros((self._work.count, self._probs.shape[0]))

    def _cast(self, shift: Vector) -> Array:
        """Return a K-vector in the rows' precision; constants are free and cost digits."""
        centered: Array = (shift - shift.max()).astype(self._probs.dtype)
        return centered

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        pull = np.zeros((self._work.count, 2, self._probs.shape[0]))

        def work(number: int, rows: tuple[int, int]) -> tuple[float, Array]:
            complementarity = _factor(
                rows, self._probs, self._weights, self._y, self._zeta, self._collision,
                self._block, self._lead, self._scalars, self._iy, self._iz, self._first,
                self._second, pull[number, 0], pull[number, 1],
            )  # fmt: skip
            b = self._second[:, slice(*rows)]
            gram = b @ b.T
            if self._collision:
                e = self._first[:, slice(*rows)]
                gram += e @ e.T
            return float(complementarity), gram

        with one_blas_thread(self._probs.shape[0]):
            parts = self._work.each(work)
        complementarity = sum(part for part, _ in parts)
        gram = sum(part.astype(np.float64) for _, part in parts)
        sums = pull.sum(0)
        return Factors(np.asarray(gram), sums[0], sums[1], complementarity)

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        vector, center, turn = self._cast(shift), self._vectors(), self._vectors()
        sums = np.empty((self._work.count, 4))

        def work(number: int, rows: tuple[int, int]) -> None:
            _predict(
                rows, self._probs, self._weights, self._y, self._zeta, self._collision,
                self._block, self._lead, self._scalars, self._iy, self._iz, vector,
                self._first, center[number], turn[number], sums[number],
            )  # fmt: skip

        self._work.each(work)
        low, high = float(sums[:, 0].min()), float(sums[:, 1].max())
        first, second = float(sums[:, 2].sum()), float(sums[:, 3].sum())
        return Prediction(low, high, first, second, center.sum(0), turn.sum(0))

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        vector, level = self._cast(shift), self._probs.dtype.type(target)
        sums = np.empty((self._work.count, 2))

        def work(number: int, rows: tuple[int, int]) -> None:
            _correct(
                rows, self._probs, self._y, self._zeta, self._collision, self._block,
                self._lead, self._scalars, self._iy, self._iz, vector, level, self._first,
                self._second, sums[number],
            )  # fmt: skip

        self._work.each(work)
        return Extents(float(sums[:, 0].min()), float(sums[:, 1].min()))

    def advance(self, length: float) -> StepArrays:
        """Take a step of the given length along the corrected direction, in place."""
        step = self._probs.dtype.type(length)

        def work(number: int, rows: tuple[int, int]) -> None:
            del number
            _advance(rows, self._y, self._zeta, self._second, self._first, step, self._block)

        self._work.each(work)
        return StepArrays(torch.from_numpy(self._y).T, torch.from_numpy(self._zeta).T)
