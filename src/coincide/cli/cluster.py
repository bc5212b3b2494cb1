"""``coincide cluster``: read feature vectors, fit, describe, write, print."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
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
    print_numbers,
    print_run,
    print_settings,
    print_timings,
    print_written,
    progress_bar,
    use_of_labels,
)
from coincide.cli.folder import of_training, remove, run_folder
from coincide.cli.logs import check_log, open_log
from coincide.cli.run import (
    Prediction,
    Timings,
    classes_of_clusters,
    describe,
    predict_rows,
    timed,
    told_of_run,
    write_run,
)
from coincide.cli.stdin import readable, shown
from coincide.cluster import CollisionClustering
from coincide.data import Source, load_source
from coincide.data.columns import have_own_units
from coincide.metrics import score_clustering
from coincide.report import RowNames

_MEANS = 10  # starts of the K-means that scores stand beside


def cluster(arguments: Namespace) -> dict[str, Any]:
    """Fit a clustering to a source and write the folder of the run; return what is told of it."""
    check_log(arguments.log)
    folder = run_folder(arguments)
    check_integer(arguments.seed, "seed", "coincide cluster", low=0)
    earlier = of_training(folder)
    timings: Timings = {}
    with timed(timings, "read"), readable(arguments) as given:
        source = read_vectors(given)
    said = [*shown(source.said, given, arguments), *_choose_scaling(arguments, source)]
    if not arguments.quiet:
        print_notes(said, "note")
    with noted() as notes:
        with timed(timings, "fit"):
            model = _fit(arguments, source, folder)
        with timed(timings, "predict"):
            found = predict_rows(model, source.features, arguments.probabilities)
    classes = classes_of_clusters(
        source.labels, source.label_names, found.clusters, model.n_clusters_
    )
    if classes is not None:
        model.cluster_names_ = classes
    if source.feature_names is not None:
        model.feature_names_in_ = np.array(source.feature_names, object)
    found = replace(found, rows=row_names(source), classes=classes)
    metrics = _describe(arguments, source, model, found, timings) | {"warnings": notes}
    metrics["source"]["said"] = said
    features = source.features
    written = write_run(
        arguments, folder, metrics, found, features=features, write_model=model.save
    )
    remove(earlier)
    if not arguments.quiet:
        if source.labels is not None:
            print(use_of_labels(model.n_clusters_, arguments.clusters is None))
        print_run(metrics)
        if model.numbers_:
            print_numbers(model.numbers_, model.n_clusters_)
        print_written(written)
    if arguments.verbose:
        print_settings(metrics["model"]["parameters"] | model.settings_)
        print_timings(timings)
    print_notes(notes)
    return told_of_run(folder, written)


# Reading


def read_vectors(arguments: Namespace, like: Sequence[str] | None = None) -> Source:
    """Return the source of the arguments; ``like`` are the features of a model."""
    return load_source(
        arguments.source,
        columns=arguments.columns,
        like=like,
        label_column=arguments.label_column,
        id_column=arguments.id_column,
        labels=arguments.labels,
        header=arguments.header,
        split=arguments.split,
    )


def row_names(source: Source) -> RowNames | None:
    """Return what the source calls its rows."""
    return None if source.ids is None else RowNames(ids=source.ids, name=source.id_name or "id")


def _n_clusters(asked: int | tuple[int, ...] | None, source: Source) -> int | tuple[int, ...]:
    """Return K: what was asked for, maybe several to choose from, or the number of classes."""
    if asked is not None:
        return asked
    if source.label_names is None:
        raise ValueError(
            f"The source {source.name!r} has no labels to count the clusters by: give their number"
            " with -k, or -k auto."
        )
    return len(source.label_names)


# Fitting


def _choose_scaling(arguments: Namespace, source: Source) -> list[str]:
    """Standardize columns with names of their own, if no scaling was asked for, and say so.

    Embeddings, of which all columns are alike, keep the estimator's default.
    """
    names = source.feature_names
    if arguments.scaling is not None or names is None or not have_own_units(names):
        return []
    arguments.scaling = "standard"
    return ["Columns of different names have different units: standardized (see --scaling)."]


def _fit(arguments: Namespace, source: Source, folder: Path) -> CollisionClustering:
    n_clusters = _n_clusters(arguments.clusters, source)
    given = _given_parameters(arguments)
    settings = {"n_clusters": n_clusters, "seed": arguments.seed, **given}
    with (
        progress_bar(arguments.quiet, "fitting") as move,
        open_log(arguments.log, folder, settings) as writer,
    ):

        def show(record: dict[str, Any]) -> None:
            epochs, restarts, number = (
                record[name] for name in ("n_epochs", "n_restarts", "restart")
            )
            done = number * epochs + record["epoch"] + 1
            text = f"restart {number + 1}/{restarts}, loss {record['loss']:.4f}"
            move(done, restarts * epochs, text)
            numbers = {name: record[name] for name in ("loss", "live_clusters", "changed")}
            writer.write(numbers, record["epoch"], number)

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
            n_clusters=model.n_clusters_,
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
        "model": {
            "n_clusters": model.n_clusters_,
            "parameters": parameters,
            "settings": model.settings_,
        },
        "evidence": model.evidence_,
        "numbers": model.numbers_,
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
    """Return the scores of plain K-means on the same features, the best of ten starts."""
    if source.labels is None:
        return {}
    timings: Timings = {}
    with warnings.catch_warnings(), timed(timings, "seconds"):
        # Fewer distinct points than clusters: the scores show it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(model.n_clusters_, n_init=_MEANS, random_state=seed)
        features = np.asarray(source.features)
        with every_pool_for(features.size):
            clusters = kmeans.fit_predict(features)
    told = source.labels >= 0
    return {"kmeans": {**score_clustering(source.labels[told], clusters[told]), **timings}}
