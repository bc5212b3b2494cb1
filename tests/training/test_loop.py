"""The laws of the loop and its settings: batches, one step, weights, precision, records, rates."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coincide.methods import IIC, SCAN, UNKNOWN, BatchLoss, CollisionMethod, Method, SeLa
from coincide.methods.method import Batch, weighted_mean
from coincide.networks import Network
from coincide.training import rows as rows_module
from coincide.training.config import _LEAST_EPOCHS, _LEAST_STEPS, TrainingConfig
from coincide.training.history import EpochRecord
from coincide.training.loop import Data, build_optimizer, known_loss
from coincide.training.ranks import Ranks
from coincide.training.rows import PredictedRows
from small_training import (
    UNIFORM,
    D,
    K,
    M,
    SpyMethod,
    SpyRows,
    head,
    inputs,
    known_of,
    seeded,
    trained,
    trainer_of,
)

STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}  # steps too small for float32


# Batches


@pytest.mark.parametrize("batch_size", [2, 7, 10, 52, 53, 1000])
def test_batches_cover_every_row_once_in_a_new_order(batch_size):
    rows = SpyRows(inputs())
    trained(TrainingConfig(batch_size=batch_size, max_epochs=3), rows=rows)
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
    orders = []
    for seed in (0, 0, 1):
        rows = SpyRows(inputs())
        trained(TrainingConfig(batch_size=10, max_epochs=1), rows=rows, seed=seed)
        orders.append(torch.cat(rows.asked).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_batch_holds_its_rows_and_what_is_known_of_them():
    method, rows, known = SpyMethod(n_views=3), inputs(), known_of()
    weights = torch.arange(M, dtype=torch.float32) + 1
    config = TrainingConfig(batch_size=10, max_epochs=2, **STILL)
    trained(config, method=method, known=known, weights=weights, view=lambda x: 2 * x)
    assert len(method.batches) == 12
    for batch in method.batches:
        assert torch.equal(batch.plain, rows[batch.rows])
        assert len(batch.views) == 3
        assert all(torch.equal(view, 2 * batch.plain) for view in batch.views)
        assert torch.equal(batch.known, known[batch.rows])
        assert torch.equal(batch.weights, weights[batch.rows])
        assert batch.partners is None


def test_every_view_is_changed_anew():
    method = SpyMethod(n_views=2)
    trained(TrainingConfig(max_epochs=1), method=method, view=lambda x: x + torch.randn_like(x))
    first, second = method.batches[0].views
    assert not torch.equal(first, second)


def test_without_weights_and_classes_the_method_gets_none():
    trainer = trained(TrainingConfig(max_epochs=1))
    (batch,) = trainer.method.batches
    assert batch.weights is None
    assert batch.known is None


def test_partners_are_shown_changed():
    class Paired(SpyMethod):
        def partners(self, rows):
            return (rows + 1) % M

    method, rows = Paired(), inputs()
    trained(TrainingConfig(batch_size=10, max_epochs=1), method=method, view=lambda x: 2 * x)
    for batch in method.batches:
        assert torch.equal(batch.partners, 2 * rows[(batch.rows + 1) % M])


# One step


def test_a_step_is_plain_gradient_descent():
    """Against the update by hand: momentum and weight decay as torch's SGD defines them."""
    config = TrainingConfig(learning_rate=0.2, momentum=0.5, weight_decay=0.1)
    network, twin = head(), head()
    trainer = trainer_of(config, network=network)
    x, velocity = inputs(), None
    for _ in range(2):
        trainer.step(Batch(torch.arange(M), x, (x,)))
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


def test_a_step_tells_what_the_method_made_of_it():
    x, method = inputs(), SpyMethod()
    trainer = trainer_of(TrainingConfig(), method=method)
    outcome = trainer.step(Batch(torch.arange(M), x, (x,)))
    assert float(outcome.loss) == pytest.approx(method.losses[0])
    assert not outcome.loss.requires_grad
    assert outcome.quantities == {"step": 1.0}


def test_a_vanishing_learning_rate_changes_no_weight():
    network = head()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained(TrainingConfig(max_epochs=2, **STILL), network=network)
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())


def test_the_network_trains_in_training_mode():
    modes = []
    network = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, K)).eval()
    network.register_forward_hook(lambda *_: modes.append(network.training))
    trained(TrainingConfig(batch_size=20, max_epochs=2), network=network)
    assert modes
    assert all(modes)


@pytest.mark.parametrize("accumulate", [2, 7, 100])
@pytest.mark.parametrize("extras", ["none", "weights", "known"])
def test_parts_of_a_batch_add_up_to_the_batch(accumulate, extras):
    """Labels and loss of this method are those of every row by itself, so nothing may differ."""
    parts = {"weights": torch.rand(M, generator=seeded())} if extras == "weights" else {}
    parts |= {"known": known_of()} if extras == "known" else {}
    whole = TrainingConfig(batch_size=20, max_epochs=2)
    expected = trained(whole, network=head(), **parts)
    found = trained(dataclasses.replace(whole, accumulate=accumulate), network=head(), **parts)
    for one, other in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    seen = torch.cat([batch.rows for batch in found.method.batches])
    assert sorted(seen.tolist()) == sorted(2 * list(range(M)))
    assert max(len(batch.rows) for batch in found.method.batches) <= math.ceil(18 / accumulate)
    for one, other in zip(found.records, expected.records, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.live_clusters == other.live_clusters


# Known classes


def test_known_classes_add_their_cross_entropy_twice():
    network, twin, x, known = head(), head(), inputs(), known_of()
    config = TrainingConfig(learning_rate=0.2, momentum=0.0, weight_decay=0.0)
    trainer = trainer_of(config, network=network)
    outcome = trainer.step(Batch(torch.arange(M), x, (x,), known=known))
    labels = torch.softmax(2 * twin(x), 1).detach()
    own = -(torch.softmax(twin(x), 1) * labels).sum(1).log().mean()
    rows = known != UNKNOWN
    chosen = torch.log_softmax(twin(x[rows]), 1)[torch.arange(int(rows.sum())), known[rows]]
    (own - 2 * chosen.mean()).backward()
    for found, parameter in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, parameter - 0.2 * parameter.grad)
    assert float(outcome.loss) == pytest.approx(float(own.detach()))


def test_the_loss_of_known_classes():
    logits = torch.randn(M, K, generator=seeded(), requires_grad=True)
    classes = torch.randint(K, (M,), generator=seeded())
    torch.testing.assert_close(known_loss(logits, classes), F.cross_entropy(logits, classes))
    for nothing in (None, torch.full((M,), UNKNOWN)):
        assert known_loss(logits, nothing).item() == 0
    assert known_loss(logits.bfloat16(), classes).dtype == torch.float32


def test_unknown_classes_everywhere_change_nothing():
    config = TrainingConfig(batch_size=10, max_epochs=2)
    without = trained(config, network=head())
    unknown = trained(config, network=head(), known=torch.full((M,), UNKNOWN))
    assert torch.equal(without.network.weight, unknown.network.weight)
    assert bool(without.network.weight.isfinite().all())


# Precision


def test_bfloat16_is_for_the_network_alone():
    seen = []
    network = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, K))
    network.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    config = TrainingConfig(batch_size=20, max_epochs=2, precision="bfloat16")
    weights = torch.rand(M, generator=seeded()) + 0.1
    method = CollisionMethod(K, UNIFORM)
    trainer = trained(config, network=network, method=method, weights=weights, known=known_of())
    assert set(seen) == {torch.bfloat16}
    assert all(math.isfinite(record.loss) for record in trainer.records)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in network.parameters())


def test_the_weighted_mean_keeps_its_digits_under_autocast():
    values, weights = torch.rand(100, generator=seeded()), torch.rand(100, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = weighted_mean(values, weights)
    expected = np.average(values.double(), weights=weights.double())
    assert float(found) == pytest.approx(expected, rel=1e-6)


# Records


def test_records_count_from_zero_and_reach_the_callback():
    heard = []
    config = TrainingConfig(batch_size=20, max_epochs=5)
    trainer = trained(config, fit={"on_epoch": heard.append})
    records = trainer.records
    assert heard == records
    assert [record.epoch for record in records] == [0, 1, 2, 3, 4]
    assert {record.n_epochs for record in records} == {5}
    assert records[0].changed == 1.0
    assert all(isinstance(record, EpochRecord) for record in records)
    for epoch, record in enumerate(records):
        batches = trainer.method.losses[3 * epoch : 3 * epoch + 3]
        assert record.loss == pytest.approx(sum(batches) / 3, rel=1e-5)
        assert record.quantities == {"step": 3 * epoch + 2}


def test_steps_reach_the_callback():
    heard = []
    config = TrainingConfig(batch_size=20, max_epochs=3)
    trainer = trained(config, fit={"on_step": heard.append})
    assert [record.step for record in heard] == list(range(1, 10))
    assert {record.n_steps for record in heard} == {9}
    assert sum(record.rows for record in heard) == 3 * M
    assert [float(record.loss) for record in heard] == pytest.approx(trainer.method.losses)


def test_the_method_is_told_of_every_epoch():
    trainer = trained(TrainingConfig(batch_size=20, max_epochs=3))
    assert [begun[:2] for begun in trainer.method.begun] == [(0, 3), (1, 3), (2, 3)]
    data = [begun[2] for begun in trainer.method.begun]
    assert all(isinstance(rows, PredictedRows) and len(rows) == M for rows in data)


def test_changed_and_live_clusters_are_counted():
    """A network without learning changes nothing; one class fits all under a large bias."""
    network = head()
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.0, 100, 0]))
    records = trained(TrainingConfig(max_epochs=3, **STILL), network=network).records
    assert [record.changed for record in records] == [1.0, 0.0, 0.0]
    assert [record.live_clusters for record in records] == [1, 1, 1]
    assert [(record.least_share, record.largest_share) for record in records] == 3 * [(0.0, 1.0)]
    (record,) = trained(TrainingConfig(max_epochs=1, **STILL)).records
    sizes = torch.bincount(head()(inputs()).argmax(1), minlength=K)
    assert record.live_clusters == int((sizes > 0).sum())
    assert record.least_share == pytest.approx(int(sizes.min()) / M)
    assert record.largest_share == pytest.approx(int(sizes.max()) / M)


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
            logits = torch.zeros(len(rows), K)
            logits[:, turn] = 1
            return self.scale * logits

    records = trained(TrainingConfig(max_epochs=3), network=Turning()).records
    assert [record.changed for record in records] == [1.0, 1.0, 0.0]


def test_products_are_those_of_the_last_epoch():
    trainer = trained(TrainingConfig(batch_size=20, max_epochs=2, **STILL))
    probs = torch.softmax(head()(inputs()), 1).detach().double()
    np.testing.assert_allclose(trainer.products, probs.T @ probs, rtol=1e-5)


def test_a_fit_in_two_goes_is_one_fit():
    config = TrainingConfig(batch_size=20, max_epochs=4)
    whole = trained(config, network=head())
    parts = trained(config, network=head(), fit={"until": 1})
    assert parts.epoch == len(parts.records) == 1
    parts.fit(Data(inputs()))
    assert parts.records == whole.records
    assert torch.equal(parts.network.weight, whole.network.weight)
    assert parts.fit(Data(inputs())) == whole.records  # nothing is left to do


# All rows, as a method sees them


def test_seen_rows_are_plain_and_in_evaluation_mode(monkeypatch):
    monkeypatch.setattr(rows_module, "_PREDICTED_ROWS", 7)
    backbone = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    network = Network(backbone, nn.Linear(8, K), 8).train()
    network(inputs())  # running averages of its own
    seen = PredictedRows(network, inputs())
    logits, features = seen.logits(), seen.features()
    some = torch.arange(M - 1, 0, -3)  # more than one block, in their own order
    torch.testing.assert_close(seen.features(some), features[some])
    assert network.training
    assert not logits.requires_grad
    torch.testing.assert_close(seen.inputs(torch.tensor([3, 1])), inputs()[[3, 1]])
    network.eval()
    torch.testing.assert_close(logits, network(inputs()))
    torch.testing.assert_close(features, backbone(inputs()))


# Ranks


def test_a_method_alone_has_no_sums():
    assert trainer_of(TrainingConfig()).method.sums is None


def test_a_batch_too_small_for_the_processes_is_refused():
    class Three(Ranks):
        size = 3

    trainer = trainer_of(TrainingConfig(batch_size=2), ranks=Three())
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 2 rows"):
        trainer.fit(Data(inputs(4)))


class Stop(Exception):  # noqa: N818
    """Raised in the middle of a training."""


def noisy(rows):
    return F.dropout(rows, 0.3) + 0.1 * torch.randn_like(rows)


RESUMED = {
    "sgd": (SpyMethod, {"optimizer": "sgd"}),
    "adam": (lambda: SpyMethod(n_views=2), {"optimizer": "adam", "accumulate": 2}),
    "collision": (lambda: CollisionMethod(K, UNIFORM), {"optimizer": "adamw"}),
    "teacher": (
        lambda: CollisionMethod(K, UNIFORM, labeled_by="teacher", n_views=2),
        {"optimizer": "adam"},
    ),
    "sela": (lambda: SeLa(K, UNIFORM), {"optimizer": "sgd"}),
    "scan": (lambda: SCAN(K, n_neighbors=5, self_label_share=0.4, threshold=0.3), {}),
    "iic": (lambda: IIC(K, sub_heads=2), {"optimizer": "adam"}),
}


def fresh(name, seed):
    """Return a trainer of a network with batch normalization, all of it from the seed."""
    build, settings = RESUMED[name]
    torch.manual_seed(seed)
    method = build()
    head_of = method.head(8) or (lambda: nn.Linear(8, K))
    backbone = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU())
    config = TrainingConfig(batch_size=20, learning_rate=0.05, max_epochs=3, **settings)
    return trainer_of(
        config, network=Network(backbone, head_of(), 8), method=method, view=noisy, seed=seed
    )


def fit_until(trainer, data, n_steps):
    """Train until ``n_steps`` are done; return its state as a file would hold it."""

    def stop(record):
        if record.step == n_steps:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit(data, on_step=stop)
    tensors, about = trainer.state()
    return tensors, json.loads(json.dumps(about)), torch.get_rng_state()


def assert_same_training(found, expected):
    assert found.records == expected.records
    (tensors, about), (others, about_others) = found.state(), expected.state()
    assert about == about_others
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_stopped_after_any_step_goes_on_bit_for_bit(name):
    data = Data(inputs(), known=known_of(0.2), weights=torch.rand(M, generator=seeded()) + 0.1)
    whole = fresh(name, seed=0)
    whole.fit(data)
    assert len(whole.records) == 3
    for n_steps in range(1, 10):  # three steps an epoch
        tensors, about, random_state = fit_until(fresh(name, seed=0), data, n_steps)
        resumed = fresh(name, seed=1)
        resumed.restore(tensors, about)
        torch.set_rng_state(random_state)
        resumed.fit(data)
        assert_same_training(resumed, whole)


@pytest.mark.parametrize("name", ["collision", "sela"])
@pytest.mark.parametrize("n_epochs", [0, 1, 2, 3])
def test_a_training_stopped_between_epochs_goes_on_bit_for_bit(name, n_epochs):
    data = Data(inputs())
    whole, part, resumed = (fresh(name, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    whole.fit(data)
    torch.manual_seed(5)
    part.fit(data, until=n_epochs)
    resumed.restore(*part.state())
    resumed.fit(data)
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("name", ["teacher", "scan"])
def test_a_state_is_a_copy(name):
    data = Data(inputs())
    tensors, about, random_state = fit_until(fresh(name, seed=0), data, 4)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    ends = []
    for seed in (1, 2):
        resumed = fresh(name, seed=seed)
        resumed.restore(tensors, about)
        torch.set_rng_state(random_state)
        resumed.fit(data)
        ends.append(resumed)
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    assert_same_training(*ends)


def test_a_resumed_pass_does_not_look_at_the_data_again():
    data = Data(inputs())
    tensors, about, _ = fit_until(fresh("sgd", seed=0), data, 2)
    resumed = fresh("sgd", seed=0)
    resumed.restore(tensors, about)
    resumed.fit(data)
    assert [(epoch, seen is None) for epoch, _, seen in resumed.method.begun] == [
        (0, True),
        (1, False),
        (2, False),
    ]


def test_the_state_of_another_network_is_refused():
    tensors, about = fresh("iic", seed=0).state()
    with pytest.raises(RuntimeError, match="head"):
        fresh("sgd", seed=0).restore(tensors, about)


class Slope(Method):
    """A loss that falls with every weight at rate 1: an SGD step shows its learning rate."""

    n_clusters = 2

    def loss(self, network, batch):
        logits = network(batch.plain)
        return BatchLoss(sum(parameter.sum() for parameter in network.parameters()), logits)


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


# The learning rate


def rates_of(config, n_rows=53):
    """Return the learning rate of every step, as the weights show it."""
    network, weights = nn.Linear(1, 2, bias=False), []
    weights.append(network.weight.detach().double().clone())
    trained(
        dataclasses.replace(config, momentum=0.0, weight_decay=0.0),
        network=network,
        method=Slope(),
        rows=torch.ones(n_rows, 1),
        fit={"on_step": lambda _: weights.append(network.weight.detach().double().clone())},
    )
    return [float((before - after).mean()) for before, after in itertools.pairwise(weights)]


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("late-linear", lambda progress: min(1, 4 * (1 - progress))),
        ("cosine", lambda progress: math.cos(math.pi * progress / 2) ** 2),
        ("constant", lambda progress: 1),
    ],
)
def test_schedules(schedule, share):
    config = TrainingConfig(batch_size=10, learning_rate=0.4, max_epochs=4, schedule=schedule)
    expected = [0.4 * share(step / 24) for step in range(24)]
    assert rates_of(config) == pytest.approx(expected, abs=1e-5)


def test_a_single_pass_of_a_stream_keeps_the_learning_rate():
    config = TrainingConfig(learning_rate=0.4, momentum=0.0, weight_decay=0.0)
    network = nn.Linear(1, 2, bias=False)
    trainer = trainer_of(config, network=network, method=Slope())
    for _ in range(3):
        before = network.weight.detach().clone()
        trainer.run_epoch(Data(torch.ones(5, 1)))
        torch.testing.assert_close(before - network.weight, torch.full((2, 1), 0.4))


@pytest.mark.parametrize(
    ("optimizer", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "Adam")]
)
def test_the_optimizer_has_a_group_for_backbone_and_head(optimizer, kind):
    network = Network(nn.Linear(D, 8), nn.Linear(8, K), 8)
    config = TrainingConfig(
        optimizer=optimizer, learning_rate=5e-2, backbone_learning_rate=1e-5, weight_decay=1e-4
    )
    built = build_optimizer(network, config)
    assert type(built).__name__ == kind
    assert [group["lr"] for group in built.param_groups] == [1e-5, 5e-2]
    assert {group["weight_decay"] for group in built.param_groups} == {1e-4}
    grouped = [parameter for group in built.param_groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in network.parameters()}
    if optimizer != "sgd":
        decoupled = {group["decoupled_weight_decay"] for group in built.param_groups}
        assert decoupled == {optimizer == "adamw"}


def test_the_schedule_scales_every_group():
    network = Network(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False), 1)
    config = TrainingConfig(
        learning_rate=0.4,
        backbone_learning_rate=0.04,
        momentum=0.0,
        weight_decay=0.0,
        max_epochs=8,
        schedule="cosine",
    )
    moved = []
    before = [p.detach().clone() for p in network.parameters()]

    def on_step(_):
        now = [p.detach().clone() for p in network.parameters()]
        moved.append([float((b - n).mean()) for b, n in zip(before, now, strict=True)])
        before[:] = now

    trained(
        config, network=network, method=Slope(), rows=torch.ones(5, 1), fit={"on_step": on_step}
    )
    backbone, of_head = np.array(moved).T
    assert of_head[-1] < of_head[0] / 10
    np.testing.assert_allclose(backbone, of_head / 10, atol=1e-6)
