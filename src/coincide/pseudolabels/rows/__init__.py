"""The work over the M×K arrays: one contract, plain tensor operations and compiled passes.

The solvers are written against :class:`TorchPasses` and know no
backend. ``torch`` runs on any device and needs no compilation; ``numba`` fuses every pass on the
CPU and is two to four times as fast, after a compilation that is cached on disk.
"""

from __future__ import annotations

import torch

from coincide.pseudolabels.rows.contract import Minimizers, NewtonRows, RowMinimizers, StepArrays
from coincide.pseudolabels.rows.sums import row_parts, weighted_sum
from coincide.pseudolabels.rows.torch_rows import TorchPasses

__all__ = [
    "COMPILE_PAYS",
    "Minimizers",
    "NewtonRows",
    "RowMinimizers",
    "StepArrays",
    "TorchPasses",
    "choose_passes",
    "compiled_passes",
    "row_parts",
    "weighted_sum",
]

# Below this many row-class entries to solve for, loading compiled code costs more than it saves.
COMPILE_PAYS = 1_000_000


def choose_passes(entries: int, device: torch.device) -> TorchPasses:
    """Return the passes for so many row-class entries, over all the solves to come.

    The choice depends on sizes and device alone, so a run repeats exactly.
    """
    return compiled_passes() if device.type == "cpu" and entries >= COMPILE_PAYS else TorchPasses()


def compiled_passes() -> TorchPasses:
    """Return the compiled passes; loading them takes half a second."""
    from coincide.pseudolabels.rows.numba_rows import NumbaPasses

    return NumbaPasses()
