"""The classes that a row may end in: those whose lines come near its envelope.

At multipliers ``w`` row ``i`` answers with the lines ``σ_ik t + w_k`` that are highest at its best
``t`` (:mod:`coincide.pseudolabels.kernels.dual`); close to ``w`` it can answer only with lines that
were nearly as high.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coincide.pseudolabels.kernels.contract import Minimizers, Vector

_ENTRIES_PER_BLOCK = 1 << 22


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
    starts = torch.from_numpy(multipliers - multipliers.max()).to(probs.device)
    pair = torch.stack((answer.steep, answer.flat), 1)
    slopes = probs.gather(1, pair).double()
    t = 1 / torch.lerp(slopes[:, 1], slopes[:, 0], answer.share)
    lowest = torch.addcmul(starts[pair], slopes, t[:, None]).amax(1) - slack
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
