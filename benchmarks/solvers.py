"""The gate of the pseudo-label solvers: 24 problems, this version beside another one, in one run.

    python benchmarks/solvers.py --gate
    python benchmarks/solvers.py --gate --against REVISION --out benchmarks/results/solvers.json

Sixteen problems are the middle of the grid of sizes and fairness weights that people have; eight
are drawn from what the solvers were not built on: logits with heavy tails, uneven priors from a
Dirichlet distribution, predictions that favor some classes. Each is drawn with three seeds and
solved twice: by ``solve_pseudo_labels`` as a user calls it (``default``), and with the compiled
passes whatever the size (``compiled``). The time is the least of several solves, on one thread.

With ``--against`` a worktree of the other revision is made, and one process of each version solves
the same problem in turns, each with the ``benchmarks/solvers.py`` of its own revision.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkouts import checked_out
from circumstances import circumstances

from coincide import solve_pseudo_labels
from coincide.pseudolabels import rows

SEEDS = 3
TURNS = 3
SHORT = 0.2  # seconds that the solves of one turn take together, at least, but for
MOST_SOLVES = 20
PACKAGES = ("coincide", "torch", "numpy", "numba", "scipy")


@dataclass(frozen=True)
class Case:
    """Predictions, a prior, a fairness weight, and the relative gap asked.

    ``tails`` are the degrees of freedom of the t-distribution that logits are drawn from, 0 for
    the normal one; ``favor`` is the standard deviation of an offset that all rows share;
    ``concentration`` is that of the Dirichlet distribution of the prior, 0 for a uniform prior.
    """

    rows: int
    classes: int
    fairness: float
    scale: float = 2.0
    tol: float = 1e-6
    tails: float = 0.0
    favor: float = 0.0
    concentration: float = 0.0

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return predictions and the prior."""
        rng = np.random.default_rng(seed)
        shape = self.rows, self.classes
        drawn = rng.standard_t(self.tails, shape) if self.tails else rng.standard_normal(shape)
        logits = self.scale * drawn + self.favor * rng.standard_normal(self.classes)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        prior = rng.dirichlet(np.full(self.classes, self.concentration or 1.0))
        return probs, prior if self.concentration else None

    def __str__(self) -> str:
        parts = [f"{self.rows:,} × {self.classes}", f"λ {self.fairness:g}", f"gap {self.tol:g}"]
        parts.append(f"t({self.tails:g})" if self.tails else f"scale {self.scale:g}")
        parts += [f"favored {self.favor:g}"] * bool(self.favor)
        parts += [f"Dirichlet {self.concentration:g}"] * bool(self.concentration)
        return ", ".join(parts)


CASES = (
    Case(250, 2, 100, tol=1e-3),
    Case(250, 10, 1, tol=1e-3),
    Case(250, 10, 100),
    Case(250, 20, 100, tol=1e-3),
    Case(250, 200, 1),
    Case(250, 200, 100, tol=1e-3),
    Case(3_000, 37, 100, tol=1e-3),
    Case(5_000, 2, 100),
    Case(5_000, 20, 1),
    Case(5_000, 20, 100, tol=1e-3),
    Case(5_000, 20, 100, scale=5.0),
    Case(5_000, 200, 1, tol=1e-3),
    Case(5_000, 200, 100),
    Case(50_000, 20, 1, tol=1e-3),
    Case(50_000, 20, 100),
    Case(50_000, 200, 100, tol=1e-3),
    Case(800, 12, 30, tails=3, concentration=2.0),
    Case(2_000, 60, 10, tol=1e-3, favor=1.0),
    Case(3_000, 37, 100, tol=1e-7, tails=2, concentration=5.0),
    Case(3_000, 37, 700, tol=1e-7, tails=2, concentration=5.0),
    Case(5_000, 20, 100, favor=2.0),
    Case(20_000, 100, 50, tol=1e-3, tails=3, concentration=1.0),
    Case(50_000, 20, 100, favor=2.0),
    Case(100_000, 10, 1, favor=1.0, concentration=5.0),
)
MODES = ("default", "compiled")


def compile_from(entries: int) -> None:
    """Take the compiled passes for problems of so many entries and more."""
    rows.COMPILE_PAYS = entries


def work() -> None:
    """Answer requests from standard input, a line of JSON each, until it ends."""
    usual = rows.COMPILE_PAYS
    torch.set_num_threads(1)
    ready: set[tuple[int, str]] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        number, seed, mode = asked["case"], asked["seed"], asked["mode"]
        compile_from(usual if mode == "default" else 0)
        case = CASES[number]
        probs, prior = case.draw(seed)
        solve = partial(
            solve_pseudo_labels, probs, prior=prior, fairness=case.fairness, tol=case.tol
        )

        if (number, mode) not in ready:  # compiled, and the caches are warm
            solve()
            ready.add((number, mode))
        times: list[float] = []
        while not times or (sum(times) < SHORT and len(times) < MOST_SOLVES):
            started = time.perf_counter()
            found = solve()
            times.append(time.perf_counter() - started)
        answer = {
            "seconds": min(times),
            "steps": found.n_iter,
            "gap": found.gap,
            "objective": found.objective,
            "converged": found.converged,
            "solver": found.solver,
        }
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that solves the problems with the package of one checkout."""

    def __init__(self, checkout: Path) -> None:
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        self._process = subprocess.Popen(
            [sys.executable, str(checkout / "benchmarks" / "solvers.py"), "--worker"],
            env={**os.environ, **one, "PYTHONPATH": str(checkout / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def solve(self, case: int, seed: int, mode: str) -> dict[str, Any]:
        """Return what one turn found."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"case": case, "seed": seed, "mode": mode}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(workers: dict[str, Worker]) -> list[dict[str, Any]]:
    """Solve every problem with every version, in turns."""
    rows = []
    for number, case in enumerate(CASES):
        for mode in MODES:
            row: dict[str, Any] = {"case": asdict(case), "mode": mode}
            for seed in range(SEEDS):
                for turn in range(TURNS):
                    for version, worker in workers.items():
                        found = worker.solve(number, seed, mode)
                        kept = row.setdefault(version, [])
                        if turn == 0:
                            kept.append(found)
                        else:
                            kept[seed]["seconds"] = min(kept[seed]["seconds"], found["seconds"])
            print(line(row), flush=True)
            rows.append(row)
    return rows


def mean(values: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    words = [f"{Case(**row['case'])!s:58} {row['mode']:8}"]
    for version in ("before", "now"):
        if version in row:
            found = row[version]
            seconds = mean([one["seconds"] for one in found])
            steps = "/".join(str(one["steps"]) for one in found)
            failed = "" if all(one["converged"] for one in found) else " NOT CONVERGED"
            words.append(f"{version} {1e3 * seconds:9.2f} ms {steps:>11} steps{failed}")
    if "before" in row:
        words.append(f"ratio {ratio(row):5.2f}")
    return "  ".join(words)


def ratio(row: dict[str, Any]) -> float:
    """Return the time now by the time before, the geometric mean over the seeds."""
    times = [[one["seconds"] for one in row[version]] for version in ("now", "before")]
    return mean(times[0]) / mean(times[1])


def main() -> None:
    """Parse the arguments, measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gate", action="store_true", help="measure the 24 problems")
    parser.add_argument("--against", metavar="REVISION", help="another version, in the same run")
    parser.add_argument("--out", type=Path, help="file to write the results to, JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    here = Path(__file__).resolve().parent.parent
    other = checked_out(arguments.against) if arguments.against else nullcontext()
    with other as place:
        workers = {} if place is None else {"before": Worker(place)}
        workers["now"] = Worker(here)
        rows = measure(workers)
        for worker in workers.values():
            worker.close()
    results: dict[str, Any] = {"rows": rows}
    if arguments.against:
        for mode in MODES:
            ratios = [ratio(row) for row in rows if row["mode"] == mode]
            results[f"mean ratio, {mode}"] = mean(ratios)
            print(f"{mode}: geometric mean {mean(ratios):.3f}, largest {max(ratios):.2f}")
    if arguments.out:
        made = circumstances("solvers.py", PACKAGES) | {"against": arguments.against}
        text = json.dumps({"circumstances": made, **results}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
