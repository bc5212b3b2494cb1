"""What a training on images leaves in its folder."""

from __future__ import annotations

import csv
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from coincide import commands, summary
from coincide._model_files import as_json
from coincide.commands import Prediction, Timings, now, timed
from coincide.data.images import ImageSource
from coincide.metrics import score_clustering
from coincide.output import IMAGE_NAMES, clear_checkpoints, replace_run, staging
from coincide.report import (
    write_gallery,
    write_labels,
    write_metrics,
    write_projection,
    write_report,
)
from coincide.report.confusion import matched_confusion
from coincide.training.image_model import save_image_model
from coincide.training.images import ImageRun


def as_prediction(probs: NDArray[np.float32], keep: bool) -> Prediction:
    """Return what probabilities ``(M, K)`` say of every image; ``keep`` them, or not."""
    return Prediction(probs.argmax(1), probs.max(1), entr(probs).sum(1), probs if keep else None)


def scores(source: ImageSource, found: Prediction) -> dict[str, Any]:
    """Return the scores on the images whose class is known, if there are any."""
    if source.labels is None:
        return {}
    told = source.labels >= 0
    found_scores = score_clustering(
        source.labels[told], found.clusters[told], found.confidence[told]
    )
    return {"scores": found_scores}


def skipped(source: ImageSource) -> list[str]:
    """Return a sentence on the files that could not be read, if there are any."""
    if not source.skipped:
        return []
    name, reason = source.skipped[0]
    more = f" and {len(source.skipped) - 1} more" if len(source.skipped) > 1 else ""
    return [f"Not read: {name} ({reason}){more}."]


def describe_run(
    arguments: Namespace,
    source: ImageSource,
    run: ImageRun,
    notes: list[str],
    timings: Timings,
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a training."""
    found = as_prediction(run.probabilities, False)
    n_clusters = run.probabilities.shape[1]
    metrics = {
        "schema": 1,
        "command": arguments.argv,
        "source": {
            "name": source.name,
            "rows": len(source.images),
            "features": int(np.prod(run.image_shape)),
            "dtype": "uint8",
            "columns": None,
            "image_shape": list(run.image_shape),
            "note": source.note,
        },
        "model": {"n_clusters": n_clusters, "parameters": as_json(asdict(run.config))},
        "training": as_json(asdict(run.config)),
        "seed": run.config.seed,
        "n_epochs": len(run.history),
        "history": [asdict(record) for record in run.history],
        "starts": [asdict(record) for record in run.starts],
        "signs": run.signs,
        "skipped": [list(item) for item in source.skipped],
        **commands.outcome(found, n_clusters),
        **scores(source, found),
        "warnings": [*notes, *skipped(source)],
        "versions": summary.versions(),
        "machine": summary.machine(str(next(run.network.parameters()).device)),
        "timings": timings,
        "created": now(),
    }
    if run.known is not None:
        metrics["known_labels"] = int((run.known >= 0).sum())
    if source.labels is not None:
        names = source.label_names or ()
        metrics["confusion"] = matched_confusion(source.labels, run.clusters, n_clusters, names)
    return metrics


def write_image_run(
    arguments: Namespace,
    folder: Path,
    source: ImageSource,
    run: ImageRun,
    metrics: dict[str, Any],
) -> list[Path]:
    """Write all files of a run and return their paths; the page comes last, from the others."""
    found = as_prediction(run.probabilities, arguments.probabilities)
    with staging(folder) as staged:
        with timed(metrics["timings"], "write"):
            columns = (found.clusters, found.confidence, found.entropy, found.probabilities)
            write_labels(staged, *columns, format=arguments.format)
            save_image_model(staged, run)
            _write_names(staged / IMAGE_NAMES, source)
            pixels = source.images.reshape(len(source.images), -1)
            write_projection(staged, pixels, found.clusters, run.config.seed)
            write_gallery(
                staged,
                source.images,
                found.clusters,
                found.confidence,
                known=source.labels,
                names=source.label_names,
            )
        write_metrics(staged, metrics)
        written = replace_run(folder, staged)
    if not arguments.keep_checkpoints:
        clear_checkpoints(folder)
    if not arguments.no_report:
        written.append(write_report(folder))
    return written


def _write_names(path: Path, source: ImageSource) -> None:
    """Write which image each row is, unless the rows are their own names."""
    if source.ids[0] == "0":
        return
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "image"])
        writer.writerows(enumerate(source.ids))
