"""What the commands print on standard output, and what they say of the machine."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import coincide
from coincide.methods import METHODS
from coincide.pseudolabels import OBJECTIVES, SOLVERS
from coincide.pseudolabels.rows import COMPILE_PAYS

_SCORES = {"accuracy": "ACC", "nmi": "NMI", "ari": "ARI"}


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    return {
        "python": platform.python_version(),
        "coincide": coincide.__version__,
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def machine(device: str) -> dict[str, Any]:
    """Return the machine that times were taken on."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _processor() -> str:
    """Return the processor's name; Python itself knows only its family on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def use_of_labels(n_clusters: int, counted: bool) -> str:
    """Return the sentence that says what the labels of a source were used for."""
    if counted:
        return f"Labels found: they set the number of clusters, {n_clusters}, and give the scores."
    return "Labels found: they give the scores, and nothing else."


def print_run(metrics: dict[str, Any]) -> None:
    """Print the table of a run, and with labels the table of scores."""
    source = metrics["source"]
    table = _facts((source["rows"], source["features"]), metrics)
    shown = metrics["model"]["settings"]
    table.add_row("representation", f"{shown['representation']}, {shown['scaling']}")
    table.add_row("evidence", f"{metrics['evidence']:.3f}")
    converged = "" if metrics["converged"] else " (not converged)"
    table.add_row("objective", f"{metrics['objective']:.6g}{converged}")
    table.add_row("gap", f"{metrics['gap']:.2g}")
    table.add_row("epochs", f"{metrics['n_epochs']:,}")
    table.add_row("seconds of fitting", f"{metrics['timings']['fit']:.2f}")
    _print(table, metrics)


def print_training(metrics: dict[str, Any]) -> None:
    """Print the table of a training on images, and with labels the table of scores."""
    source, last = metrics["source"], metrics["history"][-1]
    table = _facts((source["rows"], source["features"]), metrics)
    if metrics["starts"]:
        table.add_row("starts", f"{len({start['seed'] for start in metrics['starts']})}")
    table.add_row("epochs", f"{metrics['n_epochs']:,}")
    table.add_row("loss", f"{last['loss']:.4f}")
    phases = ", ".join(f"{name} {spent:.1f}" for name, spent in metrics["phases"].items())
    table.add_row("seconds", f"{metrics['timings']['fit']:.1f} ({phases})")
    _print(table, metrics)


def print_numbers(numbers: Sequence[dict[str, Any]], chosen: int) -> None:
    """Print the evidence for every number of clusters, and the one that was taken."""
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("clusters", "evidence", ""):
        table.add_column(name, justify="right")
    for told in numbers:
        mark = "chosen" if told["n_clusters"] == chosen else ""
        table.add_row(f"{told['n_clusters']}", f"{told['evidence']:.3f}", mark)
    Console().print(table)


def print_candidates(candidates: Sequence[dict[str, Any]], chosen: int) -> None:
    """Print what the numbers of clusters to choose from came to, and the one that was taken."""
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("clusters", "agreement of starts", "loss / ln K", ""):
        table.add_column(name, justify="right")
    for number, candidate in enumerate(candidates):
        agreement = f"{candidate['agreement']:.3f} ± {candidate['error']:.3f}"
        mark = "chosen" if number == chosen else ""
        row = (f"{candidate['n_clusters']}", agreement, f"{candidate['loss']:.3f}", mark)
        table.add_row(*row, style="bold" if mark else "")
    Console().print(table)


def print_prediction(outcome: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Print the table of a prediction, and with labels the table of scores."""
    _print(_facts(shape, outcome), outcome)


def _facts(shape: tuple[int, ...], outcome: dict[str, Any]) -> Table:
    sizes = outcome["cluster_sizes"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("rows", f"{shape[0]:,}")
    table.add_row("features", f"{shape[1]:,}")
    table.add_row("clusters", f"{len(sizes):,}")
    spread = f"{min(sizes):,} / {median(sizes):,.0f} / {max(sizes):,}"
    table.add_row("sizes (min / median / max)", spread)
    table.add_row("mean confidence", f"{outcome['mean_confidence']:.3f}")
    return table


def _print(table: Table, outcome: dict[str, Any]) -> None:
    console = Console()
    console.print(table)
    if "scores" not in outcome:
        return
    scores = Table(box=SIMPLE, pad_edge=False)
    scores.add_column("against the labels")
    for name in _SCORES.values():
        scores.add_column(name, justify="right")
    for name, key in (("coincide", "scores"), ("K-means", "kmeans")):
        if key in outcome:
            scores.add_row(name, *(f"{outcome[key][score]:.3f}" for score in _SCORES))
    console.print(scores)


def print_settings(settings: Mapping[str, Any]) -> None:
    """Print what was decided, a setting a line."""
    _print_lines({name: str(value) for name, value in settings.items() if value is not None})


def print_timings(timings: Mapping[str, float]) -> None:
    """Print the seconds that each part took."""
    _print_lines({f"seconds of {name}": f"{spent:.2f}" for name, spent in timings.items()})


def _print_lines(lines: Mapping[str, str]) -> None:
    width = max(len(name) for name in lines)
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def print_written(paths: Sequence[Path]) -> None:
    """Print the files that were written, plainly: they are there to be copied."""
    for index, path in enumerate(paths):
        print("wrote" if index == 0 else "     ", path)


def info(arguments: Namespace) -> dict[str, Any]:
    """Print what this installation is and can do: versions, devices, solvers and objectives."""
    here = machine("cpu")
    told = {
        **versions(),
        "platform": here["platform"],
        "processor": f"{here['processor']}, {here['cpu_count']} cores, {here['threads']} threads",
        "devices": _devices(),
        "passes over rows": f"torch; numba on cpu from {COMPILE_PAYS:,} row-class entries",
        "solvers": list(SOLVERS),
        "methods": list(METHODS),
        "objectives": list(OBJECTIVES),
    }
    if not arguments.quiet:
        lists = {name: ", ".join(value) for name, value in told.items() if isinstance(value, list)}
        _print_lines(told | lists)
    return told


def _devices() -> list[str]:
    count = torch.cuda.device_count()
    devices = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return ["cpu", *devices]


@contextmanager
def noted() -> Iterator[list[str]]:
    """Yield a list that afterwards holds the warnings meant for the user, each once."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    for warning in caught:
        text = " ".join(str(warning.message).split())
        # Deprecations are for developers.
        if issubclass(warning.category, UserWarning) and text not in notes:
            notes.append(text)


def print_notes(notes: Iterable[str], kind: str = "warning") -> None:
    """Print warnings, or notes on what was decided, one a line."""
    for note in notes:
        print(f"coincide: {kind}: {note}", file=sys.stderr)


@contextmanager
def progress_bar(quiet: bool, name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield what moves a progress bar, on a terminal only."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=text
        )
