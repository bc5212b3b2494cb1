"""Peak memory of a solve, in arrays of M×K and in bytes.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Every case is a process of its own: after a small solve that loads the compiled kernels, float32
predictions are made in place, the high-water mark of resident memory is reset, and read again
after the solve of (11), λ = 100, to the default tolerance. The predictions themselves and the
labels returned count. Arrays are counted in float64, the precision of the work, and in float32,
that of the predictions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from circumstances import circumstances
from resident import forget_peak, resident, return_freed

from coincide import solve_pseudo_labels
from coincide.pseudolabels.rows import COMPILE_PAYS

CASES = ((100_000, 100),)
SOLVERS = ("active-set", "interior-point", "em")
SWEEPS = {"em": 2}  # enough to see the peak


def predictions(rows: int, classes: int) -> torch.Tensor:
    """Return softmax of normal logits of scale 2, made in place."""
    logits = torch.empty(rows, classes).normal_(std=2, generator=torch.Generator().manual_seed(0))
    return logits.exp_().div_(logits.sum(1, keepdim=True))


def measure(rows: int, classes: int, solver: str) -> dict[str, Any]:
    """Solve once in this process and return what it took."""
    solve_pseudo_labels(predictions(COMPILE_PAYS // classes, classes), solver=solver, max_iter=3)
    return_freed()
    before = resident("VmRSS")
    probs = predictions(rows, classes)
    forget_peak()
    started = time.perf_counter()
    found = solve_pseudo_labels(probs, solver=solver, max_iter=SWEEPS.get(solver))
    seconds = time.perf_counter() - started
    peak = resident("VmHWM")
    return {
        "rows": rows,
        "classes": classes,
        "solver": solver,
        "peak_bytes": peak,
        "float64_arrays": (peak - before) / (8 * rows * classes),
        "float32_arrays": (peak - before) / (4 * rows * classes),
        "seconds": seconds,
        "iterations": found.n_iter,
        "gap": found.gap,
        "converged": found.converged,
    }


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("M", "K", "SOLVER"))
    arguments = parser.parse_args()
    if arguments.case:
        rows, classes, solver = arguments.case
        print(json.dumps(measure(int(rows), int(classes), solver)))
        return
    results = circumstances("memory.py", ("coincide", "torch", "numpy", "numba"))
    results["cases"] = []
    for rows, classes in CASES:
        for solver in SOLVERS:
            case = ["--case", str(rows), str(classes), solver]
            told = subprocess.run(
                [sys.executable, __file__, *case], capture_output=True, text=True, check=True
            )
            results["cases"].append(json.loads(told.stdout))
            print(told.stdout.strip(), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
