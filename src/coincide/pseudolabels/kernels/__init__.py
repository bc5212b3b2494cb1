"""Row kernels: the work over the M×K arrays, one contract, several backends.

The solvers are written against :class:`~coincide.pseudolabels.kernels.contract.RowKernels` and
know no backend. ``torch`` runs on any device and needs no compilation; ``numba`` fuses every
pass on the CPU and is two to four times as fast, ``triton`` does on GPUs, both after a compilation
that is cached on disk. All classes of very few rows are left to ``torch``, which is as quick there.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coincide.pseudolabels.kernels import candidates, dual, first_iterate
from coincide.pseudolabels.kernels.contract import (
    AnswerKernels,
    Extents,
    Factors,
    Minimizers,
    Prediction,
    RowKernels,
    RowMinimizers,
    RowSystem,
    StepArrays,
    Vector,
)
from coincide.pseudolabels.kernels.first_iterate import near_labels
from coincide.pseudolabels.kernels.labels import summed_labels as labels_in_torch
from coincide.pseudolabels.kernels.parts import row_parts, weighted_sum
from coincide.pseudolabels.kernels.torch_rows import CandidateRows, TorchRows

if TYPE_CHECKING:
    from coincide.pseudolabels.kernels.numba_em import NumbaSweep
    from coincide.pseudolabels.kernels.numba_squarem import NumbaSquarem
    from coincide.pseudolabels.kernels.triton_em import TritonSweep

__all__ = [
    "COMPILE_PAYS",
    "AnswerKernels",
    "Extents",
    "Factors",
    "Minimizers",
    "Prediction",
    "RowKernels",
    "RowMinimizers",
    "RowSystem",
    "StepArrays",
    "answer_kernels",
    "available_backends",
    "candidate_kernels",
    "choose_backend",
    "em_squarem",
    "em_sweeper",
    "near_candidates",
    "near_central_path",
    "near_labels",
    "pays_apart",
    "row_kernels",
    "row_minimizers",
    "row_parts",
    "summed_labels",
    "weighted_sum",
]

# Below this many row-class entries to solve for, loading compiled code costs more than it saves.
COMPILE_PAYS = 1_000_000
_FEW_ROWS = 0.4  # to a class, up to which two unknowns each make the smaller system
_MOST_IN_REGISTERS = 8192  # classes of a row, in the Triton kernels


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run here.

    Triton needs a GPU; its interpreter (``TRITON_INTERPRET=1``) runs it on a CPU, for tests.
    """
    gpu = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    can_run = {"torch": True, "numba": True, "triton": gpu}
    return tuple(name for name in can_run if can_run[name] and importlib.util.find_spec(name))


def choose_backend(entries: int, device: torch.device) -> str:
    """Return the backend for so many row-class entries, over all the solves to come.

    The choice depends on sizes and device alone, so a run repeats exactly.
    """
    compiled = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
    pays = entries >= COMPILE_PAYS
    return compiled if pays and compiled in available_backends() else "torch"


def pays_apart(n_rows: float, n_classes: int) -> bool:
    """Return whether two unknowns a row make a smaller system than one a class.

    Of rows under collision cross-entropy, all of them in one process.
    """
    return n_rows <= _FEW_ROWS * n_classes


def row_kernels(
    backend: str, rows: Tensor, weights: Tensor, *, collision: bool, apart: bool = False
) -> RowKernels:
    """Return the kernels of a backend for these rows.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    rows : Tensor of shape (M, K)
        Probabilities for collision cross-entropy, their logarithms for Shannon's.
    weights : Tensor of shape (M,)
    collision : bool
        Which of the two row losses.
    apart : bool, optional
        Whether to give the coupling row by row, not as a K×K sum: see :func:`pays_apart`.
    """
    if apart:  # so few rows leave the compiled kernels nothing to gain
        return TorchRows(rows, weights, collision=collision, apart=True)
    if backend == "numba":
        from coincide.pseudolabels.kernels.numba_rows import NumbaRows

        return NumbaRows(rows, weights, collision=collision)
    if _in_triton(backend, rows):
        from coincide.pseudolabels.kernels.triton_rows import TritonRows

        return TritonRows(rows, weights, collision=collision)
    return TorchRows(rows, weights, collision=collision)


def candidate_kernels(
    backend: str,
    probs: Tensor,
    weights: Tensor,
    classes: Tensor,
    n_classes: int,
    *,
    apart: bool = False,
) -> RowKernels:
    """Return the kernels of a backend for a few candidate classes a row.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    probs : Tensor of shape (R, C), float64
        For collision cross-entropy.
    weights : Tensor of shape (R,), float64
    classes : Tensor of shape (R, C), int64
        Entry ``(i, c)`` is class ``classes[i, c]``; descending within a row.
    n_classes : int
        K.
    apart : bool, optional
        As in :func:`row_kernels`.
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels.numba_candidates import (
            NumbaCandidateRows,
        )

        return NumbaCandidateRows(probs, weights, classes, n_classes, apart=apart)
    return CandidateRows(probs, weights, classes, n_classes, apart=apart)


def near_central_path(
    backend: str,
    rows: Tensor,
    multipliers: Vector,
    shares: Vector,
    gap: float,
    *,
    collision: bool,
) -> StepArrays:
    """Return labels and slacks of every row near its own central path.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    rows, multipliers, shares, gap, collision
        See :func:`coincide.pseudolabels.kernels.first_iterate.near_central_path`.
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels import numba_first_iterate

        near = numba_first_iterate.near_central_path
    else:
        near = first_iterate.near_central_path
    return near(rows, multipliers, shares, gap, collision=collision)


def near_candidates(
    backend: str,
    probs: Tensor,
    multipliers: Vector,
    answer: Minimizers,
    *,
    slack: float,
    most: int,
    least: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the rows with more than one class near their envelope, and their nearest classes.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    probs, multipliers, answer, slack, most, least
        See :func:`coincide.pseudolabels.kernels.candidates.near_candidates`.
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels import numba_candidates

        near = numba_candidates.near_candidates
    else:
        near = candidates.near_candidates
    return near(probs, multipliers, answer, slack=slack, most=most, least=least)


def em_sweeper(
    backend: str, probs: Tensor, weights: Tensor, labels: Tensor
) -> NumbaSweep | TritonSweep | None:
    """Return compiled EM sweeps from these labels, or None where there are none for them.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    probs, labels : Tensor of shape (M, K)
    weights : Tensor of shape (M,)
    """
    if backend == "torch" or not bool((labels > 0).all()):
        return None
    if _in_triton(backend, probs):
        from coincide.pseudolabels.kernels.triton_em import TritonSweep

        return TritonSweep(probs, weights, labels)
    if backend == "triton":
        return None
    from coincide.pseudolabels.kernels.numba_em import NumbaSweep

    return NumbaSweep(probs, weights, labels)


def em_squarem(backend: str, probs: Tensor, weights: Tensor, labels: Tensor) -> NumbaSquarem | None:
    """Return compiled, extrapolated EM from these labels, or None where there is none for them.

    Parameters
    ----------
    backend, probs, weights, labels
        As in :func:`em_sweeper`.
    """
    if backend != "numba":
        return None
    from coincide.pseudolabels.kernels.numba_squarem import NumbaSquarem

    return NumbaSquarem(probs, weights, labels)


def row_minimizers(backend: str, probs: Tensor) -> RowMinimizers:
    """Return the search for the labels that minimize ``-ln σ_i·y - w·y`` in every row.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    probs : Tensor of shape (M, K)
        float32 or float64; the search is done in float64.
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels.numba_dual import NumbaMinimizers

        return NumbaMinimizers(probs)
    if _in_triton(backend, probs):
        from coincide.pseudolabels.kernels.triton_dual import TritonMinimizers

        return TritonMinimizers(probs)
    return dual.TorchMinimizers(probs)


def answer_kernels(backend: str) -> AnswerKernels:
    """Return the sums over the rows' answers.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    """
    if backend == "numba":
        from coincide.pseudolabels.kernels import numba_dual

        return numba_dual
    return dual


def summed_labels(
    backend: str, probs: Tensor, weights: Tensor, labels: Tensor, *, collision: bool
) -> tuple[Vector, Vector]:
    """Return the mean row loss of labels and the mean label.

    Parameters
    ----------
    backend : {"torch", "numba", "triton"}
    probs, weights, labels, collision
        See :func:`coincide.pseudolabels.kernels.labels.summed_labels`.
    """
    if backend == "numba" and collision:
        from coincide.pseudolabels.kernels import numba_labels

        return numba_labels.summed_labels(probs, weights.double(), labels)
    return labels_in_torch(probs, weights, labels, collision=collision)


def _in_triton(backend: str, rows: Tensor) -> bool:
    """Return whether Triton's kernels take these rows; plain tensor operations take the others."""
    return backend == "triton" and len(rows) > 0 and rows.shape[1] <= _MOST_IN_REGISTERS
