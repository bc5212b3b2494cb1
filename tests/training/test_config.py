"""The configuration, the optimizer it builds, and the learning rate along a training."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from coincide.methods import BatchLoss, Method
from coincide.networks import Network
from coincide.training.config import _LEAST_EPOCHS, _LEAST_STEPS, TrainingConfig
from coincide.training.loop import Data, build_optimizer
from small_training import D, K, trained, trainer_of


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
