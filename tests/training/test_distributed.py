"""Two processes are one: the same pseudo-labels, the same network, the same records."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import coincide
import two_ranks
from coincide.training.distributed import join_ranks
from coincide.training.ranks import ALONE
from two_ranks import LABELINGS, TRAININGS, K, M

TIMEOUT = 90  # seconds, for a machine that is busy with other things


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes made of everything in ``two_ranks``."""
    folder = tmp_path_factory.mktemp("ranks")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(index), str(folder)],
            env={**os.environ, **meeting, "RANK": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    return two_ranks.one_process()


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=tolerance, rtol=0)


# Pseudo-labels


@pytest.mark.parametrize("case", LABELINGS, ids=lambda case: "-".join(map(str, case)))
def test_the_labels_of_halves_are_those_of_the_whole(both, alone, case):
    found = torch.cat([rank["labels"][case] for rank in both])
    assert found.shape == (M, 2 * K)
    torch.testing.assert_close(found, alone["labels"][case], atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", two_ranks.OBJECTIVES)
def test_the_labels_of_parts_of_a_large_batch_are_those_of_the_whole(both, alone, objective):
    found = torch.cat([rank["many"][objective] for rank in both])
    torch.testing.assert_close(found, alone["many"][objective], atol=1e-6, rtol=0)


def test_each_process_draws_from_its_rows_for_a_first_sample(both, alone):
    """The multipliers they start from are others then, but they are the same for both."""
    for one, other in zip(*(rank["lopsided"] for rank in both), strict=True):
        assert one == other
        assert one[2]
        assert one[0] == pytest.approx(alone["lopsided"][0], abs=3e-6)


@pytest.mark.parametrize("case", LABELINGS, ids=lambda case: "-".join(map(str, case)))
def test_the_labels_of_a_half_alone_are_others(both, case):
    """Or nothing of the above would show that the processes talk."""
    if case[2] == "all":
        pytest.skip("known rows need no other process")
    half = two_ranks.labels_of(case, two_ranks.HALVES[1])
    assert not torch.allclose(half, both[1]["labels"][case], atol=1e-3)


@pytest.mark.parametrize("solver", ["em", "projected-gradient"])
def test_a_solver_that_cannot_share_is_refused_by_name(solver):
    method = two_ranks.method_of(solver=solver)
    method.sums = ALONE
    for work in (method.labels, method.evaluate):
        with pytest.raises(ValueError, match=f"{solver}.*several processes.*'active-set'"):
            work(torch.zeros(3, K))


# Training


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_train_the_network_of_one(both, alone, name):
    expected_records, expected = alone["trainings"][name]
    (records, weights), (others, other_weights) = (rank["trainings"][name] for rank in both)
    assert records == others
    assert_close(weights, other_weights, 0)
    assert_close(weights, expected, 1e-5)
    start = two_ranks.network_of(two_ranks.method_of()).state_dict()
    assert not torch.allclose(start["head.weight"], weights["head.weight"], atol=1e-2)
    assert len(records) == 3
    for record, one in zip(records, expected_records, strict=True):
        assert record.loss == pytest.approx(one.loss, abs=1e-5)
        for count in ("live_clusters", "changed", "least_share", "largest_share"):
            assert getattr(record, count) == getattr(one, count)


def test_two_ranks_revive_what_one_does(both, alone):
    """Within the epoch no rank knows the clusters of all rows by itself."""
    (record,), expected = alone["revived"]
    assert record.revived == 1
    for records, weights in (rank["revived"] for rank in both):
        assert [record.revived for record in records] == [1]
        assert_close(weights, expected, 1e-5)
        assert_close(weights, both[0]["revived"][1], 0)


def test_what_a_method_reports_is_the_mean_over_the_ranks(both):
    (records, weights), (others, other_weights) = (rank["iic"] for rank in both)
    assert records == others
    assert all(set(record.quantities) == {"sub_head"} for record in records)
    trained = [name for name in weights if not name.endswith(("running", "chosen"))]
    for name in trained:
        assert torch.equal(weights[name], other_weights[name])


def test_every_rank_goes_on_from_its_own_state_bit_for_bit(both):
    for rank in both:
        (records, weights), (whole_records, whole) = rank["resumed"], rank["trainings"]["plain"]
        assert records == whole_records
        assert_close(weights, whole, 0)


# What the ranks say to each other


def test_gradients_are_averaged_where_any_rank_has_one(both):
    for rank in both:
        of_both, of_one, of_neither, of_frozen = rank["averaged"]
        assert torch.equal(of_both, torch.full((2, 3), 1.5))
        assert torch.equal(of_one, torch.arange(6.0).view(2, 3) / 2)
        assert of_neither is None
        assert of_frozen is None


def test_sums_are_exact_and_equal(both):
    for rank in both:
        summed, total, least, untouched = rank["sums"]
        first = np.array([[1e16, 1.0], [0.1, -1e16]])
        assert summed.dtype == np.float64
        np.testing.assert_array_equal(summed, first + (1 - first))
        assert total.tolist() == [10, 12, 14]
        assert total.dtype == torch.int64
        assert least == 2.0
        assert untouched
        assert rank["sums attached"]


def test_torchrun_is_joined_and_left(both):
    assert [rank["joined"] for rank in both] == [(2, 0, 2.0, False), (2, 1, 2.0, False)]


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_other_processes_there_is_nothing_to_join(environment, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join_ranks(torch.device("cpu")) as ranks:
        assert ranks is ALONE
    assert not torch.distributed.is_initialized()


def test_torch_distributed_stays_in_one_file():
    """import-linter sees packages of others as a whole, so it cannot tell."""
    package = Path(coincide.__file__).parent
    imports = re.compile(r"(import|from) torch\.distributed|torch import distributed")
    using = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if imports.search(path.read_text())
    ]
    assert using == ["training/distributed.py"]
