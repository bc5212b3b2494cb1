"""A training stopped after any step and taken up from its state ends as if never stopped."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coincide.methods import IIC, SCAN, CollisionMethod, SeLa
from coincide.networks import Network
from coincide.training.config import TrainingConfig
from coincide.training.loop import Data
from small_training import UNIFORM, D, K, M, SpyMethod, inputs, known_of, seeded, trainer_of


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
