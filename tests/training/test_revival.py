"""Empty clusters take over half of a large one."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from coincide.methods import CollisionMethod
from coincide.networks import Network
from coincide.training.config import TrainingConfig
from coincide.training.loop import Data
from coincide.training.revival import revive, stretches, take_over
from small_training import SpyMethod, seeded, trainer_of

D, K, EACH = 6, 4, 40
EMPTY = 3


class Known:
    """Rows whose features are known; remembers whose were asked for."""

    def __init__(self, features):
        self.rows, self.asked = features, []

    def features(self, rows=None):
        self.asked.append(rows)
        return self.rows[rows]


def blobs(n_blobs=K, spread=0.1, each=EACH):
    """Return blobs around the axes, the last two of them near each other."""
    centers = 4 * torch.eye(n_blobs, D)
    centers[-1] = centers[-2] + torch.eye(n_blobs, D)[-1]
    noise = spread * torch.randn(n_blobs * each, D, generator=seeded(1))
    return centers.repeat_interleave(each, 0) + noise


def lopsided_head():
    """Return a head that puts the last two blobs into one cluster, and nothing into the other."""
    head = nn.Linear(D, K)
    with torch.no_grad():
        head.weight.copy_(4 * torch.eye(K, D))
        head.weight[EMPTY] = 0
        head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -50.0]))
    return head


def test_the_halves_of_the_largest_cluster_are_its_two_blobs():
    rows, head = blobs(), lopsided_head()
    before = head(rows).detach()
    assert revive(head, before.argmax(1), Known(rows)) == ((EMPTY, 2),)
    after = head(rows).detach()
    found = after.argmax(1).reshape(K, EACH)
    assert [len(set(blob.tolist())) for blob in found] == [1, 1, 1, 1]
    assert {int(blob[0]) for blob in found[2:]} == {2, EMPTY}
    assert torch.equal(after[:, :2], before[:, :2])


def test_at_the_centers_of_the_halves_one_is_ahead_by_four():
    rows, head = blobs(spread=0.0), lopsided_head()
    before = head(rows).detach()
    revive(head, before.argmax(1), Known(rows))
    after = head(rows).detach()
    ahead = (after[:, 2] - after[:, EMPTY])[2 * EACH :: EACH]
    assert sorted(ahead.tolist()) == pytest.approx([-4, 4], abs=1e-4)
    middle = (after[:, 2] + after[:, EMPTY]) / 2
    torch.testing.assert_close(middle, before[:, 2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows_left", [7, 8])
def test_empty_is_less_than_a_fifth_of_the_mean(rows_left):
    """Of 160 rows in four clusters the mean is 40, a fifth of it 8."""
    clusters = torch.arange(K).repeat_interleave(EACH)
    clusters[3 * EACH : 4 * EACH - rows_left] = 2
    found = revive(lopsided_head(), clusters, Known(blobs()))
    assert found == (((EMPTY, 2),) if rows_left < 8 else ())


def test_full_clusters_are_left_alone_and_no_features_are_asked_for():
    head = lopsided_head()
    before = head.weight.clone()
    assert revive(head, torch.arange(K).repeat(EACH), None) == ()
    assert torch.equal(head.weight, before)


def test_rows_that_were_not_seen_lately_do_not_count():
    """With them no cluster is empty; and the halves are those of the rows that count."""
    clusters = torch.arange(K).repeat_interleave(EACH)
    clusters[-EACH // 2 :] = 2
    assert revive(lopsided_head(), clusters, None) == ()
    late = torch.where(clusters == EMPTY, -1, clusters)
    late[:10] = -1
    rows = Known(blobs())
    assert revive(lopsided_head(), late, rows) == ((EMPTY, 2),)
    assert [asked.tolist() for asked in rows.asked] == [torch.nonzero(late == 2)[:, 0].tolist()]


def test_a_thousand_rows_of_a_cluster_are_enough():
    clusters = torch.tensor([0] * 2500 + [1] * 500)
    head, rows = nn.Linear(D, K), Known(torch.randn(3000, D, generator=seeded()))
    assert revive(head, clusters, rows) == ((2, 0),)
    (asked,) = rows.asked
    assert asked.tolist() == list(range(0, 2500, 3))


def test_a_cluster_is_halved_once_and_only_if_it_is_large():
    clusters = torch.tensor([0] * 90 + [1] * 60 + [2] * 10)
    found = revive(nn.Linear(D, 8), clusters, Known(blobs()))
    assert found == ((3, 0), (4, 1))  # of the empty 3 to 7; the mean is 20, and 2 is below


def test_equal_rows_have_no_halves():
    head = lopsided_head()
    before = head.weight.clone()
    clusters = torch.full((EACH,), 1)
    assert revive(head, clusters, Known(torch.ones(EACH, D))) == ()
    assert torch.equal(head.weight, before)


def test_all_processes_take_the_cut_of_the_first():
    class Ranks:
        """The first process, or another one that is told what the first had."""

        size = 2

        def __init__(self, index, others=0):
            self.index, self.others, self.sent = index, others, None

        def total(self, tensor):
            self.sent = tensor
            return tensor + self.others

    rows, heads = blobs(), [lopsided_head(), lopsided_head()]
    clusters = heads[0](rows).argmax(1)
    first = Ranks(0)
    revive(heads[0], clusters, Known(rows), first)
    # Its batch statistics differ, and so do its features.
    revive(heads[1], clusters, Known(rows.flip(1)), Ranks(1, first.sent))
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)


def test_the_optimizer_takes_the_revived_for_the_halved():
    head = lopsided_head()
    optimizer = torch.optim.Adam(head.parameters())
    head(blobs()).square().sum().backward()
    optimizer.step()
    take_over(optimizer, head.parameters(), [(EMPTY, 2)])
    for parameter in head.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            memory = optimizer.state[parameter][name]
            assert torch.equal(memory[EMPTY], memory[2])
            assert not torch.equal(memory[EMPTY], memory[1])
        assert float(optimizer.state[parameter]["step"]) == 1


def training(method=None, **settings):
    network = Network(nn.Identity(), lopsided_head(), D)
    given = {"batch_size": 40, "learning_rate": 0.05, "max_epochs": 10, **settings}
    config = TrainingConfig(weight_decay=0.0, **given)
    method = CollisionMethod(K, np.full(K, 1 / K)) if method is None else method
    return trainer_of(config, network=network, method=method)


def test_an_empty_cluster_stays_empty_unless_it_is_revived():
    """Exact labels give it a little of every row, and that pulls on nothing."""
    left, revived = (training(revive=revive) for revive in (False, True))
    for trainer in (left, revived):
        trainer.fit(Data(blobs()))
    assert left.sizes[EMPTY] == 0
    assert sorted(revived.sizes) == [EACH] * K
    assert [record.revived for record in revived.records] == [0, 1] + [0] * 8
    assert not any(record.revived for record in left.records)


def test_a_training_hands_on_what_its_optimizer_remembers():
    trainer, states = training(revive=True, max_epochs=2), []
    begin_epoch = trainer.method.begin_epoch

    def note_the_state(*epoch):
        states.append(trainer.state()[0])
        begin_epoch(*epoch)

    trainer.method.begin_epoch = note_the_state
    trainer.fit(Data(blobs()))
    assert trainer.records[1].revived == 1
    memories = [memory for name, memory in states[1].items() if name.endswith("momentum_buffer")]
    assert [memory.shape[0] for memory in memories] == [K, K]
    for memory in memories:
        assert torch.equal(memory[EMPTY], memory[2])


def test_none_is_revived_in_the_last_third():
    trainer = training(revive=True)
    trainer.fit(Data(blobs()), until=7)
    with torch.no_grad():
        trainer.network.head.bias[EMPTY] = -1e4
    trainer.run_epoch(Data(blobs()))
    assert trainer.sizes[EMPTY] == 0
    trainer.run_epoch(Data(blobs()))
    assert trainer.records[-1].revived == 0


# Within an epoch


@pytest.mark.parametrize(
    ("n_steps", "n_rows", "n_clusters", "count"),
    [
        (8, 1797, 10, 1),  # the digits
        (99, 10**6, 10, 1),
        (100, 10**6, 10, 2),
        (240, 60_000, 10, 4),  # MNIST
        (240, 60_000, 600, 2),
        (240, 60_000, 601, 1),
        (1, 2, 2, 1),
    ],
)
def test_a_stretch_has_fifty_steps_and_fifty_rows_a_cluster(n_steps, n_rows, n_clusters, count):
    parts = stretches(n_steps, n_rows, n_clusters)
    assert [step for part in parts for step in part] == list(range(n_steps))
    assert len(parts) == count
    if count > 1:
        assert min(map(len, parts)) >= 50
        assert n_rows / count >= 50 * n_clusters


@pytest.mark.parametrize("n_clusters", [10, 1000])
def test_half_the_mean_is_taken_for_empty_in_two_of_ten_thousand_stretches(n_clusters):
    def below_a_fifth(share):
        return binom(50 * n_clusters, share / n_clusters).cdf(9)

    assert below_a_fifth(0.5) == pytest.approx(2e-4, rel=0.2)
    assert below_a_fifth(1.0) < 1e-10


LONG = 200  # steps of an epoch, four stretches
MANY = blobs(each=LONG)


class OwnLabels(SpyMethod):
    """Labels of every row by itself, which give an empty cluster nothing; a fast method."""

    n_clusters = K


def long_training(*, revive=True, max_epochs=1):
    """Return a training on ``MANY`` rows with 200 steps an epoch, four rows each."""
    assert len(stretches(LONG, len(MANY), K)) == 4
    settings = {"batch_size": 4, "learning_rate": 0.005, "max_epochs": max_epochs}
    return training(OwnLabels(), revive=revive, **settings)


def emptied_after(trainer, steps, cluster=EMPTY):
    """Return what has a cluster predict nothing any more after some steps."""

    @torch.no_grad()
    def empty(record):
        if record.step in steps:
            trainer.network.head.bias[cluster] = -1e4

    return empty


def test_a_cluster_is_revived_within_a_long_epoch():
    left, revived = (long_training(revive=revive) for revive in (False, True))
    for trainer in (left, revived):
        trainer.fit(Data(MANY))
    assert [trainer.records[0].revived for trainer in (left, revived)] == [0, 1]
    live = [len(t.network(MANY).argmax(1).unique()) for t in (left, revived)]
    assert live == [K - 1, K]


def test_all_that_are_revived_in_an_epoch_are_counted():
    trainer = long_training()
    trainer.fit(Data(MANY), on_step=emptied_after(trainer, (51,)))
    assert trainer.records[0].revived == 2


def test_none_is_revived_after_seven_tenths_of_the_steps():
    """Of four stretches the third ends at three quarters."""
    trainer = long_training()
    trainer.fit(Data(MANY), on_step=emptied_after(trainer, (101,)))
    assert trainer.records[0].revived == 1
    assert trainer.sizes[EMPTY] < 60  # of 200, all before


def test_an_epoch_begins_with_what_the_last_stretch_left_empty():
    """Over the whole epoch before, the cluster has three quarters of its rows."""
    trainer = long_training(max_epochs=2)
    with torch.no_grad():  # nothing is empty at first
        trainer.network.head.weight[EMPTY, EMPTY] = 40
        trainer.network.head.bias[EMPTY] = -20
    trainer.fit(Data(MANY), on_step=emptied_after(trainer, (151,), cluster=0))
    assert [record.revived for record in trainer.records] == [0, 1]
    assert trainer.sizes[0] > 180  # of 200; 150 if it came after the first stretch


class Stop(Exception):  # noqa: N818
    """Raised in the middle of a pass."""


def stop_after(step):
    def stop(record):
        if record.step == step:
            raise Stop

    return stop


def resumed_after(step, build, rows):
    """Return a training that was stopped after a step and taken up again by another trainer."""
    stopped, resumed = build(), build()
    with pytest.raises(Stop):
        stopped.fit(Data(rows), on_step=stop_after(step))
    resumed.restore(*stopped.state())
    resumed.fit(Data(rows))
    return resumed


def assert_same(found, expected):
    assert found.records == expected.records
    for name, weight in found.network.state_dict().items():
        assert torch.equal(weight, expected.network.state_dict()[name]), name


def test_a_pass_that_began_with_a_revival_is_taken_up_again():
    def build():
        return training(revive=True, max_epochs=3)

    whole = build()
    whole.fit(Data(blobs()))
    assert whole.records[1].revived == 1
    assert_same(resumed_after(6, build, blobs()), whole)  # of four steps an epoch


def test_an_epoch_that_begins_with_a_revival_follows_a_stop_before_it():
    whole, stopped, resumed = (training(revive=True, max_epochs=3) for _ in range(3))
    whole.fit(Data(blobs()))
    stopped.fit(Data(blobs()), until=1)
    resumed.restore(*stopped.state())
    resumed.fit(Data(blobs()))
    assert_same(resumed, whole)


@pytest.mark.parametrize("step", [1, 49, 50, 51, 100, 199, 200])
def test_a_pass_with_a_revival_in_it_is_taken_up_again_bit_for_bit(step):
    whole = long_training()
    whole.fit(Data(MANY))
    assert whole.records[0].revived == 1
    assert_same(resumed_after(step, long_training, MANY), whole)
