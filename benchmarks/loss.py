"""Time and peak memory of the loss and its gradient, beside torch's cross-entropy.

    python benchmarks/loss.py --out benchmarks/results/loss.json

Forward and backward in the logits with soft targets on a CPU: ``collision_cross_entropy`` and
``torch.nn.functional.cross_entropy`` of the same logits (normal, scale 3) and probabilities
(uniform on the simplex), in every dtype, shape and number of threads.

- Time: both in one process, taking turns, so that other load on the machine hits both; the
  median of the rounds after ``WARM_UP`` that do not count, and the median of the rounds' ratios.
- Memory: each in a process of its own, the growth of the peak resident set over the inputs, after
  a small problem that loads and compiles the code; the gradient is part of it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from circumstances import circumstances
from resident import forget_peak, resident, return_freed
from torch import Tensor
from torch.nn.functional import cross_entropy

from coincide import collision_cross_entropy

PACKAGES = ("coincide", "torch", "numpy", "numba")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "collision_cross_entropy": collision_cross_entropy,
    "torch cross_entropy": cross_entropy,
}
SHAPES = ((4096, 1000), (65_536, 1000), (4096, 50_000), (1_000_000, 10), (8, 21, 256, 256))
WARM_UP = 2
SMALL = 200_000  # entries, for which code is loaded and compiled


@dataclass(frozen=True)
class Case:
    """A batch of logits and soft targets from a seed, of shape (N, K, d1, ...)."""

    shape: tuple[int, ...]
    dtype: str
    threads: int

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, made in place: nothing larger is ever allocated."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        logits = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        probs = torch.empty_like(logits).exponential_()
        probs.div_(probs.sum(1, keepdim=True))
        return logits.normal_(0, 3).requires_grad_(), probs


def step(name: str, logits: Tensor, probs: Tensor) -> None:
    """Compute a loss and its gradient, and let go of both."""
    torch.autograd.grad(LOSSES[name](logits, probs), logits)


def times(case: Case, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each loss in each round, taking turns."""
    logits, probs = case.inputs()
    found: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _, name in product(range(WARM_UP + rounds), LOSSES):
        started = time.perf_counter()
        step(name, logits, probs)
        found[name].append(time.perf_counter() - started)
    return {name: seconds[WARM_UP:] for name, seconds in found.items()}


def peak(case: Case, name: str) -> int:
    """Return the bytes by which the peak resident set grows over the inputs."""
    logits, probs = case.inputs()
    few = slice(0, math.ceil(SMALL / math.prod(case.shape[1:])))
    step(name, logits[few].detach().clone().requires_grad_(), probs[few])
    return_freed()
    forget_peak()
    before = resident("VmRSS")
    step(name, logits, probs)
    return resident("VmHWM") - before


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(function, *arguments).result()


def compare(case: Case, rounds: int) -> dict[str, Any]:
    """Return the medians and peaks of one case, and the ratios to torch."""
    seconds = alone(times, case, rounds)
    peaks = {name: alone(peak, case, name) for name in LOSSES}
    ours, theirs = LOSSES
    ratios = [mine / other for mine, other in zip(seconds[ours], seconds[theirs], strict=True)]
    found = {
        **asdict(case),
        "rounds": rounds,
        "logits_bytes": math.prod(case.shape) * getattr(torch, case.dtype).itemsize,
        "seconds": {name: float(f"{median(each):.4g}") for name, each in seconds.items()},
        "peak_bytes": peaks,
        "time_ratio": round(median(ratios), 3),
        "time_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "memory_ratio": round(peaks[ours] / peaks[theirs], 3),
    }
    print({key: found[key] for key in found if key not in ("rounds", "logits_bytes")}, flush=True)
    return found


def main() -> None:
    """Run the benchmark and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cases = [
        compare(Case(shape, dtype, threads), arguments.rounds)
        for shape, dtype, threads in product(SHAPES, ("float32", "bfloat16"), (1, 2))
    ]
    results = {**circumstances("loss.py", PACKAGES), "cases": cases}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
