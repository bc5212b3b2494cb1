"""The dual of the rows in Triton: every row's active-set search without leaving the registers.

The mathematics is that of :mod:`coincide.pseudolabels.kernels.dual`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Minimizers, Vector
from coincide.pseudolabels.kernels.triton_tiles import Tiles, place

_MOST_ROUNDS = tl.constexpr(200)
_ROUNDING = tl.constexpr(1e-15)


@triton.jit
def _minimize(
    p, starts, values, steep, flat, share, n_rows, n_classes,
    tile_rows: tl.constexpr, tile_classes: tl.constexpr,
):  # fmt: skip
    """Search from the pairs in ``steep`` and ``flat``, for intercepts ``w`` at most 0."""
    classes = tl.arange(0, tile_classes)
    start = tl.load(starts + classes, classes < n_classes, float("-inf"))
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, tile_rows), tl.num_programs(0)):
        rows, new, exists, here = place(tile, n_rows, n_classes, tile_rows, tile_classes)
        lines = tl.load(p + here, exists, 0.0).to(tl.float64)
        high, low = tl.load(steep + rows), tl.load(flat + rows)
        level = tl.zeros((tile_rows,), tl.float64)
        value = tl.zeros((tile_rows,), tl.float64)
        open_rows = new
        rounds = 0
        while (tl.max(open_rows.to(tl.int32), 0) > 0) & (rounds < _MOST_ROUNDS):
            up = tl.load(p + rows * n_classes + high).to(tl.float64)
            down = tl.load(p + rows * n_classes + low).to(tl.float64)
            of_high, of_low = tl.load(starts + high), tl.load(starts + low)
            lead = of_low - of_high
            # Without a head start of the flat line the steep one is higher for every t > 0.
            tie = (up - down) / tl.where(lead > 0, lead, 1.0)
            best = tl.where(lead > 0, tl.minimum(tl.maximum(tie, down), up), up)
            t = 1 / best
            height, highest = tl.max(lines * t[:, None] + start[None, :], 1, return_indices=True)
            reached = tl.maximum(up * t + of_high, down * t + of_low)
            level = tl.where(open_rows, best, level)
            # Any t gives a valid bound, so rounding can cost tightness but never correctness.
            value = tl.where(open_rows, 1 - tl.log(best) - tl.maximum(height, reached), value)
            open_rows &= height - reached > (1 + tl.abs(height)) * _ROUNDING
            # The highest line stands beside the one it leaves on the other side of the maximum.
            highest = highest.to(tl.int64)
            slope = tl.load(p + rows * n_classes + highest).to(tl.float64)
            keeps_high = (best >= up) | ((best > down) & (slope < best))
            keep = tl.where(keeps_high, high, low)
            above = slope > tl.where(keeps_high, up, down)
            high = tl.where(open_rows, tl.where(above, highest, keep), high)
            low = tl.where(open_rows, tl.where(above, keep, highest), low)
            rounds += 1
        up = tl.load(p + rows * n_classes + high).to(tl.float64)
        down = tl.load(p + rows * n_classes + low).to(tl.float64)
        alone = (tl.load(starts + high) >= tl.load(starts + low)).to(tl.float64)
        width = tl.where(up > down, up - down, 1.0)
        tl.store(share + rows, tl.where(up > down, (level - down) / width, alone), new)
        tl.store(values + rows, value, new)
        tl.store(steep + rows, high, new)
        tl.store(flat + rows, low, new)


class TritonMinimizers:
    """The minimizing labels of every row for given multipliers, on a GPU.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        float32 or float64, contiguous; every row has a positive entry. K at most 8,192.
    """

    def __init__(self, probs: Tensor) -> None:
        self._p = probs
        self._tiles = Tiles(*probs.shape)
        self._steep = probs.argmax(1)
        self._flat = self._steep.clone()

    def minimize(self, multipliers: Vector) -> Minimizers:
        """Return the minimizers for ``w``, searched from those of the last call."""
        top = float(multipliers.max())
        starts = torch.from_numpy(multipliers - top).to(self._p.device)
        values, share = starts.new_empty(2, len(self._p))
        self._steep, self._flat = self._steep.clone(), self._flat.clone()
        found = values, self._steep, self._flat, share
        _minimize[(self._tiles.programs,)](self._p, starts, *found, **self._tiles.constants)
        return Minimizers(values - top, *found[1:])
