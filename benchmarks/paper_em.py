"""The yardstick ``paper EM``: Algorithm 1 of Zhang and Boykov, as printed, compiled by Numba.

    E-step   S_ik = y_ik / Σ_j y_jk                                                   (14)
    M-step   x <- max_k σ_k / (1 + a - c_k)                                      (Lemma 1)
             f(x)  = Σ_k c_k / (a + 1 - σ_k/x) - 1
             f'(x) = Σ_k -c_k σ_k / (a x + x - σ_k)²
             while f(x) >= ε:  x <- x - f(x)/f'(x)
             y_k = c_k / (a + 1 - σ_k/x)

with ``c_ik = λ M u_k S_ik`` (λ relative to the mean loss) and ``a = Σ_k c_k``. It is the reading
of the NeurIPS version; the CVPR version prints a superfluous ``-σ_k/x`` in the numerators.
Algorithm 2 starts from the network's output, ``y = σ``. The paper gives no ``ε``; see ``EPSILON``.
The rows run in parallel and sums may be reassociated, so that the compiler vectorizes them;
nothing else differs from print. It solves every row with the printed numerics, which lose digits
when a ``c_k`` is small: a NaN stays a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide.pseudolabels.problem import Problem

EPSILON = {torch.float64: 1e-6, torch.float32: 1e-4}
_MOST_STEPS = 100  # rounding can keep f(x) above ε for ever, which print does not foresee

_compiled = numba.njit(
    parallel=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)


@_compiled
def _column_sums(labels, chunks):  # type: ignore[no-untyped-def]
    """Return ``Σ_j y_jk``, one partial sum a thread."""
    rows, classes = labels.shape
    partial = np.zeros((chunks, classes), np.float64)
    for chunk in numba.prange(chunks):
        for i in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            for k in range(classes):
                partial[chunk, k] += labels[i, k]
    return partial.sum(0)


@_compiled
def _m_step(probs, labels, scale, epsilon, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the solution of every row; ``c_ik = scale_k y_ik``."""
    rows, classes = probs.shape
    zero, one = probs.dtype.type(0), probs.dtype.type(1)
    for i in numba.prange(rows):
        sigma, y = probs[i], out[i]
        c = np.empty(classes, probs.dtype)
        a = zero
        for k in range(classes):
            c[k] = scale[k] * labels[i, k]
            a += c[k]
        x = zero
        for k in range(classes):
            x = max(x, sigma[k] / (one + a - c[k]))
        f = -one
        for k in range(classes):
            f += c[k] / (a + one - sigma[k] / x)
        steps = 0
        while f >= epsilon and steps < _MOST_STEPS:
            slope = zero
            for k in range(classes):
                below = a * x + x - sigma[k]
                slope -= c[k] * sigma[k] / (below * below)
            x -= f / slope
            f = -one
            for k in range(classes):
                f += c[k] / (a + one - sigma[k] / x)
            steps += 1
        for k in range(classes):
            y[k] = c[k] / (a + one - sigma[k] / x)


@dataclass
class PaperState:
    """The labels after a sweep, and room for the next ones."""

    labels: Tensor
    room: Tensor
    expected_gap: float = 0.0
    stalled: bool = False
    multipliers: NDArray[Any] | None = None


@dataclass(frozen=True)
class PaperEM:
    """The paper's EM behind the interface of the library's solvers."""

    name: ClassVar[str] = "paper-em"
    objectives: ClassVar[tuple[str, ...]] = ("cce+",)

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> PaperState:
        """Start from the network's output, as Algorithm 2 does."""
        del tol
        start = problem.probs if labels is None else labels
        return PaperState(start.clone(), torch.empty_like(start))

    def step(self, problem: Problem, state: PaperState) -> PaperState:
        """One sweep: E-step and M-step."""
        labels, probs = state.labels.numpy(), problem.probs.numpy()
        sums = _column_sums(labels, numba.get_num_threads())
        scale = (problem.fairness * len(labels) * problem.prior / sums).astype(probs.dtype)
        epsilon = probs.dtype.type(EPSILON[problem.probs.dtype])
        _m_step(probs, labels, scale, epsilon, state.room.numpy())
        return PaperState(state.room, state.labels)
