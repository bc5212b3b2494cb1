"""A method, rows and trainers that remember, for the tests of the loop."""

import numpy as np
import torch
from torch import nn

from coincide.losses import collision_cross_entropy
from coincide.methods import UNKNOWN, BatchLoss, Method
from coincide.methods.method import weighted_mean
from coincide.training.loop import Data, Trainer

M, D, K = 53, 4, 3
UNIFORM = np.full(K, 1 / K)


class SpyMethod(Method):
    """Labels of every row by itself; remembers what it was given."""

    n_clusters = K

    def __init__(self, n_views=1):
        self.n_views, self.steps = n_views, 0
        self.batches, self.losses, self.begun = [], [], []

    def begin_epoch(self, epoch, n_epochs, data):
        self.begun.append((epoch, n_epochs, data))

    def loss(self, network, batch):
        self.batches.append(batch)
        with torch.no_grad():
            plain = network(batch.plain)
        logits = network(batch.views[0])
        rows = collision_cross_entropy(logits, torch.softmax(2 * plain, 1), reduction="none")
        loss = weighted_mean(rows, batch.weights)
        self.losses.append(float(loss.detach()))
        self.steps += 1
        return BatchLoss(loss, logits, {"step": float(self.steps)}, seen=torch.softmax(plain, 1))

    def state(self):
        return {"steps": torch.tensor(self.steps)}

    def restore(self, state):
        self.steps = int(state["steps"])


class SpyRows:
    """Rows whose requests are remembered."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.rows[index]


def head():
    torch.manual_seed(0)
    return nn.Linear(D, K)


def inputs(rows=M):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(rows):
    return rows


def trainer_of(config, *, network=None, method=None, view=same, seed=0, **others):
    network = head() if network is None else network
    method = SpyMethod() if method is None else method
    return Trainer(network, method, view, config, generator=seeded(seed), **others)


def trained(config, *, rows=None, weights=None, known=None, fit=None, **parts):
    trainer = trainer_of(config, **parts)
    data = Data(inputs() if rows is None else rows, known=known, weights=weights)
    trainer.fit(data, **(fit or {}))
    return trainer


def known_of(share=0.4):
    classes = torch.randint(K, (M,), generator=seeded(3))
    return torch.where(torch.rand(M, generator=seeded(4)) < share, classes, UNKNOWN)
