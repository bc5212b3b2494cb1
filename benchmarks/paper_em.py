"""The yardstick: Algorithm 1 of Zhang and Boykov as printed, beside the library's solvers.

    python benchmarks/paper_em.py --out benchmarks/results/paper_em.json

The algorithm, compiled by Numba:

    E-step   S_ik = y_ik / Σ_j y_jk                                                   (14)
    M-step   x <- max_k σ_k / (1 + a - c_k)                                      (Lemma 1)
             f(x)  = Σ_k c_k / (a + 1 - σ_k/x) - 1
             f'(x) = Σ_k -c_k σ_k / (a x + x - σ_k)²
             while f(x) >= ε:  x <- x - f(x)/f'(x)
             y_k = c_k / (a + 1 - σ_k/x)

with ``c_ik = λ M u_k S_ik`` (λ relative to the mean loss) and ``a = Σ_k c_k``. It is the reading
of the NeurIPS version; the CVPR version prints a superfluous ``-σ_k/x`` in the numerators.
Algorithm 2 starts from the network's output, ``y = σ``. The paper gives no ``ε``; see ``EPSILON``.
Sums may be reassociated, so that the compiler vectorizes them; nothing else differs from print. It
solves every row with the printed numerics, which lose digits when a ``c_k`` is small: a NaN stays
a NaN.

Predictions are the softmax of normal logits, the prior is uniform, everything runs on one thread in
float64 (seconds are those of its processor, which other processes do not lengthen much), and labels
are judged by the library's certificate. For the paper's EM and the library's
the clock stands still while they are certified, after every 10 % more sweeps, and they stop at
``GAPS[-1]`` or at the cap; the default solver is the whole call. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np
import torch
from circumstances import circumstances
from torch import Tensor

from coincide import solve_pseudo_labels
from coincide.pseudolabels.em import ExpectationMaximization
from coincide.pseudolabels.problem import Problem, certify, reduce_problem
from coincide.pseudolabels.rows import choose_passes

PACKAGES = ("coincide", "torch", "numpy", "numba", "scipy")
ROWS = 5_000
CLASSES = (2, 20, 200)
FAIRNESS = (100.0, 1.0)
SCALE = 2.0
GAPS = (1e-2, 1e-3)
CHANGE = 1e-3  # the stop that a user of EM would think of, max|Δy| of one sweep
EPSILON = 1e-6
REPEATS = 21  # of the default solver's calls, whose median counts
_MOST_STEPS = 100  # rounding can keep f(x) above ε for ever, which print does not foresee

Labels = np.ndarray[Any, np.dtype[np.float64]]


@numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
def _m_step(probs, labels, scale, epsilon, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the solution of every row; ``c_ik = scale_k y_ik``."""
    rows, classes = probs.shape
    c = np.empty(classes)
    for i in range(rows):
        sigma, y = probs[i], out[i]
        a = 0.0
        for k in range(classes):
            c[k] = scale[k] * labels[i, k]
            a += c[k]
        x = 0.0
        for k in range(classes):
            x = max(x, sigma[k] / (1 + a - c[k]))
        f = -1.0
        for k in range(classes):
            f += c[k] / (a + 1 - sigma[k] / x)
        steps = 0
        while f >= epsilon and steps < _MOST_STEPS:
            slope = 0.0
            for k in range(classes):
                below = a * x + x - sigma[k]
                slope -= c[k] * sigma[k] / (below * below)
            x -= f / slope
            f = -1.0
            for k in range(classes):
                f += c[k] / (a + 1 - sigma[k] / x)
            steps += 1
        for k in range(classes):
            y[k] = c[k] / (a + 1 - sigma[k] / x)


def paper_em(problem: Problem) -> Iterator[Tensor]:
    """Yield the labels after every sweep, from the network's output as Algorithm 2 has it."""
    probs = problem.probs.numpy()
    labels = probs.copy()
    while True:
        scale = problem.coupling.fairness * len(labels) * problem.prior / labels.sum(0)
        swept = np.empty_like(labels)
        _m_step(probs, labels, scale, EPSILON, swept)
        labels = swept
        yield torch.from_numpy(labels)


def library_em(problem: Problem) -> Iterator[Tensor]:
    """Yield the labels after every sweep of the library's EM, from uniform ones."""
    solver = ExpectationMaximization()
    state = solver.start(problem, None, 0.0)
    while True:
        state = solver.step(problem, state)
        yield state.labels


def drawn(rows: int, classes: int) -> Tensor:
    """Return random predictions."""
    logits = SCALE * np.random.default_rng(0).standard_normal((rows, classes))
    return torch.from_numpy(logits).softmax(1)


def trace(sweeps: Iterator[Tensor], problem: Problem, cap: float) -> dict[str, Any]:
    """Sweep until the smallest gap is certified or the seconds are up; return what it took."""
    found: dict[str, Any] = {}
    seconds, n, due, gap, previous = 0.0, 0, 1, math.inf, problem.uniform_labels()
    while gap > GAPS[-1] and seconds < cap:
        started = time.process_time()
        labels = next(sweeps)
        seconds += time.process_time() - started
        n += 1
        if n >= due or seconds >= cap:
            due = n + max(1, n // 10)
            gap = certify(problem, labels / labels.sum(1, keepdim=True)).gap
            here = {"sweeps": n, "seconds": seconds, "gap": gap}
            for goal in GAPS:
                if gap <= goal:
                    found.setdefault(f"to {goal:g}", here)
            if float((labels - previous).abs().max()) < CHANGE:
                found.setdefault("to change", here)
            if math.isnan(gap):
                break
        previous = labels
    last = {"sweeps": n, "gap": None if math.isnan(gap) else gap, "seconds": seconds}
    return {**found, "last": last, "seconds_per_sweep": seconds / n}


def default(probs: Tensor, fairness: float) -> dict[str, Any]:
    """Return what the default call takes to each gap."""
    found: dict[str, Any] = {}
    scale = max(1.0, abs(solve_pseudo_labels(probs, fairness=fairness).objective))
    for goal in GAPS:
        times = []
        for _ in range(REPEATS):
            started = time.process_time()
            solved = solve_pseudo_labels(probs, fairness=fairness, tol=goal / scale)
            times.append(time.process_time() - started)
        assert solved.gap <= goal
        found[f"to {goal:g}"] = {
            "steps": solved.n_iter,
            "seconds": median(times),
            "gap": solved.gap,
        }
    return found


def measure(rows: int, classes: int, fairness: float, cap: float) -> dict[str, Any]:
    """Run the three on one problem."""
    probs = drawn(rows, classes)
    problem = reduce_problem(
        probs,
        prior=np.full(classes, 1 / classes),
        fairness=fairness,
        objective="cce+",
        passes=choose_passes(probs.numel(), probs.device),
    ).problem
    return {
        "rows": rows,
        "classes": classes,
        "fairness": fairness,
        "default": default(probs, fairness),
        "EM": trace(library_em(problem), problem, cap),
        "paper EM": trace(paper_em(problem), problem, cap),
    }


def main() -> None:
    """Measure every problem and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--cap", type=float, default=60.0, help="seconds for each EM")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(50, 2, 1.0, arguments.cap)  # compiled
    results = circumstances("paper_em.py", PACKAGES) | {"cap": arguments.cap, "problems": []}
    for fairness, classes in product(FAIRNESS, CLASSES):
        found = measure(arguments.rows, classes, fairness, arguments.cap)
        print(json.dumps(found), flush=True)
        results["problems"].append(found)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
