"""Torch's global generators, lent to one training at a time.

Networks, views and dropout draw from them. A training that is given its own states of them repeats
its seed whatever else runs: trainings in threads of one process take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LENT = threading.RLock()


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Let nobody else draw from them inside the block, and leave them as they were."""
    with _LENT, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed them inside the block, and leave them as they were."""
    with own_generators(device):
        torch.manual_seed(seed)
        yield
