"""Solvers and loss on a GPU, beside the processor's cores and beside the GPU's own limits.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Every cell is written as soon as it is measured, and one that the file already has is not measured
again (``--cells`` picks some by the beginning of their names): a run that is cut off goes on.

- ``solve``: the pseudo-labels of (11), λ = 100, to the default tolerance, by PyTorch on the GPU
  and, on two threads, as a user of the processor has them: seconds, their ratio, and how far apart
  the objectives are.
- ``loss``: ``collision_cross_entropy``, two kernels of Triton, beside
  ``torch.nn.functional.cross_entropy``, soft targets, forward and backward: seconds, peak memory
  above the inputs, and their ratios.
- ``pass``: every pass of the interior point and of the dual search, plain tensor operations: the
  bytes that the pass must move as a share of what a copy moves in the same time, and the Gram
  matrix's share of what a large product reaches in the same dtype.

Times are medians of ``ROUNDS`` after one round that compiles, the GPU waited for in each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from circumstances import circumstances
from loss import LOSSES, step
from torch import Tensor

from coincide import solve_pseudo_labels
from coincide.pseudolabels.rows import TorchPasses

ROUNDS = 7
THREADS = 2
SOLVES = ((250, 10), (5_000, 1_000), (100_000, 200), (1_000_000, 100))
PASSES = ((100_000, 200), (20_000, 1_000), (1_000_000, 10))
LOSS_SHAPES = ((4_096, 1_000), (65_536, 1_000), (4_096, 50_000))
# Reads and writes of M×K arrays that a pass cannot do without; the Gram matrices read two more.
TRAFFIC = {"minimize": 1, "factor": 5, "predict": 4, "correct": 5, "advance": 6}

Measured = dict[str, Any]


def predictions(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return softmax of normal logits of scale 2; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(rows, classes, generator=generator)).softmax(1).to(device, dtype)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the median time of ``work`` after one call that does not count."""
    times = []
    for _ in range(rounds + 1):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def solve_cell(rows: int, classes: int, solver: str, device: torch.device) -> Measured:
    """Return the times of a solve on the GPU and on the processor."""
    found: Measured = {}
    objectives = []
    for place in (device, torch.device("cpu")):
        probs = predictions(rows, classes, torch.float32, place)
        max_iter = 20 if solver == "em" else None

        def work(probs: Tensor = probs, max_iter: int | None = max_iter) -> Any:
            return solve_pseudo_labels(probs, fairness=100.0, solver=solver, max_iter=max_iter)

        answer = work()
        objectives.append(answer.objective)
        long = place.type == "cpu" and rows * classes > 10**7
        found[place.type] = {
            "seconds": seconds(work, place, 1 if long else ROUNDS),
            "iterations": answer.n_iter,
            "gap": answer.gap,
        }
    found["ratio"] = found["cpu"]["seconds"] / found[device.type]["seconds"]
    found["objectives_apart"] = abs(objectives[0] - objectives[1])
    return found


def pass_cell(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Measured:
    """Return the time of every pass, and its share of the GPU's limits."""
    probs = predictions(rows, classes, dtype, device)
    weights = torch.full((rows,), 1 / rows, dtype=torch.float64, device=device)
    size = probs.nbytes
    target = torch.empty_like(probs)
    copied = 2 * size / seconds(lambda: target.copy_(probs), device)
    large = torch.ones(4096, 4096, dtype=dtype, device=device)
    multiplied = 2 * 4096**3 / seconds(lambda: large @ large, device)
    wide = predictions(rows, classes, dtype, device)
    gram = 2 * rows * classes**2 / seconds(lambda: wide.T @ wide, device)
    found: Measured = {
        "copy_bytes_per_second": copied,
        "product_flops": multiplied,
        "gram_share_of_product": gram / multiplied,
    }
    for name, t in pass_times(probs, weights, device):
        found[name] = {"seconds": t, "share_of_copy": TRAFFIC[name] * size / t / copied}
    return found


def pass_times(probs: Tensor, weights: Tensor, device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield the name and the time of every pass."""
    classes = probs.shape[1]
    shift = np.linspace(-1, 0, classes)
    passes = TorchPasses()
    search = passes.minimizers(probs)
    search.minimize(shift)
    yield "minimize", seconds(lambda: search.minimize(shift), device)
    rows = passes.newton_rows(probs, weights, classes, collision=True)
    labels = torch.full_like(probs, 1 / classes, dtype=torch.float64)
    rows.load(labels, 2 - probs.double())
    yield "factor", seconds(rows.factor, device)
    yield "predict", seconds(lambda: rows.predict(shift), device)
    yield "correct", seconds(lambda: rows.correct(shift, 1e-3), device)
    yield "advance", seconds(lambda: rows.advance(1e-3, 1e-3), device)


def loss_cell(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Measured:
    """Return time and peak memory of loss and gradient, ours and torch's."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(rows, classes, dtype=dtype, device=device)
    probs = torch.empty_like(logits).exponential_(generator=generator)
    probs.div_(probs.sum(1, keepdim=True))
    logits.normal_(0, 3, generator=generator).requires_grad_()
    found: Measured = {}
    for name in LOSSES:
        found[name] = {"seconds": seconds(lambda name=name: step(name, logits, probs), device)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step(name, logits, probs)
            found[name]["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    ours, theirs = (found[name] for name in LOSSES)
    for key in ours:
        found[f"ratio of {key}"] = ours[key] / theirs[key]
    return found


def cells(device: torch.device, small: bool) -> dict[str, Callable[[], Measured]]:
    """Return all cells by name, in the order in which they matter; small ones to try the script."""
    solves, passes, losses = SOLVES, PASSES, LOSS_SHAPES
    if small:
        solves = passes = losses = ((40, 5),)
    found: dict[str, Callable[[], Measured]] = {}
    for (m, k), solver in product(solves, ("active-set", "interior-point", "em")):
        found[f"solve {m}x{k} {solver}"] = lambda a=(m, k, solver): solve_cell(*a, device)
    for (m, k), dtype in product(losses, (torch.float32, torch.bfloat16)):
        name = f"loss {m}x{k} {dtype}".replace("torch.", "")
        found[name] = lambda a=(m, k, dtype): loss_cell(*a, device)
    for (m, k), dtype in product(passes, (torch.float64, torch.float32)):
        name = f"pass {m}x{k} {dtype}".replace("torch.", "")
        found[name] = lambda a=(m, k, dtype): pass_cell(*a, device)
    return found


def main() -> None:
    """Measure the cells that are not there yet, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny cells, to try the script")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use")
    torch.set_num_threads(THREADS)
    results = circumstances("gpu.py", ("torch", "numpy", "numba", "triton"))
    if device.type == "cuda":
        results["machine"]["gpu"] = torch.cuda.get_device_name(device)
    results["cells"] = {}
    if arguments.out.exists():
        results["cells"] = json.loads(arguments.out.read_text(encoding="utf-8"))["cells"]
    for name, measure in cells(device, arguments.small).items():
        if name in results["cells"] or not name.startswith(tuple(arguments.cells)):
            continue
        results["cells"][name] = {"commit": results["commit"], **measure()}
        print(name, json.dumps(results["cells"][name]), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
