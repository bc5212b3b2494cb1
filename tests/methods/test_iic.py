"""IIC: its loss against the published sum in float64, its heads and the order of its epochs."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from coincide.methods.iic import IIC, SubHeads, iic_loss
from coincide.methods.method import Batch
from pair_methods import D, K, N, Net, batch_of, gradients, random, some_weights

# --- IIC: the loss --------------------------------------------------------------------------


def iic_oracle(first, second, entropy_weight=1.0, weights=None):
    """Return the published sum over all pairs of clusters, in float64."""
    p, q = (softmax(z.double().numpy(), axis=1) for z in (first, second))
    w = np.ones(len(p)) if weights is None else weights.double().numpy()
    joint = np.einsum("i,ik,il->kl", w, p, q) / w.sum()
    joint = (joint + joint.T) / 2
    joint = np.maximum(joint / joint.sum(), np.finfo(float).eps)
    rows, columns = np.log(joint.sum(1))[:, None], np.log(joint.sum(0))[None]
    return -(joint * (np.log(joint) - entropy_weight * (rows + columns))).sum()


@pytest.mark.parametrize("entropy_weight", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_iic_loss_is_the_published_sum(entropy_weight, weighted):
    first, second = random(3, N, K), random(3, N, K, seed=1)
    weights = some_weights() if weighted else None
    found = iic_loss(first, second, entropy_weight=entropy_weight, weights=weights)
    expected = [iic_oracle(first[h], second[h], entropy_weight, weights) for h in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_iic_loss_does_not_know_the_order_of_clusters_views_or_rows():
    first, second = random(N, K), random(N, K, seed=1)
    clusters, rows = torch.tensor([2, 0, 3, 1]), torch.arange(N).roll(5)
    loss = iic_loss(first, second)
    torch.testing.assert_close(iic_loss(first[:, clusters], second[:, clusters]), loss)
    torch.testing.assert_close(iic_loss(second, first), loss)
    torch.testing.assert_close(iic_loss(first[rows], second[rows]), loss)
    assert abs(float(iic_loss(first, second[rows]) - loss)) > 1e-3


def test_iic_loss_has_its_known_ends():
    certain = 1e4 * torch.eye(K)
    assert float(iic_loss(certain, certain)) == pytest.approx(-math.log(K), abs=1e-6)
    assert float(iic_loss(certain[:1], certain[:1])) == pytest.approx(0, abs=1e-6)
    assert float(iic_loss(certain, torch.zeros(K, K))) == pytest.approx(0, abs=1e-6)


# --- IIC: heads -----------------------------------------------------------------------------


def test_sub_heads_have_their_shapes_and_forward_is_the_chosen_one():
    heads = IIC(K, sub_heads=3, n_over=7).head(D)()
    features = random(N, D)
    assert heads.all(features).shape == (3, N, K)
    assert heads.over(features).shape == (3, N, 7)
    for chosen in range(3):
        heads.chosen = torch.tensor(chosen)
        torch.testing.assert_close(heads(features), heads.all(features)[chosen])


def test_there_are_five_over_clusters_a_cluster_by_default():
    assert IIC(K).head(D)().over(random(N, D)).shape == (5, N, 5 * K)


def test_the_sub_head_is_chosen_by_its_running_loss():
    heads = SubHeads(D, K, 8, 3)
    assert heads.chosen == 0
    heads.compare(torch.tensor([-0.1, -0.5, -0.3]))
    assert heads.chosen == 1
    heads.compare(torch.tensor([-0.1, -0.4, -0.5]))
    assert heads.chosen == 1  # one better batch is not enough
    for _ in range(20):
        heads.compare(torch.tensor([-0.1, -0.4, -0.5]))
    assert heads.chosen == 2
    expected = torch.zeros(3)
    for losses in [[-0.1, -0.5, -0.3]] + 21 * [[-0.1, -0.4, -0.5]]:
        expected = 0.99 * expected + 0.01 * torch.tensor(losses)
    torch.testing.assert_close(heads.running, expected)
    assert {"running", "chosen"} <= set(heads.state_dict())


def test_training_chooses_the_sub_head_whose_loss_is_lowest_and_never_by_known_classes():
    method, batch = IIC(K, sub_heads=3), batch_of(scale=10.0)
    network = Net(method)
    with torch.no_grad():
        plain, changed = (
            network.head.all(network.backbone(x)) for x in (batch.plain, batch.views[0])
        )
    losses = [iic_oracle(a, b) for a, b in zip(plain, changed, strict=True)]
    best = int(np.argmin(losses))
    network.head.chosen = torch.tensor((best + 1) % 3)
    known = torch.arange(N) % K
    held = method.loss(network, Batch(batch.rows, batch.plain, batch.views, known=known))
    assert network.head.chosen == (best + 1) % 3
    assert float(held.loss.detach()) == pytest.approx(np.mean(losses), rel=1e-4)
    outcome = method.loss(network, batch)
    assert network.head.chosen == best
    outcome.loss.backward()  # the choice has not disturbed the graph
    torch.testing.assert_close(outcome.logits, plain[(best + 1) % 3])


def test_views_are_each_paired_with_the_plain_row():
    method, weights = IIC(K, sub_heads=2, n_views=3), some_weights()
    batch = batch_of(n_views=3, scale=10.0, weights=weights)
    network = Net(method)
    outcome = method.loss(network, batch)
    logits = [network.head.all(network.backbone(x)).detach() for x in (batch.plain, *batch.views)]
    expected = [
        iic_oracle(logits[0][h].repeat(3, 1), torch.cat([z[h] for z in logits[1:]]),
                   weights=weights.repeat(3))
        for h in range(2)
    ]  # fmt: skip
    assert float(outcome.loss.detach()) == pytest.approx(np.mean(expected), rel=1e-4)
    assert outcome.logits.shape == (N, K)


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_over_clustering_epochs_alternate_and_the_last_is_the_clusters(n_epochs):
    method, batch = IIC(K), batch_of()
    network = Net(method)
    trained = []
    for epoch in range(n_epochs):
        method.begin_epoch(epoch, n_epochs, None)
        running = network.head.running.clone()
        found = gradients(network, method.loss(network, batch).loss)
        is_over = found["head.over_clusters.weight"] is not None
        assert is_over == (found["head.clusters.weight"] is None)
        assert is_over == torch.equal(network.head.running, running)
        trained.append("over" if is_over else "clusters")
    assert trained[::-1] == (["clusters", "over"] * n_epochs)[:n_epochs]


def test_the_over_clustering_loss_is_that_of_the_over_clustering_heads():
    method, batch = IIC(K, sub_heads=2, n_over=9), batch_of(scale=10.0)
    network = Net(method)
    method.begin_epoch(0, 2, None)
    plain, changed = (
        network.head.over(network.backbone(x)).detach() for x in (batch.plain, *batch.views)
    )
    expected = np.mean([iic_oracle(a, b) for a, b in zip(plain, changed, strict=True)])
    outcome = method.loss(network, batch)
    assert float(outcome.loss.detach()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(outcome.logits, network(batch.plain))
