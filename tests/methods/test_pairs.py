"""SimCLR, and what IIC, SCAN and SimCLR have in common: stability, options, small runs."""

import math

import numpy as np
import pytest
import torch

from coincide.methods.iic import IIC, iic_loss
from coincide.methods.method import Batch
from coincide.methods.scan import SCAN, balanced_cross_entropy, neighbor_loss
from coincide.methods.simclr import SimCLR, nt_xent
from coincide.metrics import clustering_accuracy
from pair_methods import D, K, N, Net, Rows, batch_of, gradients, random, some_weights

METHODS = [
    (IIC(K), {}),
    (SCAN(K), {"partners": random(N, D, seed=9)}),
    (SimCLR(K), {}),
]


# --- SimCLR ---------------------------------------------------------------------------------


def nt_xent_oracle(first, second, temperature):
    views = np.concatenate([first.double().numpy(), second.double().numpy()])
    n = len(first)

    def kernel(i, j):
        lengths = np.linalg.norm(views[i]) * np.linalg.norm(views[j])
        return math.exp(views[i] @ views[j] / lengths / temperature)

    losses = []
    for i in range(2 * n):
        others = sum(kernel(i, j) for j in range(2 * n) if j != i)
        losses.append(-math.log(kernel(i, (i + n) % (2 * n)) / others))
    return (np.array(losses[:n]) + losses[n:]) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_the_double_loop(temperature):
    first, second = random(N, D), random(N, D, seed=1)
    found = nt_xent(first, second, temperature=temperature)
    np.testing.assert_allclose(found, nt_xent_oracle(first, second, temperature), rtol=1e-5)


def test_a_single_row_has_nothing_to_be_told_from():
    assert float(nt_xent(random(1, D), random(1, D, seed=1))) == pytest.approx(0, abs=1e-6)


def test_nt_xent_sees_directions_only():
    first, second = random(N, D), random(N, D, seed=1)
    torch.testing.assert_close(nt_xent(7 * first, 0.1 * second), nt_xent(first, second))


def test_simclr_compares_the_projections_and_leaves_the_classifier_alone():
    method = SimCLR(K, projection_width=9)
    assert not method.clusters
    network, weights = Net(method), some_weights()
    batch = batch_of(n_views=2, weights=weights)
    outcome = method.loss(network, batch)
    projected = [network.head.projection(network.backbone(view)).detach() for view in batch.views]
    assert projected[0].shape == (N, 9)
    rows = nt_xent_oracle(*projected, 0.1)
    w = weights.double().numpy()
    assert float(outcome.loss.detach()) == pytest.approx(w @ rows / w.sum(), rel=1e-5)
    torch.testing.assert_close(outcome.logits, network(batch.views[0]))
    for name, gradient in gradients(network, outcome.loss).items():
        assert (gradient is None) == name.startswith("head.classifier"), name


# --- all three ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "others"), METHODS)
def test_gradients_reach_the_network(method, others):
    network = Net(method)
    outcome = method.loss(network, batch_of(n_views=method.n_views, **others))
    assert outcome.loss.shape == ()
    assert outcome.logits.shape == (N, K)
    assert outcome.logits.requires_grad
    found = gradients(network, outcome.loss)
    assert all(bool((found[name] != 0).any()) for name in found if name.startswith("backbone"))


def extreme(n, seed, dtype):
    return (1e4 * random(n, K, seed=seed).sign()).to(dtype).requires_grad_()


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_and_single_rows_stay_finite(n, dtype):
    losses = {
        "iic": iic_loss,
        "neighbor": lambda a, b: neighbor_loss(a.float(), b.float(), entropy_weight=5.0),
        "balanced": lambda a, b: balanced_cross_entropy(a.float(), b.argmax(1), torch.ones(n)),
        "nt_xent": lambda a, b: nt_xent(a, b).mean(),
    }
    for name, loss in losses.items():
        first, second = extreme(n, 0, dtype), extreme(n, 1, dtype)
        found = loss(first, second)
        found.backward()
        assert found.dtype == torch.float32, name
        assert bool(found.isfinite()), name
        for logits in (first, second):
            assert logits.grad is None or bool(logits.grad.isfinite().all()), name


@pytest.mark.parametrize(("method", "others"), METHODS)
@pytest.mark.parametrize("n", [1, N])
def test_autocast_networks_are_computed_in_float32(method, others, n):
    network = Net(method)
    others = {name: rows[:n] for name, rows in others.items()}
    batch = batch_of(n=n, n_views=method.n_views, **others)
    expected = method.loss(network, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(batch.plain).dtype == torch.bfloat16
        found = method.loss(network, batch)
    assert found.loss.dtype == found.logits.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0.05)
    found.loss.backward()


def test_products_of_probabilities_are_not_rounded_under_autocast():
    first, second = random(N, K), random(N, K, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = iic_loss(first, second), nt_xent(first, second)
    torch.testing.assert_close(found, (iic_loss(first, second), nt_xent(first, second)))


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        (IIC, {"n_clusters": 1}, "'n_clusters' parameter of IIC"),
        (IIC, {"sub_heads": 0}, "'sub_heads' parameter of IIC"),
        (IIC, {"n_over": K - 1}, f"'n_over' parameter of IIC must be an integer >= {K}"),
        (IIC, {"entropy_weight": -1.0}, "'entropy_weight' parameter of IIC"),
        (IIC, {"n_views": 0}, "'n_views' parameter of IIC"),
        (SCAN, {"n_clusters": 1}, "'n_clusters' parameter of SCAN"),
        (SCAN, {"n_neighbors": 0}, "'n_neighbors' parameter of SCAN"),
        (SCAN, {"entropy_weight": math.nan}, "'entropy_weight' parameter of SCAN"),
        (SCAN, {"self_label_share": 1.0}, r"'self_label_share' .* must be a number in \[0, 1\)"),
        (SCAN, {"threshold": 1.5}, r"'threshold' parameter of SCAN must be a number in \[0, 1\)"),
        (SimCLR, {"n_clusters": 1}, "'n_clusters' parameter of SimCLR"),
        (SimCLR, {"temperature": 0.0}, "'temperature' parameter of SimCLR"),
        (SimCLR, {"projection_width": 0}, "'projection_width' parameter of SimCLR"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(method, options, named):
    with pytest.raises(ValueError, match=named):
        method(**{"n_clusters": K, **options})


@pytest.mark.parametrize("method", [IIC(K), SimCLR(K)])
def test_a_network_with_another_head_is_refused(method):
    network = Net(SCAN(K))
    with pytest.raises(TypeError, match=r"the head that (IIC|SimCLR)\.head builds"):
        method.loss(network, batch_of(n_views=method.n_views))


# --- end to end -----------------------------------------------------------------------------

CENTERS = torch.tensor([[4.0, 0.0], [-2.0, 3.5], [-2.0, -3.5]])
CLASSES = torch.arange(300) % 3


def trained(method, *, seed, n_epochs=20, rate=0.01):
    """Train on three Gaussian blobs with noise for views; return the network and the losses."""
    torch.manual_seed(seed)
    rows = CENTERS[CLASSES] + 0.7 * torch.randn(300, 2)
    network = Net(method, n_inputs=2, width=16, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)

    def view(x):
        return x + 0.3 * torch.randn_like(x)

    losses = []
    for epoch in range(n_epochs):
        method.begin_epoch(epoch, n_epochs, Rows(rows, network))
        for numbers in torch.randperm(300).split(60):
            partners = method.partners(numbers)
            outcome = method.loss(network, Batch(
                numbers, rows[numbers], tuple(view(rows[numbers]) for _ in range(method.n_views)),
                partners=None if partners is None else view(rows[partners]),
            ))  # fmt: skip
            optimizer.zero_grad()
            outcome.loss.backward()
            optimizer.step()
            losses.append(float(outcome.loss.detach()))
    return network(rows).detach(), losses


@pytest.mark.parametrize(
    ("method", "options"), [(IIC, {}), (SCAN, {}), (SCAN, {"self_label_share": 0.5})]
)
def test_blobs_are_found_from_most_starts(method, options):
    found = [trained(method(3, **options), seed=seed)[0].argmax(1) for seed in range(5)]
    scores = [clustering_accuracy(CLASSES, clusters) for clusters in found]
    assert sum(score > 0.9 for score in scores) >= 4, scores


def test_the_pretext_learns():
    _, losses = trained(SimCLR(3), seed=0, n_epochs=10)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
