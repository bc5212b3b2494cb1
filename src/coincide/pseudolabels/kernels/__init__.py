"""Row kernels: the work over the M×K arrays, one contract, several backends.

The solvers are written against :class:`~coincide.pseudolabels.kernels.contract.RowKernels` and
know no backend. ``torch`` runs on any device and needs no compilation; ``numba`` fuses every
pass on the CPU and is two to four times as fast, after a compilation that Numba caches on disk.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import (
    Extents,
    Factors,
    Prediction,
    RowKernels,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.dual import dual_rows
from coincide.pseudolabels.kernels.torch_rows import TorchRows

if TYPE_CHECKING:
    from coincide.pseudolabels.kernels.numba_em import NumbaSweep

__all__ = [
    "Extents",
    "Factors",
    "Prediction",
    "RowKernels",
    "StepArrays",
    "available_backends",
    "choose_backend",
    "dual_rows",
    "dual_values",
    "em_sweeper",
    "row_kernels",
]

# Below this many row-class entries to solve for, loading compiled code costs more than it saves.
_COMPILE_PAYS = 1_000_000


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run here."""
    if importlib.util.find_spec("numba") is None:
        return ("torch",)
    return ("torch", "numba")


def choose_backend(entries: int, device: torch.device) -> str:
    """Return the backend for so many row-class entries, over all the solves to come.

    The choice depends on sizes and device alone, so a run repeats exactly.
    """
    compiled = device.type == "cpu" and "numba" in available_backends()
    return "numba" if compiled and entries >= _COMPILE_PAYS else "torch"


def row_kernels(backend: str, rows: Tensor, weights: Tensor, *, collision: bool) -> RowKernels:
    """Return the kernels of a backend for these rows.

    Parameters
    ----------
    backend : {"torch", "numba"}
    rows : Tensor of shape (M, K)
        Probabilities for collision cross-entropy, their logarithms for Shannon's.
    weights : Tensor of shape (M,)
    collision : bool
        Which of the two row losses.
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels.numba_rows import NumbaRows  # noqa: PLC0415

        return NumbaRows(rows, weights, collision=collision)
    return TorchRows(rows, weights, collision=collision)


def em_sweeper(backend: str, probs: Tensor, weights: Tensor, labels: Tensor) -> NumbaSweep | None:
    """Return compiled EM sweeps from these labels, or None where there are none for them.

    Parameters
    ----------
    backend : {"torch", "numba"}
    probs, labels : Tensor of shape (M, K)
    weights : Tensor of shape (M,)
    """
    if backend != "numba" or not bool((labels > 0).all()):
        return None
    from coincide.pseudolabels.kernels.numba_em import NumbaSweep  # noqa: PLC0415

    return NumbaSweep(probs, weights, labels)


def dual_values(backend: str, probs: Tensor, multipliers: Vector, *, collision: bool) -> Tensor:
    """Return ``g_i(w) = min_y [f_i(y) - w·y]`` for every row, float64, ``(M,)``.

    Parameters
    ----------
    backend : {"torch", "numba"}
    probs : Tensor of shape (M, K)
    multipliers : array of shape (K,)
    collision : bool
        Which of the two row losses.
    """
    if backend == "numba" and collision:
        from coincide.pseudolabels.kernels.numba_dual import compiled_dual_rows  # noqa: PLC0415

        return torch.from_numpy(compiled_dual_rows(probs, multipliers))
    vector = torch.from_numpy(multipliers).to(probs.device)
    return dual_rows(probs.double(), vector, collision=collision)
