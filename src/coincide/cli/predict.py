"""``coincide predict``: label new rows or images with the model of a run."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coincide._files import DESCRIPTION, load_description
from coincide.cli.cluster import read_vectors
from coincide.cli.console import (
    noted,
    print_notes,
    print_prediction,
    print_settings,
    print_timings,
    print_written,
)
from coincide.cli.folder import STANDARD, check_file, staging
from coincide.cli.run import (
    Array,
    Prediction,
    Predictor,
    Timings,
    outcome,
    predict_rows,
    scores,
    skipped,
    timed,
)
from coincide.cli.stdin import NO_IMAGES, readable
from coincide.cluster import CollisionClustering
from coincide.data.images import read_images
from coincide.data.vectors import is_table
from coincide.report.run_folder import METRICS, plain, read_metrics
from coincide.training.images import ImageModel, load_image_model
from coincide.training.images.model import KIND


def predict(arguments: Namespace) -> dict[str, Any]:
    """Label new rows or images with the model of a run; return what is told of them."""
    folder: Path = arguments.folder
    path = arguments.out or folder / "predictions.csv"
    timings: Timings = {}
    with timed(timings, "load"):
        images, model = _load(arguments)
    if path != Path(STANDARD):
        check_file(path, replace=arguments.overwrite or arguments.out is None)
    if images is None:
        with timed(timings, "read"), readable(arguments) as given:
            columns = arguments.columns or _fitted_columns(folder, given.source)
            source = read_vectors(given, columns)
        return _label(arguments, path, model, source.features, source.labels, timings=timings)
    if arguments.source == STANDARD:
        raise ValueError(NO_IMAGES)
    channels, height, width = images.image_shape
    with timed(timings, "read"):
        found = read_images(
            arguments.source,
            image_size=(height, width),
            channels=channels,
            split=arguments.split,
            label_column=arguments.label_column,
            white=images.white,
        )
    told = _label(arguments, path, images, found.images, found.labels, timings=timings)
    print_notes(skipped(found))
    return told


def _load(arguments: Namespace) -> tuple[ImageModel | None, Predictor]:
    """Return the model of the run, first again if it is one of images."""
    folder: Path = arguments.folder
    if (folder / DESCRIPTION).is_file() and load_description(folder).get("kind") == KIND:
        images = load_image_model(folder, network=arguments.network)
        return images, images
    return None, CollisionClustering.load(folder)


def _label(
    arguments: Namespace,
    path: Path,
    model: Predictor,
    inputs: Array,
    labels: Array | None,
    *,
    timings: Timings,
) -> dict[str, Any]:
    """Write and print what the model says of the inputs."""
    with noted() as notes, timed(timings, "predict"):
        found = predict_rows(model, inputs, arguments.probabilities)
    with timed(timings, "write"):
        written = _write(arguments, path, found)
    said = {**outcome(found, model.n_clusters), **scores(labels, found)}
    if not arguments.quiet:
        print_prediction(said, inputs.shape)
        print_written(written)
    if arguments.verbose:
        print_settings({"model": arguments.folder, "input": inputs.shape, "dtype": inputs.dtype})
        print_timings(timings)
    print_notes(notes)
    return plain({**said, "folder": str(arguments.folder), "files": written})


def _write(arguments: Namespace, path: Path, found: Prediction) -> list[Path]:
    """Write the labels to a file, or as CSV to standard output, and return the files written."""
    if path != Path(STANDARD):
        with staging(path.parent) as staged:
            found.write(staged, path.suffix.lower().removeprefix(".")).replace(path)
        return [path]
    with TemporaryDirectory() as name, found.write(Path(name), "csv").open(newline="") as file:
        shutil.copyfileobj(file, arguments.output)
    return []


def _fitted_columns(folder: Path, source: str) -> list[str] | None:
    """Return the columns that the model was fitted on, if ``source`` has names to find them by."""
    if not (is_table(source) and (folder / METRICS).is_file()):
        return None
    columns = read_metrics(folder).get("source", {}).get("columns")
    return None if columns is None else [str(name) for name in columns]
