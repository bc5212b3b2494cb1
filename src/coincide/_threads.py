"""Who may use how many threads: the one place that decides, for PyTorch, BLAS and compiled passes.

Every parallel region waits for its slowest thread. Where other programs want the same cores, that
thread waits for a time slice, some milliseconds; a pass that takes less is slower on two threads
than on one, and a thousand such passes a second are a hundred times as slow. So a pass is shared
out only if it is a few milliseconds of work, and never to more threads than its caller allows.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import nn

T = TypeVar("T")

# Entries of an array that an operation of PyTorch takes about a millisecond for.
_PAYS = 1_000_000
# Multiplications that a matrix product does in the time of one entry of such an operation.
_PRODUCTS_PER_ENTRY = 20
# Entries of a compiled pass, which does many operations on each, for one more thread.
_ENTRIES_PER_THREAD = 200_000
_ENTRIES_PER_BLOCK = 4096
_LEAST_ROWS = 128

_forked = threading.Event()


def allowed_threads() -> int:
    """Return how many threads work for the calling thread may run on.

    Never more than ``torch.set_num_threads``, ``OMP_NUM_THREADS`` (which PyTorch reads),
    ``NUMBA_NUM_THREADS``, the affinity of the process and the quota of its container say. One in
    a process that was forked: OpenMP's threads do not survive that, and who forks has workers.
    """
    if _forked.is_set():
        return 1
    told = int(os.environ.get("NUMBA_NUM_THREADS", "0")) or torch.get_num_threads()
    return min(told, torch.get_num_threads(), _cores())


@contextmanager
def threads_for(entries: int) -> Iterator[None]:
    """Give the calling thread as many threads of PyTorch as passes over so many entries are worth.

    Other threads keep theirs. Within another such block the number can only become smaller.
    Afterwards it is as it was.

    Parameters
    ----------
    entries : int
        Of the largest arrays that are passed over.
    """
    before = torch.get_num_threads()  # which also lets PyTorch set the number up in this thread
    count = min(allowed_threads() if entries >= _PAYS else 1, before)
    if count == before:
        yield
        return
    set_openmp, set_mkl = _setters()
    set_openmp(count)
    mkl_before = set_mkl(count)
    try:
        yield
    finally:
        set_openmp(before)
        set_mkl(mkl_before)


def network_entries(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the entries whose pass takes as long as a layer of a network on a batch.

    Parameters
    ----------
    network : nn.Module
    shape : sequence of int
        Of a batch: a convolution takes its products at each of the pixels of an image.
    """
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    pixels = math.prod(shape[2:])
    products = sum(w.numel() * (pixels if w.ndim > 2 else 1) for w in weights)
    by_layer = shape[0] * products // (_PRODUCTS_PER_ENTRY * max(1, len(weights)))
    return max(by_layer, math.prod(shape))


@contextmanager
def every_pool_for(entries: int) -> Iterator[None]:
    """Keep other libraries to one thread, too, where passes over so many entries are worth no more.

    For what is called seldom, such as scikit-learn's k-means: to find all pools takes a while.
    """
    if entries >= _PAYS:
        yield
        return
    with threadpool_limits(1):
        yield


@functools.cache
def _setters() -> tuple[Callable[[int], Any], Callable[[int], int]]:
    """Return what sets the threads of OpenMP and of MKL in the calling thread.

    ``torch.set_num_threads`` would also set them for threads that have not used PyTorch yet.
    """
    library = ctypes.CDLL(torch._C.__file__)
    openmp = getattr(library, "omp_set_num_threads", torch.set_num_threads)
    return openmp, getattr(library, "MKL_Set_Num_Threads_Local", lambda count: count)


class _BlasThreads:
    """The pools of NumPy's and SciPy's BLAS, on one thread while any thread wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()  # how often this thread is inside
        self._inside = 0  # threads
        self._before: list[tuple[Callable[[int], Any], int]] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """Keep to one thread inside the block."""
        self._own.depth = getattr(self._own, "depth", 0) + 1
        if self._own.depth == 1:
            self._enter()
        try:
            yield
        finally:
            self._own.depth -= 1
            if self._own.depth == 0:
                self._leave()

    def _enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [(set_count, get()) for get, set_count in _blas_pools()]
                for set_count, _ in self._before:
                    set_count(1)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for set_count, count in self._before:
                    set_count(count)

    def after_fork(self) -> None:
        """Go on with the one thread that survives."""
        self._lock = threading.Lock()
        others = self._inside > 0
        self._inside = int(getattr(self._own, "depth", 0) > 0)
        if others and self._inside == 0:
            for set_count, count in self._before:
                set_count(count)


_blas = _BlasThreads()


def one_blas_thread() -> AbstractContextManager[None]:
    """Return a context in which products and factors of K×K stay on the calling thread.

    The pools of NumPy's and SciPy's BLAS belong to the whole process and wait actively; beside the
    threads that share the rows they cost more than they bring. The last thread to leave restores.
    """
    return _blas.one()


@functools.cache
def _blas_pools() -> list[tuple[Callable[[], int], Callable[[int], Any]]]:
    """Return what tells and sets the threads of every pool; to find them takes as long as a solve.

    Newer versions of threadpoolctl let one thread of a process set OpenBLAS's and ignore the
    others, which would leave it limited when the first thread to come is not the last to go.
    """
    pools = [p for p in ThreadpoolController().lib_controllers if p.user_api == "blas"]
    return [
        (p.get_num_threads, getattr(p, "_real_set_num_threads", p.set_num_threads)) for p in pools
    ]


@functools.cache
def _cores() -> int:
    """Return the cores of this process, by its affinity and the quota of its container."""
    from joblib import cpu_count

    count: int = cpu_count()
    return count


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled at its first call, and kept on disk for other processes.

    It does not hold the interpreter. Sums may be reassociated and divisions do not look for zeros,
    which vectorizes both; infinities and NaN keep their meaning.
    """
    import numba

    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    compiler = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        kept: Callable[..., Any] = compiler(cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor one of the user's can be written: each process compiles.
        kept = compiler()(function)
    return kept


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
            self.count = min(self.count, allowed_threads())
        self.block = max(_LEAST_ROWS, _ENTRIES_PER_BLOCK // n_classes)
        edges = [n_rows * n // self.count for n in range(self.count + 1)]
        self._ranges = list(itertools.pairwise(edges))

    def each(self, work: Callable[[int, tuple[int, int]], T]) -> list[T]:
        """Run ``work(number, range)`` on every range of rows and return the results."""
        *others, own = enumerate(self._ranges)
        waiting = [_helpers(len(others)).submit(work, *each) for each in others]
        result = work(*own)  # in this thread, which would only wait: to wake one takes a while
        return [each.result() for each in waiting] + [result]

    def summed(self, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
        """Return the sum of an array of every range, without a copy where there is only one."""
        first, *others = parts
        return sum(others, first)


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Return the threads that all passes of the process share."""
    return ThreadPoolExecutor(count)


def _after_fork() -> None:
    """Forget the threads that did not survive."""
    _forked.set()
    _helpers.cache_clear()
    _blas.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
