"""SeLa: hard labels for all the data, equally many a class, and cross-entropy to them.

labels   y  = argmin_y  mean H(y, σ)   subject to  ȳ = u,  y one-hot      over all rows       (4)
loss         mean_i -ln σ'_i[y_i]                          σ' from the changed view  (8)

The labels solve an optimal transport problem, smoothed by entropy and rounded: scale the rows and
columns of ``σ^sharpness`` until the columns hold the prior, and take the largest entry of each
row. They start at random and are found anew every few epochs.

Source: Asano, Rupprecht & Vedaldi, *Self-labelling via Simultaneous Clustering and Representation
Learning*, ICLR 2020. Equation numbers: Zhang & Boykov, arXiv 2303.07321.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import UNKNOWN, check_integer, check_prior, check_real
from coincide.methods.method import AllRows, Batch, BatchLoss, Method, weighted_mean
from coincide.pseudolabels import Sinkhorn, solve_pseudo_labels
from coincide.pseudolabels.objectives import Vector


@dataclass
class SeLa(Method):
    """Self-labeling by balanced hard labels of the whole data.

    Rows of known class take part in the transport like all others; the loss has them at the
    truth.

    Parameters
    ----------
    n_clusters : int
    prior : array of shape (K,), float64
        ``u``, the shares of the classes; uniform in the source.
    every : int
        Epochs between two labelings. The first epochs train on the random labels.
    sharpness : float
        The exponent of the predictions, λ in the source: 10 for CIFAR, 25 for ImageNet. The
        larger, the closer to (4) and the slower.
    marginal_tol : float
        Stop scaling at ``max_k |ȳ_k/u_k - 1|`` of this size.
    seed : int
        Of the random labels, the same on every rank.
    """

    n_clusters: int
    prior: Vector
    every: int = 1
    sharpness: float = 10.0
    marginal_tol: float = 0.1
    seed: int = 0
    _labels: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_integer(self.n_clusters, "n_clusters", owner, low=2)
        self.prior = check_prior(self.prior, self.n_clusters, owner)
        check_integer(self.every, "every", owner, low=1)
        check_real(self.sharpness, "sharpness", owner, open_low=True)
        check_real(self.marginal_tol, "marginal_tol", owner, open_low=True)
        check_integer(self.seed, "seed", owner, low=0)

    def begin_epoch(self, epoch: int, n_epochs: int, data: AllRows | None) -> None:
        """Draw random labels in the first epoch; later label all rows by their predictions."""
        del n_epochs
        if data is None:
            return
        if epoch == 0:
            self._labels = random_labels(len(data), self.prior, self.seed)
        elif epoch % self.every == 0:
            self._labels = self.transport(data.logits())

    def loss(self, network: nn.Module, batch: Batch) -> BatchLoss:
        """Return the cross-entropy of the changed view to the labels; known ones are the truth."""
        if self._labels is None:
            raise RuntimeError("SeLa has no labels before begin_epoch(0, ...) or restore(...).")
        logits = network(batch.views[0]).float()
        labels = self._labels[batch.rows.cpu()].to(logits.device)
        if batch.known is not None:
            known = batch.known.to(logits.device)
            labels = torch.where(known == UNKNOWN, labels, known)
        rows = F.cross_entropy(logits, labels, reduction="none")
        return BatchLoss(weighted_mean(rows, batch.weights), logits)

    def transport(self, logits: Tensor) -> Tensor:
        """Return balanced hard labels of predictions ``(M, K)``: int64, ``(M,)``."""
        log_probs = torch.log_softmax(logits.double(), 1)
        # The scaling of the columns takes up any constant, and this one spares it underflow:
        # every class becomes the first choice of some row, be it dead in all the predictions.
        probs = torch.softmax(log_probs - log_probs.amax(0), 1)
        found = solve_pseudo_labels(
            probs,
            prior=torch.from_numpy(self.prior),
            objective="ce+kl",
            solver=Sinkhorn(self.sharpness, self.marginal_tol),
        )
        return found.labels.argmax(1).cpu()

    def state(self) -> dict[str, Tensor]:
        """Return the labels, int64 of shape ``(M,)``; nothing before the first epoch."""
        return {} if self._labels is None else {"labels": self._labels}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the labels."""
        self._labels = state.get("labels")


def random_labels(n_rows: int, prior: Vector, seed: int) -> Tensor:
    """Return random labels whose counts follow the prior to within one row: int64, ``(M,)``."""
    middles = (torch.arange(n_rows, dtype=torch.float64) + 0.5) / n_rows
    labels = torch.searchsorted(torch.from_numpy(prior).cumsum(0), middles)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return labels[order]
