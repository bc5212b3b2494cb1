"""The row kernels compiled by Numba: one fused pass over the rows each, for the CPU.

See :mod:`coincide.pseudolabels.kernels.contract` for the mathematics. The arrays lie class by
class, ``(K, M)``, and every pass works on blocks of rows that fit the cache: the innermost loops
run along the rows of a block, so they are vectorized without a horizontal sum whatever K is. The
scalars of a row are found once, in the first pass. Ranges of rows run on threads (the compiled
code releases the GIL).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Extents, Factors, Prediction, StepArrays

Array = NDArray[Any]

# Sums may be reassociated, which vectorizes them; infinities and NaN keep their meaning.
_compiled = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})

_ENTRIES_PER_THREAD = 100_000
_ENTRIES_PER_BLOCK = 4096
_SCALARS = 5  # of a row: scale, offset, denominator, kappa, total


@_compiled
def _factor(p, w, y, zeta, collision, block, lead, scalars, d, scaled_e, scaled_b, pull):
    """Fill ``d``, ``e √(ω/(1+q·e))``, ``b √(ω/Σb)`` and the scalars; add ``Σ ω P g`` to pull."""
    classes, rows = p.shape
    bend = 1.0 if collision else 0.0
    complementarity = 0.0
    for first in range(0, rows, block):
        last = min(first + block, rows)
        scale, offset = scalars[0, first:last], scalars[1, first:last]
        _find_lead(p[:, first:last], y[:, first:last], lead[first:last], scale, offset, collision)
        sum_d, sum_e, curvature, product = _zeros(4, last - first, p.dtype)
        for k in range(classes):
            pk, yk, zk, dk = (
                p[k, first:last],
                y[k, first:last],
                zeta[k, first:last],
                d[k, first:last],
            )
            for j in range(pk.shape[0]):
                g = pk[j] * scale[j] - offset[j]
                dj = yk[j] / zk[j]
                dk[j] = dj
                sum_d[j] += dj
                sum_e[j] += dj * g
                curvature[j] += dj * g * g
                product[j] += yk[j] * zk[j]
        weight = w[first:last]
        denominator, kappa, total = (
            scalars[2, first:last],
            scalars[3, first:last],
            scalars[4, first:last],
        )
        for j in range(weight.shape[0]):
            complementarity += weight[j] * product[j]
            denominator[j] = 1 + bend * curvature[j]
            kappa[j] = bend * sum_e[j] / denominator[j]
            total[j] = sum_d[j] - kappa[j] * sum_e[j]
            product[j] = np.sqrt(weight[j] / denominator[j]) * bend
        # For r = g: d·r = sum_e and e·r = curvature.
        beta, gamma = _project(sum_e, curvature, scalars[:, first:last], bend)
        root = np.sqrt(weight / total)
        for k in range(classes):
            pk, dk = p[k, first:last], d[k, first:last]
            ek, bk = scaled_e[k, first:last], scaled_b[k, first:last]
            moved = 0.0
            for j in range(pk.shape[0]):
                g = pk[j] * scale[j] - offset[j]
                e = dk[j] * g
                ek[j] = e * product[j]
                bk[j] = (dk[j] - e * kappa[j]) * root[j]
                moved += weight[j] * dk[j] * (g - beta[j] - g * gamma[j])
            pull[k] += moved
    return complementarity


@_compiled
def _find_lead(p, y, lead, scale, offset, collision):
    """Find every row's largest label; ``g = p · scale - offset`` is zero there."""
    scale[:] = 0
    most = np.full(scale.shape[0], -1.0).astype(p.dtype)
    for k in range(p.shape[0]):
        pk, yk = p[k], y[k]
        for j in range(pk.shape[0]):
            scale[j] += pk[j] * yk[j]
            larger = yk[j] > most[j]
            most[j] = yk[j] if larger else most[j]
            offset[j] = pk[j] if larger else offset[j]
            lead[j] = k if larger else lead[j]
    for j in range(scale.shape[0]):
        scale[j] = 1 / scale[j] if collision else 1.0
        offset[j] *= scale[j]


@_compiled
def _project(dr, er, scalars, bend):
    """Return ``β`` and ``γ`` of ``P r`` for a block of rows, from ``d·r`` and ``e·r``."""
    beta, gamma = np.empty_like(dr), np.empty_like(dr)
    denominator, kappa, total = scalars[2], scalars[3], scalars[4]
    for j in range(dr.shape[0]):
        beta[j] = (dr[j] - kappa[j] * er[j] * bend) / total[j]
        gamma[j] = bend * (er[j] / denominator[j] - kappa[j] * beta[j])
    return beta, gamma


@_compiled
def _zeros(count, n, dtype):
    """Return a stack of zero vectors."""
    return np.zeros((count, n), dtype)


@_compiled
def _predict(p, w, y, zeta, collision, block, lead, scalars, d, shift, ratio, center, turn, sums):
    """Find ``ratio = Δy/y`` of the affine direction and sum what the corrector needs."""
    classes, rows = p.shape
    bend = 1.0 if collision else 0.0
    low, high, first_sum, second_sum = np.inf, -np.inf, 0.0, 0.0
    for first in range(0, rows, block):
        last = min(first + block, rows)
        n = last - first
        weight, leads, block_scalars = w[first:last], lead[first:last], scalars[:, first:last]
        scale, offset = scalars[0, first:last], scalars[1, first:last]
        top, top_center, top_turn, dr, er, dc, ec, firsts, seconds = _zeros(9, n, p.dtype)
        for j in range(n):
            top[j] = shift[leads[j]]
            top_center[j] = 1 / y[leads[j], first + j]
        for k in range(classes):
            pk, yk, dk = p[k, first:last], y[k, first:last], d[k, first:last]
            sk = shift[k]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                r = g + (sk - top[j])
                c = 1 / yk[j] - top_center[j]
                dr[j] += dk[j] * r
                er[j] += dk[j] * g * r
                dc[j] += dk[j] * c
                ec[j] += dk[j] * g * c
        beta, gamma = _project(dr, er, block_scalars, bend)
        beta_c, gamma_c = _project(dc, ec, block_scalars, bend)
        for j in range(n):
            slack = zeta[leads[j], first + j]
            rho = -beta[j] / slack
            top_turn[j] = slack * rho * (1 + rho)
        dr[:] = 0
        er[:] = 0
        for k in range(classes):
            pk, yk, dk = p[k, first:last], y[k, first:last], d[k, first:last]
            zk, rk = zeta[k, first:last], ratio[k, first:last]
            sk = shift[k]
            moved = 0.0
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                rho = (g + (sk - top[j]) - beta[j] - g * gamma[j]) / zk[j]
                rk[j] = rho
                firsts[j] += yk[j] * zk[j] * rho
                seconds[j] += yk[j] * zk[j] * rho * rho
                t = zk[j] * rho * (1 + rho) - top_turn[j]
                dr[j] += dk[j] * t
                er[j] += dk[j] * g * t
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                c = 1 / yk[j] - top_center[j]
                moved += weight[j] * dk[j] * (c - beta_c[j] - g * gamma_c[j])
            center[k] += moved
            low = min(low, rk.min())
            high = max(high, rk.max())
        beta, gamma = _project(dr, er, block_scalars, bend)
        for k in range(classes):
            pk, dk = p[k, first:last], d[k, first:last]
            zk, rk = zeta[k, first:last], ratio[k, first:last]
            moved = 0.0
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                t = zk[j] * rk[j] * (1 + rk[j]) - top_turn[j]
                moved += weight[j] * dk[j] * (t - beta[j] - g * gamma[j])
            turn[k] += moved
        for j in range(n):
            first_sum += weight[j] * firsts[j]
            second_sum += weight[j] * seconds[j]
    sums[0], sums[1], sums[2], sums[3] = low, high, first_sum, second_sum


@_compiled
def _correct(p, y, zeta, collision, block, lead, scalars, d, shift, target, ratio, primal, sums):
    """Turn ``ratio`` into ``Δζ/ζ`` and fill ``primal = Δy/y`` of the corrected direction."""
    classes, rows = p.shape
    bend = 1.0 if collision else 0.0
    low_primal, low_dual = np.inf, np.inf
    for first in range(0, rows, block):
        last = min(first + block, rows)
        n = last - first
        leads = lead[first:last]
        scale, offset = scalars[0, first:last], scalars[1, first:last]
        top, dr, er = _zeros(3, n, p.dtype)
        for j in range(n):
            k, i = leads[j], first + j
            rho = ratio[k, i]
            top[j] = shift[k] + target / y[k, i] + zeta[k, i] * rho * (1 + rho)
        for k in range(classes):
            pk, yk, dk = p[k, first:last], y[k, first:last], d[k, first:last]
            zk, ak, rk = zeta[k, first:last], ratio[k, first:last], primal[k, first:last]
            sk = shift[k]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                r = g + (sk + target / yk[j] + zk[j] * ak[j] * (1 + ak[j]) - top[j])
                rk[j] = r
                dr[j] += dk[j] * r
                er[j] += dk[j] * g * r
        beta, gamma = _project(dr, er, scalars[:, first:last], bend)
        for k in range(classes):
            pk, yk = p[k, first:last], y[k, first:last]
            zk, ak, rk = zeta[k, first:last], ratio[k, first:last], primal[k, first:last]
            for j in range(n):
                g = pk[j] * scale[j] - offset[j]
                inverse = 1 / zk[j]
                step = (rk[j] - beta[j] - g * gamma[j]) * inverse
                rk[j] = step
                ak[j] = target * inverse / yk[j] + ak[j] * (1 + ak[j]) - 1 - step
            low_primal = min(low_primal, rk.min())
            low_dual = min(low_dual, ak.min())
    sums[0], sums[1] = low_primal, low_dual


@_compiled
def _advance(y, zeta, primal, dual, length, block):
    """Move along the direction and put the labels back on the simplex."""
    classes, rows = y.shape
    for first in range(0, rows, block):
        last = min(first + block, rows)
        mass = np.zeros(last - first, y.dtype)
        for k in range(classes):
            yk, zk = y[k, first:last], zeta[k, first:last]
            pk, dk = primal[k, first:last], dual[k, first:last]
            for j in range(yk.shape[0]):
                yk[j] *= 1 + length * pk[j]
                mass[j] += yk[j]
            for j in range(zk.shape[0]):
                zk[j] *= 1 + length * dk[j]
        mass = 1 / mass
        for k in range(classes):
            yk = y[k, first:last]
            for j in range(yk.shape[0]):
                yk[j] *= mass[j]


def _ranges(rows: int, classes: int) -> list[slice]:
    """Split the rows into one range a thread, if there is work enough for several."""
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    count = max(1, min(threads, rows * classes // _ENTRIES_PER_THREAD))
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(np.linspace(0, rows, count + 1))]


class NumbaRows:
    """Row kernels of the interior point, compiled, on CPU tensors."""

    name = "numba"

    def __init__(self, rows: Tensor, weights: Tensor, *, collision: bool) -> None:
        self._probs: Array = np.ascontiguousarray(rows.numpy().T)
        self._weights: Array = weights.numpy()
        self._collision = collision
        classes, n_rows = self._probs.shape
        self._block = max(16, _ENTRIES_PER_BLOCK // classes)
        self._lead = np.zeros(n_rows, np.int64)
        self._scalars = np.empty((_SCALARS, n_rows), self._probs.dtype)
        # Work arrays: d, and two that hold (e, b), then (ratio, -), then (dual, primal).
        self._d = np.empty_like(self._probs)
        self._first = np.empty_like(self._probs)
        self._second = np.empty_like(self._probs)
        self._parts = _ranges(n_rows, classes)
        self._pool = ThreadPoolExecutor(len(self._parts)) if len(self._parts) > 1 else None

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Return the iterate in this backend's layout; the caller's tensors stay untouched."""
        return StepArrays(
            *(a.T.clone(memory_format=torch.contiguous_format).T for a in (labels, slacks))
        )

    def _each(self, work: Callable[[int, slice], Any]) -> list[Any]:
        """Run ``work(number, rows)`` on every range of rows and return the results."""
        if self._pool is None:
            return [work(0, self._parts[0])]
        return list(self._pool.map(work, range(len(self._parts)), self._parts))

    def _vectors(self) -> Array:
        return np.zeros((len(self._parts), self._probs.shape[0]))

    def _cast(self, shift: Tensor) -> Array:
        """Return a K-vector in the rows' precision; constants are free and cost digits."""
        vector: Array = (shift - shift.mean()).numpy().astype(self._probs.dtype)
        return vector

    def factor(self, state: StepArrays) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        y, zeta = state.y.T.numpy(), state.zeta.T.numpy()
        pull = self._vectors()

        def work(part: int, i: slice) -> float:
            return float(
                _factor(
                    self._probs[:, i], self._weights[i], y[:, i], zeta[:, i], self._collision,
                    self._block, self._lead[i], self._scalars[:, i], self._d[:, i],
                    self._first[:, i], self._second[:, i], pull[part],
                )
            )  # fmt: skip

        complementarity = sum(self._each(work))
        b = torch.from_numpy(self._second)
        gram = b @ b.T
        if self._collision:
            e = torch.from_numpy(self._first)
            gram.addmm_(e, e.T)
        return Factors(gram.double(), torch.from_numpy(pull.sum(0)), complementarity)

    def predict(self, state: StepArrays, shift: Tensor) -> Prediction:
        """Find the affine direction for the right-hand side ``g + shift``."""
        y, zeta, vector = state.y.T.numpy(), state.zeta.T.numpy(), self._cast(shift)
        center, turn = self._vectors(), self._vectors()
        sums = np.empty((len(self._parts), 4))

        def work(part: int, i: slice) -> None:
            _predict(
                self._probs[:, i], self._weights[i], y[:, i], zeta[:, i], self._collision,
                self._block, self._lead[i], self._scalars[:, i], self._d[:, i], vector,
                self._first[:, i], center[part], turn[part], sums[part],
            )  # fmt: skip

        self._each(work)
        low, high = float(sums[:, 0].min()), float(sums[:, 1].max())
        first, second = float(sums[:, 2].sum()), float(sums[:, 3].sum())
        totals = (torch.from_numpy(parts.sum(0)) for parts in (center, turn))
        return Prediction(low, high, first, second, *totals)

    def correct(self, state: StepArrays, shift: Tensor, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        y, zeta, vector = state.y.T.numpy(), state.zeta.T.numpy(), self._cast(shift)
        sums = np.empty((len(self._parts), 2))
        level = self._probs.dtype.type(target)

        def work(part: int, i: slice) -> None:
            _correct(
                self._probs[:, i], y[:, i], zeta[:, i], self._collision, self._block,
                self._lead[i], self._scalars[:, i], self._d[:, i], vector, level, self._first[:, i],
                self._second[:, i], sums[part],
            )  # fmt: skip

        self._each(work)
        return Extents(float(sums[:, 0].min()), float(sums[:, 1].min()))

    def advance(self, state: StepArrays, length: float) -> StepArrays:
        """Take a step of the given length along the corrected direction, in place."""
        y, zeta = state.y.T.numpy(), state.zeta.T.numpy()

        def work(part: int, i: slice) -> None:
            del part
            _advance(
                y[:, i], zeta[:, i], self._second[:, i], self._first[:, i], length, self._block
            )

        self._each(work)
        return state
