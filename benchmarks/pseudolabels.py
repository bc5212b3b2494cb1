"""Time, iterations and certified gap of the pseudo-label solvers, side by side in one process.

    python benchmarks/pseudolabels.py --full --out benchmarks/results/pseudolabels.json
    python benchmarks/pseudolabels.py --lopsided --out benchmarks/results/pseudolabels_lopsided.json
    python benchmarks/pseudolabels.py --light --out benchmarks/results/pseudolabels_light.json
    python docs/figures/solver_benchmark.py     # the tables and the figure of the documentation

Every problem is ``softmax(scale · normal logits)`` from a seed, with offsets that favor some
classes or without, or what the library's estimator predicts of the digits after some epochs;
objective (11), uniform prior. All solvers are judged in float64 by the one certificate of the
library: objective minus lower bound.

- First-order solvers (EM, projected gradient, paper EM): the clock runs during ``start`` and
  ``step`` only. It stands still while their labels are certified, after every 10 % more
  iterations; a time to a gap is that of the first such check. They stop at ``FIRST_ORDER_GAP``
  or at the cap; the gap reached there is recorded, nothing is extrapolated. With ``--light``
  every EM goes on to the gap of the exact solvers.
- Active set and interior point: the library's own loop, and their certificates are counted.
- cvxpy with CLARABEL: ``Problem.solve`` from modeling to solution; CLARABEL's own time beside it.

The paper's EM starts from the predictions, as printed; the library's solvers from uniform labels.
Compilation is not counted: every compiled solver first runs once on a small problem.

Results are written after every problem. The same command at the same commit goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import cvxpy
import numba
import numpy as np
import torch
from circumstances import circumstances
from paper_em import EPSILON, PaperEM
from sklearn.datasets import load_digits
from torch import Tensor

from coincide import CollisionClustering
from coincide.pseudolabels.accelerated_em import AcceleratedEM
from coincide.pseudolabels.active_set import ActiveSet
from coincide.pseudolabels.em import ExpectationMaximization
from coincide.pseudolabels.interior_point import InteriorPoint
from coincide.pseudolabels.problem import Problem, certify
from coincide.pseudolabels.projected_gradient import ProjectedGradient
from coincide.pseudolabels.reduction import reduce_problem
from coincide.pseudolabels.solver import Solver, run_solver

PACKAGES = ("coincide", "torch", "numpy", "numba", "scipy", "cvxpy", "clarabel")
FIRST_ORDER_GAP = 1e-3
EXACT_GAP = 1e-6
MOST_DENSE = 2_000_000  # entries, up to which plain torch and the full interior point take part
SHORT = 1.0  # seconds; shorter runs are repeated
REPEATS = 3
CHANGE = 1e-3  # the other stop, max|Δy| of one iteration
SWEEPS = 31
POINTS = 30  # of a trace, at least, that the results keep
EXACT: dict[str, Solver] = {"active set": ActiveSet(), "interior point": InteriorPoint()}
TABLE_1_STEPS = {2: (1.0, 10.0, 20.0), 20: (0.1, 1.0, 5.0), 200: (0.1, 1.0, 5.0)}


@dataclass(frozen=True)
class Case:
    """A seeded problem, or predictions of the digits after ``epochs`` of training.

    ``skew`` is the standard deviation of what every class's logits have in common.
    """

    rows: int
    classes: int
    fairness: float
    scale: float
    seed: int = 0
    epochs: int = 0
    skew: float = 0.0

    def problem(self, backend: str = "torch") -> Problem:
        """Return the problem, to be solved with the row kernels of a backend."""
        probs = recorded(self.epochs) if self.epochs else self.drawn()
        prior = np.full(self.classes, 1 / self.classes)
        return reduce_problem(
            probs, prior=prior, fairness=self.fairness, objective="cce+", backend=backend
        ).problem

    def drawn(self) -> Tensor:
        """Return random predictions."""
        rng = np.random.default_rng(self.seed)
        logits = self.scale * rng.standard_normal((self.rows, self.classes))
        logits += self.skew * rng.standard_normal(self.classes)
        return torch.from_numpy(logits).softmax(1)


@cache
def recorded(epochs: int) -> Tensor:
    """Return what the estimator predicts of the digits after some epochs, from no start."""
    rows = load_digits().data
    model = CollisionClustering(10, init="random", n_init=1, max_epochs=epochs, random_state=0)
    probs = torch.from_numpy(np.asarray(model.fit(rows).predict_proba(rows), np.float64))
    return probs / probs.sum(1, keepdim=True)


DRAWN = tuple(Case(5000, classes, 100.0, 2.0) for classes in (20, 200))


def first_order_solvers(case: Case) -> dict[str, tuple[Any, torch.dtype]]:
    """Return the first-order solvers of a case and the precision each works in."""
    solvers: dict[str, tuple[Any, torch.dtype]] = {
        "EM": (ExpectationMaximization(), torch.float64),
        "EM, accelerated": (AcceleratedEM(), torch.float64),
        "paper EM": (PaperEM(), torch.float64),
        "paper EM, float32": (PaperEM(), torch.float32),
        "PGD, line search": (ProjectedGradient(), torch.float64),
    }
    steps = TABLE_1_STEPS.get(case.classes, ()) if case.fairness > 1 else ()
    for step in steps:
        solvers[f"PGD, η = {step:g}"] = (ProjectedGradient(step), torch.float64)
    return solvers


def judged(problem: Problem, labels: Tensor) -> dict[str, float]:
    """Certify labels of any precision after putting their rows on the simplex."""
    double = labels.double()
    certificate = certify(problem, double / double.sum(1, keepdim=True))
    return {"objective": certificate.objective, "gap": certificate.gap}


def trace(
    solver: Any, problem: Problem, dtype: torch.dtype, cap: float, gap: float
) -> dict[str, Any]:
    """Run a first-order solver and certify it after every 10 % more iterations, clock stopped."""
    work = problem.to(dtype)
    started = time.perf_counter()
    state = solver.start(work, None, 0.0)
    seconds = time.perf_counter() - started
    points: list[dict[str, float]] = []
    n, due = 0, 1
    reason = None
    while reason is None:
        previous = state.labels
        started = time.perf_counter()
        state = solver.step(work, state)
        seconds += time.perf_counter() - started
        n += 1
        if n < due and seconds < cap and not state.stalled:
            continue
        change = float((state.labels - previous).abs().max())
        points.append(
            {"iteration": n, "seconds": seconds, "change": change, **judged(problem, state.labels)}
        )
        due = n + max(1, n // 10)
        reason = _stop(points[-1], gap, cap, stalled=state.stalled)
    kept = points[:: max(1, len(points) // POINTS)]
    return {"points": [*kept, points[-1]], **_summary(points, reason)}


def _stop(point: dict[str, float], gap: float, cap: float, *, stalled: bool) -> str | None:
    """Return why to stop, if at all."""
    if math.isnan(point["objective"]):
        return "NaN"
    if point["gap"] <= gap:
        return "gap"
    if stalled:
        return "stalled"
    return "cap" if point["seconds"] >= cap else None


def _summary(points: list[dict[str, float]], reason: str) -> dict[str, Any]:
    """Return where a trace ended, and when it first met each stop."""
    last = points[-1]
    return {
        **{key: last[key] for key in ("seconds", "objective", "gap")},
        "iterations": last["iteration"],
        "smallest_gap": min((p["gap"] for p in points if p["gap"] == p["gap"]), default=None),
        "converged": reason == "gap",
        "reason": reason,
        "seconds_per_iteration": last["seconds"] / last["iteration"],
        "to_1e-2": next((p for p in points if p["gap"] <= 1e-2), None),
        "to_1e-3": next((p for p in points if p["gap"] <= 1e-3), None),
        "to_change": next((p for p in points if p["change"] < CHANGE), None),
    }


def repeated_trace(
    solver: Any, problem: Problem, dtype: torch.dtype, cap: float, gap: float
) -> dict[str, Any]:
    """Return one trace, or the one of median time where it is short."""
    runs = [trace(solver, problem, dtype, cap, gap)]
    while runs[0]["seconds"] < SHORT and len(runs) < REPEATS:
        runs.append(trace(solver, problem, dtype, cap, gap))
    runs.sort(key=lambda run: run["seconds"])
    return runs[len(runs) // 2] | {"repeats": len(runs)}


def exact(problem: Problem, tol: float, solver: Solver) -> dict[str, Any]:
    """Run a solver through the library's loop, certificates counted."""
    times: list[float] = []
    while not times or (times[0] < SHORT and len(times) < REPEATS):
        started = time.perf_counter()
        outcome = run_solver(solver, problem, tol=tol, max_iter=solver.max_iter)
        times.append(time.perf_counter() - started)
    assert outcome.certificate is not None
    return {
        "seconds": median(times),
        "repeats": len(times),
        "iterations": outcome.n_iter,
        "objective": outcome.certificate.objective,
        "gap": outcome.certificate.gap,
        "converged": outcome.converged,
        "seconds_per_iteration": median(times) / max(1, outcome.n_iter),
    }


def to_gaps(case: Case, solver: Solver, backend: str) -> dict[str, Any]:
    """Run an exact solver to the relative gap 1e-6 and to absolute gaps, more where it is drawn."""
    problem = case.problem(backend)
    found = exact(problem, EXACT_GAP, solver)
    scale = max(1.0, abs(found["objective"]))
    for gap in ("1e-2", "1e-3"):
        found[f"to_{gap}"] = exact(problem, float(gap) / scale, solver)
    gaps = range(7) if case in DRAWN else ()
    found["points"] = [
        {key: exact_run[key] for key in ("seconds", "gap", "iterations")}
        for exact_run in (exact(problem, 10.0**-n / scale, solver) for n in gaps)
    ]
    return found


def conic(case: Case) -> dict[str, Any]:
    """Solve with cvxpy and CLARABEL at its default accuracy."""
    problem = case.problem()
    probs = problem.probs.numpy()
    times = []
    for _ in range(REPEATS):
        labels = cvxpy.Variable(probs.shape, nonneg=True)
        loss = -cvxpy.sum(cvxpy.log(cvxpy.sum(cvxpy.multiply(probs, labels), axis=1))) / case.rows
        mean_label = cvxpy.sum(labels, axis=0) / case.rows
        divergence = problem.prior @ (np.log(problem.prior) - cvxpy.log(mean_label))
        model = cvxpy.Problem(
            cvxpy.Minimize(loss + case.fairness * divergence), [cvxpy.sum(labels, axis=1) == 1]
        )
        started = time.perf_counter()
        model.solve(solver=cvxpy.CLARABEL)
        times.append(time.perf_counter() - started)
    found = judged(problem, torch.from_numpy(np.maximum(labels.value, 0)))
    return {
        "seconds": median(times),
        "solver_seconds": model.solver_stats.solve_time,
        "iterations": model.solver_stats.num_iters,
        "repeats": REPEATS,
        "converged": found["gap"] <= EXACT_GAP * max(1.0, abs(found["objective"])),
        **found,
    }


def sweep(solver: Any, problem: Problem) -> float:
    """Return the median seconds of one sweep, after as many that do not count."""
    state = solver.start(problem, None, 0.0)
    for _ in range(SWEEPS):
        state = solver.step(problem, state)
    times = []
    for _ in range(SWEEPS):
        started = time.perf_counter()
        state = solver.step(problem, state)
        times.append(time.perf_counter() - started)
    return median(times)


def sweeps(case: Case) -> dict[str, Any]:
    """Compare one sweep of the library's EM with one of the paper's."""
    problem = case.problem("numba")
    return {
        **vars(case),
        "seconds": {
            f"{name}, {str(dtype).removeprefix('torch.')}": sweep(solver, problem.to(dtype))
            for name, solver in (("EM", ExpectationMaximization()), ("paper EM", PaperEM()))
            for dtype in (torch.float64, torch.float32)
        },
    }


def compare(case: Case, cap: float, gradient_cap: float) -> dict[str, Any]:
    """Run every solver on one problem."""
    solvers = {
        f"{name}, {backend}": to_gaps(case, solver, backend)
        for name, solver in EXACT.items()
        for backend in ("numba", "torch")
        if (name, backend) == ("active set", "numba") or case.rows * case.classes <= MOST_DENSE
    }
    problem = case.problem("numba")
    for name, (solver, dtype) in first_order_solvers(case).items():
        limit = gradient_cap if name.startswith("PGD") else cap
        solvers[name] = repeated_trace(solver, problem, dtype, limit, FIRST_ORDER_GAP)
        _tell(case, name, solvers[name])
    if case.rows <= 250 and case.classes <= 10:
        solvers["cvxpy + CLARABEL"] = conic(case)
    for name, found in solvers.items():
        if name not in first_order_solvers(case):
            _tell(case, name, found)
    return {**vars(case), "cap": cap, "gradient_cap": gradient_cap, "solvers": solvers}


def until_exact(case: Case, cap: float) -> dict[str, Any]:
    """Run the exact solvers to the relative gap 1e-6, and every EM until it gets there."""
    problem = case.problem("numba")
    solvers = {
        f"{name}, numba": exact(problem, EXACT_GAP, solver) for name, solver in EXACT.items()
    }
    objective = next(iter(solvers.values()))["objective"]
    goal = EXACT_GAP * max(1.0, abs(objective))
    for name in ("EM", "EM, accelerated", "paper EM"):
        solver, dtype = first_order_solvers(case)[name]
        solvers[name] = repeated_trace(solver, problem, dtype, cap, goal)
    for name, found in solvers.items():
        _tell(case, name, found)
    return {**vars(case), "cap": cap, "solvers": solvers}


def grid(cases: list[Case]) -> dict[str, list[dict[str, Any]]]:
    """Run the exact solvers alone to the relative gap 1e-6."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in EXACT}
    for case, (name, solver) in product(cases, EXACT.items()):
        found[name].append({**vars(case), **exact(case.problem("numba"), EXACT_GAP, solver)})
        _tell(case, f"{name}, numba", found[name][-1])
    return found


def _tell(case: Case, name: str, found: dict[str, Any]) -> None:
    """Print one line of progress."""
    print(
        f"M={case.rows} K={case.classes} λ={case.fairness:g}"
        f" {f'epochs={case.epochs}' if case.epochs else f'scale={case.scale:g}'} {name}:"
        f" {found['iterations']} iterations, {found['seconds']:.3f} s, gap {found['gap']:.2e}"
        f"{'' if found['converged'] else ' (not converged)'}",
        flush=True,
    )


def warm_up() -> None:
    """Compile everything once, unmeasured."""
    case = Case(500, 5, 1.0, 2.0)
    # The larger have working sets: after Newton's steps, without, and with more classes than rows.
    larger = (Case(2000, 20, 100.0, 2.0), Case(250, 100, 100.0, 2.0), Case(100, 400, 100.0, 2.0))
    for sample in (case, *larger):
        for exact_solver in EXACT.values():
            exact(sample.problem("numba"), EXACT_GAP, exact_solver)
    for solver, dtype in first_order_solvers(case).values():
        trace(solver, case.problem("numba"), dtype, 0.1, FIRST_ORDER_GAP)


def side_by_side(full: bool) -> list[Case]:
    """Return the problems that every solver gets."""
    table_1 = [Case(5000, classes, 100.0, 2.0) for classes in (2, 20, 200)]
    light = [Case(5000, classes, 1.0, 2.0) for classes in (20, 200)]
    sharp = [Case(5000, classes, 100.0, 5.0) for classes in (20, 200)]
    many = [Case(5000, 1000, 100.0, 2.0)]
    small = [Case(250, classes, fairness, 2.0) for classes, fairness in product((2, 10), (1, 100))]
    table_1 += [Case(len(recorded(epochs)), 10, 100.0, 0.0, epochs=epochs) for epochs in (1, 10)]
    if not full:
        return table_1 + light + sharp + many + small
    others = product((250, 5000, 100_000), (2, 10, 20, 200, 1000), (1.0, 100.0), (2.0, 5.0))
    first = table_1 + light + sharp + many + small
    return list(dict.fromkeys(first + [Case(*each) for each in others]))


def lopsided() -> list[Case]:
    """Return problems whose predictions favor some classes by far, for every solver."""
    sizes = ((1000, 20), (5000, 20), (5000, 200), (100_000, 20))
    return [Case(*size, fairness, 2.0, skew=2.0) for size, fairness in product(sizes, (1.0, 100.0))]


def light() -> list[Case]:
    """Return the problems of λ = 1, which EM is good at, for every EM until it is exact."""
    sizes = product((250, 5000), (2, 10, 20, 200, 1000), (2.0, 5.0))
    return [Case(rows, classes, 1.0, scale) for rows, classes, scale in sizes]


def alone(full: bool) -> list[Case]:
    """Return the problems that the exact solvers get alone."""
    most = 100_000_000 if full else MOST_DENSE
    sizes = product((250, 5000, 100_000), (2, 10, 20, 200, 1000), (1.0, 100.0), (2.0, 5.0))
    return [Case(*each) for each in sizes if each[0] * each[1] <= most]


def _finite(value: Any) -> Any:
    """Return nested results as JSON has them: four digits of every figure, null for no number."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def main() -> None:
    """Run the benchmark and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--quick", action="store_true", help="about a quarter of an hour on two cores"
    )
    size.add_argument("--full", action="store_true", help="every problem: an hour")
    size.add_argument(
        "--lopsided", action="store_true", help="predictions that favor some classes: minutes"
    )
    size.add_argument("--light", action="store_true", help="λ = 1, every EM until it is exact")
    parser.add_argument("--cap", type=float, default=25.0, help="seconds for each EM")
    parser.add_argument("--gradient-cap", type=float, default=2.5, help="seconds for each PGD")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    # Rows on their way past a boundary are judged, not warned of.
    np.seterr(all="ignore")
    warm_up()
    results = begun(arguments.out) or {
        **circumstances("pseudolabels.py", PACKAGES),
        "epsilon": {str(dtype): value for dtype, value in EPSILON.items()},
        "tolerances": {"exact, relative": EXACT_GAP}
        | ({} if arguments.light else {"first order, absolute": FIRST_ORDER_GAP}),
        **(besides(arguments.full) if arguments.quick or arguments.full else {}),
        "problems": [],
    }
    together = partial(compare, cap=arguments.cap, gradient_cap=arguments.gradient_cap)
    measure = partial(until_exact, cap=arguments.cap) if arguments.light else together
    for case in cases(arguments):
        if not any(vars(case).items() <= done.items() for done in results["problems"]):
            found = measure(case)
            if case not in DRAWN:
                for solver in found["solvers"].values():
                    solver.pop("points", None)
            results["problems"].append(found)
            write(results, arguments.out)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the problems asked for."""
    if arguments.light:
        return light()
    return lopsided() if arguments.lopsided else side_by_side(arguments.full)


def besides(full: bool) -> dict[str, Any]:
    """Return what is measured beside the problems that every solver gets."""
    return {
        "sweeps": [sweeps(Case(5000, classes, 100.0, 2.0)) for classes in (2, 20, 200)],
        "linearity": grid([Case(10**n, 20, 100.0, 2.0) for n in (3, 4, 5, 6)]),
        "grid": grid(alone(full)),
    }


def begun(out: Path) -> dict[str, Any] | None:
    """Return what an interrupted run of this very command and commit has written, if any."""
    if not out.exists():
        return None
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    now = circumstances("pseudolabels.py", PACKAGES)
    same = all(found[key] == now[key] for key in ("command", "commit", "machine", "versions"))
    return found if same else None


def write(results: dict[str, Any], out: Path) -> None:
    """Write what there is so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(results), indent=1, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
