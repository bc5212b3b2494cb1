"""Networks from feature vectors to logits, and where they start from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coincide._checks import parameter_message

NETWORKS = ("linear", "mlp")

_HIDDEN = 256
_START_SCALE = 0.1


def build_network(kind: str, n_features: int, n_clusters: int) -> nn.Module:
    """Return a fresh network; its head starts near zero, so that no cluster has a head start.

    Parameters
    ----------
    kind : {"linear", "mlp"}
        One linear layer, or two hidden layers of 256 with batch normalization before it.
    n_features, n_clusters : int
        Widths of the input and of the logits.
    """
    head = nn.Linear(_HIDDEN if kind == "mlp" else n_features, n_clusters)
    with torch.no_grad():
        head.weight.normal_(0, _START_SCALE / head.in_features**0.5)
        head.bias.zero_()
    if kind == "linear":
        return head
    return nn.Sequential(*hidden_layers(n_features), head)


def hidden_layers(n_features: int) -> list[nn.Module]:
    """Return two hidden layers of 256 with batch normalization."""
    layers: list[nn.Module] = []
    for width in (n_features, _HIDDEN):
        layers += [nn.Linear(width, _HIDDEN), nn.BatchNorm1d(_HIDDEN), nn.ReLU()]
    return layers


def start_from_centers(head: nn.Linear, centers: Tensor) -> None:
    """Let a linear head give each row to its nearest center.

    The logits are ``-‖x - c_k‖²/2`` but for what all share, divided by the root mean square of the
    ``‖c_k‖``: the weights are of unit size.

    Parameters
    ----------
    head : nn.Linear
        From D features to K logits.
    centers : Tensor of shape (K, D)
        In the space of the features.
    """
    squares = centers.square().sum(1)
    size = squares.mean().sqrt()
    size = torch.where(size > 0, size, 1.0)
    with torch.no_grad():
        head.weight.copy_(centers / size)
        head.bias.copy_(-squares / (2 * size))


def check_network(network: nn.Module, some_rows: Tensor, n_clusters: int, owner: str) -> None:
    """Refuse a network that does not turn these rows into one logit for each cluster."""
    expected = f"a module that takes rows of {some_rows.shape[1]} features"
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(some_rows).shape)
    except RuntimeError as error:
        raise ValueError(parameter_message("network", owner, expected, str(error))) from error
    if shape != (len(some_rows), n_clusters):
        expected = f"a module with {n_clusters} logits a row, one for each cluster"
        raise ValueError(parameter_message("network", owner, expected, f"output {shape}"))
