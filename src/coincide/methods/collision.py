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
from coincide.pseudolabels.problem import Certificate
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import Outcome, run_solver


@dataclass(frozen=True)
class CollisionMethod:
    """Self-labeling by collision cross-entropy with a fair mean label.

    Parameters
    ----------
    prior : Tensor of shape (K,), float64
    fairness : float
        ``λ``, relative to the mean loss.
    objective, solver : str
        A pair that fits, see :func:`coincide.solve_pseudo_labels`.
    label_tol : float
        The solver's own estimate of the gap at which a batch's labels are good enough.
    backend : str
        The row kernels of the solver.
    """

    prior: Tensor
    fairness: float
    objective: str
    solver: str
    label_tol: float
    backend: str

    def labels(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the soft labels of a batch, ``(M, K)`` in the dtype of the logits."""
        return self._solve(logits, weights, self.label_tol, certified=False).labels.to(logits.dtype)

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted mean of collision cross-entropy to the labels."""
        if weights is None:
            return collision_cross_entropy(logits, labels)
        rows = collision_cross_entropy(logits, labels, reduction="none")
        return weights @ rows / weights.sum()

    def evaluate(self, logits: Tensor, weights: Tensor | None = None) -> Certificate:
        """Return the objective of these predictions under their best labels, certified."""
        certificate = self._solve(
            logits, weights, self.label_tol * 1e-2, certified=True
        ).certificate
        assert certificate is not None
        return certificate

    def _solve(
        self, logits: Tensor, weights: Tensor | None, tol: float, *, certified: bool
    ) -> Outcome:
        problem = reduce_problem(
            torch.softmax(logits.detach().double(), 1),
            prior=self.prior.to(logits.device),
            fairness=self.fairness,
            objective=self.objective,
            backend=self.backend,
            weights=weights,
        ).problem
        solver = SOLVERS[self.solver]
        return run_solver(solver, problem, tol=tol, max_iter=solver.max_iter, certified=certified)
