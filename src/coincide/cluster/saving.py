"""The two files of a fitted estimator: its tensors, and everything else as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from coincide._checks import find_device
from coincide._files import ModelError, as_json, load_model, save_model
from coincide.cluster.building import fresh_network
from coincide.cluster.constraints import OWNER
from coincide.representations import Landmarks, Representation, Scaling, scaling_of

_ARRAYS: dict[str, Any] = {
    "mean_label_": np.float64,
    "prior_": np.float64,
    "feature_names_in_": object,
}
_SAVED = (
    *("n_features_in_", "objective_", "gap_", "converged_", "n_iter_", "history_", "restarts_"),
    *("evidence_", "settings_", "n_clusters_", "numbers_", "cluster_names_", *_ARRAYS),
)
_KINDS: dict[str, type[Scaling] | type[Landmarks]] = {"scaling": Scaling, "landmarks": Landmarks}


def save_estimator(model: Any, folder: Path) -> None:
    """Write a fitted estimator into a folder."""
    parameters = model.get_params(deep=False)
    parameters.pop("callback")
    shown: Representation = model.representation_
    kind = "scaling" if isinstance(shown, Scaling) else "landmarks"
    tensors = {f"network.{name}": t for name, t in model.network_.state_dict().items()}
    tensors |= {f"{kind}.{name}": t for name, t in shown.tensors().items()}
    fitted = {name: getattr(model, name) for name in _SAVED if hasattr(model, name)}
    description = {
        "parameters": as_json(parameters),
        "fitted": as_json(fitted),
        "representation": {"kind": kind, "scaling": scaling_of(shown).kind},
    }
    save_model(folder, tensors, description)


def load_estimator(cls: Any, folder: Path, network: nn.Module | None) -> Any:
    """Return the estimator of a folder; ``network`` is the module whose weights were saved."""
    tensors, description = load_model(folder)
    try:
        parameters, fitted = description["parameters"], description["fitted"]
        if network is None and parameters["network"] is None:
            raise ModelError("it needs a module of your own, load(folder, network=...).")
        chosen = parameters["network"] if network is None else network
        model = cls(**{**parameters, "network": chosen})
        for name in set(fitted).intersection(_SAVED):
            kind = _ARRAYS.get(name)
            setattr(model, name, fitted[name] if kind is None else np.array(fitted[name], kind))
        if "representation" not in description:
            raise ModelError("it was saved by an earlier version: fit it again.")
        told = description["representation"]
        prefix = told["kind"] + "."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        model.representation_ = _KINDS[told["kind"]].from_tensors(told["scaling"], own)
        held = len(scaling_of(model.representation_).mean)
        if held != model.n_features_in_:
            raise ValueError(f"its representation has {held} features, not {model.n_features_in_}.")
        model.device_ = find_device(model.device, OWNER)
        state = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("net")}
        width = model.n_features_in_
        if isinstance(model.representation_, Landmarks):
            width = model.representation_.directions.shape[1]
        module = fresh_network(chosen, width, model.n_clusters_)
        module.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder} does not hold a model that fits: {error}") from error
    model.network_ = module.to(model.device_).eval()
    return model
