"""Networks, the method and the trainer of a fit, from the estimator's parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coincide._checks import Vector
from coincide.cluster.constraints import training_config, vector_view
from coincide.methods import CollisionMethod
from coincide.networks import build_network
from coincide.pseudolabels.rows import choose_passes
from coincide.training.loop import Trainer

FIRM = 100.0  # λ of the paper

_LABEL_TOL = 0.05  # of a batch's pseudo-labels; a hundredth of it for the reported objective


def fresh_network(network: str | nn.Module, n_features: int, n_clusters: int) -> nn.Module:
    """Return a new network of that name, or a copy of one's own with its weights."""
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    return build_network(network, n_features, n_clusters)


def new_method(
    given: Mapping[str, Any],
    prior: Vector,
    n_rows: int,
    device: torch.device,
    *,
    n_solves: int = 1,
    neighbors: Tensor | None = None,
) -> CollisionMethod:
    """Return the paper's method for batches of so many rows."""
    fairness = FIRM if given["fairness"] == "auto" else float(given["fairness"])
    solver = given["solver"]
    if solver == "auto" and given["objective"] == "cce+" and fairness >= FIRM:
        solver = "interior-point"  # the faster one there, on batches of the size of ours
    return CollisionMethod(
        n_clusters=len(prior),
        prior=prior,
        fairness=fairness,
        objective=given["objective"],
        solver=solver,
        label_tol=_LABEL_TOL,
        passes=choose_passes(n_rows * len(prior) * n_solves, device),
        neighbors=neighbors,
    )


def new_trainer(
    given: Mapping[str, Any],
    start: str,
    network: nn.Module,
    prior: Vector,
    n_rows: int,
    *,
    generator: torch.Generator,
    neighbors: Tensor | None = None,
) -> Trainer:
    """Return a trainer of a network that starts ``"random"`` or from ``"clusters"``."""
    config = training_config(given, start, n_rows)
    n_solves = config.epochs(n_rows) * config.steps_per_epoch(n_rows)
    device = next(network.parameters()).device
    in_batch = min(config.batch_size, n_rows)
    method = new_method(given, prior, in_batch, device, n_solves=n_solves, neighbors=neighbors)
    view = vector_view(given, start)
    return Trainer(network, method, view, config, generator=generator)


def on_device(weights: NDArray[np.float64] | None, device: torch.device) -> Tensor | None:
    """Return row weights as the trainer takes them."""
    return None if weights is None else torch.from_numpy(weights).float().to(device)
