"""What the commands of :mod:`coincide.cli` do: read, fit, describe, write, print.

Each command is a public function of the parsed arguments. Bad input is raised as ``ValueError``,
``TypeError`` or ``OSError``, which the command line turns into one line.
"""

from __future__ import annotations

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from scipy.special import entr
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from coincide import summary
from coincide._checks import check_integer
from coincide.cluster import CollisionClustering
from coincide.data import Source, load_source
from coincide.data.sources import is_table
from coincide.metrics import score_clustering
from coincide.output import check_file, check_folder, replace_run, staging
from coincide.report import write_labels, write_metrics, write_projection, write_report
from coincide.report.run_folder import METRICS, read_metrics

Array = NDArray[Any]
Timings = dict[str, float]

_BLOCK_ROWS = 1 << 18  # predicted together, so that only --probabilities keeps all M x K of them
# The estimator's parameter for each option; one that is not given is not passed.
_PARAMETERS = {
    "fairness": "fairness",
    "objective": "objective",
    "solver": "solver",
    "network": "network",
    "init": "init",
    "restarts": "n_init",
    "epochs": "max_epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "view_dropout": "view_dropout",
    "view_noise": "view_noise",
    "device": "device",
}


@dataclass(frozen=True)
class Prediction:
    """What the model says of every row.

    Attributes
    ----------
    clusters : ndarray of shape (M,)
        The most probable cluster.
    confidence : ndarray of shape (M,)
        Its probability.
    entropy : ndarray of shape (M,)
        Of the K probabilities, in nats.
    probabilities : ndarray of shape (M, K), or None
        All of them, if asked for.
    """

    clusters: Array
    confidence: Array
    entropy: Array
    probabilities: Array | None


@dataclass(frozen=True)
class Run:
    """Everything that is known when a clustering has been fitted."""

    arguments: Namespace
    source: Source
    model: CollisionClustering
    found: Prediction
    timings: Timings
    notes: list[str]


def cluster(arguments: Namespace) -> None:
    """Fit a clustering to a source and write the folder of the run."""
    named = arguments.out is not None
    folder = arguments.out if named else Path(f"coincide-{default_name(arguments.source)}")
    check_folder(folder, replace=arguments.overwrite or not named)
    run = _fit(arguments)
    metrics = _run_metrics(run)
    written = _write_run(folder, run, metrics)
    if not arguments.quiet:
        if run.source.labels is not None:
            print(summary.use_of_labels(run.model.n_clusters, arguments.clusters is None))
        summary.print_run(metrics)
        summary.print_written(written)
    print_notes(run.notes)


def predict(arguments: Namespace) -> None:
    """Label the rows of a source with the model of a run."""
    folder: Path = arguments.folder
    path = arguments.out or folder / "predictions.csv"
    model = CollisionClustering.load(folder)
    check_file(path, replace=arguments.overwrite or arguments.out is None)
    source = _load(arguments, arguments.columns or _fitted_columns(folder, arguments.source))
    with noted() as notes:
        found = _predict(model, source.features, arguments.probabilities)
    with staging(path.parent) as staged:
        kind = path.suffix.lower().removeprefix(".")
        columns = (found.clusters, found.confidence, found.entropy, found.probabilities)
        write_labels(staged, *columns, format=kind).replace(path)
    if not arguments.quiet:
        summary.print_prediction(
            {**outcome(found, model.n_clusters), **_scores(source, found)}, source.features.shape
        )
        summary.print_written([path])
    print_notes(notes)


def report(arguments: Namespace) -> None:
    """Write the page of a run again."""
    summary.print_written([write_report(arguments.folder)])


def info(arguments: Namespace) -> None:
    """Print what this installation is and can do."""
    del arguments
    summary.print_info()


# Reading


def default_name(source: str) -> str:
    """Return the name of a source before it is read (see :attr:`Source.name`)."""
    path = Path(source).resolve()
    return path.name if path.is_dir() else path.stem


def _load(arguments: Namespace, columns: list[str] | None) -> Source:
    return load_source(
        arguments.source,
        columns=columns,
        label_column=arguments.label_column,
        labels=arguments.labels,
    )


def _n_clusters(asked: int | None, source: Source) -> int:
    """Return K: what was asked for, or the number of classes."""
    if asked is not None:
        return asked
    if source.label_names is None:
        raise ValueError(
            f"The source {source.name!r} has no labels to count the clusters by: give their number"
            " with -k."
        )
    return len(source.label_names)


def _fitted_columns(folder: Path, source: str) -> list[str] | None:
    """Return the columns that the model was fitted on, if ``source`` has names to find them by."""
    if not (is_table(source) and (folder / METRICS).is_file()):
        return None
    columns = read_metrics(folder).get("source", {}).get("columns")
    return None if columns is None else [str(name) for name in columns]


# Fitting and predicting


def _fit(arguments: Namespace) -> Run:
    check_integer(arguments.seed, "seed", "coincide cluster", low=0)
    timings: Timings = {}
    with timed(timings, "read"):
        source = _load(arguments, arguments.columns)
    n_clusters = _n_clusters(arguments.clusters, source)
    with noted() as notes:
        with _progress(arguments.quiet) as callback, timed(timings, "fit"):
            model = CollisionClustering(
                n_clusters,
                random_state=arguments.seed,
                callback=callback,
                **_given_parameters(arguments),
            ).fit(source.features)
        with timed(timings, "predict"):
            found = _predict(model, source.features, arguments.probabilities)
    return Run(arguments, source, model, found, timings, notes)


def _given_parameters(arguments: Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, option) for option, name in _PARAMETERS.items()}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started


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


def print_notes(notes: list[str]) -> None:
    """Print warnings, one a line."""
    for note in notes:
        print(f"coincide: warning: {note}", file=sys.stderr)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a callback that moves a bar over the epochs of all restarts, on a terminal only."""
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
        task = bar.add_task("fitting", total=None)

        def show(record: dict[str, Any]) -> None:
            epochs, restarts = record["n_epochs"], record["n_restarts"]
            number = record["restart"] + 1
            bar.update(
                task,
                total=restarts * epochs,
                completed=record["restart"] * epochs + record["epoch"] + 1,
                description=f"restart {number}/{restarts}, loss {record['loss']:.4f}",
            )

        yield show


def _predict(model: CollisionClustering, features: Array, keep: bool) -> Prediction:
    """Predict block by block; ``keep`` all probabilities, or only what is said of them."""
    rows = len(features)
    clusters = np.empty(rows, np.int64)
    confidence = np.empty(rows, np.float32)
    entropy = np.empty(rows, np.float32)
    kept = np.empty((rows, model.n_clusters), np.float32) if keep else None
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        probabilities = model.predict_proba(features[block])
        clusters[block] = probabilities.argmax(1)
        confidence[block] = probabilities.max(1)
        entropy[block] = entr(probabilities).sum(1)
        if kept is not None:
            kept[block] = probabilities
    return Prediction(clusters, confidence, entropy, kept)


# Describing and writing


def _run_metrics(run: Run) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a run; its timings grow while the run is written."""
    source, model, seed = run.source, run.model, run.arguments.seed
    parameters = {name: value for name, value in model.get_params().items() if name != "callback"}
    return {
        "schema": 1,
        "command": run.arguments.argv,
        "source": {
            "name": source.name,
            "rows": source.features.shape[0],
            "features": source.features.shape[1],
            "dtype": str(source.features.dtype),
            "columns": source.columns,
        },
        "model": {"n_clusters": model.n_clusters, "parameters": parameters},
        "objective": model.objective_,
        "gap": model.gap_,
        "converged": model.converged_,
        "n_epochs": model.n_iter_,
        "seed": seed,
        "restarts": model.restarts_,
        "history": model.history_,
        **outcome(run.found, model.n_clusters),
        **_scores(source, run.found),
        **_kmeans(source, model, seed),
        "warnings": run.notes,
        "versions": summary.versions(),
        "machine": summary.machine(str(model.device_)),
        "timings": run.timings,
        "created": now(),
    }


def outcome(found: Prediction, n_clusters: int) -> dict[str, Any]:
    """Return the cluster sizes, and how sure the model is."""
    return {
        "cluster_sizes": np.bincount(found.clusters, minlength=n_clusters).tolist(),
        "mean_confidence": float(found.confidence.mean(dtype=np.float64)),
        "mean_entropy": float(found.entropy.mean(dtype=np.float64)),
    }


def _scores(source: Source, found: Prediction) -> dict[str, Any]:
    if source.labels is None:
        return {}
    return {"scores": score_clustering(source.labels, found.clusters, found.confidence)}


def _kmeans(source: Source, model: CollisionClustering, seed: int) -> dict[str, Any]:
    """Return the scores of plain K-means on the same features, with as many starts."""
    if source.labels is None:
        return {}
    timings: Timings = {}
    with warnings.catch_warnings(), timed(timings, "seconds"):
        # Fewer distinct points than clusters: the scores show it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(model.n_clusters, n_init=len(model.restarts_), random_state=seed)
        clusters = kmeans.fit_predict(np.asarray(source.features, np.float32))
    return {"kmeans": {**score_clustering(source.labels, clusters), **timings}}


def _write_run(folder: Path, run: Run, metrics: dict[str, Any]) -> list[Path]:
    """Write all files of a run and return their paths; the page comes last, from the others."""
    arguments, found = run.arguments, run.found
    with staging(folder) as staged:
        with timed(run.timings, "write"):
            columns = (found.clusters, found.confidence, found.entropy, found.probabilities)
            write_labels(staged, *columns, format=arguments.format)
            run.model.save(staged)
            write_projection(staged, run.source.features, found.clusters, arguments.seed)
        write_metrics(staged, metrics)
        written = replace_run(folder, staged)
    if not arguments.no_report:
        written.append(write_report(folder))
    return written


def now() -> str:
    """Return the time, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
