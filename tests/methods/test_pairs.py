"""SimCLR, and what IIC, SCAN and SimCLR have in common: stability, options, small runs."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from coincide.methods.iic import IIC, SubHeads, iic_loss
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
