"""``coincide predict``: label new rows or images with the model of a run."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from coincide._files import DESCRIPTION, load_description
from coincide.cli.cluster import read_vectors, row_names
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
    image_names,
    outcome,
    predict_rows,
    scores,
    skipped,
    timed,
)
from coincide.cli.stdin import NO_IMAGES, readable, shown
from coincide.cluster import CollisionClustering
from coincide.data.images import read_images
from coincide.report import RowNames
from coincide.report.run_folder import plain
from coincide.training.images import ImageModel, load_image_model
from coincide.training.images.model import KIND


def predict(arguments: Namespace) -> dict[str, Any]:
    """Label new rows or images with the model of a run; return what is told of them."""
    path = arguments.out or arguments.folder / "predictions.csv"
    timings: Timings = {}
    with timed(timings, "load"):
        images, model = _load(arguments)
    if path != Path(STANDARD):
        check_file(path, replace=arguments.overwrite or arguments.out is None)
    with timed(timings, "read"):
        read = _vectors(arguments, model) if images is None else _images(arguments, images)
    return _label(arguments, path, model, *read, timings=timings)


class Beside(NamedTuple):
    """What is known beside the inputs: their labels, what they and the clusters are called.

    ``notes`` are on what was decided, ``warnings`` on what could not be read.
    """

    labels: Array | None
    rows: RowNames | None
    classes: Sequence[str] | None
    notes: Sequence[str]
    warnings: Sequence[str]


def _vectors(arguments: Namespace, model: CollisionClustering) -> tuple[Array, Beside]:
    """Read feature vectors, from the columns that the model was fitted on."""
    with readable(arguments) as given:
        # Taken off: features are read by their names, and rows of an array carry none.
        source = read_vectors(given, model.__dict__.pop("feature_names_in_", None))
    notes = shown(source.said, given, arguments)
    names = vars(model).get("cluster_names_")
    return source.features, Beside(source.labels, row_names(source), names, notes, ())


def _images(arguments: Namespace, model: ImageModel) -> tuple[Array, Beside]:
    """Read images of the size, the channels and the depth that the model was trained on."""
    if arguments.source == STANDARD:
        raise ValueError(NO_IMAGES)
    channels, height, width = model.image_shape
    source = read_images(
        arguments.source,
        image_size=(height, width),
        channels=channels,
        split=arguments.split or "train",
        label_column=arguments.label_column,
        white=model.white,
    )
    notes, warnings = [source.note] if source.note else [], skipped(source)
    names = image_names(source)
    return source.images, Beside(source.labels, names, model.cluster_names, notes, warnings)


def _load(arguments: Namespace) -> tuple[ImageModel | None, Any]:
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
    beside: Beside,
    *,
    timings: Timings,
) -> dict[str, Any]:
    """Write and print what the model says of the inputs."""
    with noted() as notes, timed(timings, "predict"):
        found = predict_rows(model, inputs, arguments.probabilities)
    found = replace(found, rows=beside.rows, classes=beside.classes)
    with timed(timings, "write"):
        written = _write(arguments, path, found)
    said = {**outcome(found, found.n_clusters), **scores(beside.labels, found)}
    if not arguments.quiet:
        print_notes(beside.notes, "note")
        print_prediction(said, inputs.shape)
        print_written(written)
    if arguments.verbose:
        print_settings({"model": arguments.folder, "input": inputs.shape, "dtype": inputs.dtype})
        print_timings(timings)
    print_notes([*notes, *beside.warnings])
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
