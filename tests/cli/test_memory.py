"""Freed memory is kept by the process of the command alone, and where the user says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Of a block of 64 MiB, above all that glibc keeps by itself, taken and freed again and again.
FAULTS = """
import resource
from coincide.cli.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed_memory()
faults()  # until the heap has room for it
print(before, faults())
"""
OWN = ("MALLOC_", "GLIBC_TUNABLES")


def faults(**settings):
    """Return the page faults before and after the call, in a process of its own."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(OWN)} | settings
    run = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, printed.stdout.split())
    return before, after


def test_freed_memory_is_kept():
    before, after = faults()
    if platform.libc_ver()[0] == "glibc":
        assert after < before / 10


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_own_settings_of_the_allocator_stay(name):
    before, after = faults(**{name: "glibc.malloc.arena_max=2" if name[0] == "G" else "2"})
    assert after > before / 2
