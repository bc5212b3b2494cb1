"""EM sweeps in Triton: E-step and M-step of a row in registers, one read and one write of labels.

The equation of a row and the way to its root are those of :mod:`coincide.pseudolabels.em`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Vector
from coincide.pseudolabels.kernels.triton_tiles import Tiles, place

_MOST_STEPS = tl.constexpr(60)
_FLOOR = tl.constexpr(1e-37)  # of d; float32 still divides by it


@triton.jit
def _sweep(
    p, y, weights, scales, means, tolerance, eps, n_rows, n_classes,
    tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Replace the labels by the M-step for ``c = scale · y``; add up ``Σ ω y``."""
    mean = tl.zeros((tile_classes,), tl.float64)
    classes = tl.arange(0, tile_classes)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        yk = tl.load(y + here, exists, 0.0)
        pk = tl.load(p + here, exists, 0.0).to(yk.dtype)
        scale = tl.load(scales + classes, classes < n_classes, 0.0).to(yk.dtype)
        c = yk * scale[None, :]
        level = 1 + tl.sum(c, 1)[:, None]
        largest, leading = tl.max(pk, 1, return_indices=True)
        behind = (largest[:, None] - pk) / largest[:, None]
        ratio = pk / largest[:, None]
        base = tl.where(exists, behind * level, 1.0)
        # Lemma 1: below this d some class alone would hold more than all the mass.
        start = tl.where(ratio > 0, (c - base) / tl.where(ratio > 0, ratio, 1.0), -1.0)
        root = tl.maximum(tl.max(start, 1)[:, None], _FLOOR)
        share = c / (base + ratio * root)
        value = tl.sum(share, 1)[:, None]
        enough = tl.maximum(tolerance / level, 16 * eps)
        far = value - 1 > enough
        steps = 0
        while (tl.max(far.to(tl.int32)) > 0) & (steps < _MOST_STEPS):
            slope = tl.sum(share * (ratio / (base + ratio * root)), 1)[:, None]
            root += tl.where(far, (value - 1) * value / tl.where(far, slope, 1.0), 0.0)
            share = c / (base + ratio * root)
            value = tl.sum(share, 1)[:, None]
            far = value - 1 > enough
            steps += 1
        # With no label left in the leading class no root places the mass; it gets the rest.
        rest = tl.where(root <= _FLOOR, tl.maximum(1 - value, 0.0), 0.0)
        share += tl.where(classes[None, :] == leading[:, None], rest, 0.0)
        share /= tl.sum(share, 1)[:, None]
        tl.store(y + here, share, new[:, None] & exists)
        weight = tl.load(weights + rows, new, 0.0).to(yk.dtype)[:, None]
        mean += tl.sum((weight * share).to(tl.float64), 0)
    own = tl.program_id(0) * n_classes + classes
    tl.store(means + own, mean, classes < n_classes)


class TritonSweep:
    """EM sweeps over rows on a GPU.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        Contiguous; K at most 8,192.
    weights : Tensor of shape (M,)
    labels : Tensor of shape (M, K)
        Where to start; the caller's tensor stays untouched.
    """

    def __init__(self, probs: Tensor, weights: Tensor, labels: Tensor) -> None:
        self._p, self._weights, self.labels = probs, weights, labels.clone()
        self._tiles = Tiles(*probs.shape)

    def sweep(self, multipliers: Vector, tolerance: float) -> Vector:
        """Take a sweep and return ``Σ_i ω_i y_i``; ``tolerance`` bounds ``(1 + a) |F - 1|``."""
        scales = torch.from_numpy(multipliers).to(self._p.device)
        means = self._tiles.partial(self._tiles.n_classes, self._p.device)
        _sweep[(self._tiles.programs,)](
            self._p, self.labels, self._weights, scales, means, tolerance,
            torch.finfo(self.labels.dtype).eps, **self._tiles.constants,
        )  # fmt: skip
        total: Vector = means.sum(0).cpu().numpy()
        return total
