"""How much memory of this process is resident, now and at its highest, on Linux."""

from __future__ import annotations

import ctypes
from pathlib import Path


def resident(kind: str) -> int:
    """Return bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at its highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in status if line.startswith(kind))
    return 1024 * int(line.split()[1])


def return_freed() -> None:
    """Give back what was let go of, so that it is not there to be used again."""
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Set ``VmHWM`` to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
