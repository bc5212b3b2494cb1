"""How compiled passes go over the rows: in blocks that fit the cache, ranges of them on threads."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import torch
from numpy.typing import NDArray

T = TypeVar("T")

_ENTRIES_PER_THREAD = 100_000
_ENTRIES_PER_BLOCK = 4096
_LEAST_ROWS = 128


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled at its first call, and kept on disk for other processes.

    It does not hold the interpreter. Sums may be reassociated and divisions do not look for zeros,
    which vectorizes both; infinities and NaN keep their meaning.
    """
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    compiler = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        kept: Callable[..., Any] = compiler(cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor one of the user's can be written: each process compiles.
        kept = compiler()(function)
    return kept


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Return the threads that all passes of the process share."""
    return ThreadPoolExecutor(count)


if hasattr(os, "register_at_fork"):
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
        self.count = max(1, n_rows * n_classes // _ENTRIES_PER_THREAD)
        if self.count > 1:  # to ask the system takes as long as a pass over a small array
            self.count = min(self.count, torch.get_num_threads(), os.cpu_count() or 1)
        self.block = max(_LEAST_ROWS, _ENTRIES_PER_BLOCK // n_classes)
        edges = [n_rows * n // self.count for n in range(self.count + 1)]
        self._ranges = list(itertools.pairwise(edges))

    def each(self, work: Callable[[int, tuple[int, int]], T]) -> list[T]:
        """Run ``work(number, range)`` on every range of rows and return the results."""
        *others, own = enumerate(self._ranges)
        waiting = [_threads(len(others)).submit(work, *each) for each in others]
        result = work(*own)  # in this thread, which would only wait: to wake one takes a while
        return [each.result() for each in waiting] + [result]

    def summed(self, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
        """Return the sum of an array of every range, without a copy where there is only one."""
        first, *others = parts
        return sum(others, first)
