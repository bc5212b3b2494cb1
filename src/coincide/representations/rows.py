"""Rows as a representation shows them, batch by batch: what the network is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Points = NDArray[np.float32]
"""Scaled rows, (M, D)."""

_ENTRIES_PER_BLOCK = 1_000_000
_KEPT_ENTRIES = 250_000_000  # 1 GB of float32: below this the rows stay in memory


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cover the rows in blocks of about a million entries."""
    step = max(1, _ENTRIES_PER_BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def read_rows(features: NDArray[Any]) -> Tensor:
    """Return a copy as a tensor: float64 where float32 would cost digits before centering."""
    return torch.from_numpy(np.array(features, exact_dtype(features), order="C"))


def exact_dtype(features: Features) -> np.dtype[Any]:
    """Return float32 where it holds the features exactly, else float64."""
    return np.dtype(np.float32 if np.can_cast(features.dtype, np.float32) else np.float64)


class SparseRows:
    """Rows of a sparse matrix that come as dense ones, a block at a time.

    Parameters
    ----------
    matrix : sparse matrix or array of shape (M, D), in rows (CSR)
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix
        self.shape: tuple[int, int] = matrix.shape
        self.size: int = matrix.shape[0] * matrix.shape[1]
        self.dtype: np.dtype[Any] = matrix.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, int):
            return self[rows : rows + 1].ravel()
        return np.asarray(self._matrix[rows].toarray())

    def where(self, mask: NDArray[np.bool_]) -> SparseRows:
        """Return the rows of a mask, sparse as they are."""
        return SparseRows(self._matrix[mask])


Features = NDArray[Any] | SparseRows


def rows_with_weight(features: Features, weights: NDArray[np.float64]) -> Features:
    """Return the rows whose weight is not 0."""
    mask = weights > 0
    return features.where(mask) if isinstance(features, SparseRows) else features[mask]


class RepresentedRows:
    """Feature vectors in a representation, as float32 tensors on a device.

    Made once and kept when they fit in memory, else made batch by batch (a memory map is then
    never loaded as a whole).
    """

    def __init__(
        self, features: Features, represent: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self._features = features
        self._represent = represent
        self._device = device
        self._kept = self._read(slice(None)) if features.size <= _KEPT_ENTRIES else None

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if self._kept is not None:
            return self._kept[rows.to(self._device) if isinstance(rows, Tensor) else rows]
        return self._read(rows)

    def _read(self, rows: Tensor | slice) -> Tensor:
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        return self._represent(read_rows(self._features[index]).to(self._device))
