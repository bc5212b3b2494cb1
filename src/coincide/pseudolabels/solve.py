"""Soft pseudo-labels, found exactly: the public function, its choices and its result.

    minimize  mean_i f(y_i, σ_i) + λ · KL between ȳ and u     over soft labels y_i in the simplex

The arguments are checked here, once; then the rows with a known class and the classes that the
prior forbids are taken out, and what remains is a :class:`Problem` for the solver's loop.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coincide._checks import (
    UNKNOWN,
    check_integer,
    check_option,
    check_prior,
    check_probability_rows,
    check_real,
    check_weights,
    parameter_message,
    real_tensor,
    tensor_of,
)
from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.em import ExpectationMaximization
from coincide.pseudolabels.interior_point import MOST_CLASSES, InteriorPoint
from coincide.pseudolabels.objectives import OBJECTIVES, Vector
from coincide.pseudolabels.problem import Certificate, reduce_problem
from coincide.pseudolabels.projected_gradient import ProjectedGradient
from coincide.pseudolabels.rows import TorchPasses, choose_passes
from coincide.pseudolabels.rows.shared import Sums
from coincide.pseudolabels.rules import ClosedForm, Sinkhorn
from coincide.pseudolabels.solver import Outcome, Solver, run_solver, run_uncertified

_OWNER = "solve_pseudo_labels"

SOLVERS: dict[str, Solver] = {
    "active-set": ActiveSet(),
    "interior-point": InteriorPoint(),
    "em": ExpectationMaximization(),
    "projected-gradient": ProjectedGradient(),
    "closed-form": ClosedForm(),
    "sinkhorn": Sinkhorn(),
}

A = TypeVar("A", NDArray[np.floating], Tensor)


@dataclass(frozen=True)
class PseudoLabels(Generic[A]):
    """Soft labels and the certificate that says how good they are.

    Attributes
    ----------
    labels : array or tensor of shape (M, K)
        Rows on the simplex, in the floating type of the predictions (float32 for half types).
    objective : float
        The objective at the labels, before any rounding to that type.
    lower_bound : float
        No labels have a smaller objective.
    gap : float
        ``objective - lower_bound``.
    n_iter : int
        Steps of the solver.
    converged : bool
        Whether ``gap <= tol · max(1, |objective|)``.
    mean_label : array or tensor of shape (K,), float64
        ``ȳ``, weighted, known rows included.
    solver : str
        The name of the solver.
    multipliers : ndarray of shape (K,), float64, or None
        ``w``, the dual variables of the mean label, where the solver has them.
    """

    labels: A
    objective: float
    lower_bound: float
    gap: float
    n_iter: int
    converged: bool
    mean_label: A
    solver: str
    multipliers: Vector | None = None


def solve_pseudo_labels(
    probs: A,
    *,
    prior: A | None = None,
    fairness: float = 100.0,
    objective: str = "cce+",
    solver: str | Solver = "auto",
    known: NDArray[np.integer] | Tensor | None = None,
    init: A | PseudoLabels[A] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    sample_weight: A | None = None,
) -> PseudoLabels[A]:
    """Find the soft labels that minimize a self-labeling objective for fixed predictions.

    ``"cce+"`` (11) is ``mean_i -ln σ_i·y_i + λ KL(u ‖ ȳ)``, ``"cce"`` (10) has ``λ KL(ȳ ‖ u)``
    instead, ``"ce+kl"`` (5) that and Shannon's cross-entropy. All are convex in ``y``.

    Parameters
    ----------
    probs : array or tensor of shape (M, K)
        Predictions ``σ``: rows of probabilities, K >= 2, M >= 1. Zeros are met exactly.
    prior : array or tensor of shape (K,), optional
        ``u``; uniform by default. A class of prior 0 is empty under ``"cce"`` and ``"ce+kl"``,
        and free under ``"cce+"``.
    fairness : float
        ``λ >= 0``, relative to the mean loss (the printed Algorithm 1 means ``λ/M``).
    objective : {"cce+", "cce", "ce+kl"}
    solver : {"auto", "active-set", "interior-point", "em", ...} or Solver
        A key of ``SOLVERS``. ``"auto"`` takes the fastest exact one: ``"active-set"`` for (11)
        and (10), ``"interior-point"`` for (5); above 10,000 classes ``"em"`` for (11), else
        ``"projected-gradient"``, which end at ``max_iter`` with the gap that they have reached.
        ``"em"`` solves (11) only; ``"closed-form"`` (MIADM) and ``"sinkhorn"`` (SeLa) are rules
        judged by (5). A pair that does not fit is refused.
    known : integer array or tensor of shape (M,), optional
        Class ids of the rows whose label is held at the truth; -1 elsewhere.
    init : array or tensor of shape (M, K), or PseudoLabels, optional
        Labels to start from. The result for similar predictions also brings its multipliers,
        with which ``"active-set"`` starts close to the end where rows are many to a class.
    tol : float
        Stop at a certified gap of ``tol · max(1, |objective|)``.
    max_iter : int, optional
        Most steps; by default the solver's own limit.
    sample_weight : array or tensor of shape (M,), optional
        Non-negative weights of the rows in both means.

    Returns
    -------
    PseudoLabels
        NumPy in, NumPy out; tensor in, tensor out, on its device.

    Raises
    ------
    ValueError, TypeError
        For predictions, a prior or labels that are not probabilities (by row), shapes that do
        not fit, and an unfit pair of solver and objective.

    Notes
    -----
    The work is done in float64, whatever the type of the predictions. Nothing is differentiated:
    the labels carry no graph.

    Examples
    --------
    >>> import numpy as np
    >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    >>> found = solve_pseudo_labels(probs, fairness=100.0)
    >>> found.labels.argmax(1), found.converged
    (array([0, 0, 1, 1]), True)
    >>> bool(found.gap < 1e-6)
    True
    """
    check_option(objective, "objective", _OWNER, OBJECTIVES)
    rows = _check_predictions(probs)
    n_rows, n_classes = rows.shape
    chosen = check_solver(solver, objective, _OWNER, n_classes)
    found = solve_checked(
        rows if rows.dtype == torch.float32 else rows.double(),
        prior=check_prior(prior, n_classes, _OWNER),
        fairness=check_real(fairness, "fairness", _OWNER),
        objective=objective,
        solver=chosen,
        passes=choose_passes(rows.numel(), rows.device),
        known=_check_known(known, n_rows, n_classes, rows.device),
        weights=check_weights(sample_weight, n_rows, _OWNER, rows.device),
        guess=init.multipliers if isinstance(init, PseudoLabels) else None,
        init=_check_init(init, rows),
        tol=check_real(tol, "tol", _OWNER),
        max_iter=None if max_iter is None else check_integer(max_iter, "max_iter", _OWNER, low=1),
    )
    half = rows.dtype not in (torch.float32, torch.float64)
    labels = found.labels.to(torch.float32 if half else rows.dtype)
    parts: dict[str, Any] = {"labels": labels, "mean_label": found.mean_label}
    if not isinstance(probs, Tensor):
        parts = {name: part.numpy() for name, part in parts.items()}
    solved: PseudoLabels[Any] = dataclasses.replace(found, **parts)
    return solved


def solve_checked(
    probs: Tensor,
    *,
    prior: Vector,
    fairness: float,
    objective: str,
    solver: Solver,
    passes: TorchPasses,
    tol: float,
    known: Tensor | None = None,
    weights: Tensor | None = None,
    guess: Vector | None = None,
    init: Tensor | None = None,
    sums: Sums | None = None,
    max_iter: int | None = None,
    certified: bool = True,
) -> PseudoLabels[Tensor]:
    """Solve for arguments that have been checked: what a training does in every step.

    Parameters
    ----------
    probs : Tensor of shape (M, K), float32 or float64
    prior, fairness, objective, known, weights, max_iter
        As in :func:`solve_pseudo_labels`.
    solver : Solver
        One that fits the objective.
    passes : TorchPasses
        Over the rows.
    tol : float
        The certified gap to stop at, relative as there; the solver's own estimate of the gap,
        absolute, where the labels are not certified.
    guess : array of shape (K,), optional
        Multipliers to start from.
    init : Tensor of shape (M, K), float64, optional
        Labels to start from.
    sums : Sums, optional
        Over the processes that hold the other rows.
    certified : bool
        Whether to certify the labels, which takes a pass or two more. Without, the objective, its
        bound and the gap are NaN, and ``converged`` is the solver's own opinion. A solver that does
        not estimate its gap is always certified.

    Raises
    ------
    ValueError
        If a known row or a whole prediction lies on classes that the prior forbids.
    """
    reduction = reduce_problem(
        probs,
        prior=prior,
        fairness=fairness,
        objective=objective,
        passes=passes,
        known=known,
        weights=weights,
        guess=guess,
        sums=sums,
    )
    problem = reduction.problem
    if not certified:  # sums of short numbers are exact: in whatever order processes take them
        problem = dataclasses.replace(problem, weights=problem.weights.float().double())
    most = solver.max_iter if max_iter is None else max_iter
    if problem.mass() == 0:  # every row is known, on every process
        value = problem.value(problem.probs)
        outcome = Outcome(problem.probs, 0, True, Certificate(value, value))
    elif certified or not solver.estimates_gap:
        start = None if init is None else reduction.restrict(init)
        outcome = run_solver(solver, problem, start, tol=tol, max_iter=most)
    else:
        outcome = run_uncertified(solver, problem, tol=tol, max_iter=most)
    certificate = outcome.certificate or Certificate(math.nan, math.nan)
    mean_label = reduction.expand_vector(problem.mean_label(outcome.labels))
    return PseudoLabels(
        labels=reduction.expand(outcome.labels),
        objective=certificate.objective,
        lower_bound=certificate.lower_bound,
        gap=certificate.gap,
        n_iter=outcome.n_iter,
        converged=outcome.converged,
        mean_label=torch.from_numpy(mean_label).to(probs.device),
        solver=solver.name,
        multipliers=None
        if outcome.multipliers is None
        else reduction.expand_vector(outcome.multipliers),
    )


def check_solver(solver: object, objective: str, owner: str, n_classes: int) -> Solver:
    """Return the solver of that name, or refuse a pair that does not fit."""
    chosen: object = solver
    if isinstance(solver, str):
        name = check_option(solver, "solver", owner, ("auto", *SOLVERS))
        chosen = SOLVERS[_automatic(objective, n_classes) if name == "auto" else name]
    if not all(hasattr(chosen, part) for part in ("name", "objectives", "start", "step")):
        raise TypeError(parameter_message("solver", owner, "a name or a solver", solver))
    fitting: Solver = chosen  # type: ignore[assignment]
    if objective not in fitting.objectives:
        solves = ", ".join(repr(name) for name in fitting.objectives)
        others = ", ".join(
            repr(name) for name, other in SOLVERS.items() if objective in other.objectives
        )
        raise ValueError(
            f"The solver {fitting.name!r} of {owner} does not fit the objective {objective!r}:"
            f" it solves {solves}. For {objective!r} choose one of {others}."
        )
    return fitting


def _automatic(objective: str, n_classes: int) -> str:
    """Return the fastest exact solver; where its system would be too large, the best left."""
    if n_classes > MOST_CLASSES:
        return "em" if objective == "cce+" else "projected-gradient"
    return "active-set" if objective in ActiveSet.objectives else "interior-point"


def _check_predictions(probs: object) -> Tensor:
    """Return predictions as a detached tensor of shape (M, K), or refuse them by row."""
    rows = real_tensor(probs, "probs", _OWNER)
    if rows.ndim != 2:
        expected = "of shape (n_rows, n_classes)"
        raise ValueError(parameter_message("probs", _OWNER, expected, tuple(rows.shape)))
    if rows.shape[0] < 1 or rows.shape[1] < 2:
        expected = "an array with at least 1 row and 2 classes"
        raise ValueError(parameter_message("probs", _OWNER, expected, tuple(rows.shape)))
    check_probability_rows(rows, "probs", _OWNER)
    return rows


def _check_known(known: object, n_rows: int, n_classes: int, device: torch.device) -> Tensor | None:
    """Return the class ids with -1 for unknown rows, or None if no row is known."""
    if known is None:
        return None
    ids = known if isinstance(known, Tensor) else tensor_of(known)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(
            parameter_message("known", _OWNER, "an array of integer class ids", str(ids.dtype))
        )
    if ids.shape != (n_rows,):
        expected = f"of shape ({n_rows},), one id a row"
        raise ValueError(parameter_message("known", _OWNER, expected, tuple(ids.shape)))
    outside = (ids < UNKNOWN) | (ids >= n_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ValueError(
            f"The 'known' parameter of {_OWNER} must hold class ids from 0 to {n_classes - 1},"
            f" or -1 where the class is unknown. Got {int(ids[row])} in row {row}."
        )
    return None if bool((ids == UNKNOWN).all()) else ids.long().to(device)


def _check_init(init: object, rows: Tensor) -> Tensor | None:
    """Return the labels to start from as float64 on the device of the predictions."""
    if init is None:
        return None
    labels = real_tensor(init.labels if isinstance(init, PseudoLabels) else init, "init", _OWNER)
    if labels.shape != rows.shape:
        expected = f"of the shape of probs, {tuple(rows.shape)}"
        raise ValueError(parameter_message("init", _OWNER, expected, tuple(labels.shape)))
    check_probability_rows(labels, "init", _OWNER)
    return labels.to(rows.device, torch.float64)
