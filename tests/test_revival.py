"""Empty clusters take over half of a large one."""

import numpy as np
import pytest
import torch
from torch import nn

from coincide.methods import CollisionMethod
from coincide.networks import Network
from coincide.training.config import TrainingConfig
from coincide.training.loop import Data
from coincide.training.revival import revive, take_over
from small_training import seeded, trainer_of

D, K, EACH = 6, 4, 40
EMPTY = 3


class Known:
    """Rows whose features are known."""

    def __init__(self, features):
        self.rows = features

    def features(self):
        return self.rows


def blobs(n_blobs=K, spread=0.1):
    """Return blobs around the axes, the last two of them near each other."""
    centers = 4 * torch.eye(n_blobs, D)
    centers[-1] = centers[-2] + torch.eye(n_blobs, D)[-1]
    noise = spread * torch.randn(n_blobs * EACH, D, generator=seeded(1))
    return centers.repeat_interleave(EACH, 0) + noise


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


def training(*, revive, max_epochs=10):
    network = Network(nn.Identity(), lopsided_head(), D)
    config = TrainingConfig(
        batch_size=40, learning_rate=0.05, weight_decay=0.0, max_epochs=max_epochs, revive=revive
    )
    method = CollisionMethod(K, np.full(K, 1 / K))
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


def test_none_is_revived_in_the_last_third():
    trainer = training(revive=True)
    trainer.fit(Data(blobs()), until=7)
    with torch.no_grad():
        trainer.network.head.bias[EMPTY] = -1e4
    trainer.run_epoch(Data(blobs()))
    assert trainer.sizes[EMPTY] == 0
    trainer.run_epoch(Data(blobs()))
    assert trainer.records[-1].revived == 0


def test_a_pass_that_began_with_a_revival_is_taken_up_again():
    class Stop(Exception):  # noqa: N818
        """Raised in the middle of the pass."""

    def stop(record):
        if record.step == 6:  # of four an epoch
            raise Stop

    whole = training(revive=True, max_epochs=3)
    whole.fit(Data(blobs()))
    stopped, resumed = training(revive=True, max_epochs=3), training(revive=True, max_epochs=3)
    with pytest.raises(Stop):
        stopped.fit(Data(blobs()), on_step=stop)
    resumed.restore(*stopped.state())
    resumed.fit(Data(blobs()))
    assert resumed.records == whole.records
    assert torch.equal(resumed.network.head.weight, whole.network.head.weight)
