"""Small networks and batches for the tests of IIC, SCAN and SimCLR."""

import torch
from torch import nn

from coincide.methods.method import Batch

N, D, K = 17, 6, 4


class Net(nn.Module):
    """A backbone and a head; the head is the method's, or linear."""

    def __init__(self, method, n_inputs=D, width=D, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU())
        build = method.head(width)
        self.head = nn.Linear(width, method.n_clusters) if build is None else build()

    def forward(self, x):
        return self.head(self.backbone(x))


class Rows:
    """The whole data as a method may see it."""

    def __init__(self, rows, network):
        self.rows, self.network = rows, network

    def __len__(self):
        return len(self.rows)

    def features(self):
        with torch.no_grad():
            return self.network.backbone(self.rows)


def random(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_weights(n=N):
    return torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(5)).float()


def batch_of(n=N, n_views=1, seed=0, scale=1.0, **others):
    plain = random(n, D, seed=seed, scale=scale)
    views = tuple(random(n, D, seed=seed + 1 + v, scale=scale) for v in range(n_views))
    return Batch(torch.arange(n), plain, views, **others)


def gradients(network, loss):
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return dict(zip([name for name, _ in network.named_parameters()], found, strict=True))
