"""What CollisionClustering accepts: its parameters, rows, weights and devices.

Every refusal is one sentence in the house's form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from coincide._checks import check_integer, check_option, check_real, parameter_message
from coincide.data.scaling import SCALINGS, Scaling
from coincide.networks import NETWORKS
from coincide.pseudolabels import OBJECTIVES, SOLVERS
from coincide.pseudolabels.solve import check_prior, check_solver
from coincide.training.config import TrainingConfig

if TYPE_CHECKING:
    from coincide.cluster import CollisionClustering

OWNER = "CollisionClustering"

_INITS = ("random", "k-means")
_ROWS_PER_BATCH = 500
_ROWS_PER_CLUSTER = 8


def check_parameters(model: CollisionClustering) -> TrainingConfig:
    """Refuse unfit parameters of an estimator; return how it is to be trained."""
    check_integer(model.n_clusters, "n_clusters", OWNER, low=2)
    check_option(model.objective, "objective", OWNER, OBJECTIVES)
    name = check_option(model.solver, "solver", OWNER, ("auto", *SOLVERS))
    check_solver(name, model.objective, OWNER, model.n_clusters)
    check_real(model.fairness, "fairness", OWNER)
    check_prior(model.prior, model.n_clusters, OWNER)
    check_option(model.scaling, "scaling", OWNER, SCALINGS)
    check_option(model.init, "init", OWNER, _INITS)
    if not isinstance(model.network, nn.Module):
        check_option(model.network, "network", OWNER, NETWORKS)
    if model.init == "k-means" and model.network != "linear":
        expected = "'random' unless network is 'linear'"
        raise ValueError(parameter_message("init", OWNER, expected, model.init))
    for name in ("view_dropout", "momentum"):
        value = getattr(model, name)
        if check_real(value, name, OWNER) >= 1:
            raise ValueError(parameter_message(name, OWNER, "a number below 1", value))
    check_real(model.view_noise, "view_noise", OWNER)
    if model.n_init != "auto":
        check_integer(model.n_init, "n_init", OWNER, low=1)
    return _check_training(model)


def _check_training(model: CollisionClustering) -> TrainingConfig:
    batch_size = max(_ROWS_PER_BATCH, _ROWS_PER_CLUSTER * model.n_clusters)
    if model.batch_size != "auto":
        batch_size = check_integer(model.batch_size, "batch_size", OWNER, low=2)
    max_epochs = model.max_epochs
    if max_epochs is not None:
        max_epochs = check_integer(max_epochs, "max_epochs", OWNER, low=1)
    return TrainingConfig(
        batch_size=batch_size,
        learning_rate=check_real(model.learning_rate, "learning_rate", OWNER, open_low=True),
        momentum=float(model.momentum),
        weight_decay=check_real(model.weight_decay, "weight_decay", OWNER),
        max_epochs=max_epochs,
    )


def check_network(network: nn.Module, some_rows: Tensor, n_clusters: int) -> None:
    """Refuse a network that does not turn these rows into one logit for each cluster."""
    width = some_rows.shape[1]
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(some_rows).shape)
    except RuntimeError as error:
        expected = f"a module that takes rows of {width} features"
        raise ValueError(parameter_message("network", OWNER, expected, str(error))) from error
    if shape != (len(some_rows), n_clusters):
        expected = f"a module with {n_clusters} logits a row, one for each cluster"
        raise ValueError(parameter_message("network", OWNER, expected, f"output {shape}"))


def check_rows(features: NDArray[Any], n_clusters: int) -> None:
    """Refuse fewer rows than clusters."""
    if len(features) < n_clusters:
        raise ValueError(
            f"n_samples={len(features)} should be >= n_clusters={n_clusters}:"
            " there cannot be more clusters than rows."
        )


def check_spread(scaling: Scaling) -> None:
    """Refuse features that are all constant."""
    if not bool((scaling.spread > 0).any()):
        raise ValueError("All features are constant: there is nothing to cluster by.")


def check_weights(weights: ArrayLike | None, n_rows: int) -> NDArray[np.float64] | None:
    """Return row weights as float64, or refuse negative, non-finite or all-zero ones."""
    if weights is None:
        return None
    vector = np.asarray(weights, np.float64)
    if vector.ndim == 0:
        vector = np.full(n_rows, float(vector))
    if vector.shape != (n_rows,):
        expected = f"of shape ({n_rows},), one weight a row"
        raise ValueError(parameter_message("sample_weight", OWNER, expected, vector.shape))
    if not (np.isfinite(vector) & (vector >= 0)).all() or not vector.any():
        raise ValueError(
            f"The 'sample_weight' parameter of {OWNER} must be finite, non-negative and not all"
            " zero."
        )
    return vector
