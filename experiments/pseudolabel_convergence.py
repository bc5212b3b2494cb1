"""How fast the solvers of the pseudo-label problem converge, and what the fairness does to it.

    python experiments/pseudolabel_convergence.py --out experiments/results/NAME.json

Three studies on random logits, all from uniform labels and with a uniform prior: the certified
gap of EM sweep by sweep, two local rates of EM that theory predicts (``docs/solvers.md``), and a
sweep of the fairness with the interior point and EM. ``docs/figures/pseudolabel_convergence.py``
draws the figures and writes the tables of that page.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from circumstances import circumstances

from coincide import solve_pseudo_labels
from coincide.pseudolabels import ExpectationMaximization
from coincide.pseudolabels.em import EMState
from coincide.pseudolabels.problem import Problem, certify

Array = NDArray[np.float64]

EXACT = "interior-point"
ROWS = {2: 2000, 20: 1000, 200: 250}  # by the number of classes
SWEEPS = {1.0: 1000, 10.0: 2000, 100.0: 4000}  # by the fairness
SCALES = (1.0, 2.0, 5.0)
SWEEP = tuple(float(f"{10**exponent:.3g}") for exponent in np.arange(-1, 3.01, 0.5))
GOAL = 1e-3  # the gap that iterations are counted to
CLOSED = 1e-9  # the gap at which a trace ends
SPLIT = 0.999  # a row is split if its largest label is below


@dataclass
class RecordedEM:
    """EM that certifies its labels after given sweeps, for the ``solver`` parameter."""

    marks: frozenset[int]
    keep: frozenset[int] = frozenset()
    trace: list[dict[str, float]] = field(default_factory=list)
    kept: dict[int, Array] = field(default_factory=dict)
    name: ClassVar[str] = "em"
    objectives: ClassVar[tuple[str, ...]] = ("cce+",)
    minimizes: ClassVar[bool] = True
    estimates_gap: ClassVar[bool] = False
    max_iter: ClassVar[int] = 1000
    check_every: ClassVar[int] = 10**9  # the loop need not certify as well
    _em: ExpectationMaximization = field(default_factory=ExpectationMaximization)
    _sweeps: int = 0

    def start(self, problem: Problem, labels: Tensor | None, tol: float) -> EMState:
        """Start as EM does."""
        return self._em.start(problem, labels, tol)

    def step(self, problem: Problem, state: EMState) -> EMState:
        """Sweep, and take the certificate where it is wanted."""
        state = self._em.step(problem, state)
        self._sweeps += 1
        if self._sweeps in self.keep:
            self.kept[self._sweeps] = state.labels.numpy().copy()
        if self._sweeps in self.marks:
            found = certify(problem, state.labels)
            self.trace.append(
                {"sweep": self._sweeps, "objective": found.objective, "gap": found.gap}
            )
            state.stalled = found.gap < CLOSED
        return state


def predictions(rows: int, classes: int, scale: float, *, skew: float = 0.0) -> Array:
    """Return softmax of normal logits; ``skew`` scales offsets that make classes unequal."""
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(rows, classes)) + skew * rng.normal(size=classes)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def trace_em(classes: int, fairness: float, scale: float, sweeps: int) -> dict[str, object]:
    """Return EM's certified gap and its excess over the optimum, at a grid of sweeps."""
    probs = predictions(ROWS[classes], classes, scale)
    exact = solve_pseudo_labels(probs, fairness=fairness, solver=EXACT, tol=1e-11)
    grid = np.unique(np.geomspace(1, sweeps, 60).round().astype(int)).tolist()
    recorded = RecordedEM(frozenset(grid))
    started = time.perf_counter()
    solve_pseudo_labels(probs, fairness=fairness, solver=recorded, tol=0.0, max_iter=sweeps)
    seconds = time.perf_counter() - started
    trace = [
        {"sweep": at["sweep"], "gap": at["gap"], "excess": at["objective"] - exact.lower_bound}
        for at in recorded.trace
    ]
    # λ Σ u ln(1/ȳ*): what the guarantee divides by the number of sweeps.
    constant = fairness * float(-np.log(exact.mean_label).mean())
    return {
        "classes": classes,
        "rows": len(probs),
        "fairness": fairness,
        "scale": scale,
        "exact": {"objective": exact.objective, "gap": exact.gap, "n_iter": exact.n_iter},
        "guarantee": constant,
        "largest_share_of_guarantee": max(at["sweep"] * at["excess"] / constant for at in trace),
        "seconds": seconds,
        "trace": trace,
    }


def inactive_factors() -> dict[str, float]:
    """Compare one late sweep with ``w/(w + ζ)`` on the labels that vanish at the optimum."""
    fairness, late = 10.0, 3000
    probs = predictions(1000, 20, 2.0)
    exact = solve_pseudo_labels(probs, fairness=fairness, solver=EXACT, tol=1e-12)
    recorded = RecordedEM(frozenset(), keep=frozenset((late, late + 1)))
    solve_pseudo_labels(probs, fairness=fairness, solver=recorded, tol=0.0, max_iter=late + 1)
    multipliers = fairness / probs.shape[1] / exact.mean_label
    coincidence = (probs * exact.labels).sum(1, keepdims=True)
    totals = (exact.labels * multipliers).sum(1, keepdims=True)
    cost = 1 + totals - probs / coincidence - multipliers
    before, after = recorded.kept[late], recorded.kept[late + 1]
    vanishing = (exact.labels < 1e-9) & (cost > 1e-3) & (before > 1e-250)
    measured = (after / before)[vanishing]
    predicted = (multipliers / (multipliers + cost))[vanishing]
    return {
        "fairness": fairness,
        "sweep": late,
        "labels": int(vanishing.sum()),
        "smallest_factor": float(measured.min()),
        "largest_factor": float(measured.max()),
        "largest_difference": float(np.abs(measured - predicted).max()),
    }


def degenerate_decay() -> dict[str, object]:
    """Follow a label with zero reduced cost: one free row beside one known row.

    With ``ȳ = (1/2, 1/2)`` at the optimum and ``w = 2 λ u``, the prior is chosen so that
    ``w_2 - w_1 = 1 - r``: the free row stays in its first class, at no margin.
    """
    fairness, ratio = 1.0, 0.5
    lead = (1 - ratio) / (4 * fairness)
    prior = np.array([0.5 - lead, 0.5 + lead])
    probs = np.array([[1.0, ratio], [1.0, ratio]]) / (1 + ratio)
    known = np.array([-1, 1])
    marks = [10**power for power in range(1, 5)]
    recorded = RecordedEM(frozenset(marks), keep=frozenset(marks))
    solve_pseudo_labels(
        probs,
        prior=prior,
        fairness=fairness,
        known=known,
        solver=recorded,
        tol=0.0,
        max_iter=marks[-1],
    )
    corner = -np.log(probs[0, 0]) / 2 - np.log(probs[1, 1]) / 2
    optimum = corner + fairness * float(prior @ np.log(prior / 0.5))
    weight = 2 * fairness * float(prior[1])
    curvature = (1 - ratio) ** 2 + 0.5 * fairness * float((prior / 0.25).sum())
    return {
        "label_times_sweeps": {"predicted": weight / curvature}
        | {str(n): n * float(recorded.kept[n][0, 1]) for n in marks},
        "excess_times_sweeps_squared": {"predicted": weight**2 / (4 * curvature)}
        | {
            str(int(a["sweep"])): a["sweep"] ** 2 * (a["objective"] - optimum)
            for a in recorded.trace
        },
    }


def sweep_fairness(objective: str, most_sweeps: int) -> list[dict[str, object]]:
    """Return balance, split rows and iterations for every fairness of the sweep."""
    probs = predictions(1000, 20, 2.0, skew=1.0)
    found: list[dict[str, object]] = []
    for fairness in SWEEP:
        solve = partial(
            solve_pseudo_labels, probs, fairness=fairness, objective=objective, solver=EXACT
        )
        exact = solve(tol=1e-9)
        tol = GOAL / max(1.0, abs(exact.objective))  # the gap itself, whatever the objective
        quick = solve(tol=tol)
        row: dict[str, object] = {
            "fairness": fairness,
            "gap": exact.gap,
            "imbalance": float(np.abs(exact.mean_label * probs.shape[1] - 1).max()),
            "split": float((exact.labels.max(1) < SPLIT).mean()),
            "interior_point": quick.n_iter if quick.converged else None,
            "em": None,
        }
        if objective == "cce+":
            em = solve_pseudo_labels(
                probs, fairness=fairness, solver="em", tol=tol, max_iter=most_sweeps
            )
            row["em"] = em.n_iter if em.converged else None
        found.append(row)
        print(objective, row, flush=True)
    return found


def main() -> None:
    """Run the three studies and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most-sweeps", type=int, default=15_000, help="sweeps at one fairness")
    arguments = parser.parse_args()
    started = time.perf_counter()
    packages = ("coincide", "torch", "numpy", "scipy")
    results = circumstances("pseudolabel_convergence.py", packages, "experiments") | {
        "inactive": inactive_factors(),
        "degenerate": degenerate_decay(),
        "most_sweeps": arguments.most_sweeps,
        "sweep": {name: sweep_fairness(name, arguments.most_sweeps) for name in ("cce+", "cce")},
    }
    traces = []
    for classes in ROWS:
        for fairness, sweeps in SWEEPS.items():
            for scale in SCALES:
                run = trace_em(classes, fairness, scale, sweeps)
                traces.append(run)
                print({key: run[key] for key in run if key != "trace"}, flush=True)
    results["em"] = traces
    results["seconds"] = time.perf_counter() - started
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
