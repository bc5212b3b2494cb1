"""What the C library does with freed memory while a training runs.

glibc gives large blocks (above 32 MiB always) back to the system as soon as they are freed. A
training frees and takes the same few in every step, and each time the system maps fresh pages and
fills them with zeros: a fifth of the time of a step of ``vgg4`` on one thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h; what they are by default stands in mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17, _MMAP_THRESHOLD: 2**25}
_OWN_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep the memory that it frees, and give it back at the end.

    With glibc and no settings of the user's own for its allocator (``MALLOC_…_``,
    ``GLIBC_TUNABLES``); elsewhere nothing changes. glibc does not tell its settings. After the
    first training they are the largest that it reaches by itself, not those that it starts from.
    """
    library = _glibc()
    if library is None:
        yield
        return
    try:
        for setting, value in _KEPT.items():
            library.mallopt(setting, value)
        yield
    finally:
        for setting, value in _USUAL.items():
            library.mallopt(setting, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and nobody else has set its allocator."""
    if platform.libc_ver()[0] != "glibc" or any(n.startswith(_OWN_SETTINGS) for n in os.environ):
        return None
    library = ctypes.CDLL(None)
    # Where another allocator was preloaded these settings would not reach it.
    return library if hasattr(library, "gnu_get_libc_version") else None
