"""Freed memory is kept for the next step while a training runs, and given back after it."""

from __future__ import annotations

import os
import resource

import torch

from coincide.training import memory

ROUNDS = 5
ENTRIES = 2**24  # 64 MiB, above all that glibc keeps by itself


def faults() -> int:
    """Return the page faults of a block that is taken and freed again and again."""
    for _ in range(ROUNDS):  # until the heap has room for it
        torch.ones(ENTRIES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        torch.ones(ENTRIES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_kept_within_a_training_alone(monkeypatch):
    for name in [n for n in os.environ if n.startswith(memory._OWN_SETTINGS)]:
        monkeypatch.delenv(name)
    if memory._glibc() is None:
        with memory.kept_memory():  # harmless
            assert faults() >= 0
        return
    outside = faults()
    with memory.kept_memory():
        assert faults() < outside / 10
    assert faults() > outside / 2


def test_the_users_own_settings_of_the_allocator_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert memory._glibc() is None
