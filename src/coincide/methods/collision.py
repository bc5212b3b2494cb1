"""The paper's method: exact pseudo-labels of the predictions, collision cross-entropy to them.

labels   y  = argmin_y  mean H₂(y, σ) + λ KL(u ‖ ȳ)         σ from the plain view    (11)
loss         mean_i -ln σ'_i·y_i                            σ' from the changed view  (9)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coincide.losses import collision_cross_entropy
from coincide.pseudolabels import SOLVERS
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate, Problem
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import run_solver, run_uncertified

_CERTIFIED = 1e-1  # the tolerance of a batch's labels by certificate, relative to an estimate
_SHARPER = 1e-2  # the tolerance of an evaluation, relative to that of a batch


@dataclass(frozen=True)
class CollisionMethod:
    """Self-labeling by collision cross-entropy with a fair mean label.

    Parameters
    ----------
    prior : array of shape (K,), float64
    fairness : float
        ``λ``, relative to the mean loss.
    objective, solver : str
        A pair that fits, see :func:`coincide.solve_pseudo_labels`.
    label_tol : float
        The solver's own estimate of the gap at which a batch's labels are good enough.
    backend : str
        The row kernels of the solver.
    """

    prior: Vector
    fairness: float
    objective: str
    solver: str
    label_tol: float
    backend: str

    def labels(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the soft labels of a batch, ``(M, K)`` in the dtype of the logits."""
        solver = SOLVERS[self.solver]
        problem = self._problem(logits.float(), weights)
        if solver.estimates_gap:
            found = run_uncertified(solver, problem, tol=self.label_tol, max_iter=solver.max_iter)
        else:
            # It has no estimate of its own gap. At near-uniform predictions even uniform labels
            # are within the tolerance of a batch, and nothing would be learned from them.
            tol = self.label_tol * _CERTIFIED
            found = run_solver(solver, problem, tol=tol, max_iter=solver.max_iter)
        return found.labels.to(logits.dtype)

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted mean of collision cross-entropy to the labels."""
        if weights is None:
            return collision_cross_entropy(logits, labels)
        rows = collision_cross_entropy(logits, labels, reduction="none")
        return weights @ rows / weights.sum()

    def evaluate(self, logits: Tensor, weights: Tensor | None = None) -> Certificate:
        """Return the objective of these predictions under their best labels, certified."""
        solver = SOLVERS[self.solver]
        found = run_solver(
            solver,
            self._problem(logits.double(), weights),
            tol=self.label_tol * _SHARPER,
            max_iter=solver.max_iter,
        )
        assert found.certificate is not None
        return found.certificate

    def _problem(self, logits: Tensor, weights: Tensor | None) -> Problem:
        return reduce_problem(
            torch.softmax(logits.detach(), 1),
            prior=self.prior,
            fairness=self.fairness,
            objective=self.objective,
            backend=self.backend,
            weights=weights,
        ).problem
