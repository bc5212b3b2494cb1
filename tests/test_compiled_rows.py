"""Compiled functions and the threads that run them."""

from __future__ import annotations

import os
import threading

import numba
import pytest
import torch

from coincide import _compiled_rows
from coincide._compiled_rows import BlockedRows, compiled


def test_code_that_cannot_be_kept_on_disk_is_compiled_all_the_same() -> None:
    found: dict[str, object] = {}
    exec("def double(x): return 2 * x", found)  # in no file, so beside none
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(found["double"])
    assert compiled(found["double"])(21) == 42


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_ranges_cover_the_rows_once_and_one_stays_here(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compiled_rows, "_ENTRIES_PER_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(os, "cpu_count", lambda: n_threads)
    here: list[bool] = []

    def work(number: int, rows: tuple[int, int]) -> tuple[int, list[int]]:
        here.append(threading.current_thread() is threading.main_thread())
        return number, list(range(*rows))

    found = BlockedRows(13, 5).each(work)
    assert [number for number, _ in found] == list(range(n_threads))
    assert [row for _, rows in found for row in rows] == list(range(13))
    assert here.count(True) == 1
