"""Views of feature vectors: small random changes that should not change the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class VectorView:
    """Dropout and Gaussian noise on scaled feature vectors.

    Parameters
    ----------
    dropout : float
        Share of the entries set to 0, in [0, 1); the others grow by ``1/(1 - dropout)``.
    noise : float
        Standard deviation of the noise added, in units of the scaled features.
    """

    dropout: float = 0.0
    noise: float = 0.0

    @property
    def identity(self) -> bool:
        """Whether the view changes nothing."""
        return self.dropout == 0 and self.noise == 0

    def __call__(self, rows: Tensor) -> Tensor:
        """Return a changed copy; the randomness is torch's global generator."""
        if self.dropout > 0:
            rows = F.dropout(rows, self.dropout)
        if self.noise > 0:
            rows = rows + self.noise * torch.randn_like(rows)
        return rows
