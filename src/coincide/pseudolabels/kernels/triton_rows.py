"""The row kernels in Triton: one pass over the GPU's memory each.

See :mod:`coincide.pseudolabels.kernels.contract` for the mathematics. Nothing of a row is kept from
pass to pass but its affine and its corrected direction: sums over a row in registers cost less than
reading them. The two Gram matrices are left to the GPU's own matrix products.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from coincide.pseudolabels.kernels.contract import (
    MOST_BEND,
    Extents,
    Factors,
    Prediction,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.triton_tiles import Tiles, at, place

# Of a program's partial numbers.
_LOW, _HIGH, _FIRST, _SECOND = range(4)
_MOST_BEND = tl.constexpr(MOST_BEND)


@triton.jit
def _load(p, y, zeta, here, exists):
    """Return the predictions, labels and slacks of a tile; behind the last class 0, 1 and 1."""
    yk = tl.load(y + here, exists, 1.0)
    zk = tl.load(zeta + here, exists, 1.0)
    return tl.load(p + here, exists, 0.0).to(yk.dtype), yk, zk


@triton.jit
def _hessian(p, y, zeta, exists, collision: tl.constexpr):
    """Return the leading class, ``g``, ``d``, ``e``, ``1 + q·e``, ``κ`` and ``Σb`` of the rows.

    The gradient ``g`` is zero at the leading class. With a linear row loss ``e`` is zero.
    """
    lead = tl.argmax(tl.where(exists, y, -1.0), 1)
    g = p
    if collision:
        g = p / tl.sum(p * y, 1)[:, None]
    g -= at(g, lead)
    d = tl.where(exists, y / zeta, 0.0)
    e = d * 0.0
    if collision:
        e = d * g
    denominator = 1 + tl.sum(e * g, 1)[:, None]
    spread = tl.sum(e, 1)[:, None]
    kappa = spread / denominator
    total = tl.sum(d, 1)[:, None] - kappa * spread
    return lead, g, d, e, denominator, kappa, total


@triton.jit
def _project(r, lead, g, d, e, denominator, kappa, total):
    """Return ``P r / d``; where the row loss is linear, ``e`` and so ``γ`` are zero."""
    r -= at(r, lead)
    er = tl.sum(e * r, 1)[:, None]
    beta = (tl.sum(d * r, 1)[:, None] - kappa * er) / total
    return r - beta - g * (er / denominator - kappa * beta)


@triton.jit
def _bend(ratio):
    """Return what the corrector takes back of the predictor, in units of ``ζ``."""
    return tl.minimum(ratio * (1 + ratio), _MOST_BEND)


@triton.jit
def _factor(
    p, y, zeta, weights, scaled_e, scaled_b, pulls, means, numbers, n_rows, n_classes,
    collision: tl.constexpr, tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Fill ``e √(ω/(1+q·e))`` and ``b √(ω/Σb)``; add up ``Σ ω P g``, ``Σ ω y`` and ``Σ ω y·ζ``."""
    pull = tl.zeros((tile_classes,), tl.float64)
    mean = tl.zeros((tile_classes,), tl.float64)
    complementarity = tl.zeros((tile_rows,), tl.float64)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        pk, yk, zk = _load(p, y, zeta, here, exists)
        weight = tl.load(weights + rows, new, 0.0).to(yk.dtype)
        lead, g, d, e, denominator, kappa, total = _hessian(pk, yk, zk, exists, collision)
        root = tl.sqrt(weight)[:, None]
        written = new[:, None] & exists
        if collision:
            tl.store(scaled_e + here, e * (root / tl.sqrt(denominator)), written)
        tl.store(scaled_b + here, (d - e * kappa) * (root / tl.sqrt(total)), written)
        moved = d * _project(g, lead, g, d, e, denominator, kappa, total)
        pull += tl.sum((weight[:, None] * moved).to(tl.float64), 0)
        mean += tl.sum((weight[:, None] * yk).to(tl.float64), 0)
        complementarity += (weight * tl.sum(tl.where(exists, yk * zk, 0.0), 1)).to(tl.float64)
    classes = tl.arange(0, tile_classes)
    own = tl.program_id(0) * n_classes + classes
    tl.store(pulls + own, pull, classes < n_classes)
    tl.store(means + own, mean, classes < n_classes)
    tl.store(numbers + tl.program_id(0), tl.sum(complementarity, 0))


@triton.jit
def _predict(
    p, y, zeta, weights, shift, ratios, centers, bends, numbers, n_rows, n_classes,
    collision: tl.constexpr, tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Fill ``Δy/y`` of the affine direction; add up what the corrector needs."""
    center = tl.zeros((tile_classes,), tl.float64)
    bend = tl.zeros((tile_classes,), tl.float64)
    low = tl.full((tile_rows,), float("inf"), tl.float64)
    high = tl.full((tile_rows,), float("-inf"), tl.float64)
    first = tl.zeros((tile_rows,), tl.float64)
    second = tl.zeros((tile_rows,), tl.float64)
    classes = tl.arange(0, tile_classes)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        pk, yk, zk = _load(p, y, zeta, here, exists)
        weight = tl.load(weights + rows, new, 0.0).to(yk.dtype)
        lead, g, d, e, denominator, kappa, total = _hessian(pk, yk, zk, exists, collision)
        steer = tl.load(shift + classes, classes < n_classes, 0.0).to(yk.dtype)[None, :]
        ratio = _project(g + steer, lead, g, d, e, denominator, kappa, total) / zk
        tl.store(ratios + here, ratio, new[:, None] & exists)
        ratio = tl.where(exists, ratio, 0.0)
        low = tl.minimum(low, tl.min(tl.where(exists, ratio, float("inf")), 1).to(tl.float64))
        high = tl.maximum(high, tl.max(tl.where(exists, ratio, float("-inf")), 1).to(tl.float64))
        product = yk * zk * ratio
        first += (weight * tl.sum(product, 1)).to(tl.float64)
        second += (weight * tl.sum(product * ratio, 1)).to(tl.float64)
        inward = d * _project(1 / yk, lead, g, d, e, denominator, kappa, total)
        center += tl.sum((weight[:, None] * inward).to(tl.float64), 0)
        turned = d * _project(zk * _bend(ratio), lead, g, d, e, denominator, kappa, total)
        bend += tl.sum((weight[:, None] * turned).to(tl.float64), 0)
    own = tl.program_id(0) * n_classes + classes
    tl.store(centers + own, center, classes < n_classes)
    tl.store(bends + own, bend, classes < n_classes)
    mine = numbers + tl.program_id(0) * 4
    tl.store(mine, tl.min(low, 0))
    tl.store(mine + 1, tl.max(high, 0))
    tl.store(mine + 2, tl.sum(first, 0))
    tl.store(mine + 3, tl.sum(second, 0))


@triton.jit
def _dual(y, zeta, ratio, primal, target):
    """Return ``Δζ/ζ`` of the corrected direction."""
    return target / (y * zeta) + _bend(ratio) - 1 - primal


@triton.jit
def _correct(
    p, y, zeta, shift, target, ratios, primals, numbers, n_rows, n_classes,
    collision: tl.constexpr, tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Fill ``Δy/y`` of the corrected direction; find its smallest entries and those of ``Δζ/ζ``."""
    low = tl.full((tile_rows,), float("inf"), tl.float64)
    low_dual = tl.full((tile_rows,), float("inf"), tl.float64)
    classes = tl.arange(0, tile_classes)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        _rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        pk, yk, zk = _load(p, y, zeta, here, exists)
        ratio = tl.load(ratios + here, exists, 0.0)
        lead, g, d, e, denominator, kappa, total = _hessian(pk, yk, zk, exists, collision)
        steer = tl.load(shift + classes, classes < n_classes, 0.0).to(yk.dtype)[None, :]
        level = tl.load(target).to(yk.dtype)
        r = g + steer + level / yk + zk * _bend(ratio)
        primal = _project(r, lead, g, d, e, denominator, kappa, total) / zk
        tl.store(primals + here, primal, new[:, None] & exists)
        dual = _dual(yk, zk, ratio, primal, level)
        low = tl.minimum(low, tl.min(tl.where(exists, primal, float("inf")), 1).to(tl.float64))
        low_dual = tl.minimum(
            low_dual, tl.min(tl.where(exists, dual, float("inf")), 1).to(tl.float64)
        )
    tl.store(numbers + tl.program_id(0) * 2, tl.min(low, 0))
    tl.store(numbers + tl.program_id(0) * 2 + 1, tl.min(low_dual, 0))


@triton.jit
def _advance(
    y, zeta, target, lengths, ratios, primals, n_rows, n_classes,
    tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Step along the corrected direction, in place; the labels' rows sum to 1 again."""
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        _rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        yk = tl.load(y + here, exists, 1.0)
        zk = tl.load(zeta + here, exists, 1.0)
        ratio = tl.load(ratios + here, exists, 0.0)
        primal = tl.load(primals + here, exists, 0.0)
        dual = _dual(yk, zk, ratio, primal, tl.load(target).to(yk.dtype))
        moved = tl.where(exists, yk * (1 + tl.load(lengths).to(yk.dtype) * primal), 0.0)
        written = new[:, None] & exists
        tl.store(y + here, moved / tl.sum(moved, 1)[:, None], written)
        tl.store(zeta + here, zk * (1 + tl.load(lengths + 1).to(yk.dtype) * dual), written)


class TritonRows:
    """Row kernels of the interior point on a GPU, in the precision of the iterate.

    Parameters
    ----------
    rows : Tensor of shape (M, K)
        float32 or float64, contiguous; K at most 8,192.
    weights : Tensor of shape (M,)
    collision : bool
    """

    by_class = False

    def __init__(self, rows: Tensor, weights: Tensor, *, collision: bool) -> None:
        self._p, self._weights, self._collision = rows, weights, collision
        self._tiles = Tiles(*rows.shape)

    def load(self, labels: Tensor, slacks: Tensor) -> StepArrays:
        """Take the first iterate; its tensors are the kernels' own from here on."""
        self._state = StepArrays(labels.contiguous(), slacks.contiguous())
        self._ratio, self._primal = (torch.empty_like(part) for part in self._state)
        return self._state

    def factor(self) -> Factors:
        """Factor every row's Hessian and sum what the coupling needs."""
        # The directions of the last step are used up: their memory serves the Gram matrices.
        scaled_e, scaled_b = self._ratio, self._primal
        pulls, means, numbers = self._partial(self._tiles.n_classes, self._tiles.n_classes, 1)
        _factor[(self._tiles.programs,)](
            self._p, *self._state, self._weights, scaled_e, scaled_b, pulls, means, numbers,
            collision=self._collision, **self._tiles.constants,
        )  # fmt: skip
        gram = scaled_b.T @ scaled_b
        if self._collision:
            gram += scaled_e.T @ scaled_e
        pull, mean_label, complementarity = (_summed(part) for part in (pulls, means, numbers))
        return Factors(
            gram.double().cpu().numpy(), pull, mean_label, complementarity=float(complementarity[0])
        )

    def predict(self, shift: Vector) -> Prediction:
        """Find the affine direction ``Δy/y`` for the right-hand side ``gradient + shift``."""
        centers, bends, numbers = self._partial(self._tiles.n_classes, self._tiles.n_classes, 4)
        _predict[(self._tiles.programs,)](
            self._p, *self._state, self._weights, self._vector(shift), self._ratio,
            centers, bends, numbers, collision=self._collision, **self._tiles.constants,
        )  # fmt: skip
        found = numbers.cpu().numpy()
        return Prediction(
            low=float(found[:, _LOW].min()),
            high=float(found[:, _HIGH].max()),
            first=float(found[:, _FIRST].sum()),
            second=float(found[:, _SECOND].sum()),
            center=_summed(centers),
            bend=_summed(bends),
        )

    def correct(self, shift: Vector, target: float) -> Extents:
        """Find the corrected direction, centered on ``y ζ = target``."""
        (numbers,) = self._partial(2)
        self._target = self._numbers(target)
        _correct[(self._tiles.programs,)](
            self._p, *self._state, self._vector(shift), self._target, self._ratio, self._primal,
            numbers, collision=self._collision, **self._tiles.constants,
        )  # fmt: skip
        primal, dual = numbers.amin(0).tolist()
        return Extents(primal, dual)

    def advance(self, primal: float, dual: float) -> StepArrays:
        """Take steps of these lengths along the corrected direction, in the labels and slacks."""
        _advance[(self._tiles.programs,)](
            *self._state, self._target, self._numbers(primal, dual), self._ratio, self._primal,
            **self._tiles.constants,
        )  # fmt: skip
        return self._state

    def _partial(self, *widths: int) -> list[Tensor]:
        return [self._tiles.partial(width, self._p.device) for width in widths]

    def _vector(self, shift: Vector) -> Tensor:
        """Return a K-vector for the kernels; constants are free and cost digits."""
        return torch.from_numpy(shift - shift.max()).to(self._p.device)

    def _numbers(self, *values: float) -> Tensor:
        """Return float64 numbers for the kernels: of an argument Triton would make a float32."""
        return torch.tensor(values, dtype=torch.float64, device=self._p.device)


def _summed(partial: Tensor) -> Vector:
    """Return the sum of what the programs found."""
    total: Vector = np.asarray(partial.sum(0).cpu().numpy())
    return total
