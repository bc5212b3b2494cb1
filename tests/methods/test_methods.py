"""What MI, MIADM, SeLa and IMSAT all keep to; and three blobs that each of them finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coincide.methods.method import Batch
from coincide.metrics import clustering_accuracy
from small_methods import (
    METHODS,
    Data,
    K,
    N,
    SmallNetwork,
    as_it_is,
    batch_of,
    begun,
    build,
    linear,
    normal,
    value,
)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_whole_network(name):
    torch.manual_seed(0)
    network, batch = SmallNetwork(), batch_of(weights=torch.linspace(0.1, 1, N))
    found = begun(name, batch).loss(network, batch)
    assert found.loss.shape == ()
    assert found.logits.shape == (N, K)
    assert found.logits.requires_grad
    found.loss.backward()
    for parameter in network.parameters():
        assert bool(parameter.grad.isfinite().all())
    assert network.head.weight.grad.abs().max() > 1e-4
    assert network.backbone[0].weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("kind", ["random", "collapsed", "alternating"])
def test_losses_and_gradients_are_finite_for_huge_logits(name, n, kind):
    logits = normal(n, K, scale=1e4)
    if kind != "random":
        logits = torch.tensor([1e4, -1e4, -1e4, 0.0]).repeat(n, 1)
    view = logits.flip(1) if kind == "alternating" else logits
    network, batch = as_it_is(), Batch(torch.arange(n), logits, (view,))
    found = begun(name, batch).loss(network, batch)
    found.loss.backward()
    assert bool(found.loss.isfinite())
    assert bool(network.weight.grad.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_weight_zero_count_for_nothing(name):
    weights = torch.cat([torch.ones(20), torch.zeros(N - 20)])
    network, batch = linear(), batch_of(weights=weights)
    method = begun(name, batch)
    torch.manual_seed(3)
    found = method.loss(network, batch).loss
    few = Batch(batch.rows[:20], batch.plain[:20], tuple(view[:20] for view in batch.views))
    torch.manual_seed(3)
    assert value(found) == pytest.approx(value(method.loss(network, few).loss), abs=2e-4)


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_float32_under_autocast(name):
    torch.manual_seed(0)
    network, batch = SmallNetwork(), batch_of()
    method = begun(name, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.loss(network, batch)
    assert found.loss.dtype == found.logits.dtype == torch.float32
    found.loss.backward()
    assert bool(network.head.weight.grad.isfinite().all())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mi",
            {"n_clusters": 1, "prior": [1.0]},
            "'n_clusters' parameter of .* an integer >= 2",
        ),
        ("mi", {"fairness": -1}, "'fairness' parameter of MutualInformation"),
        ("mi", {"prior": np.ones(3) / 3}, r"of shape \(4,\)"),
        ("mi", {"prior": np.array([0.5, 0.5, 0, 0])}, "positive in every class"),
        ("imsat", {"prior": np.array([0.5, 0.5, 0, 0])}, "positive in every class"),
        ("imsat", {"reach": float("nan")}, "'reach' parameter of IMSAT"),
        ("imsat", {"probe": 0.0}, "'probe' parameter of IMSAT must be a finite number > 0"),
        ("imsat", {"n_references": 1}, "'n_references' parameter of IMSAT"),
        ("imsat", {"augment": 1}, "'augment' parameter of IMSAT must be True or False"),
        ("miadm", {"labels": "soft"}, "one of 'sweep', 'exact'"),
        ("miadm", {"fairness": 10.0}, "goes with labels='exact' only"),
        ("miadm-exact", {"n_sweeps": 2}, "goes with labels='sweep' only"),
        ("miadm", {"n_sweeps": 0}, "'n_sweeps' parameter of MIADM"),
        ("sela", {"every": 0}, "'every' parameter of SeLa must be an integer >= 1"),
        ("sela", {"sharpness": 0}, "'sharpness' parameter of SeLa"),
        ("sela", {"seed": 1.5}, "'seed' parameter of SeLa"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(name, **options)


# --- three blobs ---


def train_on_blobs(name, seed, n_epochs=20, batch_size=100):
    """Return the accuracy after 60 Adam steps on 300 points around three centers, and weights."""
    torch.manual_seed(seed)
    classes = torch.arange(300) % 3
    centers = torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
    inputs = centers[classes] + 0.6 * torch.randn(300, 2)
    network = SmallNetwork(2, 3)
    data = Data(inputs, network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    method = build(name, 3, np.full(3, 1 / 3))
    for epoch in range(n_epochs):
        method.begin_epoch(epoch, n_epochs, data)
        for rows in torch.randperm(300).split(batch_size):
            plain = inputs[rows]
            views = tuple(plain + 0.3 * torch.randn(batch_size, 2) for _ in range(method.n_views))
            optimizer.zero_grad()
            method.loss(network, Batch(rows, plain, views)).loss.backward()
            optimizer.step()
    accuracy = clustering_accuracy(classes.numpy(), data.logits().argmax(1).numpy())
    return accuracy, network.head.weight.detach()


@pytest.mark.parametrize("name", METHODS)
def test_three_blobs_are_found(name):
    reached = []
    for seed in range(5):
        reached.append(train_on_blobs(name, seed)[0])
        if sum(accuracy > 0.9 for accuracy in reached) == 3:  # of five, whatever the rest
            return
    pytest.fail(str(reached))


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_decides_the_training(name):
    first, again, other = (train_on_blobs(name, seed, n_epochs=3)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
