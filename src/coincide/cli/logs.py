"""Where the numbers of every epoch go: ``log.jsonl``, and TensorBoard, W&B or MLflow if asked for.

Their packages are optional: a missing one is said before anything is computed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from coincide.cli.console import print_notes
from coincide.cli.folder import TENSORBOARD

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_PROJECT = "coincide"


class Writer(Protocol):
    """What takes the numbers of an epoch."""

    def write(self, numbers: Mapping[str, float], epoch: int, start: int) -> None:
        """Take the numbers of an epoch of a start."""
        ...

    def close(self) -> None:
        """End the log."""
        ...


def check_log(kind: str | None) -> None:
    """Say now that the package of a log is missing, not when the first epoch is over."""
    if kind is not None:
        _module(kind)


@contextmanager
def open_log(kind: str | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[Writer]:
    """Yield the writer of that kind (a key of ``_WRITERS``; None for none), closed at the end."""
    writer: Writer = _Nowhere() if kind is None else _WRITERS[kind](folder, settings)
    try:
        yield writer
    finally:
        writer.close()


def append_line(path: Path, told: Mapping[str, Any]) -> None:
    """Add a line of JSON to a log, whole or not at all; a full disk is said, and ends nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    except OSError as error:
        print_notes([f"An epoch is missing in {path} ({error.strerror})."])
        with suppress(OSError), path.open("rb+") as file:
            file.truncate(before)


class _Nowhere:
    def write(self, numbers: Mapping[str, float], epoch: int, start: int) -> None:
        """Take nothing."""

    def close(self) -> None:
        """End nothing."""


class _TensorBoard:
    """A folder of events within that of the run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        del settings
        self._writer = _module("tensorboard").SummaryWriter(str(folder / TENSORBOARD))

    def write(self, numbers: Mapping[str, float], epoch: int, start: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{name}/start-{start}", value, epoch)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of the project ``coincide``; epochs of several starts are told apart by ``start``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._run = _module("wandb").init(project=_PROJECT, name=folder.name, config=dict(settings))

    def write(self, numbers: Mapping[str, float], epoch: int, start: int) -> None:
        self._run.log({**numbers, "epoch": epoch, "start": start})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of the experiment ``coincide``, where ``MLFLOW_TRACKING_URI`` says, or ``mlruns``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._mlflow = _module("mlflow")
        self._mlflow.set_experiment(_PROJECT)
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_params(dict(settings))

    def write(self, numbers: Mapping[str, float], epoch: int, start: int) -> None:
        named = {f"{name}/start-{start}": float(value) for name, value in numbers.items()}
        self._mlflow.log_metrics(named, step=epoch)

    def close(self) -> None:
        self._mlflow.end_run()


_WRITERS: dict[str, type[_TensorBoard | _Wandb | _MLflow]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def _module(kind: str) -> Any:
    try:
        return importlib.import_module(_MODULES[kind])
    except ImportError as error:
        raise ImportError(f"--log {kind} needs a package: pip install {kind}.") from error
