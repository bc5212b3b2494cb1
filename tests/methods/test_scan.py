"""SCAN: its neighbors against scikit-learn's, its losses against float64 oracles."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from sklearn.neighbors import NearestNeighbors

from coincide.methods import neighbors as neighbors_module
from coincide.methods.neighbors import mine_neighbors
from coincide.methods.scan import SCAN, balanced_cross_entropy, neighbor_loss
from pair_methods import D, K, N, Net, Rows, batch_of, gradients, random, some_weights

# --- SCAN: neighbors ------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 1000, 2**24])
def test_mined_neighbors_are_those_of_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(neighbors_module, "_BLOCK", block)
    features = random(150, D)
    reference = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(features)
    np.testing.assert_array_equal(
        mine_neighbors(features, 20), reference.kneighbors(return_distance=False)
    )


def test_wide_features_are_mined_in_their_principal_directions():
    """Rows of 20 directions in 2,000 features, and a little noise in all of them."""
    noise = 1e-4 * random(60, 2000)
    features = random(60, 20) @ random(20, 2000) + noise
    state = torch.get_rng_state()
    found = mine_neighbors(features, 10)
    assert torch.equal(torch.get_rng_state(), state)
    reference = NearestNeighbors(n_neighbors=10, metric="cosine").fit(features)
    expected = reference.kneighbors(return_distance=False)
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shared) > 9.8
    torch.testing.assert_close(mine_neighbors(features, 10), found)


def test_a_row_is_not_its_own_neighbor_even_among_duplicates():
    found = mine_neighbors(torch.ones(6, 2), 5)
    assert [sorted(row) for row in found.tolist()] == [
        [other for other in range(6) if other != row] for row in range(6)
    ]
    assert mine_neighbors(torch.zeros(3, 2), 2).shape == (3, 2)


def test_neighbors_that_cannot_be_mined_are_refused():
    with pytest.raises(ValueError, match=r"'n_neighbors' parameter .* must be below .* 20\b"):
        mine_neighbors(random(20, D), 20)
    features = random(30, D)
    features[7, 1], features[9, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"Row 7 is not \(2 of 30 rows are not\)"):
        mine_neighbors(features, 3)
    with pytest.raises(ValueError, match="Row 0 is not"):
        mine_neighbors(1e30 * random(30, D), 3)
    with pytest.raises(ValueError, match=r"must be of shape \(M, D\)\. Got \(30,\) instead"):
        mine_neighbors(random(30), 3)


def test_partners_are_neighbors_drawn_at_random():
    method = SCAN(K, n_neighbors=5, self_label_share=0)
    with pytest.raises(RuntimeError, match="begin_epoch"):
        method.partners(torch.arange(3))
    network, rows = Net(method), random(40, D)
    data = Rows(rows, network)
    method.begin_epoch(0, 4, data)
    neighbors = mine_neighbors(data.features(), 5)
    asked = torch.tensor([3, 39, 0, 3])
    drawn = torch.stack([method.partners(asked) for _ in range(200)])
    for column, row in enumerate(asked):
        assert set(drawn[:, column].tolist()) == set(neighbors[row].tolist())


def test_neighbors_are_mined_once_and_survive_a_restart():
    method = SCAN(K, n_neighbors=5)
    network, rows = Net(method), random(40, D)
    assert method.state() == {}
    method.begin_epoch(0, 4, Rows(rows, network))
    mined = method.state()["neighbors"]
    other = Rows(rows, Net(method, seed=1))
    method.begin_epoch(1, 4, other)
    assert torch.equal(method.state()["neighbors"], mined)
    resumed = SCAN(K, n_neighbors=5)
    resumed.restore(method.state())
    resumed.begin_epoch(0, 4, None)  # stopped within epoch 0, whose network has moved on
    assert torch.equal(resumed.state()["neighbors"], mined)
    resumed.begin_epoch(0, 4, other)  # another fit
    assert not torch.equal(resumed.state()["neighbors"], mined)


# --- SCAN: losses ---------------------------------------------------------------------------


def scan_oracle(anchors, neighbors, entropy_weight, weights=None):
    p, q = (softmax(z.double().numpy(), axis=1) for z in (anchors, neighbors))
    w = np.ones(len(p)) if weights is None else weights.double().numpy()
    mean = w @ p / w.sum()
    return w @ -np.log((p * q).sum(1)) / w.sum() + entropy_weight * (mean * np.log(mean)).sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_neighbor_loss_is_the_published_one(weighted):
    anchors, neighbors = random(N, K), random(N, K, seed=1)
    weights = some_weights() if weighted else None
    for entropy_weight in (0.0, 5.0):
        found = neighbor_loss(anchors, neighbors, entropy_weight=entropy_weight, weights=weights)
        expected = scan_oracle(anchors, neighbors, entropy_weight, weights)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_neighbor_gradients_reach_both_sides_alike_without_the_entropy():
    anchors = random(N, K).requires_grad_()
    neighbors = random(N, K, seed=1).requires_grad_()
    forth = torch.autograd.grad(
        neighbor_loss(anchors, neighbors, entropy_weight=0), (anchors, neighbors)
    )
    back = torch.autograd.grad(
        neighbor_loss(neighbors, anchors, entropy_weight=0), (anchors, neighbors)
    )
    torch.testing.assert_close(forth, back)
    assert all(bool((gradient != 0).any()) for gradient in forth)


def test_clustering_trains_on_the_changed_view_and_its_changed_partner():
    method, weights = SCAN(K, entropy_weight=2.0), some_weights()
    network = Net(method)
    batch = batch_of(scale=3.0, partners=random(N, D, seed=9), weights=weights)
    outcome = method.loss(network, batch)
    anchors, neighbors = network(batch.views[0]).detach(), network(batch.partners).detach()
    expected = scan_oracle(anchors, neighbors, 2.0, weights)
    assert float(outcome.loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(outcome.logits, anchors)


def labeled_oracle(logits, labels, weights):
    """Return cross-entropy with class weights n/count over the rows that count, by a loop."""
    logs = log_softmax(logits.double().numpy(), axis=1)
    w, ids = weights.double().numpy(), labels.numpy()
    counts = np.array([w[ids == k].sum() for k in range(logits.shape[1])])
    total = scale = 0.0
    for i in range(len(ids)):
        if w[i] > 0:
            weight = w[i] * w.sum() / counts[ids[i]]
            total, scale = total - weight * logs[i, ids[i]], scale + weight
    return total / scale


@pytest.mark.parametrize("weights", [torch.ones(N), some_weights()])
def test_balanced_cross_entropy_is_the_published_one(weights):
    logits, labels = random(N, K), torch.arange(N) ** 2 % (K - 1)
    found = balanced_cross_entropy(logits, labels, weights)
    assert float(found) == pytest.approx(labeled_oracle(logits, labels, weights), rel=1e-5)


def test_balanced_cross_entropy_is_torchs_with_class_weights():
    logits, labels = random(N, K), torch.arange(N) % K
    counts = torch.bincount(labels, minlength=K)
    expected = F.cross_entropy(logits, labels, weight=N / counts)
    torch.testing.assert_close(balanced_cross_entropy(logits, labels, torch.ones(N)), expected)


def self_labeling(**options):
    method = SCAN(K, self_label_share=0.5, n_neighbors=2, **options)
    network = Net(method)
    method.begin_epoch(0, 2, Rows(random(N, D), network))
    method.begin_epoch(1, 2, None)
    assert method.partners(torch.arange(3)) is None
    return method, network


def test_self_labeling_takes_the_labels_of_the_plain_view_and_trains_the_changed_one():
    method, network = self_labeling(threshold=0.4)
    weights, known = some_weights(), torch.full((N,), -1)
    known[:8] = torch.arange(8) % K
    for options in ({}, {"weights": weights}, {"known": known}):
        batch = batch_of(scale=3.0, **options)
        probs = network(batch.plain).detach().softmax(1)
        labels, confident = probs.argmax(1), probs.amax(1) > 0.4
        assert 3 < int(confident.sum()) < N
        if "known" in options:
            assert not confident[:8].all()
            labels[:8], confident[:8] = known[:8], True
        counted = confident * options.get("weights", torch.ones(N))
        outcome = method.loss(network, batch)
        torch.testing.assert_close(outcome.logits, network(batch.views[0]))
        expected = labeled_oracle(outcome.logits.detach(), labels, counted)
        assert float(outcome.loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert outcome.quantities["confident"] == pytest.approx(float(confident.float().mean()))


def test_a_batch_without_a_confident_row_gives_a_zero_loss_on_the_graph():
    method, network = self_labeling()
    outcome = method.loss(network, batch_of())
    assert outcome.quantities["confident"] == 0
    assert float(outcome.loss.detach()) == 0
    for gradient in gradients(network, outcome.loss).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(
    ("share", "n_epochs", "first"),
    [(0, 3, 3), (0.5, 1, 1), (0.5, 4, 2), (0.8, 10, 2), (0.99, 4, 1)],
)
def test_self_labeling_begins_in_the_last_share_of_the_epochs(share, n_epochs, first):
    method = SCAN(K, n_neighbors=2, self_label_share=share)
    phases = []
    for epoch in range(n_epochs):
        method.begin_epoch(epoch, n_epochs, Rows(random(N, D), Net(method)))
        phases.append(method.partners(torch.arange(3)) is None)
    assert phases == [epoch >= first for epoch in range(n_epochs)]
