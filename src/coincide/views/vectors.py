"""Views of feature vectors: small random changes that should not change the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEVELS = 1 << 16


@dataclass(frozen=True)
class VectorView:
    """Dropout and Gaussian noise on scaled feature vectors.

    Parameters
    ----------
    dropout : float
        Share of the entries set to 0, in [0, 1), to 1/65,536; the others grow by
        ``1/(1 - dropout)``.
    noise : float
        Standard deviation of the noise added, in units of the scaled features.
    """

    dropout: float = 0.0
    noise: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        """Return a changed copy; the randomness is torch's global generator."""
        if self.dropout > 0:
            rows = _drop(rows, self.dropout)
        if self.noise > 0:
            rows = rows + self.noise * torch.randn_like(rows)
        return rows


def _drop(rows: Tensor, share: float) -> Tensor:
    """Dropout from 16 random bits an entry: several times as fast as 24 on the CPU."""
    threshold = round(share * _LEVELS)
    words = torch.empty(-(-rows.numel() // 4), dtype=torch.int64, device=rows.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: rows.numel()].view(rows.shape)
    kept = bits >= threshold - _LEVELS // 2
    return rows * kept * (_LEVELS / (_LEVELS - threshold))
