"""What the C library does with freed memory while ``coincide train`` runs.

glibc gives large blocks (above 32 MiB always) back to the system as soon as they are freed. A
training frees and takes the same few in every step, and each time the system maps fresh pages and
fills them with zeros. The command's process is its own and ends with it; a library must not leave
the allocator of a process changed, so nothing else calls this.
"""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEPT = {-4: 0, -1: 2**31 - 1, -2: 2**26}


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, until it ends.

    With glibc, and no settings of the user's own for its allocator (``MALLOC_…_``,
    ``GLIBC_TUNABLES``); elsewhere nothing changes.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for setting, value in _KEPT.items():
        library.mallopt(setting, value)
