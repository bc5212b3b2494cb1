"""The log-probability of a collision compiled by Numba: one pass over the inputs, and one back.

The two passes are those of :mod:`coincide.losses.fused`, for large inputs on a CPU. Where the
classes of a row lie side by side, the innermost loops run along them; where they lie in planes,
as those of images do, along the rows, so that both are vectorized. Rows of few classes are laid
in planes first, some rows at a time. bfloat16 is read and written as the upper half of a float32.

What depends on the type of a number is an ``@overload``: the function of its name only says what it
does, and the compiler takes the one for the type.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from coincide._threads import BlockedRows, compiled

Array = NDArray[Any]

_STRIP = 4096  # classes that are added up in the working precision, those sums in float64
_FEW_CLASSES = 64
_ROWS_AT_ONCE = 64  # of few classes
_WIDTH = 512  # rows of planes whose sums stay in L1

# The types of a number and of its bits, and which of those is the sign.
_PARTS: dict[object, tuple[Any, Any, Any]] = {
    numba.float32: (np.float32, np.int32, np.int32(31)),
    numba.int32: (np.float32, np.int32, np.int32(31)),
    numba.float64: (np.float64, np.int64, np.int64(63)),
    numba.int64: (np.float64, np.int64, np.int64(63)),
}


def _exp(x):
    """Return ``exp(x)`` of ``x <= 0`` in its precision; 0 for less than tiny to the power 0.8.

    With ``n = round(x / ln 2)`` the rest ``r = x - n ln 2`` is small, and ``exp(x) = 2ⁿ exp(r)``.
    There are no branches, so loops over it are vectorized, and no results so small that processors
    trap on them. NaN stays NaN.
    """
    raise NotImplementedError(x)


def _exp32(x):
    """Return ``exp(x)`` of ``x <= 0``, within 1.1 units in the last place."""
    floor = np.float32(-69.8692)  # tiny to the power 0.8
    vanishes = x < floor
    x = floor if vanishes else x
    # Adding 3/2 · 2²³ rounds to the integer n, which is in the last bits then.
    shifted = x * np.float32(1.44269504) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)  # ln 2, in two parts
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * (r * r) + r + np.float32(1)
    exponent = (np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23)
    return np.float32(0) if vanishes else series * np.int32(exponent).view(np.float32)


def _exp64(x):
    """Return ``exp(x)`` of ``x <= 0``, within 1 unit in the last place."""
    floor = -566.7171  # tiny to the power 0.8
    vanishes = x < floor
    x = floor if vanishes else x
    shifted = x * 1.4426950408889634 + 6755399441055744.0  # 3/2 · 2⁵²
    n = shifted - 6755399441055744.0
    r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
    series = 1 / 6227020800
    series = series * r + 1 / 479001600
    series = series * r + 1 / 39916800
    series = series * r + 1 / 3628800
    series = series * r + 1 / 362880
    series = series * r + 1 / 40320
    series = series * r + 1 / 5040
    series = series * r + 1 / 720
    series = series * r + 1 / 120
    series = series * r + 1 / 24
    series = series * r + 1 / 6
    series = series * r + 1 / 2
    series = series * (r * r) + r + 1
    exponent = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    return 0.0 if vanishes else series * np.int64(exponent).view(np.float64)


# Sums in another order would not round.
@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_of_type(x):
    return _exp32 if x == numba.float32 else _exp64


def _number(x):
    """Return the number that an entry stands for: bfloat16 comes as uint16."""
    raise NotImplementedError(x)


@overload(_number)
def _number_of_type(x):
    if x != numba.uint16:
        return lambda x: x
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


def _entry(x, like):
    """Return the entry that stands for a number, of the type of ``like``, rounded to nearest."""
    raise NotImplementedError(x, like)


@overload(_entry)
def _entry_of_type(x, like):
    if like != numba.uint16:
        return lambda x, like: x

    def rounded(x, like):
        bits = np.float32(x).view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
        return np.uint16(0x7FC0) if np.isnan(x) else np.uint16((bits + half) >> np.uint32(16))

    return rounded


def _rank(x):
    """Return an integer of the size of a number; larger numbers have larger ones, NaN the largest.

    These are the bits of the number, those below the sign turned over where it is negative. A NaN
    of negative sign has the smallest.
    """
    raise NotImplementedError(x)


def _of_rank(rank):
    """Return the number of a rank."""
    raise NotImplementedError(rank)


@overload(_rank)
def _rank_of_type(x):
    floating, integer, top = _PARTS[x]
    below = np.iinfo(integer).max

    def rank(x):
        bits = floating(x).view(integer)
        return integer(bits ^ ((bits >> top) & below))

    return rank


@overload(_of_rank)
def _of_rank_of_type(rank):
    floating, integer, top = _PARTS[rank]
    below = np.iinfo(integer).max
    return lambda rank: integer(rank ^ ((rank >> top) & below)).view(floating)


@compiled
def _largest(z):
    """Return the largest of a row of logits, or NaN.

    The largest of integers is found by vector instructions; that of numbers is not, for fear of
    NaN.
    """
    most = _rank(_number(z[0]))
    for k in range(1, len(z)):
        most = max(most, _rank(_number(z[k])))
    return _of_rank(most)


@compiled
def _add_up(z, y, peak, zero):
    """Return ``Σ e`` and ``Σ e y`` of a part of a row, of the type of ``zero``."""
    total = collision = zero
    for k in range(len(z)):
        e = _exp(_number(z[k]) - peak)
        total += e
        collision += e * _number(y[k])
    return total, collision


@compiled
def _collide_rows(rows, z, y, shift, total, collision):
    """Fill ``m``, ``Σ e`` and ``Σ e y`` of a range of rows, (R, K)."""
    zero = shift.dtype.type(0)
    for i in range(rows[0], rows[1]):
        shift[i] = _largest(z[i])
        sums = (0.0, 0.0)
        for k in range(0, z.shape[1], _STRIP):
            part = slice(k, k + _STRIP)
            of_total, of_collision = _add_up(z[i, part], y[i, part], shift[i], zero)
            sums = (sums[0] + of_total, sums[1] + of_collision)
        total[i], collision[i] = sums


@compiled
def _differentiate_rows(rows, z, y, shift, of_total, of_collision, gradient):
    """Fill the gradients of a range of rows, (R, K)."""
    for i in range(rows[0], rows[1]):
        zi, yi, gi = z[i], y[i], gradient[i]
        peak, falls, rises = shift[i], of_total[i], of_collision[i]
        for k in range(len(zi)):
            slope = _exp(_number(zi[k]) - peak) * (_number(yi[k]) * rises - falls)
            gi[k] = _entry(slope, gi[k])


@compiled
def _collide_in_planes(z, y, sample, first, shift, total, collision):
    """Fill ``m``, ``Σ e`` and ``Σ e y`` of rows of one sample's planes, as many as fit."""
    last = first + len(shift)
    shift[:], total[:], collision[:] = -np.inf, 0, 0
    for k in range(z.shape[1]):
        zk = z[sample, k, first:last]
        for j in range(len(shift)):
            number = _number(zk[j])
            shift[j] = number if number > shift[j] else shift[j]
    for k in range(z.shape[1]):
        zk, yk = z[sample, k, first:last], y[sample, k, first:last]
        for j in range(len(shift)):
            e = _exp(_number(zk[j]) - shift[j])
            total[j] += e
            collision[j] += e * _number(yk[j])


@compiled
def _collide_planes(rows, z, y, shift, total, collision):
    """Fill ``m``, ``Σ e`` and ``Σ e y`` of a range of rows, (N, K, D)."""
    first, last = rows
    while first < last:
        sample, start = divmod(first, z.shape[2])
        part = slice(first, min(first + min(_WIDTH, z.shape[2] - start), last))
        _collide_in_planes(z, y, sample, start, shift[part], total[part], collision[part])
        first = part.stop


@compiled
def _collide_short_rows(rows, z, y, shift, total, collision):
    """Fill ``m``, ``Σ e`` and ``Σ e y`` of a range of rows, (R, K), laid in planes."""
    shape = (1, z.shape[1], _ROWS_AT_ONCE)
    z_planes, y_planes = np.empty(shape, z.dtype), np.empty(shape, y.dtype)
    for first in range(rows[0], rows[1], _ROWS_AT_ONCE):
        part = slice(first, min(first + _ROWS_AT_ONCE, rows[1]))
        for j in range(part.stop - first):
            for k in range(z.shape[1]):
                z_planes[0, k, j] = z[first + j, k]
                y_planes[0, k, j] = y[first + j, k]
        _collide_in_planes(z_planes, y_planes, 0, 0, shift[part], total[part], collision[part])


@compiled
def _differentiate_planes(rows, z, y, shift, of_total, of_collision, gradient):
    """Fill the gradients of a range of rows, (N, K, D)."""
    first, last = rows
    while first < last:
        sample, start = divmod(first, z.shape[2])
        width = min(_WIDTH, z.shape[2] - start, last - first)
        part, here = slice(first, first + width), slice(start, start + width)
        peak, falls, rises = shift[part], of_total[part], of_collision[part]
        for k in range(z.shape[1]):
            zk, yk, gk = z[sample, k, here], y[sample, k, here], gradient[sample, k, here]
            for j in range(width):
                slope = _exp(_number(zk[j]) - peak[j]) * (_number(yk[j]) * rises[j] - falls[j])
                gk[j] = _entry(slope, gk[j])
        first += width


def collide(logits: Tensor, probs: Tensor, shift: Tensor, total: Tensor, collision: Tensor) -> None:
    """Fill ``m``, ``Σ e`` and ``Σ e y`` of every row.

    Parameters
    ----------
    logits, probs : Tensor of shape (N, K, d1, ...), float32 or bfloat16, or both float64
        With at least one entry. What lies neither row by row nor plane by plane is copied.
    shift, total, collision : Tensor of N·d1·... entries, contiguous
        float64 for float64, else float32.
    """
    by_row = _lie_by_row(logits)
    z, y = (_arranged(x, by_row) for x in (logits, probs))
    scalars = [x.view(-1).numpy() for x in (shift, total, collision)]
    if not by_row:
        work = _collide_planes
    else:
        work = _collide_short_rows if z.shape[1] < _FEW_CLASSES else _collide_rows
    threads = BlockedRows(shift.numel(), logits.shape[1])
    threads.each(lambda _, rows: work(rows, z, y, *scalars))


def differentiate(
    logits: Tensor, probs: Tensor, shift: Tensor, of_total: Tensor, of_collision: Tensor
) -> Tensor:
    """Return ``e (of_collision · y - of_total)``, of the shape and dtype of ``logits``."""
    by_row = _lie_by_row(logits)
    n_samples, n_classes, *rest = logits.shape
    if by_row:
        gradient = logits.new_empty((n_samples, *rest, n_classes)).movedim(-1, 1)
    else:
        gradient = logits.new_empty(logits.shape)
    z, y, g = (_arranged(x, by_row) for x in (logits, probs, gradient))
    scalars = [x.reshape(-1).numpy() for x in (shift, of_total, of_collision)]
    work = _differentiate_rows if by_row else _differentiate_planes
    threads = BlockedRows(shift.numel(), n_classes)
    threads.each(lambda _, rows: work(rows, z, y, *scalars, g))
    return gradient


def _lie_by_row(logits: Tensor) -> bool:
    """Return whether the classes of a row lie side by side, or are to be laid so."""
    images = logits.dim() > 2
    return not images or (not logits.is_contiguous() and logits.movedim(1, -1).is_contiguous())


def _arranged(x: Tensor, by_row: bool) -> Array:
    """Return the entries as (R, K) or as (N, K, D), a view where they lie so."""
    n_samples, n_classes = x.shape[:2]
    shape = (-1, n_classes) if by_row else (n_samples, n_classes, -1)
    entries = (x.detach().movedim(1, -1) if by_row else x.detach()).contiguous().view(shape)
    # NumPy has no bfloat16.
    return (entries.view(torch.uint16) if x.dtype == torch.bfloat16 else entries).numpy()
