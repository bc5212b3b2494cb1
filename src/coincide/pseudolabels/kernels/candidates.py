"""The classes that a row may end in: those whose lines come near its envelope.

At multipliers ``w`` row ``i`` answers with the lines ``σ_ik t + w_k`` that are highest at its best
``t`` (:mod:`coincide.pseudolabels.kernels.dual`); close to ``w`` it can answer only with lines that
were nearly as high.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Minimizers, Vector

_ENTRIES_PER_BLOCK = 1 << 22


class Pairs(NamedTuple):
    """Rows, a class of each, and how far its line lies below the envelope; all ``(N,)``."""

    rows: Tensor
    classes: Tensor
    distances: Tensor


def near_candidates(
    probs: Tensor,
    multipliers: Vector,
    answer: Minimizers,
    *,
    slack: float,
    most: int,
    least: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the rows with more than one class near, and their nearest classes.

    Parameters
    ----------
    probs : Tensor of shape (M, K)
        float32 or float64; the heights are float64.
    multipliers : array of shape (K,)
        Finite.
    answer : Minimizers
        The rows' answer to them.
    slack : float
        Class ``k`` is near when its line comes this close to the envelope, in units of the loss.
    most, least : int
        Bounds of the classes to keep in a row, at most K.

    Returns
    -------
    rows : Tensor of shape (R,), int64
    classes : Tensor of shape (R, C), int64
        The highest line first; ``C`` is the largest number of near classes, within the bounds.
    """
    starts, t, envelope = _envelope(probs, multipliers, answer)
    lowest = envelope - slack
    open_rows, picked, widest = [], [], least
    size = max(1, _ENTRIES_PER_BLOCK // probs.shape[1])
    for start in range(0, len(probs), size):
        part = slice(start, start + size)
        heights = torch.addcmul(starts, probs[part].double(), t[part, None])
        near = (heights >= lowest[part, None]).sum(1)
        rows = (near > 1).nonzero().squeeze(1)
        widest = max(widest, min(most, int(near.max())))
        open_rows.append(rows + start)
        picked.append(heights[rows].topk(most, 1).indices)
    return torch.cat(open_rows), torch.cat(picked)[:, :widest].contiguous()


def nearest_rows(probs: Tensor, multipliers: Vector, answer: Minimizers, counts: Vector) -> Pairs:
    """Return for every class the rows whose envelope its line comes nearest to.

    Parameters
    ----------
    probs, multipliers, answer
        As in :func:`near_candidates`.
    counts : array of shape (K,)
        How many rows each class gets; all M where it is more.
    """
    starts, t, envelope = _envelope(probs, multipliers, answer)
    wanted = torch.from_numpy(counts).to(probs.device).long().clamp_max(len(probs))
    none = torch.empty(0, dtype=torch.int64, device=probs.device)
    found = [Pairs(none, none, none.double())]
    size = max(1, _ENTRIES_PER_BLOCK // max(1, len(probs)))
    classes = wanted.nonzero().squeeze(1)
    for part in (classes[i : i + size] for i in range(0, len(classes), size)):
        below = envelope[:, None] - torch.addcmul(starts[part], probs[:, part].double(), t[:, None])
        distances, rows = below.topk(int(wanted[part].max()), 0, largest=False)
        asked = torch.arange(len(rows), device=rows.device)[:, None] < wanted[part]
        found.append(Pairs(rows[asked], part.expand_as(rows)[asked], distances[asked]))
    return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def still_near(
    probs: Tensor, multipliers: Vector, answer: Minimizers, pairs: Pairs, slack: float
) -> Pairs:
    """Return the pairs whose distance was, or now is, at most ``slack``.

    Parameters
    ----------
    probs, multipliers, answer, slack
        As in :func:`near_candidates`.
    pairs : Pairs
    """
    starts, t, envelope = _envelope(probs, multipliers, answer)
    rows, classes, distances = pairs
    lines = torch.addcmul(starts[classes], probs[rows, classes].double(), t[rows])
    distances = torch.minimum(distances, envelope[rows] - lines)
    near = distances <= slack
    return Pairs(rows[near], classes[near], distances[near])


def _envelope(
    probs: Tensor, multipliers: Vector, answer: Minimizers
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intercepts of the lines, every row's best ``t``, and its envelope there."""
    starts = torch.from_numpy(multipliers - multipliers.max()).to(probs.device)
    pair = torch.stack((answer.steep, answer.flat), 1)
    slopes = probs.gather(1, pair).double()
    t = 1 / torch.lerp(slopes[:, 1], slopes[:, 0], answer.share)
    return starts, t, torch.addcmul(starts[pair], slopes, t[:, None]).amax(1)
