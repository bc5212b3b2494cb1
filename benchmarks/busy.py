"""The library alone, beside a busy loop a core, with half a core, and in four workers at once.

    python benchmarks/busy.py
    python benchmarks/busy.py --against REVISION --out benchmarks/results/busy.json

Each row is timed in worker processes, one of each version, in turns: the mean of the calls of
every turn, which a quota and time slices are part of, then the least over the turns. Half a core
is a quota of a control group where one can be made, else one core that a busy loop shares; the
table and the JSON say which.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkouts import checked_out
from circumstances import circumstances
from sklearn.datasets import load_digits

from coincide import CollisionClustering, collision_cross_entropy, solve_pseudo_labels
from coincide.data.images import read_images
from coincide.training.config import ImageTrainingConfig
from coincide.training.images import ImageTraining

TURNS = 2
ENOUGH = 0.3  # seconds of calls a turn, at least, but for
MOST_CALLS = 300
WORKERS = 4
PACKAGES = ("coincide", "torch", "numpy", "numba", "scipy", "threadpoolctl", "joblib")
QUOTAS = Path("/sys/fs/cgroup")


def solve(rows: int, classes: int, solver: str) -> Callable[[], object]:
    """Return a solve for predictions of normal logits of scale 2."""
    logits = 2 * np.random.default_rng(0).standard_normal((rows, classes))
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return lambda: solve_pseudo_labels(probs, solver=solver)


def cluster(*, predict: bool) -> Callable[[], object]:
    """Return a fit on the digits, or a prediction."""
    features, _ = load_digits(return_X_y=True)
    model = CollisionClustering(10, n_init=1, random_state=0)
    if not predict:
        return lambda: model.fit(features)
    model.set_params(max_epochs=1).fit(features)
    return lambda: model.predict(features)


def loss(rows: int, classes: int) -> Callable[[], object]:
    """Return the loss of soft targets, forward and backward."""
    torch.manual_seed(0)
    logits = torch.randn(rows, classes, requires_grad=True)
    probs = torch.softmax(torch.randn(rows, classes), 1)

    def both() -> None:
        logits.grad = None
        collision_cross_entropy(logits, probs).backward()

    return both


def train() -> Callable[[], object]:
    """Return two epochs of a small network on images of 8 × 8."""
    images = load_digits().images.astype(np.uint8)[:500, None] * 15
    config = ImageTrainingConfig(
        n_clusters=10, network="small-conv", starts=1, pretext_epochs=0, max_epochs=2, seed=0
    )
    return lambda: ImageTraining(read_images(images), config).fit()


ROWS: dict[str, Callable[[], Callable[[], object]]] = {
    "solve 250 × 10": lambda: solve(250, 10, "auto"),
    "solve 3,000 × 37": lambda: solve(3_000, 37, "auto"),
    "solve 3,000 × 37, interior point": lambda: solve(3_000, 37, "interior-point"),
    "solve 5,000 × 20": lambda: solve(5_000, 20, "auto"),
    "solve 50,000 × 100": lambda: solve(50_000, 100, "auto"),
    "CollisionClustering(10, n_init=1), digits": lambda: cluster(predict=False),
    "predict, digits": lambda: cluster(predict=True),
    "loss 250 × 10": lambda: loss(250, 10),
    "loss 4,096 × 1,000": lambda: loss(4_096, 1_000),
    "training on 500 images of 8 × 8, 2 epochs": train,
}


def work() -> None:
    """Answer requests from standard input, the name of a row each, until it ends."""
    warnings.simplefilter("ignore")
    ready: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = ROWS[name]()
            ready[name]()  # loaded, compiled
        times: list[float] = []
        while not times or (sum(times) < ENOUGH and len(times) < MOST_CALLS):
            started = time.perf_counter()
            ready[name]()
            times.append(time.perf_counter() - started)
        print(json.dumps(sum(times) / len(times)), flush=True)


class Worker:
    """A process that times rows with the package of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env={**os.environ, "PYTHONPATH": str(checkout / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def ask(self, name: str) -> None:
        """Let it time a row."""
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)

    def answer(self) -> float:
        """Return the seconds of a call."""
        assert self._process.stdout is not None
        return float(json.loads(self._process.stdout.readline()))

    def seconds(self, name: str) -> float:
        """Return the seconds of a call of a row."""
        self.ask(name)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


@contextmanager
def busy(count: int, core: int | None = None) -> Iterator[None]:
    """Run so many busy loops, on one core if it is given."""
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
        if core is not None:
            os.sched_setaffinity(loop.pid or 0, {core})
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()
            loop.join()


def write(file: Path, text: str) -> None:
    """Write what a control group is told."""
    file.write_text(text, encoding="ascii")


@contextmanager
def half_a_core() -> Iterator[tuple[str, Callable[[int], None]]]:
    """Yield how a process is limited to half a core, and what limits it."""
    first = QUOTAS / "cpu" / f"busy-{os.getpid()}"
    second = QUOTAS / first.name
    group = first if first.parent.is_dir() else second
    try:
        group.mkdir()
        if group == first:
            write(group / "cpu.cfs_quota_us", "50000")
        else:
            write(group / "cpu.max", "50000 100000")
    except OSError:
        with busy(1, core=0):
            yield "core 0, shared with a busy loop", lambda pid: os.sched_setaffinity(pid, {0})
        return
    try:
        yield "quota", lambda pid: write(group / "cgroup.procs", str(pid))
    finally:
        group.rmdir()


def measure(checkouts: dict[str, Path], names: list[str], found: dict[str, Any]) -> str:
    """Fill in the seconds of every row, version and circumstance; return what half a core was."""
    for case, load in (("alone", 0), ("beside busy loops", len(os.sched_getaffinity(0)))):
        in_turns(checkouts, names, found, case, load)
    with half_a_core() as (how, limit):
        for version, place in checkouts.items():
            worker = Worker(place)
            limit(worker.pid)
            for name in names:
                note(found, name, version, "half a core", worker.seconds(name))
            worker.close()
    for version, place in checkouts.items():
        team = [Worker(place) for _ in range(WORKERS)]
        for name in names * 2:  # the first time loads
            for worker in team:
                worker.ask(name)
            times = [worker.answer() for worker in team]
            note(found, name, version, "four workers", max(times))
        for worker in team:
            worker.close()
    return how


def in_turns(
    checkouts: dict[str, Path], names: list[str], found: dict[str, Any], case: str, load: int
) -> None:
    """Time every row with each version in turns, beside so many busy loops."""
    workers = {version: Worker(place) for version, place in checkouts.items()}
    for name in names:
        for worker in workers.values():  # loaded while nothing else runs
            worker.seconds(name)
        with busy(load):
            for _ in range(TURNS):
                for version, worker in workers.items():
                    note(found, name, version, case, worker.seconds(name))
    for worker in workers.values():
        worker.close()


def note(found: dict[str, Any], name: str, version: str, case: str, seconds: float) -> None:
    """Keep the least of the turns."""
    cases = found.setdefault(name, {}).setdefault(version, {})
    cases[case] = min(seconds, cases.get(case, float("inf")))


def table(found: dict[str, Any], how: str) -> str:
    """Return the table in Markdown: milliseconds, and how often the time alone."""
    cases = ("alone", "beside busy loops", "half a core", "four workers")
    titles = [case if case != "half a core" else f"{case} ({how})" for case in cases]
    lines = [f"| | version | {' | '.join(titles)} |", "|---" * (len(cases) + 2) + "|"]
    for name, versions in found.items():
        for version, times in versions.items():
            cells = [
                f"{1e3 * times[case]:.1f} ms ({times[case] / times['alone']:.1f})" for case in cases
            ]
            lines.append(f"| {name} | {version} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--against", metavar="REVISION", help="another version, in the same run")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows with this in their name")
    parser.add_argument("--out", type=Path, help="file to write the results to, JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    found: dict[str, Any] = {}
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        other = checked_out(arguments.against) if arguments.against else nullcontext()
        place = stack.enter_context(other)
        checkouts = {} if place is None else {"before": place}
        checkouts["now"] = Path(__file__).resolve().parent.parent
        how = measure(checkouts, [name for name in ROWS if arguments.only in name], found)
    print(table(found, how))
    if arguments.out:
        made = circumstances("busy.py", PACKAGES) | {
            "against": arguments.against,
            "cores": len(os.sched_getaffinity(0)),
            "half a core": how,
            "workers": WORKERS,
            "seed": 0,
            "other load, before": load,
        }
        text = json.dumps({"circumstances": made, "seconds": found}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
