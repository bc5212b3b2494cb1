"""MI and IMSAT: their losses written out in NumPy, and what the adversarial passes leave alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from coincide.methods.imsat import (
    IMSAT,
    adversarial_direction,
    held_running_averages,
    neighbor_distances,
)
from coincide.methods.mi import MutualInformation, information_loss
from small_methods import (
    SKEWED,
    UNIFORM,
    D,
    Data,
    K,
    N,
    SmallNetwork,
    batch_of,
    begun,
    linear,
    logits_of,
    normal,
    value,
)


def entropy(p, axis=-1):
    return -(p * np.log(p)).sum(axis)


# --- mutual information ---


@pytest.mark.parametrize("weighted", [False, True])
def test_mutual_information_is_equation_1(weighted):
    batch = batch_of(weights=torch.linspace(0, 2, N) if weighted else None)
    network = linear()
    found = MutualInformation(K, UNIFORM).loss(network, batch)
    logits = logits_of(network, batch.views[0])
    np.testing.assert_allclose(found.logits.detach(), logits, rtol=1e-6)
    probs, shares = softmax(logits, 1), np.linspace(0, 2, N) if weighted else np.ones(N)
    shares = shares / shares.sum()
    expected = shares @ entropy(probs) - 1.3 * entropy(shares @ probs)
    assert value(found.loss) == pytest.approx(expected + 1.3 * np.log(K), abs=1e-6)


def test_mutual_information_with_a_prior_is_a_divergence_from_it():
    logits = normal(N, K, scale=2.0).double()
    probs = softmax(logits.numpy(), 1)
    mean = probs.mean(0)
    expected = entropy(probs).mean() + 0.7 * (mean * np.log(mean / SKEWED)).sum()
    assert float(information_loss(logits, SKEWED, 0.7)) == pytest.approx(expected, rel=1e-12)


def test_gradient_of_mutual_information():
    logits = normal(6, K).double().requires_grad_()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: information_loss(z, SKEWED, 1.3, weights), logits)


# --- IMSAT ---


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(1)


@pytest.mark.parametrize("augment", [False, True])
def test_imsat_loss_is_the_recipe(augment):
    """A linear network: the power step's gradient is ``10 Wᵀ(σ(x + 10 d) - σ(x))``."""
    network, batch = linear(), batch_of()
    method = begun("imsat", batch, augment=augment)
    torch.manual_seed(5)
    found = method.loss(network, batch)

    torch.manual_seed(5)
    start = torch.randn(N, D).double().numpy()
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    weight, bias = (p.detach().double().numpy() for p in network.parameters())
    x = batch.plain.double().numpy()
    plain = softmax(x @ weight.T + bias, 1)
    gradient = (softmax((x + 10 * start) @ weight.T + bias, 1) - plain) @ weight
    direction = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(x[:, None] - x, axis=2), 1)[:, 10]
    moved = x + 0.25 * distances[:, None] * direction
    expected = kl(plain, softmax(moved @ weight.T + bias, 1)).mean()
    assert found.quantities["vat"] == pytest.approx(expected, abs=1e-6)
    information = entropy(plain).mean() - 4 * entropy(plain.mean(0))
    expected += 0.1 * (information + 4 * np.log(K))
    view = logits_of(network, batch.views[0])
    if augment:
        expected += kl(plain, softmax(view, 1)).mean()
    assert value(found.loss) == pytest.approx(expected, abs=1e-6)
    seen = view if augment else logits_of(network, batch.plain)
    np.testing.assert_allclose(found.logits.detach(), seen, rtol=1e-6)
    assert method.n_views == int(augment)


def test_the_prediction_that_a_view_is_compared_with_has_no_gradient():
    """What is left of ``KL(σ ‖ σ')`` for a linear network is ``(σ' - σ)ᵀ x'``."""
    network, batch = linear(), batch_of()
    method = begun("imsat", batch, weight=0.0, reach=0.0)
    (gradient,) = torch.autograd.grad(method.loss(network, batch).loss, network.weight)
    plain, view = (softmax(logits_of(network, x), 1) for x in (batch.plain, batch.views[0]))
    expected = (view - plain).T @ batch.views[0].double().numpy() / N
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_adversarial_passes_use_the_batch_and_remember_nothing():
    torch.manual_seed(0)
    network, inputs = SmallNetwork(), normal(N, D)
    before = copy.deepcopy(network.state_dict())
    with held_running_averages(network):
        held = network(inputs)
    adversarial_direction(network, inputs, torch.log_softmax(held.detach(), 1), 10.0)
    for name, found in network.state_dict().items():
        assert torch.equal(found, before[name]), name
    assert all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(held, network(inputs))  # batch statistics, as in training
    assert not torch.equal(network.backbone[1].running_mean, before["backbone.1.running_mean"])


def test_imsat_moves_the_running_averages_as_two_plain_passes_do():
    torch.manual_seed(0)
    batch, network = batch_of(), SmallNetwork()
    twin = copy.deepcopy(network)
    begun("imsat", batch).loss(network, batch).loss.backward()
    twin(batch.plain)
    twin(batch.views[0])
    for (name, found), expected in zip(network.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_running_averages_come_back_to_life_after_an_error():
    network = SmallNetwork()
    with pytest.raises(ZeroDivisionError), held_running_averages(network):
        raise ZeroDivisionError
    assert network.backbone[1].track_running_stats


def test_frozen_batch_normalization_stays_frozen():
    network = SmallNetwork().eval()
    inputs = normal(N, D)
    expected = network(inputs)
    with held_running_averages(network):
        assert torch.equal(network(inputs), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_adversarial_direction_changes_more_than_a_random_one(seed):
    torch.manual_seed(seed)
    network, inputs = SmallNetwork(8), normal(100, 8, seed=seed)
    logits = network(inputs).detach()

    def change(direction):
        with held_running_averages(network), torch.no_grad():
            moved = network(inputs + 0.3 * direction)
        return kl(softmax(logits.numpy(), 1), softmax(moved.numpy(), 1)).mean()

    found = adversarial_direction(network, inputs, torch.log_softmax(logits, 1), 1.0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(100))
    random = nn.functional.normalize(torch.randn(20, 100, 8), dim=2)
    assert change(found) > 2 * np.mean([change(direction) for direction in random])


def test_a_row_whose_prediction_nothing_changes_has_no_direction():
    network = nn.Linear(D, K)
    nn.init.zeros_(network.weight)
    log_probs = torch.log_softmax(network(normal(5, D)).detach(), 1)
    found = adversarial_direction(network, normal(5, D), log_probs, 10.0)
    assert torch.equal(found, torch.zeros(5, D))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbor_distances_of_images(offset):
    images = normal(1500, 1, 3, 2) + offset
    flat = images.flatten(1).double().numpy()
    expected = np.sort(np.linalg.norm(flat[:, None] - flat, axis=2), 1)[:, 10]
    found = neighbor_distances(Data(images), 10, 5000)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_neighbor_distances_among_a_sample_stand_for_those_among_all():
    rows = normal(2000, 2)
    exact = neighbor_distances(Data(rows), 20, 5000)
    sampled = neighbor_distances(Data(rows), 20, 500)
    assert float((sampled / exact).log().mean().exp()) == pytest.approx(1, abs=0.1)
    nearest = neighbor_distances(Data(rows), 1, 500)
    assert nearest.min() > 0  # a row of the sample is not its own neighbor


def test_neighbor_distances_of_few_rows():
    assert neighbor_distances(Data(torch.zeros(1, 2)), 10, 5000).tolist() == [0.0]
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert neighbor_distances(Data(pair), 10, 5000).tolist() == [5.0, 5.0]


def test_distances_survive():
    batch = batch_of()
    method, resumed = begun("imsat", batch), IMSAT(K, UNIFORM)
    assert resumed.state() == {}
    with pytest.raises(RuntimeError, match="begin_epoch"):
        resumed.loss(linear(), batch)
    resumed.restore(method.state())
    assert torch.equal(resumed.state()["distances"], method.state()["distances"])
