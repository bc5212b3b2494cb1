"""``coincide cluster``: read feature vectors, fit, describe, write, print."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from coincide._checks import check_integer
from coincide._threads import every_pool_for
from coincide.cli.console import (
    noted,
    print_notes,
    print_run,
    print_written,
    progress_bar,
    use_of_labels,
)
from coincide.cli.run import (
    Prediction,
    Timings,
    check_folder,
    default_name,
    describe,
    predict_rows,
    timed,
    write_run,
)
from coincide.cluster import CollisionClustering
from coincide.data import Source, load_source
from coincide.metrics import score_clustering


def cluster(arguments: Namespace) -> None:
    """Fit a clustering to a source and write the folder of the run."""
    named = arguments.out is not None
    folder = arguments.out if named else Path(f"coincide-{default_name(arguments.source)}")
    check_folder(folder, replace=arguments.overwrite or not named)
    check_integer(arguments.seed, "seed", "coincide cluster", low=0)
    timings: Timings = {}
    with timed(timings, "read"):
        source = read_vectors(arguments, arguments.columns)
    with noted() as notes:
        with timed(timings, "fit"):
            model = _fit(arguments, source)
        with timed(timings, "predict"):
            found = predict_rows(model, source.features, arguments.probabilities)
    metrics = _describe(arguments, source, model, found, timings) | {"warnings": notes}
    features = source.features
    written = write_run(
        arguments, folder, metrics, found, features=features, write_model=model.save
    )
    if not arguments.quiet:
        if source.labels is not None:
            print(use_of_labels(model.n_clusters, arguments.clusters is None))
        print_run(metrics)
        print_written(written)
    print_notes(notes)


# Reading


def read_vectors(arguments: Namespace, columns: list[str] | None) -> Source:
    """Return the source of the arguments."""
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


# Fitting


def _fit(arguments: Namespace, source: Source) -> CollisionClustering:
    n_clusters = _n_clusters(arguments.clusters, source)
    with progress_bar(arguments.quiet, "fitting") as move:

        def show(record: dict[str, Any]) -> None:
            epochs, restarts, number = (
                record[name] for name in ("n_epochs", "n_restarts", "restart")
            )
            done = number * epochs + record["epoch"] + 1
            text = f"restart {number + 1}/{restarts}, loss {record['loss']:.4f}"
            move(done, restarts * epochs, text)

        given = _given_parameters(arguments)
        model = CollisionClustering(n_clusters, random_state=arguments.seed, callback=show, **given)
        return model.fit(source.features)


def _given_parameters(arguments: Namespace) -> dict[str, Any]:
    """Return the estimator's parameters that were given as options."""
    given = vars(arguments)
    names = CollisionClustering(2).get_params()
    return {name: given[name] for name in names if given.get(name) is not None}


# Describing


def _describe(
    arguments: Namespace,
    source: Source,
    model: CollisionClustering,
    found: Prediction,
    timings: Timings,
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a run."""
    parameters = {name: value for name, value in model.get_params().items() if name != "callback"}
    return {
        **describe(
            arguments,
            found,
            source.labels,
            n_clusters=model.n_clusters,
            device=str(model.device_),
            timings=timings,
        ),
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
        "seed": arguments.seed,
        "restarts": model.restarts_,
        "history": model.history_,
        **_kmeans(source, model, arguments.seed),
    }


def _kmeans(source: Source, model: CollisionClustering, seed: int) -> dict[str, Any]:
    """Return the scores of plain K-means on the same features, with as many starts."""
    if source.labels is None:
        return {}
    timings: Timings = {}
    with warnings.catch_warnings(), timed(timings, "seconds"):
        # Fewer distinct points than clusters: the scores show it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(model.n_clusters, n_init=len(model.restarts_), random_state=seed)
        features = np.asarray(source.features, np.float32)
        with every_pool_for(features.size):
            clusters = kmeans.fit_predict(features)
    return {"kmeans": {**score_clustering(source.labels, clusters), **timings}}
