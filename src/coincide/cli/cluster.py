"""``coincide cluster``: read feature vectors, fit, describe, write, print."""

from __future__ import annotations

import warnings
from argparse import Namespace
from dataclasses import dataclass
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
    metrics = _describe(run)
    written = write_run(
        arguments,
        folder,
        metrics,
        run.found,
        features=run.source.features,
        write_model=run.model.save,
    )
    if not arguments.quiet:
        if run.source.labels is not None:
            print(use_of_labels(run.model.n_clusters, arguments.clusters is None))
        print_run(metrics)
        print_written(written)
    print_notes(run.notes)


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


# Fitting and predicting


def _fit(arguments: Namespace) -> Run:
    check_integer(arguments.seed, "seed", "coincide cluster", low=0)
    timings: Timings = {}
    with timed(timings, "read"):
        source = read_vectors(arguments, arguments.columns)
    n_clusters = _n_clusters(arguments.clusters, source)
    with noted() as notes:
        with progress_bar(arguments.quiet, "fitting") as move, timed(timings, "fit"):

            def show(record: dict[str, Any]) -> None:
                epochs, restarts, number = (
                    record[name] for name in ("n_epochs", "n_restarts", "restart")
                )
                done = number * epochs + record["epoch"] + 1
                text = f"restart {number + 1}/{restarts}, loss {record['loss']:.4f}"
                move(done, restarts * epochs, text)

            model = CollisionClustering(
                n_clusters,
                random_state=arguments.seed,
                callback=show,
                **_given_parameters(arguments),
            ).fit(source.features)
        with timed(timings, "predict"):
            found = predict_rows(model, source.features, arguments.probabilities)
    return Run(arguments, source, model, found, timings, notes)


def _given_parameters(arguments: Namespace) -> dict[str, Any]:
    """Return the estimator's parameters that were given as options."""
    given = vars(arguments)
    names = CollisionClustering(2).get_params()
    return {name: given[name] for name in names if given.get(name) is not None}


# Describing and writing


def _describe(run: Run) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a run."""
    source, model, seed = run.source, run.model, run.arguments.seed
    parameters = {name: value for name, value in model.get_params().items() if name != "callback"}
    return {
        **describe(
            run.arguments,
            run.found,
            source.labels,
            n_clusters=model.n_clusters,
            device=str(model.device_),
            timings=run.timings,
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
        "seed": seed,
        "restarts": model.restarts_,
        "history": model.history_,
        **_kmeans(source, model, seed),
        "warnings": run.notes,
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
