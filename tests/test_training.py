"""The laws of the loop: batches, schedule, labels without gradient, weights, records."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from coincide.losses import collision_cross_entropy
from coincide.methods import CollisionMethod
from coincide.pseudolabels import solve_pseudo_labels
from coincide.training import EpochRecord, Trainer, TrainingConfig
from coincide.training.config import _LEAST_EPOCHS, _LEAST_STEPS

M, D, K = 53, 4, 3


class SpyMethod:
    """Self-labels by softmax; remembers what it was given."""

    def __init__(self):
        self.weights, self.logits, self.losses = [], [], []

    def labels(self, logits, weights=None):
        self.logits.append(logits)
        self.weights.append(weights)
        return torch.softmax(2 * logits, 1)

    def loss(self, logits, labels, weights=None):
        assert not labels.requires_grad
        loss = collision_cross_entropy(logits, labels)
        self.losses.append(float(loss.detach()))
        return loss


class SpyRows:
    """Rows whose requests are remembered."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.rows[index]


def head():
    torch.manual_seed(0)
    return nn.Linear(D, K)


def inputs(rows=M):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(config, *, network=None, method=None, rows=None, view=lambda x: x, **fit):
    network = head() if network is None else network
    method = SpyMethod() if method is None else method
    rows = SpyRows(inputs()) if rows is None else rows
    records = Trainer(network, method, view, config).fit(rows, generator=seeded(), **fit)
    return network, method, rows, records


# The configuration


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_steps_of_an_epoch(rows, steps):
    assert TrainingConfig(batch_size=1000).steps_per_epoch(rows) == steps


@pytest.mark.parametrize("rows", [2, 1000, 1001, 20_000, 10**6])
def test_epochs_by_default_are_few_but_make_enough_steps(rows):
    config = TrainingConfig(batch_size=1000)
    epochs, steps = config.epochs(rows), config.steps_per_epoch(rows)
    assert epochs >= _LEAST_EPOCHS
    assert epochs * steps >= _LEAST_STEPS
    assert epochs == _LEAST_EPOCHS or (epochs - 1) * steps < _LEAST_STEPS


def test_epochs_as_asked():
    assert TrainingConfig(max_epochs=3).epochs(10**6) == 3


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().batch_size = 3


# Batches


@pytest.mark.parametrize("batch_size", [2, 7, 10, 52, 53, 1000])
def test_batches_cover_every_row_once_in_a_new_order(batch_size):
    config = TrainingConfig(batch_size=batch_size, max_epochs=3)
    _, _, rows, _ = trained(config)
    steps = math.ceil(M / batch_size)
    assert len(rows.asked) == 3 * steps
    epochs = [torch.cat(rows.asked[i * steps : (i + 1) * steps]) for i in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(M))
    assert not torch.equal(epochs[0], epochs[1])
    sizes = [len(batch) for batch in rows.asked]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_generator_decides_the_order():
    config = TrainingConfig(batch_size=10, max_epochs=1)
    orders = []
    for seed in (0, 0, 1):
        rows = SpyRows(inputs())
        Trainer(head(), SpyMethod(), lambda x: x, config).fit(rows, generator=seeded(seed))
        orders.append(torch.cat(rows.asked).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


# The learning rate


def test_the_learning_rate_holds_and_then_falls_to_zero():
    rates = []
    config = TrainingConfig(batch_size=10, learning_rate=0.4, max_epochs=4)
    trainer = None

    class Watching(SpyMethod):
        def labels(self, logits, weights=None):
            rates.append(trainer._optimizer.param_groups[0]["lr"])
            return super().labels(logits, weights)

    trainer = Trainer(head(), Watching(), lambda x: x, config)
    trainer.fit(inputs(), generator=seeded())
    steps = 4 * 6
    expected = [0.4 * min(1, 4 * (1 - step / steps)) for step in range(steps)]
    assert rates == pytest.approx(expected)
    assert rates[: 3 * steps // 4] == pytest.approx([0.4] * (3 * steps // 4))
    assert 0 < rates[-1] < 0.4 / 5


def test_a_single_pass_of_a_stream_keeps_the_learning_rate():
    config = TrainingConfig(batch_size=10, learning_rate=0.4)
    trainer = Trainer(head(), SpyMethod(), lambda x: x, config)
    for _ in range(3):
        trainer.run_epoch(inputs(), generator=seeded())
        assert trainer._optimizer.param_groups[0]["lr"] == 0.4


# One step


def test_a_step_is_plain_gradient_descent():
    """Against the update by hand: momentum and weight decay as torch's SGD defines them."""
    config = TrainingConfig(learning_rate=0.2, momentum=0.5, weight_decay=0.1)
    network, twin = head(), head()
    trainer = Trainer(network, SpyMethod(), lambda x: x, config)
    x, velocity = inputs(), None
    for _ in range(2):
        trainer.step(x)
        labels = torch.softmax(2 * twin(x), 1).detach()
        loss = -(torch.softmax(twin(x), 1) * labels).sum(1).log().mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            pulls = [g + 0.1 * p for g, p in zip(gradients, twin.parameters(), strict=True)]
            velocity = (
                pulls
                if velocity is None
                else [0.5 * v + p for v, p in zip(velocity, pulls, strict=True)]
            )
            for parameter, v in zip(twin.parameters(), velocity, strict=True):
                parameter.sub_(0.2 * v)
    for found, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_labels_come_from_the_plain_view_and_carry_no_gradient():
    network = head()
    x = inputs()
    plain = network(x).detach()
    method = SpyMethod()
    trainer = Trainer(network, method, lambda rows: 3 * rows, TrainingConfig())
    loss, logits = trainer.step(x)
    torch.testing.assert_close(method.logits[0], plain)
    assert not method.logits[0].requires_grad
    assert not logits.requires_grad
    assert not loss.requires_grad
    torch.testing.assert_close(logits, plain)


def test_the_loss_sees_the_changed_view():
    changed = []

    def view(rows):
        changed.append(rows)
        return rows.roll(1, 0)

    network = head()
    x = inputs()
    expected = float(
        collision_cross_entropy(
            network(x.roll(1, 0)).detach(), torch.softmax(2 * network(x), 1).detach()
        )
    )
    method = SpyMethod()
    Trainer(network, method, view, TrainingConfig()).step(x)
    assert len(changed) == 1
    assert method.losses == [pytest.approx(expected)]


def test_a_zero_learning_rate_changes_no_weight_but_labels_still_move():
    network = head()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained(TrainingConfig(learning_rate=0.0, max_epochs=2), network=network)
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())


# Weights


def test_weights_travel_with_their_rows():
    weights = torch.arange(M, dtype=torch.float32)
    _, method, rows, _ = trained(TrainingConfig(batch_size=10, max_epochs=2), weights=weights)
    assert len(method.weights) == len(rows.asked) == 12
    for batch, chosen in zip(rows.asked, method.weights, strict=True):
        assert torch.equal(chosen, batch.float())


def test_without_weights_the_method_gets_none():
    _, method, _, _ = trained(TrainingConfig(max_epochs=1))
    assert method.weights == [None]


# Records


def test_records_count_from_zero_and_reach_the_callback():
    heard = []
    config = TrainingConfig(batch_size=20, max_epochs=5)
    _, method, _, records = trained(config, on_epoch=heard.append)
    assert heard == records
    assert [record.epoch for record in records] == [0, 1, 2, 3, 4]
    assert {record.n_epochs for record in records} == {5}
    assert records[0].changed == 1.0
    assert all(isinstance(record, EpochRecord) for record in records)
    for epoch, record in enumerate(records):
        batches = method.losses[3 * epoch : 3 * epoch + 3]
        assert record.loss == pytest.approx(sum(batches) / 3, rel=1e-5)


def test_changed_and_live_clusters_are_counted():
    """A network without learning changes nothing; one class fits all under a large bias."""
    network = head()
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.0, 100, 0]))
    *_, records = trained(TrainingConfig(learning_rate=0.0, max_epochs=3), network=network)
    assert [record.changed for record in records] == [1.0, 0.0, 0.0]
    assert [record.live_clusters for record in records] == [1, 1, 1]
    *_, records = trained(TrainingConfig(learning_rate=0.0, max_epochs=2))
    assert records[0].live_clusters == len(head()(inputs()).argmax(1).unique())


def test_changed_is_the_share_of_rows_with_another_cluster():
    """A network that answers by the count of its calls: every row moves, then none does."""

    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.calls = 0

        def forward(self, rows):
            turn = min(self.calls // 2, 1)  # two calls a step, one step an epoch
            self.calls += 1
            logits = torch.zeros(len(rows), 2)
            logits[:, turn] = 1
            return self.scale * logits

    *_, records = trained(TrainingConfig(max_epochs=3), network=Turning())
    assert [record.changed for record in records] == [1.0, 1.0, 0.0]


def test_the_network_trains_in_training_mode():
    modes = []
    network = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, K)).eval()
    network.register_forward_hook(lambda *_: modes.append(network.training))
    trained(TrainingConfig(batch_size=20, max_epochs=2), network=network)
    assert modes
    assert all(modes)


# The method


def method_of(**changes):
    settings = {
        "prior": np.full(K, 1 / K),
        "fairness": 100.0,
        "objective": "cce+",
        "solver": "interior-point",
        "label_tol": 1e-3,
        "backend": "torch",
    }
    return CollisionMethod(**{**settings, **changes})


@pytest.mark.parametrize("objective", ["cce+", "cce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_and_evaluation_are_those_of_the_public_solver(objective, weighted):
    logits = 2 * head()(inputs()).detach()
    weights = torch.rand(M, generator=seeded()) if weighted else None
    method = method_of(objective=objective, label_tol=1e-5)
    exact = solve_pseudo_labels(
        torch.softmax(logits.double(), 1), objective=objective, sample_weight=weights, tol=1e-8
    )
    certificate = method.evaluate(logits, weights)
    assert certificate.lower_bound <= exact.objective + 1e-9
    assert certificate.objective == pytest.approx(exact.objective, abs=1e-5)
    labels = method.labels(logits, weights)
    assert labels.dtype == logits.dtype
    assert not labels.requires_grad
    torch.testing.assert_close(labels.sum(1), torch.ones(M))
    mean = torch.ones(M) / M if weights is None else weights / weights.sum()
    torch.testing.assert_close((mean @ labels).double(), exact.mean_label, atol=1e-3, rtol=0)


def test_the_weighted_loss_is_the_loss_of_repeated_rows():
    logits, labels = head()(inputs()), torch.softmax(inputs()[:, :K], 1)
    weights = torch.randint(0, 4, (M,), generator=seeded())
    method = method_of()
    repeated = method.loss(
        logits.repeat_interleave(weights, 0), labels.repeat_interleave(weights, 0)
    )
    torch.testing.assert_close(method.loss(logits, labels, weights.float()), repeated)


def test_training_by_the_method_lowers_its_objective():
    centers = 4 * torch.eye(K, D)
    rows = centers.repeat(30, 1) + 0.3 * torch.randn(90, D, generator=seeded())
    method = method_of()
    network = head()
    before = method.evaluate(network(rows).detach()).objective
    config = TrainingConfig(batch_size=30, max_epochs=20, weight_decay=0.01)
    trained(config, network=network, method=method, rows=rows)
    found = network(rows).detach()
    assert method.evaluate(found).objective < before / 2
    assert sorted(torch.bincount(found.argmax(1), minlength=K).tolist()) == [30, 30, 30]
