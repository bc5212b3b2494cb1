"""What the Triton kernels share: whole rows in registers, and sums that repeat exactly.

A program holds a tile, some rows with all their classes, so that a pass reads and writes the GPU's
memory once however many sums over a row it needs. It walks over its tiles in order and leaves one
partial sum; their number depends on the sizes alone, and no atomics are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 512  # of a tile: 4 of each array in a thread, all of them in registers
_ENTRIES_OF_A_WARP = 128
_MOST_WARPS = 16
_MOST_PROGRAMS = 1024  # about what the largest GPUs keep resident


@dataclass(frozen=True)
class Tiles:
    """How the rows of an ``(M, K)`` array are cut into tiles and dealt out to programs."""

    n_rows: int
    n_classes: int

    @property
    def classes(self) -> int:
        """Classes of a tile: K, up to the next power of two."""
        return int(triton.next_power_of_2(self.n_classes))

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return max(1, _ENTRIES // self.classes)

    @property
    def programs(self) -> int:
        """How many programs share the tiles."""
        return min(int(triton.cdiv(self.n_rows, self.rows)), _MOST_PROGRAMS)

    @property
    def constants(self) -> dict[str, int]:
        """The arguments that every kernel here ends with."""
        warps = self.rows * self.classes // _ENTRIES_OF_A_WARP
        return {
            "n_rows": self.n_rows,
            "n_classes": self.n_classes,
            "tile_rows": self.rows,
            "tile_classes": self.classes,
            "num_warps": max(4, min(warps, _MOST_WARPS)),
        }

    def partial(self, width: int, device: torch.device) -> Tensor:
        """Return room for one float64 vector of each program."""
        return torch.empty(self.programs, width, dtype=torch.float64, device=device)


@triton.jit
def place(tile, n_rows, n_classes, tile_rows: tl.constexpr, tile_classes: tl.constexpr):
    """Return the rows of a tile, which are new, which classes exist, and where the entries lie.

    Behind the last row it stands again: its numbers are as good as any, and it is not new.
    """
    rows = tile * tile_rows + tl.arange(0, tile_rows)
    new = rows < n_rows
    rows = tl.minimum(rows, n_rows - 1).to(tl.int64)
    classes = tl.arange(0, tile_classes)
    exists = (classes < n_classes)[None, :]
    return rows, new, exists, rows[:, None] * n_classes + classes[None, :]


@triton.jit
def at(entries, classes):
    """Return the entry of one class in every row, ``(rows, 1)``."""
    columns = tl.arange(0, entries.shape[1])[None, :]
    return tl.sum(tl.where(columns == classes[:, None], entries, 0), 1)[:, None]
