"""The active set beside the interior point and the paper's EM, to the same certified gap.

    python benchmarks/active_set.py --out benchmarks/results/active_set.json

Objective (11) on seeded predictions ``softmax(scale · normal)``, M = 5,000, float64, all in one
process. Every time is the median of alternating runs from a cold start (compiled code is loaded
before the clock runs) to the first labels whose certified gap is at most the one asked for. The
paper's EM runs once, is certified every 5 % more sweeps with the clock stopped, and ends at 1e-3.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from circumstances import circumstances
from paper_em import PaperEM
from pseudolabels import Case, trace

from coincide.pseudolabels import SOLVERS
from coincide.pseudolabels.problem import Problem
from coincide.pseudolabels.solver import run_solver

ROWS = 5000
REPEATS = 3
GAPS = (1e-3, 1e-6)
CAP = 60.0  # seconds that the paper's EM is given
EXACT = ("active-set", "interior-point")


def solve(name: str, problem: Problem, gap: float) -> dict[str, float]:
    """Return the seconds, the steps and the certified gap of one run from a cold start."""
    solver = SOLVERS[name]
    started = time.perf_counter()
    found = run_solver(solver, problem, tol=gap, max_iter=solver.max_iter)
    seconds = time.perf_counter() - started
    assert found.certificate is not None
    return {"seconds": seconds, "steps": found.n_iter, "gap": found.certificate.gap}


def compare(classes: int, fairness: float, scale: float) -> dict[str, Any]:
    """Return the medians of all contenders on one problem."""
    problem = Case(ROWS, classes, fairness, scale).problem("numba")
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        for name, gap in product(EXACT, GAPS):
            runs.setdefault(f"{name} to {gap:g}", []).append(solve(name, problem, gap))
    found: dict[str, Any] = {
        name: {key: median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    traced = trace(PaperEM(), problem, torch.float64, CAP, GAPS[0])
    found["paper EM to 0.001"] = {
        "seconds": traced["seconds"],
        "steps": traced["iterations"],
        "gap": traced["gap"],
    }
    return {"classes": classes, "fairness": fairness, "scale": scale, "runs": found}


def main() -> None:
    """Compare on all problems, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    compare(20, 1.0, 2.0)  # loads the compiled code
    rows = []
    for classes, fairness, scale in product((20, 200), (1.0, 100.0), (2.0, 5.0)):
        rows.append(compare(classes, fairness, scale))
        runs = rows[-1]["runs"]
        ours = runs["active-set to 0.001"]["seconds"]
        ratios = {name: round(run["seconds"] / ours, 1) for name, run in runs.items()}
        print(classes, fairness, scale, f"{ours:.4f} s", ratios, flush=True)
    if arguments.out is not None:
        result = {"circumstances": circumstances("active_set.py", ["torch", "numba"]), "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
