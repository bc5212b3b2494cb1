"""Small networks and batches for the tests of MI, MIADM, SeLa and IMSAT."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from coincide.methods.imsat import IMSAT
from coincide.methods.method import Batch
from coincide.methods.mi import MutualInformation
from coincide.methods.miadm import MIADM
from coincide.methods.sela import SeLa

K, D, N = 4, 3, 30
UNIFORM = np.full(K, 1 / K)
SKEWED = np.array([0.1, 0.2, 0.3, 0.4])
METHODS = {
    "mi": (MutualInformation, {}),
    "miadm": (MIADM, {}),
    "miadm-exact": (MIADM, {"labels": "exact"}),
    "sela": (SeLa, {}),
    "imsat": (IMSAT, {}),
    "imsat-plain": (IMSAT, {"augment": False}),
}


def build(name, n_clusters=K, prior=UNIFORM, **options):
    method, fixed = METHODS[name]
    return method(n_clusters, prior, **{**fixed, **options})


class SmallNetwork(nn.Module):
    """A backbone with batch normalization, and a linear head."""

    def __init__(self, n_features=D, n_clusters=K):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(n_features, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, n_clusters)

    def forward(self, x):
        return self.head(self.backbone(x))


class Data:
    """All rows, seen through a network as they are."""

    def __init__(self, inputs, network=None):
        self.rows, self.network = inputs, network

    def __len__(self):
        return len(self.rows)

    def inputs(self, rows):
        return self.rows[rows]

    def logits(self):
        self.network.eval()
        with torch.no_grad():
            logits = self.network(self.rows).float()
        self.network.train()
        return logits

    def features(self):
        raise AssertionError("none of these methods looks at features")


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(D, K)


def as_it_is(n=K):
    """A network whose logits are its inputs."""
    network = nn.Linear(n, n, bias=False)
    nn.init.eye_(network.weight)
    return network


def batch_of(n=N, d=D, **parts):
    plain = normal(n, d)
    return Batch(torch.arange(n), plain, (plain + normal(n, d, seed=1, scale=0.3),), **parts)


def begun(name, batch, **options):
    method = build(name, **options)
    method.begin_epoch(0, 1, Data(batch.plain))
    return method


def logits_of(network, inputs):
    return network(inputs).detach().double().numpy()


def value(loss):
    return loss.detach().item()
