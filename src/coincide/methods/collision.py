"""The paper's method: exact pseudo-labels of the predictions, collision cross-entropy to them.

labels   y  = argmin_y  mean H₂(y, σ) + λ KL(u ‖ ȳ)         σ from the plain view    (11)
loss         mean_i -ln σ'_i·y_i                            σ' from the changed view  (9)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from coincide._checks import UNKNOWN, check_integer, check_option
from coincide.losses import collision_cross_entropy
from coincide.methods.method import AllRows, Batch, BatchLoss, Method, weighted_mean
from coincide.methods.neighbors import mine_neighbors
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Certificate
from coincide.pseudolabels.rows import TorchPasses
from coincide.pseudolabels.solve import PseudoLabels, check_solver, solve_checked

_SHARED = ("active-set", "interior-point")  # whose sums run over the processes
LABELED_BY = ("auto", "plain", "views", "teacher")

_CERTIFIED = 1e-1  # the tolerance of a batch's labels by certificate, relative to an estimate
_SHARPER = 1e-2  # the tolerance of an evaluation, relative to that of a batch


@dataclass
class CollisionMethod(Method):
    """Self-labeling by collision cross-entropy with a fair mean label.

    Parameters
    ----------
    n_clusters : int
    prior : array of shape (K,), float64
    fairness : float
        ``λ``, relative to the mean loss.
    objective, solver : str
        A pair that fits, see :func:`coincide.solve_pseudo_labels`.
    label_tol : float
        The solver's own estimate of the gap at which a batch's labels are good enough.
    passes : TorchPasses
        The solver's passes over the rows.
    n_views : int
        Changed views of each row; the loss is the mean over them.
    labeled_by : {"auto", "plain", "views", "teacher"}
        Whose predictions the labels are made of: those of the rows as they are, the mean of those
        of the changed views (the neighbor's is one of them), or those of a slow copy of the
        network. ``"auto"``: the views where there are several, which also saves a pass through
        the network; one view alone would learn nothing but itself.
    teacher_momentum : float
        Share of the slow copy that a step keeps.
    n_neighbors : int
        The loss is also taken on a changed view of one of so many neighbors of each row, mined in
        the features before the first epoch, as SCAN does; 0 for none.
    neighbors : Tensor of shape (M, k), int64, optional
        The rows' neighbors where they are known already: nothing is mined.
    """

    n_clusters: int
    prior: Vector
    fairness: float = 100.0
    objective: str = "cce+"
    solver: str = "auto"
    label_tol: float = 0.05
    passes: TorchPasses = field(default_factory=TorchPasses)
    n_views: int = 1
    labeled_by: str = "auto"
    teacher_momentum: float = 0.99
    n_neighbors: int = 0
    neighbors: Tensor | None = field(default=None, repr=False)
    _guess: Vector | None = field(default=None, init=False, repr=False)
    _teacher: nn.Module | None = field(default=None, init=False, repr=False)
    _restored: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _taken_up: bool = field(default=False, init=False, repr=False)  # neighbors, for the next epoch

    def __post_init__(self) -> None:
        check_integer(self.n_views, "n_views", "CollisionMethod", low=1)
        check_option(self.labeled_by, "labeled_by", "CollisionMethod", LABELED_BY)
        self._taken_up = self.neighbors is not None
        self._solver = check_solver(self.solver, self.objective, "CollisionMethod", self.n_clusters)

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Mine the neighbors before the first epoch, where they are wanted and not restored."""
        del n_epochs
        if self.n_neighbors and epoch == 0 and data is not None and not self._taken_up:
            self.neighbors = mine_neighbors(data.features(), self.n_neighbors)
        self._taken_up = False

    def partners(self, rows: Tensor) -> Tensor | None:
        """Return one of the neighbors of every row, drawn at random."""
        if self.neighbors is None:
            return None
        drawn = torch.randint(self.neighbors.shape[1], rows.shape)
        return self.neighbors[rows.cpu(), drawn]

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the mean over the views of collision cross-entropy to the batch's labels."""
        changed = batch.views if batch.partners is None else (*batch.views, batch.partners)
        views = None
        by_views = len(changed) > 1 if self.labeled_by == "auto" else self.labeled_by == "views"
        if by_views:
            views = [network(view).float() for view in changed]
            probs = torch.stack([torch.softmax(view.detach(), 1) for view in views]).mean(0)
        else:
            teacher = self._slow_copy(network) if self.labeled_by == "teacher" else network
            with torch.no_grad():
                probs = torch.softmax(teacher(batch.plain).float(), 1)
        with torch.autocast(probs.device.type, enabled=False):
            labels = self._label(probs, batch.weights, batch.known)
        if views is None:
            views = [network(view).float() for view in changed]
        losses = [
            weighted_mean(collision_cross_entropy(view, labels, reduction="none"), batch.weights)
            for view in views
        ]
        return BatchLoss(torch.stack(losses).mean(), views[0], seen=probs)

    def labels(
        self, logits: Tensor, weights: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """Return the soft labels of a batch, ``(M, K)`` in the dtype of the logits."""
        probs = torch.softmax(logits.detach().float(), 1)
        return self._label(probs, weights, known).to(logits.dtype)

    def evaluate(self, logits: Tensor, weights: Tensor | None = None) -> Certificate:
        """Return the objective of these predictions under their best labels, certified."""
        probs = torch.softmax(logits.detach().double(), 1)
        found = self._solve(probs, weights, tol=self.label_tol * _SHARPER)
        return Certificate(found.objective, found.lower_bound)

    def state(self) -> dict[str, Tensor]:
        """Return the multipliers that warm the next solve, and the slow copy."""
        state = {} if self._guess is None else {"guess": torch.from_numpy(self._guess.copy())}
        if self._teacher is not None:
            copied = self._teacher.state_dict().items()
            state |= {f"teacher.{name}": tensor.clone() for name, tensor in copied}
        if self.neighbors is not None:
            state["neighbors"] = self.neighbors
        return state | self._restored

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` returned; the slow copy waits for its network."""
        guess = state.get("guess")
        self._guess = None if guess is None else guess.double().cpu().numpy()
        self._teacher = None
        self.neighbors = state.get("neighbors")
        self._taken_up = self.neighbors is not None
        self._restored = {name: t for name, t in state.items() if name.startswith("teacher.")}

    def _label(self, probs: Tensor, weights: Tensor | None, known: Tensor | None) -> Tensor:
        """Return the labels of a batch, solved for from the multipliers of the batch before."""
        # A solver that does not estimate its gap is certified. At near-uniform predictions even
        # uniform labels are within the tolerance of a batch: nothing would be learned from them.
        estimates = self._solver.estimates_gap
        tol = self.label_tol * (1 if estimates else _CERTIFIED)
        found = self._solve(probs, weights, known, tol=tol, certified=not estimates)
        self._guess = found.multipliers
        return found.labels.to(probs)

    def _solve(
        self,
        probs: Tensor,
        weights: Tensor | None,
        known: Tensor | None = None,
        *,
        tol: float,
        certified: bool = True,
    ) -> PseudoLabels[Tensor]:
        if self.sums is not None and self._solver.name not in _SHARED:
            raise ValueError(
                f"The solver {self._solver.name!r} does not work on a batch that several processes"
                f" share. Choose one of {', '.join(map(repr, _SHARED))}."
            )
        some = known is not None and bool((known != UNKNOWN).any())
        return solve_checked(
            probs,
            prior=self.prior,
            fairness=self.fairness,
            objective=self.objective,
            solver=self._solver,
            passes=self.passes,
            known=known if some else None,
            weights=weights,
            guess=self._guess,
            sums=self.sums,
            tol=tol,
            certified=certified,
        )

    @torch.no_grad()
    def _slow_copy(self, network: nn.Module) -> nn.Module:
        """Return the slow copy after it has followed the network by one step."""
        if self._teacher is None:
            self._teacher = copy.deepcopy(network).requires_grad_(False)
            if self._restored:
                state = {n.removeprefix("teacher."): t for n, t in self._restored.items()}
                self._teacher.load_state_dict(state)
                self._restored = {}
        for slow, fast in zip(self._teacher.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.teacher_momentum)
        return self._teacher
