"""What the estimator's parameters, rows and weights may be, and what is made of those left open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from coincide._checks import (
    Vector,
    check_integer,
    check_option,
    check_prior,
    check_real,
    check_weights,
    parameter_message,
)
from coincide.networks import NETWORKS
from coincide.pseudolabels import OBJECTIVES, SOLVERS
from coincide.pseudolabels.solve import check_solver
from coincide.representations import REPRESENTATIONS, SCALINGS, Features, Scaling
from coincide.training.config import TrainingConfig
from coincide.views.vectors import VectorView

OWNER = "CollisionClustering"
PRIORS = ("auto", "equal", "learned")

# What every parameter may be by itself; check_parameters says what fits together.
_CONSTRAINTS: dict[str, Callable[[Any, str, str], object]] = {
    "objective": partial(check_option, options=OBJECTIVES),
    "solver": partial(check_option, options=("auto", *SOLVERS)),
    "fairness": check_real,
    "representation": partial(check_option, options=("auto", *REPRESENTATIONS)),
    "scaling": partial(check_option, options=("auto", *SCALINGS)),
    "init": partial(check_option, options=("auto", "random", "k-means")),
    "n_neighbors": partial(check_integer, low=0),
    "n_init": partial(check_integer, low=1),
    "max_epochs": partial(check_integer, low=1),
    "batch_size": partial(check_integer, low=2),
    "learning_rate": partial(check_real, open_low=True),
    "momentum": partial(check_real, below=1),
    "weight_decay": check_real,
    "view_dropout": partial(check_real, below=1),
    "view_noise": check_real,
}
_LEFT_OPEN = {
    "n_init": "auto",
    "max_epochs": None,
    "batch_size": "auto",
    "fairness": "auto",
    "weight_decay": "auto",
    "view_dropout": "auto",
}

_ROWS_PER_BATCH = 500
_ROWS_PER_CLUSTER = 8  # in a batch
_ENTRIES_PER_RESTART = 400_000
_MOST_RESTARTS = 3


class Recipe(NamedTuple):
    """How a head is trained, where the user leaves it open."""

    weight_decay: float
    view_dropout: float
    least_epochs: int
    least_steps: int


# A random start has to find the clusters: neighbors and dropped entries say what a class is. A head
# that starts from clusters has to become sure of them. Settled on the embeddings of README and on
# the panel of benchmarks/panel.py, with their labels in view.
_RECIPES = {
    "random": Recipe(weight_decay=0.1, view_dropout=0.3, least_epochs=6, least_steps=240),
    "clusters": Recipe(weight_decay=0.01, view_dropout=0.0, least_epochs=2, least_steps=20),
}


def check_parameters(given: Mapping[str, Any]) -> None:
    """Refuse unfit parameters of an estimator."""
    for name, check in _CONSTRAINTS.items():
        if name not in _LEFT_OPEN or given[name] != _LEFT_OPEN[name]:
            check(given[name], name, OWNER)
    n_clusters, network = check_number(given["n_clusters"]), given["network"]
    check_solver(given["solver"], given["objective"], OWNER, n_clusters)
    if isinstance(given["prior"], str):
        check_option(given["prior"], "prior", OWNER, PRIORS)
    elif isinstance(given["n_clusters"], Integral):
        check_prior(given["prior"], n_clusters, OWNER)
    else:
        expected = "a string where the number of clusters is left open"
        raise ValueError(parameter_message("prior", OWNER, expected, given["prior"]))
    if not isinstance(network, nn.Module):
        check_option(network, "network", OWNER, NETWORKS)
    if network == "linear":
        return
    for name, value in (("init", "k-means"), ("prior", "learned"), ("representation", "landmarks")):
        if isinstance(given[name], str) and given[name] == value:
            expected = f"another than {value!r} unless network is 'linear'"
            raise ValueError(parameter_message(name, OWNER, expected, value))


def check_number(n_clusters: object) -> int:
    """Return the number of clusters, or the least of several; refuse what is neither."""
    if n_clusters == "auto":
        return 2
    if isinstance(n_clusters, tuple | list | range) and len(n_clusters):
        return min(check_integer(number, "n_clusters", OWNER, low=2) for number in n_clusters)
    if isinstance(n_clusters, Integral | float):
        return check_integer(n_clusters, "n_clusters", OWNER, low=2)
    expected = "an integer >= 2, several to choose from, or 'auto'"
    raise TypeError(parameter_message("n_clusters", OWNER, expected, n_clusters))


def check_stream(given: Mapping[str, Any]) -> None:
    """Refuse what a stream cannot have: it never has all its rows."""
    check_integer(given["n_clusters"], "n_clusters", f"{OWNER}.partial_fit", low=2)
    for name, value in (("representation", "landmarks"), ("prior", "learned")):
        if isinstance(given[name], str) and given[name] == value:
            expected = f"another than {value!r} for partial_fit"
            raise ValueError(parameter_message(name, OWNER, expected, value))


def training_config(given: Mapping[str, Any], start: str, n_rows: int) -> TrainingConfig:
    """Return how a head is to be trained that starts ``"random"`` or from ``"clusters"``."""
    recipe = _RECIPES[start]
    batch_size = given["batch_size"]
    if batch_size == "auto":
        batch_size = max(_ROWS_PER_BATCH, _ROWS_PER_CLUSTER * given["n_clusters"])
    max_epochs = given["max_epochs"]
    if max_epochs is None:
        steps = math.ceil(n_rows / batch_size)
        max_epochs = max(recipe.least_epochs, math.ceil(recipe.least_steps / steps))
    decay = given["weight_decay"]
    return TrainingConfig(
        batch_size=int(batch_size),
        learning_rate=float(given["learning_rate"]),
        momentum=float(given["momentum"]),
        weight_decay=recipe.weight_decay if decay == "auto" else float(decay),
        max_epochs=max_epochs,
    )


def vector_view(given: Mapping[str, Any], start: str) -> VectorView:
    """Return the view of a head that starts ``"random"`` or from ``"clusters"``."""
    dropout = given["view_dropout"]
    if dropout == "auto":
        dropout = _RECIPES[start].view_dropout
    return VectorView(float(dropout), float(given["view_noise"]))


def settings_of(given: Mapping[str, Any], start: str, n_epochs: int) -> dict[str, Any]:
    """Return what a training made of the settings that were left open."""
    config = training_config(given, start, 1)
    return {
        "fairness": given["fairness"],
        "max_epochs": n_epochs,
        "batch_size": config.batch_size,
        "weight_decay": config.weight_decay,
        "view_dropout": vector_view(given, start).dropout,
    }


def n_restarts(given: Mapping[str, Any], n_rows: int) -> int:
    """Return how many random starts a head on scaled rows gets."""
    if given["n_init"] != "auto":
        return int(given["n_init"])
    fitting = _ENTRIES_PER_RESTART // (n_rows * given["n_clusters"])
    return min(_MOST_RESTARTS, max(1, int(fitting)))


def check_rows(features: Features, scaling: Scaling, n_clusters: int) -> None:
    """Refuse fewer rows than clusters, and constant features."""
    if len(features) < n_clusters:
        raise ValueError(
            f"n_samples={len(features)} should be >= n_clusters={n_clusters}:"
            " there cannot be more clusters than rows."
        )
    if not bool((scaling.spread > 0).any()):
        raise ValueError("All features are constant: there is nothing to cluster by.")


def row_weights(weights: ArrayLike | None, n_rows: int) -> Vector | None:
    """Return row weights as float64; one number is the weight of every row."""
    if weights is not None and np.asarray(weights).ndim == 0:
        weights = np.full(n_rows, weights)
    checked = check_weights(weights, n_rows, OWNER)
    return None if checked is None else checked.numpy()
