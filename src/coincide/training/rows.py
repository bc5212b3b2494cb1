"""The rows of a training, and all of them as the network sees them now."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from coincide._threads import network_entries, threads_for

_PREDICTED_ROWS = 1000


class Rows(Protocol):
    """Inputs that can be indexed by row numbers and come as tensors on the device."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> Tensor: ...


class PredictedRows:
    """All rows as the network sees them now: plain, in evaluation mode, block by block.

    Parameters
    ----------
    network : nn.Module
    rows : Rows
    half : bool
        Whether its products are in bfloat16, as in training.
    """

    def __init__(self, network: nn.Module, rows: Rows, *, half: bool = False) -> None:
        self._network = network
        self._rows = rows
        self._half = half

    def __len__(self) -> int:
        return len(self._rows)

    def logits(self) -> Tensor:
        """Return the logits of every row, ``(M, K)``, float32 on the CPU."""
        return self._collect(self._network)

    def features(self, rows: Tensor | None = None) -> Tensor:
        """Return what the head sees of every row, or of some, ``(M, D)``, float32 on the CPU."""
        backbone = self._network.backbone
        assert isinstance(backbone, nn.Module)
        return self._collect(backbone, rows)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return plain rows by their numbers."""
        return self._rows[rows]

    @torch.no_grad()
    def _collect(self, part: nn.Module, numbers: Tensor | None = None) -> Tensor:
        training = self._network.training
        self._network.eval()
        blocks = []
        n_rows = len(self._rows if numbers is None else numbers)
        for start in range(0, n_rows, _PREDICTED_ROWS):
            block = slice(start, start + _PREDICTED_ROWS)
            rows = self._rows[block if numbers is None else numbers[block]]
            half = torch.autocast(rows.device.type, torch.bfloat16, enabled=self._half)
            with threads_for(network_entries(self._network, rows.shape)), half:
                blocks.append(part(rows).float().cpu())
        self._network.train(training)
        return torch.cat(blocks)
