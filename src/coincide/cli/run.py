"""The folder of a run: where a command may write, and what of a result every run keeps.

A command never writes over files that are not its own, and never half a file.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from coincide._files import DESCRIPTION, TENSORS
from coincide.cli.console import machine, print_written, versions
from coincide.data.images import ImageSource
from coincide.metrics import score_clustering
from coincide.report import write_labels, write_metrics, write_projection, write_report
from coincide.report.run_folder import (
    GALLERY,
    LABELS_CSV,
    LABELS_PARQUET,
    METRICS,
    PROJECTION,
    REPORT,
    SCHEMA,
    read_metrics,
)

Array = NDArray[Any]
Timings = dict[str, float]

_BLOCK_ROWS = 1 << 18  # predicted together, so that only --probabilities keeps all M x K of them

CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
IMAGE_NAMES = "images.csv"
RUN_FILES = (
    LABELS_CSV,
    LABELS_PARQUET,
    PROJECTION,
    REPORT,
    TENSORS,
    DESCRIPTION,
    IMAGE_NAMES,
    METRICS,
)
_CHECKPOINT = "checkpoint-*.safetensors"
_STAGING = ".coincide-"


def report(arguments: Namespace) -> None:
    """Write the page of a run again."""
    print_written([write_report(arguments.folder)])


def check_folder(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that a run may not be written to, before anything is computed.

    It may be absent, empty, or the folder of an earlier run, which its ``metrics.json`` tells, if
    that may be replaced.
    """
    _check_writable(folder)
    if not folder.exists() or not any(not _is_staging(path) for path in folder.iterdir()):
        return
    if not _is_run(folder):
        raise ValueError(
            f"The folder {folder} holds files that are not of a run, and is left as it is:"
            " name another one with --out."
        )
    if not replace:
        raise ValueError(
            f"The folder {folder} holds an earlier run: replace it with --overwrite, or name"
            " another folder with --out."
        )


def check_file(path: Path, *, replace: bool) -> None:
    """Refuse a file of labels that may not be written: see :func:`check_folder`."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"The file --out must end in .csv or .parquet. Got {path} instead.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file with --out.")
    _check_writable(path.parent)
    if path.exists() and not replace:
        raise ValueError(f"The file {path} exists: replace it with --overwrite.")


def check_run(folder: Path, *, replace: bool) -> None:
    """Refuse a folder for a training, as :func:`check_folder` does, or an unfinished one in it."""
    if not any((folder / CHECKPOINTS).glob(_CHECKPOINT)):
        check_folder(folder, replace=replace)
        return
    _check_writable(folder)
    if not replace:
        raise ValueError(
            f"The folder {folder} holds an unfinished training: take it up with --resume, or"
            " replace it with --overwrite."
        )


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in the folder of a run, and nothing else that may lie beside them."""
    for path in [*(folder / CHECKPOINTS).glob(_CHECKPOINT)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or not empty
        (folder / CHECKPOINTS).rmdir()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder within ``folder`` (so on its disk), removed with all it holds.

    ``folder`` is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as name:
        yield Path(name)


def replace_run(folder: Path, staged: Path) -> list[Path]:
    """Move the files of a run from ``staged`` to ``folder``, and remove what an earlier one left.

    ``metrics.json`` comes last: until then the folder keeps the one of the earlier run, by which
    it is known.
    """
    written = []
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    if (staged / GALLERY).is_dir():
        written.append((staged / GALLERY).replace(folder / GALLERY))
    for name in RUN_FILES:
        if (staged / name).is_file():
            written.append((staged / name).replace(folder / name))
        else:
            (folder / name).unlink(missing_ok=True)
    return written


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


def _check_writable(folder: Path) -> None:
    """Try to make a file in ``folder``, or in the nearest folder above it that exists."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"Nothing can be written to {folder}: {nearest} is a file.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder} ({error.strerror}).") from error


def _is_staging(path: Path) -> bool:
    return path.name.startswith(_STAGING)  # left by a run that was killed


def _is_run(folder: Path) -> bool:
    try:
        return "model" in read_metrics(folder)
    except (OSError, ValueError):
        return False


# What is said of a result


class Predictor(Protocol):
    """A model of a run."""

    @property
    def n_clusters(self) -> int:
        """``K``."""
        ...

    def predict_proba(self, X: Array, /) -> Array:
        """Return the probabilities ``(M, K)`` of rows."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What the model says of every row: its cluster, the probability of that, and the entropy.

    All K probabilities are kept if they are asked for.
    """

    clusters: Array
    confidence: Array
    entropy: Array
    probabilities: Array | None

    def write(self, folder: Path, format: str) -> Path:
        """Write the labels into a folder and return their path."""
        columns = (self.clusters, self.confidence, self.entropy, self.probabilities)
        return write_labels(folder, *columns, format=format)


def as_prediction(probs: Array, keep: bool) -> Prediction:
    """Return what probabilities ``(M, K)`` say of every row; ``keep`` them, or not."""
    return Prediction(probs.argmax(1), probs.max(1), entr(probs).sum(1), probs if keep else None)


def predict_rows(model: Predictor, inputs: Array, keep: bool) -> Prediction:
    """Predict block by block; ``keep`` all probabilities, or only what is said of them."""
    rows = len(inputs)
    clusters = np.empty(rows, np.int64)
    confidence = np.empty(rows, np.float32)
    entropy = np.empty(rows, np.float32)
    kept = np.empty((rows, model.n_clusters), np.float32) if keep else None
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        probabilities = model.predict_proba(inputs[block])
        clusters[block] = probabilities.argmax(1)
        confidence[block] = probabilities.max(1)
        entropy[block] = entr(probabilities).sum(1)
        if kept is not None:
            kept[block] = probabilities
    return Prediction(clusters, confidence, entropy, kept)


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
        **outcome(found, n_clusters),
        **scores(labels, found),
        "versions": versions(),
        "machine": machine(device),
        "timings": timings,
        "created": now(),
    }


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


def skipped(source: ImageSource) -> list[str]:
    """Return a sentence on the files that could not be read, if there are any."""
    if not source.skipped:
        return []
    name, reason = source.skipped[0]
    more = f" and {len(source.skipped) - 1} more" if len(source.skipped) > 1 else ""
    return [f"Not read: {name} ({reason}){more}."]


def default_name(source: str) -> str:
    """Return the name of a source before it is read (see :attr:`Source.name`)."""
    path = Path(source).resolve()
    return path.name if path.is_dir() else path.stem


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started


def now() -> str:
    """Return the time, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
