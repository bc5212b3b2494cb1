"""``coincide predict``: label new rows or images with the model of a run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from coincide._files import DESCRIPTION, load_description
from coincide.cli.cluster import read_vectors
from coincide.cli.console import noted, print_notes, print_prediction, print_written
from coincide.cli.run import (
    Array,
    Predictor,
    check_file,
    outcome,
    predict_rows,
    scores,
    skipped,
    staging,
)
from coincide.cluster import CollisionClustering
from coincide.data.images import read_images
from coincide.data.vectors import is_table
from coincide.report.run_folder import METRICS, read_metrics
from coincide.training.images import load_image_model
from coincide.training.images.model import KIND


def predict(arguments: Namespace) -> None:
    """Label new rows or images with the model of a run."""
    folder: Path = arguments.folder
    path = arguments.out or folder / "predictions.csv"
    if (folder / DESCRIPTION).is_file() and load_description(folder).get("kind") == KIND:
        images = load_image_model(folder, network=arguments.network)
        check_file(path, replace=arguments.overwrite or arguments.out is None)
        channels, height, width = images.image_shape
        found = read_images(
            arguments.source,
            image_size=(height, width),
            channels=channels,
            split=arguments.split,
            label_column=arguments.label_column,
        )
        _label(arguments, path, images, found.images, found.labels)
        print_notes(skipped(found))
    else:
        model = CollisionClustering.load(folder)
        check_file(path, replace=arguments.overwrite or arguments.out is None)
        columns = arguments.columns or _fitted_columns(folder, arguments.source)
        source = read_vectors(arguments, columns)
        _label(arguments, path, model, source.features, source.labels)


def _label(
    arguments: Namespace, path: Path, model: Predictor, inputs: Array, labels: Array | None
) -> None:
    """Write and print what the model says of the inputs."""
    with noted() as notes:
        found = predict_rows(model, inputs, arguments.probabilities)
    with staging(path.parent) as staged:
        found.write(staged, path.suffix.lower().removeprefix(".")).replace(path)
    if not arguments.quiet:
        said = {**outcome(found, model.n_clusters), **scores(labels, found)}
        print_prediction(said, inputs.shape)
        print_written([path])
    print_notes(notes)


def _fitted_columns(folder: Path, source: str) -> list[str] | None:
    """Return the columns that the model was fitted on, if ``source`` has names to find them by."""
    if not (is_table(source) and (folder / METRICS).is_file()):
        return None
    columns = read_metrics(folder).get("source", {}).get("columns")
    return None if columns is None else [str(name) for name in columns]
