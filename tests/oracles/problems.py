"""Pseudo-label problems for the tests: random ones, degenerate ones, and independent oracles.

Nothing here imports the package: objectives are written out again in NumPy and cvxpy, so an
answer that agrees with them agrees with the equations and not with the code.
"""

from __future__ import annotations

import itertools

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax, xlogy

Array = NDArray[np.float64]

COLLISION = {"cce+": True, "cce": True, "ce+kl": False}
OBJECTIVE_NAMES = tuple(COLLISION)


def random_probs(n_rows: int, n_classes: int, *, scale: float = 2.0, seed: int = 0) -> Array:
    """Return the softmax of Gaussian logits."""
    logits = np.random.default_rng(seed).normal(size=(n_rows, n_classes)) * scale
    return softmax(logits, axis=1)


def random_labels(n_rows: int, n_classes: int, *, seed: int = 0) -> Array:
    """Return feasible labels from soft to nearly hard."""
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(size=(n_rows, n_classes)) * rng.uniform(0, 8), axis=1)


def skewed_prior(n_classes: int) -> Array:
    """Return a prior proportional to 1, 2, ..., K."""
    steps = np.arange(1.0, n_classes + 1)
    return steps / steps.sum()


def prior_with_first(n_classes: int, first: float) -> Array:
    """Return a prior that gives the first class ``first`` and shares the rest equally."""
    return np.r_[first, np.full(n_classes - 1, (1 - first) / (n_classes - 1))]


def degenerate_problems() -> dict[str, Array]:
    """Return predictions that break a careless solver, by name."""
    rng = np.random.default_rng(7)
    holes = random_probs(30, 6, seed=1)
    holes[(rng.random(holes.shape) < 0.5) & (holes < holes.max(1, keepdims=True))] = 0
    tiny = np.full((15, 4), 1e-38)
    tiny[np.arange(15), rng.integers(0, 4, 15)] = 1
    return {
        "one-hot": np.eye(5)[rng.integers(0, 5, 30)],
        "one-hot, two classes empty": np.eye(5)[rng.integers(0, 3, 30)],
        "one-hot, K=2": np.eye(2)[rng.integers(0, 2, 9)],
        "all rows equal": np.repeat(random_probs(1, 4), 20, axis=0),
        "all rows uniform": np.full((12, 4), 0.25),
        "duplicated rows": np.repeat(random_probs(7, 4), 3, axis=0),
        "one row": random_probs(1, 4),
        "fewer rows than classes": random_probs(3, 8),
        "two classes": random_probs(25, 2),
        "probabilities of 1e-38": tiny,
        "exact zeros": holes / holes.sum(1, keepdims=True),
        "a class nobody predicts": np.c_[random_probs(20, 4), np.zeros(20)],
        "sharp": random_probs(40, 5, scale=8.0),
    }


def objective_of(
    labels: Array,
    probs: Array,
    *,
    prior: Array,
    fairness: float,
    objective: str,
    weights: Array | None = None,
) -> float:
    """Return (11), (10) or (5) at ``labels``, straight from the equations."""
    shares = np.full(len(probs), 1 / len(probs)) if weights is None else weights / weights.sum()
    mean_label = shares @ labels
    with np.errstate(divide="ignore"):
        if COLLISION[objective]:
            losses = -np.log((probs * labels).sum(1))
        else:
            losses = -xlogy(labels, probs).sum(1)
    if fairness == 0:
        return float(shares @ losses)
    pair = (prior, mean_label) if objective == "cce+" else (mean_label, prior)
    return float(shares @ losses + fairness * rel_entr(*pair).sum())


def cvxpy_optimum(
    probs: Array,
    *,
    prior: Array,
    fairness: float,
    objective: str,
    weights: Array | None = None,
    known: NDArray[np.int64] | None = None,
) -> float:
    """Return the minimum found by CLARABEL, an interior point that knows no structure."""
    shares = np.full(len(probs), 1 / len(probs)) if weights is None else weights / weights.sum()
    labels = cp.Variable(probs.shape, nonneg=True)
    constraints = [cp.sum(labels, axis=1) == 1]
    if known is not None:
        held = known >= 0
        constraints.append(labels[held] == np.eye(probs.shape[1])[known[held]])
    mean_label = shares @ labels
    if COLLISION[objective]:
        loss = -shares @ cp.log(cp.sum(cp.multiply(probs, labels), axis=1))
    else:
        loss = -shares @ cp.sum(cp.multiply(np.log(probs), labels), axis=1)
    pair = (prior, mean_label) if objective == "cce+" else (mean_label, prior)
    problem = cp.Problem(cp.Minimize(loss + fairness * cp.sum(cp.rel_entr(*pair))), constraints)
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return float(problem.value)


def dual_row_by_enumeration(probs: Array, multipliers: Array) -> float:
    """Return ``max_{t>0} [1 + ln t - max_k(σ_k t + w_k)]`` by trying every possible maximizer.

    The maximum of a concave function over an envelope of lines lies where one line alone is
    stationary (``t = 1/σ_k``) or where two lines cross.
    """
    pairs = np.array(list(itertools.combinations(range(len(probs)), 2)))
    lead = multipliers[pairs[:, 1]] - multipliers[pairs[:, 0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = lead / (probs[pairs[:, 0]] - probs[pairs[:, 1]])
        levels = np.r_[1 / probs, crossings]
    levels = levels[(levels > 0) & np.isfinite(levels)]
    heights = (levels[:, None] * probs + multipliers).max(1)
    return float((1 + np.log(levels) - heights).max())
