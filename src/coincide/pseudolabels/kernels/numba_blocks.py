"""How compiled passes go over the rows: in blocks that fit the cache, ranges of them on threads."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba
import torch

T = TypeVar("T")

# Sums may be reassociated and divisions do not look for zeros, which vectorizes both; infinities
# and NaN keep their meaning.
compiled = numba.njit(
    nogil=True,
    cache=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz", "arcp"},
)

_ENTRIES_PER_THREAD = 100_000
_ENTRIES_PER_BLOCK = 4096
_LEAST_ROWS = 128


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Return the threads that all passes of the process share."""
    return ThreadPoolExecutor(count)


# Threads do not survive a fork.
os.register_at_fork(after_in_child=_threads.cache_clear)


class BlockedRows:
    """The ranges of rows that threads work on, and the rows of a block within them.

    Parameters
    ----------
    n_rows, n_classes : int
        Of the arrays; little work stays on one thread.
    """

    def __init__(self, n_rows: int, n_classes: int) -> None:
        threads = min(torch.get_num_threads(), os.cpu_count() or 1)
        self.count = max(1, min(threads, n_rows * n_classes // _ENTRIES_PER_THREAD))
        self.block = max(_LEAST_ROWS, _ENTRIES_PER_BLOCK // n_classes)
        edges = [n_rows * n // self.count for n in range(self.count + 1)]
        self._ranges = list(itertools.pairwise(edges))

    def each(self, work: Callable[[int, tuple[int, int]], T]) -> list[T]:
        """Run ``work(number, range)`` on every range of rows and return the results."""
        if self.count == 1:
            return [work(0, self._ranges[0])]
        return list(_threads(self.count).map(work, range(self.count), self._ranges))
