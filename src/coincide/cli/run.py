"""What every run says of its result, and the files that keep it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from coincide.cli.console import machine, print_written, versions
from coincide.cli.folder import origin, replace_run, staging
from coincide.data.images import ImageSource
from coincide.metrics import contingency_table, match_clusters, score_clustering
from coincide.report import RowNames, write_labels, write_metrics, write_projection, write_report
from coincide.report.run_folder import SCHEMA, read_metrics

Array = NDArray[Any]
Timings = dict[str, float]

_BLOCK_ROWS = 1 << 18  # predicted together, so that only --probabilities keeps all M x K of them


def report(arguments: Namespace) -> dict[str, Any]:
    """Write the page of a run again."""
    written = [write_report(arguments.folder)]
    if not arguments.quiet:
        print_written(written)
    return told_of_run(arguments.folder, written)


def told_of_run(folder: Path, written: Sequence[Path]) -> dict[str, Any]:
    """Return what ``--json`` says of a run: its metrics, its folder and the files written."""
    return {**read_metrics(folder), "folder": str(folder), "files": [str(path) for path in written]}


def write_run(
    arguments: Namespace,
    folder: Path,
    metrics: dict[str, Any],
    found: Prediction,
    *,
    features: Array,
    write_model: Callable[[Path], None],
) -> list[Path]:
    """Write all files of a run and return their paths; the page comes last, from the others.

    ``write_model`` is given the folder to write to.
    """
    with staging(folder) as staged:
        with timed(metrics["timings"], "write"):
            found.write(staged, arguments.format)
            write_model(staged)
            write_projection(staged, features, found.clusters, metrics["seed"])
        write_metrics(staged, metrics)
        written = replace_run(folder, staged)
    if not arguments.no_report:
        written.append(write_report(folder))
    return written


# What is said of a result


class Predictor(Protocol):
    """A model of a run."""

    def predict_proba(self, X: Array, /) -> Array:
        """Return the probabilities ``(M, K)`` of rows."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What the model says of every row: its cluster, the probability of that, and the entropy.

    All K probabilities are kept if they are asked for. ``rows`` is what the source calls the rows,
    ``classes`` what each cluster stands for, where that is known.
    """

    clusters: Array
    confidence: Array
    entropy: Array
    probabilities: Array | None
    n_clusters: int
    rows: RowNames | None = None
    classes: Sequence[str] | None = None

    def write(self, folder: Path, format: str) -> Path:
        """Write the labels into a folder and return their path."""
        columns = (self.clusters, self.confidence, self.entropy, self.probabilities)
        return write_labels(folder, *columns, rows=self.rows, classes=self.classes, format=format)


def as_prediction(probs: Array, keep: bool) -> Prediction:
    """Return what probabilities ``(M, K)`` say of every row; ``keep`` them, or not."""
    return Prediction(
        probs.argmax(1), probs.max(1), entr(probs).sum(1), probs if keep else None, probs.shape[1]
    )


def predict_rows(model: Predictor, inputs: Array, keep: bool) -> Prediction:
    """Predict block by block; ``keep`` all probabilities, or only what is said of them."""
    rows = len(inputs)
    clusters = np.empty(rows, np.int64)
    confidence = np.empty(rows, np.float32)
    entropy = np.empty(rows, np.float32)
    kept: Array | None = None
    n_clusters = 0
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        probabilities = model.predict_proba(inputs[block])
        clusters[block] = probabilities.argmax(1)
        confidence[block] = probabilities.max(1)
        entropy[block] = entr(probabilities).sum(1)
        n_clusters = probabilities.shape[1]
        if keep:
            kept = np.empty((rows, n_clusters), np.float32) if kept is None else kept
            kept[block] = probabilities
    return Prediction(clusters, confidence, entropy, kept, n_clusters)


def describe(
    arguments: Namespace,
    found: Prediction,
    labels: Array | None,
    *,
    n_clusters: int,
    device: str,
    timings: Timings,
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of any run; its timings grow while the run is written."""
    return {
        "schema": SCHEMA,
        "command": arguments.argv,
        "origin": origin(arguments),
        **outcome(found, n_clusters),
        **scores(labels, found),
        "versions": versions(),
        "machine": machine(device),
        "timings": timings,
        "created": now(),
    }


def classes_of_clusters(
    labels: Array | None, names: Sequence[str] | None, clusters: Array, n_clusters: int
) -> list[str] | None:
    """Return the class that each cluster is matched with, "" for none; None without labels."""
    if labels is None or names is None:
        return None
    told = labels >= 0
    table = contingency_table(labels[told], clusters[told], len(names), n_clusters)
    return [names[code] if code >= 0 else "" for code in match_clusters(table)]


def outcome(found: Prediction, n_clusters: int) -> dict[str, Any]:
    """Return the cluster sizes, and how sure the model is."""
    return {
        "cluster_sizes": np.bincount(found.clusters, minlength=n_clusters).tolist(),
        "mean_confidence": float(found.confidence.mean(dtype=np.float64)),
        "mean_entropy": float(found.entropy.mean(dtype=np.float64)),
    }


def scores(labels: Array | None, found: Prediction) -> dict[str, Any]:
    """Return the scores on the rows whose class is known, if there are any."""
    if labels is None:
        return {}
    told = labels >= 0
    return {"scores": score_clustering(labels[told], found.clusters[told], found.confidence[told])}


def image_names(source: ImageSource) -> RowNames:
    """Return what a source calls its images: their numbers, and names if these are others."""
    named = any(name != str(row) for row, name in zip(source.rows, source.ids, strict=True))
    return RowNames(source.rows, np.asarray(source.ids, object) if named else None, "image")


def skipped(source: ImageSource) -> list[str]:
    """Return a sentence on the files that could not be read, if there are any."""
    if not source.skipped:
        return []
    name, reason = source.skipped[0]
    more = f" and {len(source.skipped) - 1} more" if len(source.skipped) > 1 else ""
    return [f"Not read: {name} ({reason}){more}."]


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started


def now() -> str:
    """Return the time, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
