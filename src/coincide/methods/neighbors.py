"""The nearest rows of every row in feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from coincide._checks import parameter_message

_BLOCK = 2**24  # similarities held at a time: 64 MiB
_WIDE = 1024  # features above which their principal directions stand for them
_DIRECTIONS = 256
_SAMPLE = 10_000  # rows that the directions are found on


def mine_neighbors(features: Tensor, n_neighbors: int) -> Tensor:
    """Return the rows of highest cosine similarity to each row, itself left out, the nearest first.

    Features are ``(M, D)``; a row of zeros is equally near to all. Block by block: ``M² D``
    multiplications, 64 MiB at a time. 50,000 rows of 512 features take half a minute on two cores.
    Up to 1,024 features it is exact; more, as the maps of a convolution have, are projected to
    their 256 principal directions first.

    Examples
    --------
    >>> from coincide.methods.neighbors import mine_neighbors
    >>> mine_neighbors(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 1.0]]), 1).tolist()
    [[2], [2], [0]]
    """
    if features.dim() != 2:
        got = tuple(features.shape)
        raise ValueError(parameter_message("features", "mine_neighbors", "of shape (M, D)", got))
    n_rows = len(features)
    if n_neighbors >= n_rows:
        expected = f"below the number of rows, {n_rows}"
        raise ValueError(parameter_message("n_neighbors", "mine_neighbors", expected, n_neighbors))
    lengths = torch.linalg.vector_norm(features.detach().float(), dim=1, keepdim=True)
    bad = ~lengths.isfinite()
    if bool(bad.any()):
        raise ValueError(
            "The features that neighbors are mined in must be finite, and so must their length."
            f" Row {int(bad.nonzero()[0, 0])} is not ({int(bad.sum())} of {n_rows} rows are not)."
        )
    unit = features.detach().float() / torch.where(lengths > 0, lengths, 1.0)
    unit = _narrow(unit)
    found = torch.empty(n_rows, n_neighbors, dtype=torch.int64, device=features.device)
    size = max(1, _BLOCK // n_rows)
    for start in range(0, n_rows, size):
        block = slice(start, start + size)
        similarity = unit[block] @ unit.T
        similarity[:, block].fill_diagonal_(-torch.inf)
        found[block] = similarity.topk(n_neighbors, dim=1).indices
    return found


def _narrow(unit: Tensor) -> Tensor:
    """Return wide rows in their principal directions, which keep most of every product."""
    if unit.shape[1] <= _WIDE:
        return unit
    sample = unit[:: -(-len(unit) // _SAMPLE)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        directions = torch.svd_lowrank(sample, min(_DIRECTIONS, len(sample)))[2]
    return unit @ directions
