"""The estimator goes on: over streams of chunks, and after saving and loading."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from torch import nn

from coincide.cluster import CollisionClustering, ModelError
from quick_fits import QUICK, D, K, X, Y, fitted


@pytest.fixture(scope="module")
def model():
    return fitted()


# Streams


def chunks(count=30, rows=100):
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield X[generator.integers(len(X), size=rows)]


def test_a_stream_finds_the_blobs():
    model = CollisionClustering(**QUICK)
    for number, chunk in enumerate(chunks()):
        assert model.partial_fit(chunk) is model
        assert model.n_iter_ == len(model.history_) == number + 1
        np.testing.assert_array_equal(model.labels_, model.predict(chunk))
    assert adjusted_rand_score(Y, model.predict(X)) > 0.95


def test_a_stream_repeats_by_its_random_state():
    first, second = CollisionClustering(**QUICK), CollisionClustering(**QUICK)
    for chunk in chunks(4):
        first.partial_fit(chunk)
    torch.rand(7)  # what others draw must not matter
    for chunk in chunks(4):
        second.partial_fit(chunk)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_the_scaling_of_a_stream_is_that_of_all_its_rows():
    model = CollisionClustering(**{**QUICK, "scaling": "standard"})
    for part in np.array_split(np.sort(X, axis=0), 4):
        model.partial_fit(part)
    np.testing.assert_allclose(model.scaling_.mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.scaling_.spread, X.std(0), rtol=1e-5)


def test_a_stream_keeps_its_width():
    model = CollisionClustering(**QUICK).partial_fit(X)
    with pytest.raises(ValueError, match="4 features"):
        model.partial_fit(X[:, :4])


def test_later_chunks_may_be_small_and_constant():
    model = CollisionClustering(**QUICK).partial_fit(X)
    assert model.partial_fit(X[:1]).labels_.shape == (1,)


def test_a_stream_goes_on_after_a_fit():
    """On the fitted network: as good as before, and moved."""
    model = CollisionClustering(**QUICK).partial_fit(X[:100]).fit(X)
    before = model.predict_proba(X)
    model.partial_fit(X)
    after = model.predict_proba(X)
    assert model.n_iter_ == QUICK["max_epochs"] + 1
    assert np.abs(after - before).max() > 0
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))


def test_a_stream_goes_on_after_loading(model, tmp_path):
    model.save(tmp_path)
    loaded = CollisionClustering.load(tmp_path)
    before = loaded.predict(X)
    loaded.partial_fit(X[:50] + 1)
    assert loaded.n_iter_ == model.n_iter_ + 1
    np.testing.assert_array_equal(loaded.predict(X), before)
    # Weighed by the 300 rows that came before.
    expected = (X.sum(0) + (X[:50] + 1).sum(0)) / 350
    np.testing.assert_allclose(loaded.scaling_.mean, expected, rtol=1e-5)


def test_fit_starts_anew(model):
    again = CollisionClustering(**QUICK).partial_fit(X).fit(X)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_pickle_and_clone(model):
    stream = CollisionClustering(**QUICK).partial_fit(X)
    for one in (model, stream):
        copied = pickle.loads(pickle.dumps(one))
        np.testing.assert_array_equal(copied.predict_proba(X), one.predict_proba(X))
    assert not hasattr(clone(model), "network_")


# Saving and loading


def own_network():
    return nn.Sequential(nn.Linear(D, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, K))


@pytest.mark.parametrize("network", ["linear", "mlp", "own"])
@pytest.mark.parametrize("scaling", ["unit-norm", "none"])
def test_a_saved_model_predicts_the_same(tmp_path, network, scaling):
    own = network == "own"
    changes = {"prior": np.full(K, 1 / K), "n_clusters": np.int64(K), "fairness": np.float32(50)}
    model = fitted(network=own_network() if own else network, scaling=scaling, **changes)
    model.save(tmp_path / "deep" / "run")
    loaded = CollisionClustering.load(
        tmp_path / "deep" / "run", network=own_network() if own else None
    )
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), model.labels_)
    assert loaded.score(X) == model.score(X)
    for name in ("objective_", "gap_", "n_iter_", "history_", "restarts_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.mean_label_, model.mean_label_)
    loaded.save(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "model.json",
        "model.safetensors",
    }


def test_both_files_can_be_read_by_the_same_people(model, tmp_path):
    model.save(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_an_own_network_is_asked_for(tmp_path):
    fitted(network=own_network()).save(tmp_path)
    with pytest.raises(ModelError, match="network="):
        CollisionClustering.load(tmp_path)
    with pytest.raises(ModelError, match="does not hold a model that fits"):
        CollisionClustering.load(tmp_path, network=nn.Linear(D, K))


def test_a_model_that_cannot_be_described_leaves_the_earlier_one(model, tmp_path):
    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = fitted(random_state=5)
    other.history_[0]["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Malicious:
    def __reduce__(self):
        return Path("executed").touch, ()


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(Malicious()), "half", None])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_files_are_refused(model, tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ModelError, match=re.escape(name)):
        CollisionClustering.load(tmp_path)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"format": 99}',
        '{"format": 1}',
        '{"format": 1, "parameters": {}, "fitted": {}}',
        '{"format": 1, "parameters": {"unknown": 1, "network": "linear"}, "fitted": {}}',
        '{"format": 1, "parameters": [], "fitted": []}',
    ],
)
def test_other_descriptions_are_refused(model, tmp_path, text):
    model.save(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelError):
        CollisionClustering.load(tmp_path)


def test_weights_of_another_model_are_refused(model, tmp_path):
    model.save(tmp_path / "one")
    fitted(X[:, :4]).save(tmp_path / "two")
    other = (tmp_path / "two" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(other)
    with pytest.raises(ModelError, match="does not hold a model that fits"):
        CollisionClustering.load(tmp_path / "one")


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="absent"):
        CollisionClustering.load(tmp_path / "absent")
