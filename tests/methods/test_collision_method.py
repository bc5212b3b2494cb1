"""The paper's method: whose predictions are labeled, how well, and the loss to the labels."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from coincide.losses import collision_cross_entropy
from coincide.methods import UNKNOWN, CollisionMethod
from coincide.methods.method import Batch
from coincide.pseudolabels import solve_pseudo_labels
from coincide.pseudolabels.rows import TorchPasses, compiled_passes
from coincide.training.config import TrainingConfig
from small_training import UNIFORM, D, K, M, head, inputs, known_of, seeded, trained

SOLVERS = [
    ("cce+", "auto"),
    ("cce+", "active-set"),
    ("cce+", "interior-point"),
    ("cce+", "em"),
    ("cce", "auto"),
    ("cce", "interior-point"),
    ("cce", "projected-gradient"),
    ("ce+kl", "auto"),
]


def method_of(**changes):
    return CollisionMethod(**{"n_clusters": K, "prior": UNIFORM, "label_tol": 1e-4, **changes})


def logits_of(rows=M, scale=2.0, seed=7):
    return scale * torch.randn(rows, K, generator=seeded(seed))


def mixed(seed=0):
    """A network with a hidden layer: views differ by more than a scale."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K))


def batch_of(n_views=1, **parts):
    views = tuple(inputs() + torch.randn(M, D, generator=seeded(10 + v)) for v in range(n_views))
    return Batch(torch.arange(M), inputs(), views, **parts)


def exact(probs, **settings):
    return solve_pseudo_labels(probs.detach().double(), tol=1e-9, **settings)


# Labels


@pytest.mark.parametrize(("objective", "solver"), SOLVERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_and_evaluation_are_those_of_the_public_solver(objective, solver, weighted):
    logits = logits_of()
    weights = torch.rand(M, generator=seeded()) if weighted else None
    method = method_of(objective=objective, solver=solver, fairness=5.0)
    probs = torch.softmax(logits, 1)
    best = exact(probs, objective=objective, sample_weight=weights, fairness=5.0)
    certificate = method.evaluate(logits, weights)
    assert certificate.lower_bound <= best.objective + 1e-9
    assert certificate.objective == pytest.approx(best.objective, abs=1e-4)
    labels = method.labels(logits, weights)
    assert labels.dtype == logits.dtype
    assert not labels.requires_grad
    assert bool((labels >= 0).all())
    torch.testing.assert_close(labels.sum(1), torch.ones(M))
    mean = torch.ones(M) / M if weights is None else weights / weights.sum()
    torch.testing.assert_close((mean @ labels).double(), best.mean_label, atol=5e-3, rtol=0)


@pytest.mark.parametrize("solver", ["active-set", "interior-point"])
def test_sharp_labels_are_the_optimum(solver):
    logits, prior = logits_of(), np.array([0.2, 0.3, 0.5])
    labels = method_of(solver=solver, prior=prior, label_tol=1e-10).labels(logits)
    best = exact(torch.softmax(logits, 1), prior=torch.from_numpy(prior))
    torch.testing.assert_close(labels.double(), best.labels, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("objective", "solver"), SOLVERS)
def test_known_rows_are_held_at_the_truth(objective, solver):
    logits, known = logits_of(), known_of()
    method = method_of(objective=objective, solver=solver, fairness=5.0)
    labels = method.labels(logits, known=known)
    held = known != UNKNOWN
    assert torch.equal(labels[held], torch.eye(K)[known[held]])
    best = exact(torch.softmax(logits, 1), objective=objective, known=known, fairness=5.0)
    torch.testing.assert_close(labels.mean(0).double(), best.mean_label, atol=5e-3, rtol=0)
    unaware = method_of(objective=objective, solver=solver, fairness=5.0).labels(logits)
    assert not torch.allclose(labels[~held], unaware[~held], atol=1e-2)


@pytest.mark.parametrize(("objective", "solver"), SOLVERS)
def test_with_every_row_known_there_is_nothing_to_solve(objective, solver):
    known = torch.randint(K, (M,), generator=seeded())
    labels = method_of(objective=objective, solver=solver).labels(logits_of(), known=known)
    assert torch.equal(labels, torch.eye(K)[known])


def test_unknown_rows_everywhere_are_no_known_rows():
    unknown = torch.full((M,), UNKNOWN)
    assert torch.equal(
        method_of().labels(logits_of(), known=unknown), method_of().labels(logits_of())
    )


@pytest.mark.parametrize("solver", ["active-set", "interior-point"])
@pytest.mark.parametrize("known", [None, known_of()])
def test_the_batch_before_changes_labels_within_the_tolerance_only(solver, known):
    """Each within its own tolerance of the optimum, from wherever it started."""
    warm = method_of(solver=solver, label_tol=1e-7)
    for seed in (1, 2, 3):
        warm.labels(logits_of(rows=40, seed=seed, scale=4.0))
    cold = method_of(solver=solver, label_tol=1e-7)
    found, expected = (m.labels(logits_of(), known=known) for m in (warm, cold))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_a_class_of_prior_zero_keeps_the_multipliers_in_place():
    prior = np.array([0.5, 0.0, 0.5])
    method = method_of(objective="cce", prior=prior)
    for seed in (1, 2):
        labels = method.labels(logits_of(seed=seed))
        assert float(labels[:, 1].max()) == 0
    assert method.state()["guess"].shape == (K,)


@pytest.mark.parametrize("passes", [TorchPasses(), compiled_passes()], ids=lambda own: own.name)
def test_labels_do_not_depend_on_the_passes(passes):
    logits = logits_of(rows=60)
    found = method_of(passes=passes, label_tol=1e-9).labels(logits)
    torch.testing.assert_close(found, method_of(label_tol=1e-9).labels(logits), atol=1e-3, rtol=0)


@pytest.mark.parametrize("passes", [TorchPasses(), compiled_passes()], ids=lambda own: own.name)
@pytest.mark.parametrize("size", [(100, 10), (20, 400)])
def test_a_network_that_diverged_does_not_hold_the_solver_up(size, passes):
    """It ran through all its steps, a minute for 250 rows of 1,000 classes."""
    logits = torch.randn(*size, generator=seeded(0))
    logits[0] = torch.nan
    prior = np.full(size[1], 1 / size[1])
    method = CollisionMethod(n_clusters=size[1], prior=prior, passes=passes)
    found = method._solve(torch.softmax(logits, 1), None, tol=0.05, certified=False)
    assert found.n_iter < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_labels_come_in_the_dtype_of_the_logits(dtype):
    logits = logits_of().to(dtype)
    before = logits.clone()
    assert method_of().labels(logits).dtype == dtype
    assert torch.equal(logits, before)


# Whose predictions are labeled


def expected_loss(network, batch, probs):
    labels = exact(probs).labels.float()
    losses = [collision_cross_entropy(network(view), labels) for view in batch.views]
    return float(torch.stack(losses).mean().detach())


@pytest.mark.parametrize(("n_views", "labeled_by"), [(1, "auto"), (3, "plain")])
def test_plain_rows_are_labeled(n_views, labeled_by):
    network, batch = mixed(), batch_of(n_views)
    method = method_of(label_tol=1e-9, n_views=n_views, labeled_by=labeled_by)
    outcome = method.loss(network, batch)
    probs = torch.softmax(network(batch.plain), 1)
    torch.testing.assert_close(outcome.seen, probs.detach())
    assert float(outcome.loss.detach()) == pytest.approx(
        expected_loss(network, batch, probs), abs=1e-5
    )
    torch.testing.assert_close(outcome.logits, network(batch.views[0]))


@pytest.mark.parametrize("labeled_by", ["auto", "views"])
def test_the_mean_of_the_views_is_labeled(labeled_by):
    network, batch = mixed(), batch_of(n_views=3)
    outcome = method_of(label_tol=1e-9, n_views=3, labeled_by=labeled_by).loss(network, batch)
    probs = torch.stack([torch.softmax(network(view), 1) for view in batch.views]).mean(0)
    torch.testing.assert_close(outcome.seen, probs.detach())
    assert float(outcome.loss.detach()) == pytest.approx(
        expected_loss(network, batch, probs), abs=1e-5
    )


def test_a_slow_copy_of_the_network_labels():
    network, batch = mixed(), batch_of()
    method = method_of(label_tol=1e-9, labeled_by="teacher", teacher_momentum=0.75)
    method.loss(network, batch)
    slow = copy.deepcopy(network)
    for seed in (5, 6):
        with torch.no_grad():
            network.load_state_dict(mixed(seed).state_dict())
            for parameter, fast in zip(slow.parameters(), network.parameters(), strict=True):
                parameter.copy_(0.75 * parameter + 0.25 * fast)
        outcome = method.loss(network, batch)
        probs = torch.softmax(slow(batch.plain), 1)
        torch.testing.assert_close(outcome.seen, probs.detach())
        assert float(outcome.loss.detach()) == pytest.approx(
            expected_loss(network, batch, probs), abs=1e-5
        )


def test_a_slow_copy_survives_a_restart():
    batch, settings = batch_of(), {"labeled_by": "teacher", "teacher_momentum": 0.5}
    method = method_of(**settings)
    method.loss(mixed(0), batch)
    method.loss(mixed(1), batch)
    restored = method_of(**settings)
    restored.restore(method.state())
    assert restored.state().keys() == method.state().keys()
    found, expected = (m.loss(mixed(2), batch) for m in (restored, method))
    assert torch.equal(found.seen, expected.seen)
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("labeled_by", ["plain", "views", "teacher"])
def test_gradients_come_by_the_changed_views_alone(labeled_by):
    """The labels are constants: the gradient is that of the loss at fixed labels."""
    network, batch = mixed(), batch_of(n_views=2)
    method = method_of(label_tol=1e-9, n_views=2, labeled_by=labeled_by)
    outcome = method.loss(network, batch)
    found = torch.autograd.grad(outcome.loss, list(network.parameters()))
    labels = exact(outcome.seen).labels.float()
    loss = sum(collision_cross_entropy(network(view), labels) for view in batch.views) / 2
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


# The loss


def test_the_loss_is_the_mean_over_the_views():
    network, batch = mixed(), batch_of(n_views=3)
    alone = [
        method_of().loss(network, Batch(batch.rows, batch.plain, (view,))).loss
        for view in batch.views
    ]
    together = method_of(n_views=3, labeled_by="plain").loss(network, batch).loss
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_the_weighted_loss_is_the_loss_of_repeated_rows():
    counts = torch.randint(0, 4, (M,), generator=seeded())
    network, batch = mixed(), batch_of()
    weighted = Batch(batch.rows, batch.plain, batch.views, weights=counts.float())
    repeated = Batch(*(x.repeat_interleave(counts, 0) for x in (batch.rows, batch.plain)), tuple(
        view.repeat_interleave(counts, 0) for view in batch.views
    ))  # fmt: skip
    found, expected = (
        method_of(label_tol=1e-9).loss(network, b).loss for b in (weighted, repeated)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_labels_and_loss_are_the_same_under_autocast():
    class Fixed(nn.Module):
        """Gives its input, which is no product that autocast could round."""

        def forward(self, x):
            return x

    batch = Batch(torch.arange(M), logits_of(), (logits_of(seed=8),))
    for solver in ("active-set", "interior-point", "em"):
        expected = method_of(solver=solver).loss(Fixed(), batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            found = method_of(solver=solver).loss(Fixed(), batch).loss
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("labeled_by", ["plain", "views", "teacher"])
def test_training_by_the_method_lowers_its_objective(labeled_by):
    centers = 4 * torch.eye(K, D)
    rows = centers.repeat(30, 1) + 0.3 * torch.randn(90, D, generator=seeded())
    method = method_of(labeled_by=labeled_by, teacher_momentum=0.5, label_tol=1e-3)
    network = head()
    before = method.evaluate(network(rows).detach()).objective
    config = TrainingConfig(batch_size=30, max_epochs=20, weight_decay=0.01)
    trained(config, network=network, method=method, rows=rows)
    found = network(rows).detach()
    assert method.evaluate(found).objective < before / 2
    assert sorted(torch.bincount(found.argmax(1), minlength=K).tolist()) == [30, 30, 30]


# What is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labeled_by": "guesses"}, "'labeled_by' parameter of CollisionMethod must be one of"),
        ({"n_views": 0}, "'n_views' parameter of CollisionMethod must be an integer >= 1"),
        ({"solver": "newton"}, "'solver' parameter of CollisionMethod must be one of"),
        ({"solver": "em", "objective": "cce"}, "'em' of CollisionMethod does not fit"),
    ],
)
def test_unfit_settings_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        method_of(**changes)
