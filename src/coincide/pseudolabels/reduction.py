"""Take what is already decided out of a pseudo-label problem, and put it back afterwards.

Rows with a known class stay at it; classes that the prior forbids stay empty. Both leave the
problem here, so that no solver has to know of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coincide._checks import UNKNOWN
from coincide.pseudolabels.kernels.shared_rows import Sums
from coincide.pseudolabels.objectives import OBJECTIVES, ForwardKL, Vector
from coincide.pseudolabels.problem import Problem


@dataclass(frozen=True)
class Reduction:
    """The free part of a problem, and the way back to all rows and classes."""

    problem: Problem
    weights: Tensor  # (M,) float64 shares of all rows, summing to 1
    known: Tensor | None  # (M,) class ids, -1 where free
    free: Tensor | None  # (M,) bool; None: every row
    classes: Tensor | None  # (K,) bool; None: every class
    n_classes: int

    def restrict(self, labels: Tensor) -> Tensor:
        """Return the free part of full labels, its rows summing to 1 again."""
        if self.free is not None:
            labels = labels[self.free]
        if self.classes is not None:
            labels = labels[:, self.classes]
            mass = labels.sum(1, keepdim=True)
            labels = torch.where(mass > 0, labels / mass, 1 / labels.shape[1])
        return labels

    def expand(self, labels: Tensor) -> Tensor:
        """Return full labels: the free ones in place, the known rows one-hot."""
        if self.classes is not None:
            wide = labels.new_zeros(labels.shape[0], self.n_classes)
            wide[:, self.classes] = labels
            labels = wide
        if self.known is None or self.free is None:
            return labels
        full = labels.new_zeros(self.known.shape[0], self.n_classes)
        full[self.free] = labels
        rows = (~self.free).nonzero()[:, 0]
        full[rows, self.known[rows]] = 1
        return full

    def expand_multipliers(self, multipliers: Vector | None) -> Vector | None:
        """Return multipliers of all classes; 0 for the forbidden ones."""
        if multipliers is None or self.classes is None:
            return multipliers
        wide: Vector = np.zeros(self.n_classes)
        wide[self.classes.cpu().numpy()] = multipliers
        return wide


def reduce_problem(
    probs: Tensor,
    *,
    prior: Vector,
    fairness: float,
    objective: str,
    backend: str,
    known: Tensor | None = None,
    weights: Tensor | None = None,
    guess: Vector | None = None,
    sums: Sums | None = None,
    precision: torch.dtype | None = None,
) -> Reduction:
    """Return the problem over the free rows and the allowed classes.

    Parameters
    ----------
    probs : Tensor of shape (M, K), float32 or float64
    prior : array of shape (K,), float64
    fairness : float
    objective : str
        A key of ``OBJECTIVES``.
    backend : str
        The row kernels to use.
    known : Tensor of shape (M,), int64, optional
        Class ids; -1 where free.
    weights : Tensor of shape (M,), optional
        Non-negative, not all zero.
    guess : array of shape (K,), float64, optional
        Multipliers to start from.
    sums : Sums, optional
        Over the processes that hold the other rows.
    precision : torch.dtype, optional
        Of the labels and the arithmetic of EM; that of ``probs`` by default.

    Raises
    ------
    ValueError
        If a known row or a whole prediction lies on classes that the prior forbids.
    """
    n_rows, n_classes = probs.shape
    shares = _shares(n_rows, probs, weights, sums)
    all_shares = shares
    held: Vector = np.zeros(n_classes)
    held_loss = 0.0
    free = None
    if known is not None:
        free = known == UNKNOWN
        rows = (~free).nonzero()[:, 0]
        ids, mass = known[rows], shares[rows].double()
        np.add.at(held, ids.cpu().numpy(), mass.cpu().numpy())
        held_loss = float(mass @ -probs[rows, ids].double().log())
        probs, shares = probs[free], shares[free]
    if sums is not None:
        totals = sums.sum(np.append(held, held_loss))
        held, held_loss = totals[:-1], float(totals[-1])
    classes = None
    forbidden = prior == 0
    if isinstance(OBJECTIVES[objective].coupling, ForwardKL) and fairness > 0 and forbidden.any():
        if (held[forbidden] > 0).any():
            raise ValueError(
                "The 'known' parameter names a class whose prior is 0: the objective is infinite."
            )
        classes = torch.from_numpy(~forbidden).to(probs.device)
        probs, prior, held = probs[:, classes], prior[~forbidden], held[~forbidden]
        guess = None if guess is None else guess[~forbidden]
        stranded = probs.amax(1) <= 0 if probs.numel() else probs.new_zeros(0, dtype=torch.bool)
        if bool(stranded.any()):
            row = int(stranded.nonzero()[0, 0])
            if free is not None:
                row = int(free.nonzero()[row, 0])
            raise ValueError(
                f"Row {row} of the predictions is 0 in every class that the prior allows: the"
                " objective is infinite."
            )
    problem = Problem(
        probs.contiguous(),
        shares,
        prior,
        fairness,
        OBJECTIVES[objective],
        backend,
        held,
        held_loss,
        guess,
        sums,
        precision,
    )
    return Reduction(problem, all_shares, known, free, classes, n_classes)


def _shares(n_rows: int, probs: Tensor, weights: Tensor | None, sums: Sums | None) -> Tensor:
    """Return every row's share of the weight of all rows, float64."""
    mass = probs.new_ones(n_rows, dtype=torch.float64) if weights is None else weights.double()
    own = np.array([float(mass.sum())])
    whole = own if sums is None else sums.sum(own)
    return mass / float(whole[0])
