"""Keep BLAS to one thread where its pools would fight with the threads that are there already.

NumPy's and SciPy's BLAS each keep a pool that waits actively; beside PyTorch's threads and those
of the row kernels they cost more than they bring until matrices are large.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

from threadpoolctl import ThreadpoolController

_THREADED_FROM = 64  # classes: below, BLAS does not use its pool


def one_blas_thread(n_classes: int) -> AbstractContextManager[object]:
    """Return a context in which products and factors of K×K stay on the calling thread.

    To enter it takes some 0.1 ms: solvers do so once for all their steps.
    """
    if n_classes < _THREADED_FROM:
        return nullcontext()
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
