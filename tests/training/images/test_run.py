"""Training on images from Python: settings filled in and refused, labels, starts, the guard."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from coincide._files import DESCRIPTION
from coincide.cli import main
from coincide.data.images import read_images
from coincide.methods import METHODS, UNKNOWN
from coincide.methods.neighbors import mine_neighbors
from coincide.networks import Network
from coincide.training.config import ImageTrainingConfig
from coincide.training.images.model import load_image_model, save_image_model
from coincide.training.images.settings import build_method, draw_known, fill_in
from coincide.training.ranks import ALONE
from coincide.training.rows import PredictedRows
from small_images import DIGITS, TINY, assert_same_run, digits, one_thread, training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def run_of(source=None, **settings):
    return training(source, **settings).fit()


def refusal(source=None, kind=ValueError, **settings):
    with pytest.raises(kind) as caught:
        run_of(source, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# What a run says


def test_a_run_holds_what_the_network_says_of_the_images():
    run = run_of()
    assert run.probabilities.shape == (120, 10)
    assert run.probabilities.dtype == np.float32
    np.testing.assert_allclose(run.probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(run.clusters, run.probabilities.argmax(1))
    with torch.no_grad():
        logits = run.network(torch.from_numpy(digits().images).float() / 255)
    np.testing.assert_array_equal(torch.softmax(logits, 1).numpy(), run.probabilities)
    assert isinstance(run.network, Network)
    assert not run.network.training
    assert [record.epoch for record in run.history] == [0, 1]
    assert run.starts == []
    assert run.known is None


def test_a_seed_decides_everything_and_the_process_nothing():
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(run_of(starts=2, pretext_epochs=1))
    assert_same_run(*runs)


def test_training_leaves_the_random_numbers_of_the_process_alone():
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    run_of(starts=2, pretext_epochs=1)
    torch.testing.assert_close(torch.rand(5), expected, rtol=0, atol=0)


def test_the_weights_move():
    """The short runs here would pass with a network that does not train."""
    states = []
    running = training()
    run = running.fit(on_step=lambda record: states.append(running.state()[0]))
    weights = [state["0.network.head.weight"] for state in states]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert torch.equal(weights[-1], run.network.head.weight)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_labels_every_image(method):
    run = run_of(method=method)
    assert run.probabilities.shape == (120, 10)
    assert np.isfinite(run.probabilities).all()
    assert all(np.isfinite(record.loss) for record in run.history)


# Starts


def test_halving_keeps_the_lower_loss():
    losses = {}
    running = training(starts=4, max_epochs=4)
    run = running.fit(
        on_epoch=lambda record, signs: losses.update(
            {(running.starts.seed, record.epoch): record.loss}
        )
    )
    # A round is an epoch here.
    assert all(start.loss == losses[start.seed, start.round] for start in run.starts)
    first = [start for start in run.starts if start.round == 0]
    assert [start.seed for start in first] == [0, 1, 2, 3]
    kept = {start.seed for start in first if start.kept}
    assert kept == {start.seed for start in sorted(first, key=lambda start: start.loss)[:2]}
    second = [start for start in run.starts if start.round == 1]
    assert {start.seed for start in second} == kept
    assert min(second, key=lambda start: start.loss).kept
    assert sum(start.kept for start in second) == 1
    assert len(run.history) == 4


def test_a_start_is_the_training_of_its_seed_alone():
    """Other starts beside it, or a pretext before it, must not change its random numbers."""
    chosen = run_of(starts=4, max_epochs=4)
    seed = next(start.seed for start in chosen.starts if start.round == 1 and start.kept)
    running = training(max_epochs=4)
    running.starts._alive = [seed]
    assert_same_run(
        dataclasses.replace(running.fit(), starts=chosen.starts),
        chosen,
    )


def spoiled(seeds):
    """Train with the weights of the starts of these seeds made NaN in their first epoch."""
    running = training(starts=4, max_epochs=4, method="mi")

    def spoil(record):
        if running.starts.seed in seeds and record.step == 1:
            with torch.no_grad():
                running.starts.trainer.network.head.weight[0, 0] = torch.nan

    return running.fit(on_step=spoil)


@pytest.mark.parametrize("seeds", [{0}, {1, 2}, {0, 1, 2}])
def test_a_start_that_diverges_loses(seeds):
    run = spoiled(seeds)
    assert np.isfinite(run.probabilities).all()
    lost = {start.seed for start in run.starts if np.isnan(start.loss)}
    assert lost == seeds
    last = [start for start in run.starts if start.kept][-1]
    assert last.seed not in seeds


def test_starts_that_all_diverge_end_in_a_sentence():
    with pytest.raises(ValueError, match=r"diverged.*Try a smaller learning_rate\.$"):
        spoiled({0, 1, 2, 3})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("starts", [1, 2])
def test_a_learning_rate_far_too_large_ends_in_a_sentence(method, starts):
    settings = {"optimizer": "sgd", "learning_rate": 1e6, "max_epochs": 4, "starts": starts}
    records = []
    running = training(method=method, **settings)
    with pytest.raises(ValueError, match=r"diverged.*Try a smaller learning_rate\.$"):
        running.fit(on_epoch=lambda record, signs: records.append(record.loss))
    assert np.isfinite(records).all()


def test_a_pretext_that_diverges_ends_in_a_sentence():
    sentence = refusal(pretext_epochs=2, optimizer="sgd", learning_rate=1e6)
    assert "diverged" in sentence


def test_a_refusal_by_the_method_is_not_taken_for_a_divergence():
    assert "n_neighbors" in refusal(method="scan", method_options={"n_neighbors": 500})


# The guard


# As the paper has it: nothing works against the collapse.
PUBLISHED = {"revive": False, "method_options": {"n_neighbors": 0}}
COLLAPSE = {"network": "small-conv", "max_epochs": 3, **PUBLISHED}


@pytest.mark.parametrize("seed", range(3))
def test_the_literal_reading_of_lambda_is_named_as_a_collapse(seed):
    """λ/M = 100/250 of the paper's Algorithm 1 in the place of λ = 100."""
    said, live = [], []

    def watch(record, signs):
        said.append(signs)
        live.append(record.live_clusters)

    settings = {**COLLAPSE, "batch_size": 250, "max_epochs": 4, "seed": seed}
    run = training(digits(500), fairness=100 / 250, **settings).fit(on_epoch=watch)
    early = " ".join(said[0] + said[1])
    assert "clusters are empty" in early
    assert "Clusters share their rows" in early
    assert "Try a larger fairness (relative to the mean loss)" in early
    assert live[-1] <= 5
    empty = 10 - len(np.unique(run.clusters))
    assert any(sign.startswith(f"{empty} of 10 clusters are empty") for sign in run.signs)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_lambda_relative_to_the_mean_holds_the_clusters_apart(seed):
    few = dataclasses.replace(digits(300), label_names=DIGITS.label_names)
    settings = {**COLLAPSE, "batch_size": 100, "n_clusters": 3, "learning_rate": 3e-4}
    settings["method_options"] = {"n_views": 2, "n_neighbors": 0}
    runs = [
        run_of(few, fairness=fairness, seed=seed, **settings) for fairness in (100 / 100, 100.0)
    ]
    assert any("of 3 clusters are empty" in sign for sign in runs[0].signs)
    assert runs[1].signs == []
    assert runs[1].history[-1].live_clusters == 3


def test_a_loss_that_does_not_fall_is_named():
    run = run_of(learning_rate=1e-12, revive=False)
    assert any(
        sign.startswith("The loss did not fall") and "Try another learning_rate" in sign
        for sign in run.signs
    )


def test_a_sign_is_said_once_and_in_the_end_as_it_stands():
    said = []
    settings = {**COLLAPSE, "max_epochs": 6, "learning_rate": 1e-12, "fairness": 0.0}
    running = training(**settings)
    run = running.fit(on_epoch=lambda record, signs: said.extend(signs))
    kinds = [sign.rpartition(".")[0].rpartition(".")[2] for sign in said]
    assert len(said) == len(set(kinds)) >= 2
    live = len(np.unique(run.clusters))
    assert run.signs[0].startswith(f"{10 - live} of 10 clusters are empty")


def test_the_guard_waits_while_there_is_a_choice_and_passes_over_a_pretext():
    said = []
    running = training(starts=2, pretext_epochs=1, learning_rate=1e-12)
    running.fit(on_epoch=lambda record, signs: said.append(bool(signs)))
    assert said == [False, False, False, True]
    assert run_of(method="simclr").signs == []


# Labels


def test_labels_of_a_complete_source_are_not_used():
    shuffled = np.random.default_rng(0).permutation(digits().labels)
    settings = {"starts": 2, "pretext_epochs": 1}
    assert_same_run(run_of(digits(labels=shuffled), **settings), run_of(**settings))
    assert run_of(digits(labels=shuffled)).known is None


def half_labeled(count=120):
    labels = digits(count).labels.copy()
    labels[::2] = UNKNOWN
    return digits(count, labels=labels)


@pytest.mark.parametrize("method", METHODS)
def test_labels_beside_blanks_are_learned(method):
    settings = {"method": method, "max_epochs": 20, "learning_rate": 3e-3, "known_weight": 20.0}
    source = half_labeled()
    run = run_of(source, **settings)
    np.testing.assert_array_equal(run.known, source.labels)
    told = source.labels != UNKNOWN
    assert (run.clusters[told] == source.labels[told]).mean() > 0.9
    # And what they teach holds for the others.
    assert (run.clusters[~told] == digits().labels[~told]).mean() > 0.5


def test_other_known_labels_are_another_training():
    source = half_labeled()
    told = source.labels != UNKNOWN
    other = np.where(told, (source.labels + 1) % 10, UNKNOWN)
    runs = [run_of(given, max_epochs=3) for given in (source, digits(labels=other))]
    assert not np.array_equal(runs[0].probabilities, runs[1].probabilities)


def config_of(**settings):
    return ImageTrainingConfig(**{**TINY, "n_clusters": 10, **settings})


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_a_share_of_the_labels_is_drawn_from_every_class(share):
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    known = draw_known(labels, config_of(labeled_fraction=share))
    told = known != UNKNOWN
    np.testing.assert_array_equal(known[told], labels[told])
    counts = np.bincount(known[told], minlength=3)
    assert counts.tolist() == [max(1, round(share * count)) for count in (100, 40, 3)]


def test_the_draw_is_the_seeds():
    labels = digits().labels
    draws = [draw_known(labels, config_of(labeled_fraction=0.2, seed=s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_share_is_drawn_of_the_labels_that_there_are():
    labels = half_labeled().labels
    known = draw_known(labels, config_of(labeled_fraction=0.5))
    told = known != UNKNOWN
    np.testing.assert_array_equal(known[told], labels[told])
    assert 0 < told.sum() < (labels != UNKNOWN).sum()


def test_labels_that_do_not_fit_are_refused():
    assert "labeled_fraction needs labels" in refusal(
        digits(labels=None), labeled_fraction=0.1, n_clusters=10
    )
    for settings in ({"labeled_fraction": 0.5}, {}):
        source = digits() if settings else half_labeled()
        sentence = refusal(source, n_clusters=5, **settings)
        assert "'n_clusters'" in sentence
        assert "the number of classes that are known, 10. Got 5" in sentence
    # Complete labels are not used, and may be of more classes than clusters.
    assert run_of(n_clusters=5).probabilities.shape == (120, 5)


# Settings


def test_what_is_left_open_is_decided_by_the_images():
    filled = fill_in(ImageTrainingConfig(), digits())
    assert filled.n_clusters == 10
    assert None not in (filled.starts, filled.pretext_epochs, filled.learning_rate)
    assert filled.network == "small-conv"
    wide = digits(images=np.zeros((120, 1, 32, 32), np.uint8))
    assert fill_in(ImageTrainingConfig(), wide).network == "vgg4"
    assert fill_in(filled, digits()) == filled
    assert fill_in(config_of(n_clusters=7, starts=3), digits()).starts == 3
    assert fill_in(ImageTrainingConfig(method="simclr"), digits()).pretext_epochs == 0


def test_what_collision_brings_along_is_its_own():
    """Its fairness, its neighbors and the revival are not those of the published methods."""
    filled = fill_in(ImageTrainingConfig(), digits())
    assert (filled.fairness, filled.revive) == (10, True)
    assert filled.method_options == {"n_neighbors": 10}
    for method in set(METHODS) - {"collision"}:
        other = fill_in(ImageTrainingConfig(method=method), digits())
        assert (other.fairness, other.revive, other.method_options) == (None, False, {})


def test_photographs_have_neighbors_after_a_pretext_only():
    photos = digits(images=np.zeros((120, 3, 8, 8), np.uint8))
    without = fill_in(ImageTrainingConfig(pretext_epochs=0), photos)
    assert "n_neighbors" not in without.method_options
    assert fill_in(ImageTrainingConfig(), photos).method_options == {"n_neighbors": 10}


def test_nothing_is_revived_where_classes_are_known():
    blank = digits(labels=np.where(np.arange(120) < 60, digits().labels, UNKNOWN))
    assert not fill_in(ImageTrainingConfig(), blank).revive
    assert not fill_in(ImageTrainingConfig(labeled_fraction=0.1), digits()).revive
    assert fill_in(ImageTrainingConfig(labeled_fraction=0.1, revive=True), digits()).revive


def test_large_data_gets_one_start_and_no_pretext():
    wide = np.broadcast_to(np.zeros((), np.uint8), (60_000, 3, 64, 64))
    filled = fill_in(config_of(starts=None, pretext_epochs=None), digits(images=wide))
    assert (filled.starts, filled.pretext_epochs) == (1, 0)


REFUSED = [
    ({"n_clusters": 1}, "'n_clusters'.*>= 2. Got 1"),
    ({"n_clusters": 121}, "'n_clusters'.*at most the number of images, 120. Got 121"),
    ({"n_clusters": 2.5}, "'n_clusters'.*integer.*2.5"),
    ({"method": "colision"}, "'method'.*Did you mean 'collision'"),
    ({"network": "vgg44"}, "vgg44.*Did you mean 'vgg4'"),
    ({"view": "afine"}, "afine.*Did you mean 'affine'"),
    ({"method_options": {"n_view": 3}}, "no setting 'n_view'.*Did you mean 'n_views'"),
    ({"method_options": {"n_views": 0}}, "'n_views'.*>= 1. Got 0"),
    ({"method_options": {"prior": [1, 2]}}, "no setting 'prior'"),
    ({"method_options": {"n_clusters": 3}}, "no setting 'n_clusters'"),
    ({"method_options": {"backend": "numba"}}, "no setting 'backend'"),
    ({"method": "sela", "fairness": 1.0}, "'sela' has no setting 'fairness'"),
    ({"fairness": -1.0}, "'fairness'.*>= 0. Got -1.0"),
    ({"fairness": np.nan}, "'fairness'.*finite.*nan"),
    ({"method_options": {"fairness": -1.0}}, "'fairness'.*>= 0. Got -1.0"),
    ({"objective": "cce++"}, "'objective'.*'cce[+]'.*Got 'cce[+][+]'"),
    ({"method": "iic", "revive": True}, "'iic' has a head of more than one linear layer"),
    ({"solver": "sinkhorn"}, "'sinkhorn'.*'cce[+]'.*'interior-point'"),
    ({"optimizer": "adamm"}, "'optimizer'.*'adam'"),
    ({"schedule": "linear"}, "'schedule'.*'late-linear'"),
    ({"precision": "float16"}, "'precision'.*'bfloat16'"),
    ({"batch_size": 0}, "'batch_size'.*>= 1. Got 0"),
    ({"batch_size": 1}, "single image.*larger batch_size than 1"),
    ({"batch_size": 119, "accumulate": 31}, "single image.*smaller accumulate than 31"),
    ({"accumulate": 300}, "single image.*smaller accumulate than 300"),
    ({"max_epochs": 0}, "'max_epochs'.*>= 1. Got 0"),
    ({"starts": 0}, "'starts'.*>= 1. Got 0"),
    ({"start_epochs": 0}, "'start_epochs'.*>= 1. Got 0"),
    ({"pretext_epochs": -1}, "'pretext_epochs'.*>= 0. Got -1"),
    ({"seed": -1}, "'seed'.*>= 0. Got -1"),
    ({"learning_rate": 0.0}, "'learning_rate'.*> 0. Got 0.0"),
    ({"learning_rate": np.inf}, "'learning_rate'.*finite.*inf"),
    ({"backbone_learning_rate": -1.0}, "'backbone_learning_rate'.*> 0. Got -1.0"),
    ({"weight_decay": -1.0}, "'weight_decay'.*>= 0. Got -1.0"),
    ({"momentum": np.nan}, "'momentum'.*finite.*nan"),
    ({"known_weight": -2.0}, "'known_weight'.*>= 0. Got -2.0"),
    ({"labeled_fraction": 1.5}, "'labeled_fraction'.*at most 1. Got 1.5"),
    ({"device": "cuda:99"}, "'device'.*Got 'cuda:99'"),
]


@pytest.mark.parametrize(
    ("settings", "match"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_unfit_settings_are_refused_in_a_sentence(settings, match):
    with pytest.raises((ValueError, TypeError), match=match):
        run_of(**settings)


def test_settings_of_the_method_are_refused_before_a_pretext_is_trained():
    with pytest.raises(ValueError, match="n_view"):
        training(pretext_epochs=100, method_options={"n_view": 3})


def test_images_that_cannot_be_told_apart_are_refused():
    constant = digits(images=np.full((120, 1, 8, 8), 7, np.uint8))
    assert "All pixels of digits are equal (7)" in refusal(constant)


def test_equal_images_train_and_are_named():
    same = digits(images=np.repeat(DIGITS.images[:1], 120, axis=0))
    run = run_of(same, n_clusters=2)
    assert any("clusters are empty" in sign for sign in run.signs)
    assert np.isfinite(run.probabilities).all()


def test_without_labels_the_number_of_clusters_is_asked_for():
    nameless = digits(labels=None, label_names=None)
    assert "no labels to count: say how many clusters" in refusal(nameless)
    assert run_of(nameless, n_clusters=4).probabilities.shape == (120, 4)
    one = digits(labels=np.zeros(120, np.int64), label_names=("cat",))
    assert "labels of a single class: say how many clusters" in refusal(one)
    assert run_of(one, n_clusters=4).probabilities.shape == (120, 4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "scan"])
def test_two_images_are_enough(method):
    run = run_of(digits(2), n_clusters=2, method=method)
    assert run.probabilities.shape == (2, 2)


def test_arrays_of_the_users_own_train():
    images = np.random.default_rng(0).random((30, 6, 9, 3))
    source = read_images(images, labels=["cat", "dog", ""] * 10)
    run = run_of(source, network="linear", view="none")
    assert run.image_shape == (3, 6, 9)
    assert (run.known == UNKNOWN).sum() == 10


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_built_with_its_settings(method):
    built = build_method(config_of(method=method), CPU)
    assert type(built) is METHODS[method]
    assert built.n_clusters == 10


def test_shared_settings_reach_the_method():
    config = config_of(
        fairness=3.0,
        objective="cce",
        solver="projected-gradient",
        method_options={"n_views": 2, "label_tol": 1.0},
    )
    built = build_method(config, CPU)
    assert (built.fairness, built.objective, built.solver) == (3.0, "cce", "projected-gradient")
    assert (built.n_views, built.label_tol) == (2, 1.0)


# The user's own network and view


def own_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())


def test_a_network_of_the_users_own_is_trained_and_must_be_given_again(tmp_path):
    network = own_network()
    before = [parameter.clone() for parameter in network.parameters()]
    run = training(own_network=network).fit()
    assert run.network.head.in_features == 12
    # The user's stays as it was; what is trained is a copy.
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    save_image_model(tmp_path, run)
    with pytest.raises(ValueError, match=r"its network is '.*Sequential'.*give it again"):
        load_image_model(tmp_path)
    loaded = load_image_model(tmp_path, network=own_network(), device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(digits().images), run.probabilities)


def test_a_name_is_no_network():
    with pytest.raises(TypeError, match=r"'network'.*torch.nn.Module.*Got 'vgg4'"):
        training(own_network="vgg4")


def test_a_view_of_the_users_own_is_called():
    calls = []

    def view(images):
        calls.append(images.shape)
        return images.flip(-1)

    training(own_view=view).fit()
    assert calls[-1] == (40, 1, 8, 8)
    with pytest.raises(ValueError, match=r"must return.*shape"):
        training(own_view=lambda images: images[:, :, :4])


# Weights to start from


def test_starts_begin_from_the_weights_given():
    first = run_of(max_epochs=1).network.backbone.state_dict()
    states = []
    running = training(initial=first, learning_rate=1e-30, weight_decay=0.0, starts=2)
    running.fit(on_step=lambda record: states.append(running.state()[0]))
    for seed in (0, 1):
        state = next(state for state in states if f"{seed}.network.head.weight" in state)
        for name, tensor in first.items():
            if tensor.is_floating_point() and "running" not in name:
                torch.testing.assert_close(state[f"{seed}.network.backbone.{name}"], tensor)


def test_a_pretext_gives_the_starts_their_backbone():
    running = training(pretext_epochs=2)
    seen = []
    running.fit(on_epoch=lambda record, signs: seen.append((running.pretext is None, record)))
    assert [started for started, _ in seen] == [False, False, True, True]
    assert [record.epoch for _, record in seen] == [0, 1, 0, 1]
    assert running.initial is not None
    assert running.under_way is running.starts


@pytest.mark.parametrize("method", ["collision", "scan"])
def test_neighbors_that_the_starts_share_are_those_mined_anew(method, monkeypatch):
    options = {"n_neighbors": 5}
    running = training(method=method, method_options=options, pretext_epochs=1, starts=3)
    module, mined = sys.modules[METHODS[method].__module__], []

    def mine(features, count):
        mined.append(mine_neighbors(features, count))
        return mined[-1]

    monkeypatch.setattr(module, "mine_neighbors", mine)
    shared = {}

    def on_epoch(record, signs):
        if running.pretext is None:
            starts = running.starts
            shared[starts.seed] = starts.trainer.method.state()["neighbors"]

    running.fit(on_epoch=on_epoch)
    assert list(shared) == [0, 1, 2]
    assert len(mined) == 1
    fresh = training(method=method, method_options=options, initial=running.initial)
    for seed, neighbors in shared.items():
        network = fresh._build(seed).network
        features = PredictedRows(network, fresh.data.rows).features()
        assert torch.equal(neighbors, mine_neighbors(features, 5))


@pytest.mark.parametrize("pretext_epochs", [0, 1])
def test_starts_of_other_backbones_have_neighbors_of_their_own(pretext_epochs):
    running = training(method_options={"n_neighbors": 5}, pretext_epochs=pretext_epochs, starts=2)
    found = {}

    def on_epoch(record, signs):
        if running.pretext is None:
            found[running.starts.seed] = running.starts.trainer.method.state()["neighbors"]

    running.fit(on_epoch=on_epoch)
    assert torch.equal(found[0], found[1]) == bool(pretext_epochs)


def test_weights_of_another_network_are_refused():
    other = training(own_network=own_network()).fit().network.backbone.state_dict()
    with pytest.raises(ValueError, match="not those of this network"):
        training(initial=other).fit()


# On disk


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", ["mlp", "small-conv"])
def test_a_saved_model_says_what_the_training_said(tmp_path, method, network):
    run = run_of(method=method, network=network, max_epochs=1)
    save_image_model(tmp_path, run)
    loaded = load_image_model(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(digits().images), run.probabilities)
    assert loaded.n_clusters == 10
    one = loaded.predict_proba(digits().images[:1])
    np.testing.assert_allclose(one, run.probabilities[:1], atol=1e-6)


def test_a_training_in_half_precision_is_repeated_by_its_model(tmp_path):
    run = run_of(precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in run.network.parameters())
    save_image_model(tmp_path, run)
    found = load_image_model(tmp_path, device="cpu").predict_proba(digits().images)
    np.testing.assert_array_equal(found, run.probabilities)


@pytest.mark.parametrize("white", [1, 255, 4095, 65535, np.inf])
def test_a_model_takes_images_as_bright_as_its_training_did(tmp_path, monkeypatch, white):
    shares = DIGITS.images[:120, 0] / 255
    images = shares if white == np.inf else np.rint(shares * white).astype(np.uint16)
    save_image_model(tmp_path / "run", run_of(read_images(images), max_epochs=1, n_clusters=3))
    model = load_image_model(tmp_path / "run", device="cpu")
    assert model.white == white
    dark = np.where(shares < 0.5, images, 0)
    np.save(tmp_path / "dark.npy", dark)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "run", "dark.npy", "--quiet"]) == 0
    expected = np.where(shares < 0.5, read_images(images).images[:, 0], 0)[:, None]
    written = np.genfromtxt("run/predictions.csv", delimiter=",", names=True)["cluster"]
    np.testing.assert_array_equal(written, model.predict_proba(expected).argmax(1))


def test_a_model_from_before_takes_the_full_depth(tmp_path):
    save_image_model(tmp_path, run_of(max_epochs=1))
    about = json.loads((tmp_path / DESCRIPTION).read_text())
    del about["white"]
    (tmp_path / DESCRIPTION).write_text(json.dumps(about))
    assert load_image_model(tmp_path).white == np.inf


def test_images_of_another_size_are_refused_by_the_model(tmp_path):
    save_image_model(tmp_path, run_of(max_epochs=1))
    with pytest.raises(ValueError, match=r"\(M, 1, 8, 8\).*\(5, 1, 9, 8\)"):
        load_image_model(tmp_path).predict_proba(np.zeros((5, 1, 9, 8), np.uint8))


def test_a_training_alone_has_no_ranks():
    assert training().ranks is ALONE
