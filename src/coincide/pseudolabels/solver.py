"""What a solver is, and the one loop that runs every solver.

A solver improves labels step by step and states as data what it can solve. The loop asks for the
certificate as soon as the solver itself expects a small enough gap, and stops when the certified
gap is small. A new solver is one new file and one entry in ``SOLVERS`` (``solve.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from coincide._threads import one_blas_thread, threads_for
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate, Problem, certify

_PATIENCE = 10  # certificates without an improvement
_CLOSE = 1e-7  # gaps below this are certified even when a smaller one was asked for


class State(Protocol):
    """What a solver carries from step to step."""

    expected_gap: float
    stalled: bool
    multipliers: Vector | None  # dual variables of its own, where the solver has any

    @property
    def labels(self) -> Tensor:
        """The current labels, ``(M, K)``."""
        ...


class Solver(Protocol):
    """A way to improve labels.

    ``expected_gap`` of its state is the solver's own estimate of the gap; a solver that has none
    leaves it at 0 and is certified every ``check_every`` steps. A state may also have a
    ``certificate`` of its labels, which is then not computed again.
    """

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...

    @property
    def objectives(self) -> Sequence[str]:
        """The names of the objectives it can solve."""
        ...

    @property
    def minimizes(self) -> bool:
        """Whether it minimizes the objective; a rule does not, and its last labels count."""
        ...

    @property
    def estimates_gap(self) -> bool:
        """Whether ``expected_gap`` of its states is an estimate, not just 0."""
        ...

    @property
    def max_iter(self) -> int:
        """How many steps it takes at most, unless told otherwise."""
        ...

    @property
    def check_every(self) -> int:
        """How many steps lie between two certificates."""
        ...

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> Any:
        """Return the first state, from given labels if there are any; ``tol`` is the gap asked."""
        ...

    def step(self, problem: Problem, state: Any) -> Any:
        """Return an improved state, or one marked as stalled when nothing more can be done."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Where the loop stopped."""

    labels: Tensor
    n_iter: int
    converged: bool
    certificate: Certificate | None
    multipliers: Vector | None = None


def run_solver(
    solver: Solver, problem: Problem, labels: Tensor | None = None, *, tol: float, max_iter: int
) -> Outcome:
    """Step until the certified gap is at most ``tol · max(1, |objective|)``.

    The labels with the smallest certified gap are returned, so that rounding at the very end
    cannot spoil them; the loop gives up when that gap has stopped falling.

    Parameters
    ----------
    solver, problem
        A pair that fits: the problem's objective is among the solver's.
    labels : Tensor of shape (M, K), optional
        A warm start; when it is good enough already no step is taken.
    tol : float
    max_iter : int
    """
    best = _Best(tol)
    if labels is not None and solver.minimizes:
        admissible = problem.admissible(labels)
        best.offer(problem, admissible, certify(problem, admissible))
    n_iter = 0
    with threads_for(problem.probs.numel()), one_blas_thread():
        state: State = solver.start(problem, labels, tol)
        if solver.estimates_gap and state.expected_gap <= tol:
            best.take(problem, state)
        while not best.final and not state.stalled and n_iter < max_iter:
            state = solver.step(problem, state)
            n_iter += 1
            promising = solver.minimizes and state.expected_gap <= max(tol, _CLOSE)
            last = state.stalled or n_iter == max_iter
            if last or (promising and n_iter % solver.check_every == 0):
                best.take(problem, state)
        if best.certificate is None:
            best.take(problem, state)
    assert best.labels is not None
    assert best.certificate is not None
    converged = best.certificate.within(tol)
    return Outcome(best.labels, n_iter, converged, best.certificate, state.multipliers)


def run_uncertified(solver: Solver, problem: Problem, *, tol: float, max_iter: int) -> Outcome:
    """Step until the solver itself expects a gap of at most ``tol``.

    It saves the passes that a certificate takes: for labels inside a training step.
    """
    n_iter = 0
    with threads_for(problem.probs.numel()), one_blas_thread():
        state: State = solver.start(problem, None, tol)
        expects = solver.estimates_gap and state.expected_gap <= tol
        while not expects and not state.stalled and n_iter < max_iter:
            state = solver.step(problem, state)
            n_iter += 1
            expects = state.expected_gap <= tol and n_iter % solver.check_every == 0
    labels = problem.admissible(state.labels).to(problem.probs)
    return Outcome(labels, n_iter, expects, None, state.multipliers)


class _Best:
    """The labels with the smallest certified gap so far."""

    def __init__(self, tol: float) -> None:
        self.labels: Tensor | None = None
        self.certificate: Certificate | None = None
        self._tol = tol
        self._patience = _PATIENCE

    def take(self, problem: Problem, state: State) -> None:
        """Certify the labels of a state and keep them if they are the best."""
        labels = problem.admissible(state.labels)
        certificate = getattr(state, "certificate", None)
        self.offer(problem, labels, certificate or certify(problem, labels, state.multipliers))

    def offer(self, problem: Problem, labels: Tensor, certificate: Certificate) -> None:
        """Keep a copy of the labels if they are the best, laid out and typed as the predictions."""
        if self.certificate is None or certificate.gap < self.certificate.gap:
            if self.labels is None:
                self.labels = torch.empty_like(problem.probs)
            self.labels.copy_(labels)
            self.certificate = certificate
            self._patience = _PATIENCE
        else:
            self._patience -= 1

    @property
    def final(self) -> bool:
        """Whether the best is good enough, or has not become better for a while."""
        if self.certificate is None:
            return False
        return self.certificate.within(self._tol) or self._patience <= 0
