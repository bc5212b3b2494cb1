"""MIADM and SeLa: their labels against transport written out, and their losses in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, softmax

from coincide import solve_pseudo_labels
from coincide.methods.method import Batch
from coincide.methods.miadm import MIADM
from coincide.methods.sela import SeLa, random_labels
from small_methods import (
    SKEWED,
    UNIFORM,
    D,
    Data,
    K,
    N,
    SmallNetwork,
    batch_of,
    linear,
    logits_of,
    normal,
    value,
)

# --- MIADM ---


def unbalanced_sinkhorn(probs, prior, n_sweeps):
    """Scale columns half of the way to the prior, rows to 1: the textbook's two vectors."""
    rows, columns = np.ones(len(probs)), np.ones(probs.shape[1])
    for _ in range(n_sweeps):
        columns = np.sqrt(prior / (rows @ probs / len(probs)))
        rows = 1 / (probs @ columns)
    return rows[:, None] * probs * columns


@pytest.mark.parametrize("n_sweeps", [1, 2, 5])
def test_miadm_loss_is_cross_entropy_to_the_sweeps_of_the_plain_view(n_sweeps):
    network, batch = linear(), batch_of()
    found = MIADM(K, UNIFORM, n_sweeps=n_sweeps).loss(network, batch)
    labels = unbalanced_sinkhorn(softmax(logits_of(network, batch.plain), 1), UNIFORM, n_sweeps)
    logits = logits_of(network, batch.views[0])
    expected = -(labels * log_softmax(logits, 1)).sum(1).mean()
    assert value(found.loss) == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(found.loss, found.logits)
    np.testing.assert_allclose(gradient, (softmax(logits, 1) - labels) / N, atol=1e-7)


def test_one_sweep_is_the_published_rule():
    probs = torch.softmax(normal(N, K), 1)
    expected = probs / probs.sum(0).sqrt()
    found = MIADM(K, UNIFORM).targets(probs).labels
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("held", [False, True])
def test_many_sweeps_minimize_equation_5_without_its_entropy(held):
    """Stationary: ``ln y - ln σ + ln(ȳ/u)`` is a constant in every free row."""
    probs = torch.softmax(normal(N, K).double(), 1)
    known = torch.where(torch.arange(N) < 6, 2, -1) if held else None
    labels = MIADM(K, SKEWED, n_sweeps=200).targets(probs, known).labels
    slope = (labels / probs).log() + (labels.mean(0) / torch.from_numpy(SKEWED)).log()
    slope = slope[6:] if held else slope
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope))


@pytest.mark.parametrize("fairness", [1.0, 100.0])
def test_exact_miadm_is_the_certified_optimum(fairness):
    probs = torch.softmax(normal(N, K, scale=2.0).double(), 1)
    method = MIADM(K, SKEWED, "exact", fairness=fairness)
    found = method.targets(probs)
    best = solve_pseudo_labels(
        probs.numpy(), prior=SKEWED, fairness=fairness, objective="ce+kl", tol=1e-9
    )
    scale = max(1.0, abs(best.objective))
    assert found.converged
    assert 0 <= found.gap <= method.label_tol * scale
    assert found.objective - best.objective <= method.label_tol * scale
    sweep = solve_pseudo_labels(
        probs.numpy(), prior=SKEWED, fairness=fairness, objective="ce+kl", solver="closed-form"
    )
    assert found.objective < sweep.objective - 0.05


@pytest.mark.parametrize("labels", ["sweep", "exact"])
def test_miadm_holds_known_labels_and_heeds_weights(labels):
    probs, known = torch.softmax(normal(N, K), 1), torch.full((N,), -1)
    known[:3] = torch.tensor([3, 0, 3])
    method = MIADM(K, UNIFORM, labels)
    found = method.targets(probs, known).labels
    torch.testing.assert_close(found[:3], torch.eye(K)[[3, 0, 3]], atol=0, rtol=0)
    weights = torch.cat([torch.ones(20), torch.zeros(10)])
    weighted = method.targets(probs, weights=weights).labels[:20]
    torch.testing.assert_close(weighted, method.targets(probs[:20]).labels, atol=2e-3, rtol=0)


# --- SeLa ---


def counts(labels, n_clusters=K):
    return torch.bincount(labels, minlength=n_clusters)


@pytest.mark.parametrize("prior", [UNIFORM, SKEWED, np.array([0.5, 0, 0, 0.5])])
def test_random_labels_follow_the_prior(prior):
    labels = random_labels(1003, prior, 0)
    assert np.abs(counts(labels).numpy() - 1003 * prior).max() <= 1
    assert labels.dtype == torch.int64
    assert torch.equal(labels, random_labels(1003, prior, 0))
    assert not torch.equal(labels, random_labels(1003, prior, 1))
    assert (labels[1:] != labels[:-1]).float().mean() > 0.3


@pytest.mark.parametrize("prior", [UNIFORM, SKEWED, np.array([0.5, 0, 0.2, 0.3])])
def test_transported_labels_are_balanced_where_the_predictions_are_not(prior):
    logits = normal(2000, K, scale=2.0) + torch.tensor([3.0, 0.0, -3.0, 0.0])
    assert counts(logits.argmax(1)).max() > 1500
    found = counts(SeLa(K, prior).transport(logits)).numpy()
    assert (np.abs(found / 2000 - prior) <= 0.1 * prior + 0.01).all()


def test_sharp_transport_is_the_best_balanced_assignment():
    logits = normal(40, K, scale=2.0)
    labels = SeLa(K, UNIFORM, sharpness=400.0, marginal_tol=1e-3).transport(logits)
    cost = -log_softmax(logits.double().numpy(), 1)
    _, seats = linear_sum_assignment(np.repeat(cost, 10, axis=1))
    np.testing.assert_array_equal(labels, seats // 10)


@pytest.mark.parametrize("shift", [50.0, 1e4])
def test_transport_fills_a_class_that_is_dead_in_all_predictions(shift):
    """A constant a column changes nothing."""
    logits = normal(500, K).double()
    method = SeLa(K, UNIFORM, marginal_tol=1e-9)
    labels = method.transport(logits)
    dead = method.transport(logits - torch.tensor([shift, 0, 0, 0]))
    assert counts(labels).min() > 100
    assert (labels == dead).float().mean() > 0.99


def test_sela_loss_is_cross_entropy_to_the_labels_of_the_rows():
    known = torch.full((5,), -1)
    known[1] = 3
    rows, inputs, network = torch.tensor([7, 0, 9, 4, 2]), normal(5, D), linear()
    method = SeLa(K, UNIFORM)
    method.restore({"labels": torch.arange(10) % K})
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0])
    found = method.loss(network, Batch(rows, inputs, (inputs + 1,), known=known, weights=weights))
    logs = log_softmax(logits_of(network, inputs + 1), 1)
    losses = -logs[np.arange(5), [3, 3, 1, 0, 2]]
    assert value(found.loss) == pytest.approx(weights.numpy() @ losses / 7, rel=1e-5)


def test_sela_labels_anew_when_it_is_time_and_its_state_survives():
    torch.manual_seed(0)
    data = Data(normal(N, D), SmallNetwork())
    method, states = SeLa(K, UNIFORM, every=2), []
    assert method.state() == {}
    with pytest.raises(RuntimeError, match="begin_epoch"):
        method.loss(data.network, batch_of())
    for epoch in range(5):
        method.begin_epoch(epoch, 5, data)
        states.append(method.state()["labels"])
    assert [torch.equal(a, b) for a, b in pairwise(states)] == [
        True,
        False,
        True,
        True,  # the network has not changed
    ]
    resumed = SeLa(K, UNIFORM)
    resumed.restore(method.state())
    batch = batch_of()
    network = linear()
    assert torch.equal(resumed.loss(network, batch).loss, method.loss(network, batch).loss)
    method.begin_epoch(0, 5, data)
    assert torch.equal(method.state()["labels"], states[0])
