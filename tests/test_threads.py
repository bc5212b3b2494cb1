"""Who may use how many threads: settings are kept, limits honored, in workers and forks, too."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import joblib
import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from coincide import CollisionClustering, _threads, collision_cross_entropy, solve_pseudo_labels
from coincide._threads import BlockedRows, compiled, one_blas_thread, threads_for

LARGE = _threads._PAYS
PROBS = np.random.default_rng(0).dirichlet(np.ones(4), 300)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the process have three threads of everything on three cores, whatever the machine."""
    before = torch.get_num_threads()
    monkeypatch.setattr(_threads, "_cores", lambda: 3)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    with threadpool_limits(3):
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(before)


def pools() -> list[int]:
    """Return the threads of every pool: of PyTorch, OpenMP, NumPy's and SciPy's BLAS."""
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_little_work_has_one_thread_and_much_has_all() -> None:
    with threads_for(LARGE - 1):
        assert torch.get_num_threads() == 1
        with threads_for(LARGE):  # within, the number only becomes smaller
            assert torch.get_num_threads() == 1
    with threads_for(LARGE):
        assert torch.get_num_threads() == 3
        with threads_for(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


def test_settings_are_as_they_were_also_after_an_error() -> None:
    before = pools()

    def fail() -> None:
        with threads_for(1), one_blas_thread(), one_blas_thread():
            assert (torch.get_num_threads(), blas_threads()) == (1, {1})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert pools() == before


def test_solves_fits_and_losses_leave_the_settings() -> None:
    seen: list[int] = []
    before = pools()
    solve_pseudo_labels(PROBS)
    logits = torch.from_numpy(PROBS).repeat(200, 1).requires_grad_()
    collision_cross_entropy(logits, torch.softmax(logits.detach(), 1)).backward()
    model = CollisionClustering(
        4, n_init=1, max_epochs=1, callback=lambda _: seen.append(torch.get_num_threads())
    ).fit(PROBS)
    model.predict(PROBS)

    def fail(_: object) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        model.set_params(callback=fail).fit(PROBS)
    assert seen == [1]
    assert pools() == before


@pytest.mark.parametrize("limit", ["torch", "numba", "cores"])
def test_no_more_threads_than_the_caller_allows(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit == "torch":
        torch.set_num_threads(2)
    elif limit == "numba":
        monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    else:
        monkeypatch.setattr(_threads, "_cores", lambda: 2)
    assert BlockedRows(LARGE, 10).count == 2
    with threads_for(LARGE):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "LOKY_MAX_CPU_COUNT"])
def test_what_the_environment_says_is_honored(name: str) -> None:
    code = "from coincide._threads import allowed_threads; print(allowed_threads())"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: "1"}, capture_output=True, check=True
    )
    assert json.loads(found.stdout) == 1


def test_other_threads_keep_theirs_in_pytorch() -> None:
    found: list[int] = []

    def ask() -> None:
        found.append(torch.get_num_threads())

    old = threading.Thread(target=ask)
    with threads_for(1):
        new = threading.Thread(target=ask)
        for thread in (old, new):
            thread.start()
            thread.join()
    assert found == [3, 3]


def test_blas_is_restored_by_the_last_thread_to_leave() -> None:
    entered, leave = threading.Event(), threading.Event()
    before = blas_threads()

    def stay() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with one_blas_thread():
        thread.start()
        entered.wait()
    assert blas_threads() == {1}
    leave.set()
    thread.join()
    assert blas_threads() == before


def test_fits_in_threads_of_the_caller_agree_and_leave_the_settings() -> None:
    def fit(seed: int) -> list[int]:
        model = CollisionClustering(4, n_init=1, max_epochs=1, random_state=seed)
        found: list[int] = model.fit(PROBS).labels_.tolist()
        return found

    before = pools()
    joblib.Parallel(3, backend="threading")(joblib.delayed(fit)(seed) for seed in range(3))
    assert pools() == before


def solved_in_a_worker() -> tuple[float, int]:
    return solve_pseudo_labels(PROBS).objective, _threads.allowed_threads()


def test_a_joblib_worker_solves_and_keeps_to_its_share() -> None:
    (objective, allowed), _ = joblib.Parallel(2)(
        joblib.delayed(solved_in_a_worker)() for _ in range(2)
    )
    assert objective == pytest.approx(solve_pseudo_labels(PROBS).objective, rel=1e-9)
    assert allowed <= max(1, joblib.cpu_count() // 2)


def in_a_fork(answers: multiprocessing.SimpleQueue[list[int]]) -> None:
    many = BlockedRows(LARGE, 10)
    with threads_for(LARGE):
        answers.put([many.count, torch.get_num_threads(), solve_pseudo_labels(PROBS).n_iter])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_goes_on_with_one_thread() -> None:
    steps = solve_pseudo_labels(PROBS).n_iter
    BlockedRows(LARGE, 10).each(lambda number, _: number)  # the pool is alive
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with one_blas_thread():
        process = context.Process(target=in_a_fork, args=(answers,))
        process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() == [1, 1, steps]


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
    monkeypatch.setattr(_threads, "_ENTRIES_PER_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(_threads, "_cores", lambda: n_threads)
    here: list[bool] = []

    def work(number: int, rows: tuple[int, int]) -> tuple[int, list[int]]:
        here.append(threading.current_thread() is threading.main_thread())
        return number, list(range(*rows))

    found = BlockedRows(13, 5).each(work)
    assert [number for number, _ in found] == list(range(n_threads))
    assert [row for _, rows in found for row in rows] == list(range(13))
    assert here.count(True) == 1
