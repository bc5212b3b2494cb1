"""Empty clusters come to life again: each takes over half of the largest one.

A cluster that predicts nothing gets no gradient from collision cross-entropy: its exact labels are
a little of every row, and ``∂H₂/∂z_k = σ_k (1 - y_k / σ·y)`` vanishes with ``σ_k``. Nor would it
come back by any other pull that does not know where to. One of the other clusters then holds two
classes. So the largest is cut in two, as k-means relocates an empty center.

Which clusters are empty is looked at again after every stretch of an epoch: on large data they die
within the first one, and have features and other clusters settled without them by its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from coincide._threads import every_pool_for
from coincide.methods.method import AllRows
from coincide.training.ranks import ALONE, Ranks

Pair: TypeAlias = tuple[int, int]
"""An empty cluster, and the one that it takes half of."""

_EMPTY = 0.2  # of the mean size, and below
_AHEAD = 4.0  # logits between the two clusters at the center of either half
_ROWS = 1000  # of a cluster that its halves are found on
_TRIES = 3
_STEPS = 50  # of a stretch, the least: time for a revived cluster to draw its rows
_ROWS_EACH = 50  # rows a cluster of a stretch, the least


def stretches(n_steps: int, n_rows: int, n_clusters: int) -> list[range]:
    """Cut the steps of an epoch into stretches, after each of which empty clusters are revived.

    A stretch has at least 50 steps, and 50 rows a cluster: of these a cluster half as large as the
    mean gets fewer than the 10 that it is taken for empty below in 2 of 10,000 stretches, and one
    of the mean size practically never, whatever the number of clusters. An epoch too short for two
    is a single one.

    Parameters
    ----------
    n_steps, n_rows, n_clusters : int

    Examples
    --------
    >>> from coincide.training.revival import stretches
    >>> stretches(240, 60_000, 10)
    [range(0, 60), range(60, 120), range(120, 180), range(180, 240)]
    >>> stretches(240, 60_000, 1000)
    [range(0, 240)]
    """
    count = max(1, min(n_steps // _STEPS, n_rows // (_ROWS_EACH * n_clusters)))
    return [range(*ends) for ends in pairwise(n_steps * i // count for i in range(count + 1))]


def revive(
    head: nn.Linear, clusters: Tensor, data: AllRows, ranks: Ranks = ALONE
) -> tuple[Pair, ...]:
    """Give every cluster below a fifth of the mean size half of a large one, in place.

    The features of the large cluster's rows are cut in two by k-means. With ``c₀`` and ``c₁`` the
    centers, ``m`` their mean and ``v = (c₁ - c₀) / |c₁ - c₀|²``, the logit of the large cluster
    becomes ``z + 4 v·(x - m)`` and that of the empty one ``z - 4 v·(x - m)``: at a center its own
    half is ahead by 4.

    Parameters
    ----------
    head : nn.Linear
        From features ``(n, D)`` to logits ``(n, K)``.
    clusters : Tensor of shape (M,), int64
        Of all rows; -1 for those that do not count, as they were not seen lately.
    data : AllRows
        The same rows as the network sees them now.
    ranks : Ranks, optional
        The processes that hold the same network; all take the cut of the first.

    Returns
    -------
    tuple of (int, int)
        Empty clusters, each with the one that was halved for it. A cluster is halved once, and
        only if it is above the mean size and its rows are not all the same.
    """
    sizes = torch.bincount(clusters[clusters >= 0], minlength=head.out_features)
    mean = float(sizes.sum()) / len(sizes)
    empty = torch.nonzero(sizes < _EMPTY * mean)[:, 0].tolist()
    large = [k for k in sizes.argsort(descending=True, stable=True).tolist() if sizes[k] > mean]
    pairs = []
    for pair in zip(empty, large, strict=False):
        members = torch.nonzero(clusters == pair[1])[:, 0]
        some = members[:: -(-len(members) // _ROWS)]
        cut = ranks.total(_cut(data.features(some)) * (ranks.index == 0))
        if bool(cut.any()):
            _split(head, pair, cut)
            pairs.append(pair)
    return tuple(pairs)


def take_over(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], pairs: Sequence[Pair]
) -> None:
    """Give each revived cluster what the optimizer remembers of the one that was halved."""
    for parameter in parameters:
        for memory in optimizer.state.get(parameter, {}).values():
            if isinstance(memory, Tensor) and memory.shape == parameter.shape:
                for empty, large in pairs:
                    memory[empty] = memory[large]


def _cut(features: Tensor) -> Tensor:
    """Return ``v`` and ``-v·m`` of a cluster's rows, ``(D + 1,)``; zeros if they are all equal."""
    rows = features.double().numpy()
    if np.ptp(rows, 0).max() == 0:
        return torch.zeros(rows.shape[1] + 1, dtype=torch.float64)
    with every_pool_for(rows.size):
        first, second = KMeans(2, n_init=_TRIES, random_state=0).fit(rows).cluster_centers_
    along = (second - first) / np.square(second - first).sum()
    return torch.from_numpy(np.append(along, -along @ (first + second) / 2))


@torch.no_grad()
def _split(head: nn.Linear, pair: Pair, cut: Tensor) -> None:
    empty, large = pair
    change = (_AHEAD * cut).to(head.weight)
    for parameter, part in ((head.weight, change[:-1]), (head.bias, change[-1])):
        parameter[empty] = parameter[large] - part
        parameter[large] += part
