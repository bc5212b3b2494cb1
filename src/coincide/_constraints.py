"""What the estimator's parameters, rows and weights may be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
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
from coincide.data.scaling import SCALINGS, Scaling, row_blocks
from coincide.networks import NETWORKS
from coincide.pseudolabels import OBJECTIVES, SOLVERS
from coincide.pseudolabels.solve import check_solver
from coincide.training.collapse import ClusteringWarning
from coincide.training.config import TrainingConfig

OWNER = "CollisionClustering"

# What every parameter may be by itself; check_parameters says what fits together.
_CONSTRAINTS: dict[str, Callable[[Any, str, str], object]] = {
    "n_clusters": partial(check_integer, low=2),
    "objective": partial(check_option, options=OBJECTIVES),
    "solver": partial(check_option, options=("auto", *SOLVERS)),
    "fairness": check_real,
    "init": partial(check_option, options=("random", "k-means")),
    "scaling": partial(check_option, options=SCALINGS),
    "n_init": partial(check_integer, low=1),
    "max_epochs": partial(check_integer, low=1),
    "batch_size": partial(check_integer, low=2),
    "learning_rate": partial(check_real, open_low=True),
    "momentum": partial(check_real, below=1),
    "weight_decay": check_real,
    "view_dropout": partial(check_real, below=1),
    "view_noise": check_real,
}
_LEFT_OPEN = {"n_init": "auto", "max_epochs": None, "batch_size": "auto"}

_ROWS_PER_BATCH = 500
_OTHER_UNITS = 100  # times the range of another column
_ROWS_PER_CLUSTER = 8  # in a batch


def check_parameters(given: Mapping[str, Any]) -> TrainingConfig:
    """Refuse unfit parameters of an estimator; return how it is to be trained."""
    for name, check in _CONSTRAINTS.items():
        if name not in _LEFT_OPEN or given[name] != _LEFT_OPEN[name]:
            check(given[name], name, OWNER)
    n_clusters, network = given["n_clusters"], given["network"]
    check_solver(given["solver"], given["objective"], OWNER, n_clusters)
    check_prior(given["prior"], n_clusters, OWNER)
    if not isinstance(network, nn.Module):
        check_option(network, "network", OWNER, NETWORKS)
    if given["init"] == "k-means" and network != "linear":
        expected = "'random' unless network is 'linear'"
        raise ValueError(parameter_message("init", OWNER, expected, given["init"]))
    batch_size = given["batch_size"]
    if batch_size == "auto":
        batch_size = max(_ROWS_PER_BATCH, _ROWS_PER_CLUSTER * n_clusters)
    return TrainingConfig(
        batch_size=int(batch_size),
        learning_rate=float(given["learning_rate"]),
        momentum=float(given["momentum"]),
        weight_decay=float(given["weight_decay"]),
        max_epochs=given["max_epochs"],
    )


def check_rows(
    features: NDArray[Any], scaling: Scaling, n_clusters: int, names: Sequence[str] | None = None
) -> None:
    """Refuse fewer rows than clusters, and constant features; say so where units differ."""
    if len(features) < n_clusters:
        raise ValueError(
            f"n_samples={len(features)} should be >= n_clusters={n_clusters}:"
            " there cannot be more clusters than rows."
        )
    if not bool((scaling.spread > 0).any()):
        raise ValueError("All features are constant: there is nothing to cluster by.")
    if scaling.kind == "unit-norm":
        _warn_of_units(features, scaling.spread.numpy(), names)


def row_weights(weights: ArrayLike | None, n_rows: int) -> Vector | None:
    """Return row weights as float64; one number is the weight of every row."""
    if weights is not None and np.asarray(weights).ndim == 0:
        weights = np.full(n_rows, weights)
    checked = check_weights(weights, n_rows, OWNER)
    return None if checked is None else checked.numpy()


def _warn_of_units(features: NDArray[Any], spread: Vector, names: Sequence[str] | None) -> None:
    """Say so where columns have units of their own, and rows are brought to unit length.

    That is told by their ranges: a standard deviation is small also where a value is rare.
    """
    varied = spread > 0
    if spread.max() < _OTHER_UNITS * spread[varied].min():
        return
    low, high = np.full(len(spread), np.inf), np.full(len(spread), -np.inf)
    for block in row_blocks(*features.shape):
        rows = np.asarray(features[block], np.float64)
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    ranges = np.where(varied, high - low, np.nan)
    least, most = int(np.nanargmin(ranges)), int(np.nanargmax(ranges))
    if ranges[most] < _OTHER_UNITS * ranges[least]:
        return
    called = [repr(str(number if names is None else names[number])) for number in (most, least)]
    warnings.warn(
        f"Columns differ in spread by {ranges[most] / ranges[least]:.2g} (range {ranges[most]:.2g}"
        f" of column {called[0]}, {ranges[least]:.2g} of {called[1]}), and rows are brought to unit"
        " length: only the widest columns count. Where columns have units of their own, take"
        " scaling='standard'.",
        ClusteringWarning,
        stacklevel=4,
    )
