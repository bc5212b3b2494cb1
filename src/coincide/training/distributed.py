"""The processes that ``torchrun`` starts: sums over them, and the mean of their gradients.

The only file that knows ``torch.distributed``. Every process calls the same methods in the same
order; each gets the same numbers back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from coincide.training.ranks import ALONE, Ranks


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` started, and leave them at the end.

    Parameters
    ----------
    device : torch.device
        Of the network; ``cuda`` without a number becomes the one that ``LOCAL_RANK`` names.

    Yields
    ------
    Ranks
        A single process, where the environment has no ``WORLD_SIZE`` above 1.

    Examples
    --------
    >>> import torch
    >>> with join_ranks(torch.device("cpu")) as ranks:
    ...     ranks.size
    1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"]) if device.index is None else device.index
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield TorchRanks(device)
    finally:
        dist.destroy_process_group()


class TorchRanks(Ranks):
    """The processes of the default group of ``torch.distributed``.

    Parameters
    ----------
    device : torch.device
        What is sent passes through it: the CPU for gloo, a GPU for nccl.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = dist.get_world_size()
        self.index = dist.get_rank()
        self._device = device

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes, on the tensor's own device."""
        sent = tensor.detach().to(self._device, copy=True).contiguous()
        dist.all_reduce(sent)
        return sent.to(tensor.device)

    def sum(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over the processes, in float64."""
        summed: NDArray[np.float64] = self.total(torch.tensor(vector, dtype=torch.float64)).numpy()
        return summed

    def least(self, value: float) -> float:
        """Return the smallest value of any process."""
        sent = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(sent, dist.ReduceOp.MIN)
        return float(sent)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message.

        A process without a gradient counts as one of zeros. Where no process has one there is
        none afterwards, so that the optimizer passes over the parameter as it would on one process.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            return
        held = trained[0].new_tensor([parameter.grad is not None for parameter in trained])
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        sent = torch.cat([held, *(gradient.detach().flatten() for gradient in gradients)])
        dist.all_reduce(sent)
        counts, *sums = torch.split(sent, [len(trained), *(p.numel() for p in trained)])
        for parameter, summed, count in zip(trained, sums, counts.tolist(), strict=True):
            if count:
                parameter.grad = (summed / self.size).view_as(parameter).to(parameter.dtype)
