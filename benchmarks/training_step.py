"""Where the time of a training step goes: data, views, network, pseudo-labels.

    python benchmarks/training_step.py --mnist PATH --out benchmarks/results/training_step.json

One VGG-4 on MNIST, batches of 250, the paper's method with warm exact labels. Every part is timed
where it happens in the real loop, by wrapping it; what is left is the network and its step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from circumstances import circumstances

from coincide.data.images import read_images
from coincide.methods import CollisionMethod
from coincide.training.config import ImageTrainingConfig
from coincide.training.history import StepRecord
from coincide.training.images import ImageTraining

P, T = ParamSpec("P"), TypeVar("T")
_WARM_UP = 5


class Clock:
    """Seconds of every named part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, work: Callable[P, T]) -> Callable[P, T]:
        """Return the same work, timed under a name."""

        def run(*given: P.args, **named: P.kwargs) -> T:
            started = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                self.seconds[name].append(time.perf_counter() - started)

        return run


class TimedRows:
    """Rows whose reading is timed."""

    def __init__(self, rows: Any, clock: Clock) -> None:
        self._rows = rows
        self.read = clock.timed("data", rows.__getitem__)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        return self.read(rows)


class EnoughError(RuntimeError):
    """As many steps as were asked for."""


def profile(source: Any, steps: int, network: str, precision: str) -> dict[str, Any]:
    """Return the milliseconds of a step and the share of every part, by the median step."""
    config = ImageTrainingConfig(
        network=network, starts=1, pretext_epochs=0, max_epochs=1, precision=precision
    )
    training, clock = ImageTraining(source, config), Clock()
    trainer = training._build(0)
    method = trainer.method
    assert isinstance(method, CollisionMethod)
    method._solve = clock.timed("labels", method._solve)  # type: ignore[method-assign]
    trainer._view = clock.timed("views", trainer._view)
    data = type(training.data)(TimedRows(training.data.rows, clock))
    marks = [time.perf_counter()]

    def on_step(record: StepRecord) -> None:
        marks.append(time.perf_counter())
        if record.step == steps + _WARM_UP:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        trainer.fit(data, on_step=on_step)
    whole = torch.tensor(marks).diff()[_WARM_UP:].median()
    parts = {name: torch.tensor(s)[_WARM_UP:].median() for name, s in clock.seconds.items()}
    return {
        "network": network,
        "precision": training.config.precision,
        "batch": config.batch_size,
        "step_ms": 1e3 * float(whole),
        "ms": {name: 1e3 * float(seconds) for name, seconds in parts.items()},
        "share": {name: float(seconds / whole) for name, seconds in parts.items()},
    }


def main() -> None:
    """Profile both precisions, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="mnist", help="where MNIST is, or its name on the hub")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    source = read_images(arguments.mnist)
    rows = [
        profile(source, arguments.steps, "vgg4", precision) for precision in ("float32", "bfloat16")
    ]
    result = {"circumstances": circumstances("training_step.py", ["torch", "numba"]), "rows": rows}
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
