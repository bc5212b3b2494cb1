"""Scaling and views of feature vectors: scikit-learn's own, chunk by chunk, in memory or not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler, normalize

from coincide.representations import SCALINGS, RepresentedRows, fit_scaling, row_blocks
from coincide.representations import rows as module
from coincide.views.vectors import VectorView

CPU = torch.device("cpu")
rng = np.random.default_rng(0)
X = rng.normal(size=(200, 6)) * [1, 2, 3, 0.1, 5, 1] + [0, 10, -3, 0.5, 100, 1]
WEIGHTS = rng.integers(0, 4, size=200).astype(float)


def scaled(features, kind, weights=None):
    return RepresentedRows(features, fit_scaling(features, kind, weights), CPU)[slice(None)]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_standard_is_the_standard_scaler(weights):
    expected = StandardScaler().fit(X, sample_weight=weights).transform(X)
    np.testing.assert_allclose(scaled(X, "standard", weights), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_unit_norm_is_normalize_of_the_centered_rows(weights):
    expected = normalize(X - np.average(X, axis=0, weights=weights)) * np.sqrt(6)
    np.testing.assert_allclose(scaled(X, "unit-norm", weights), expected, atol=1e-5)


def test_none_leaves_the_rows_as_they_are():
    np.testing.assert_array_equal(scaled(X, "none"), X.astype(np.float32))


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64", "int8", "int64", "bool"])
def test_every_dtype_gives_float32(kind, dtype):
    features = X.astype(dtype)
    rows = scaled(features, kind)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, scaled(features.astype(np.float64), kind), atol=2e-4)


@pytest.mark.parametrize("kind", ["unit-norm", "standard"])
def test_a_large_common_offset_costs_no_digits(kind):
    """Times in seconds since 1970 vary by far less than float32 can show."""
    offset = 1.7e9
    np.testing.assert_allclose(scaled(X + offset, kind), scaled(X, kind), atol=1e-4)


@pytest.mark.parametrize("unit", [1e-60, 1e25])
@pytest.mark.parametrize("kind", ["unit-norm", "standard"])
def test_the_unit_of_the_features_does_not_matter(kind, unit):
    np.testing.assert_allclose(scaled(X * unit, kind), scaled(X, kind), atol=1e-4)


def test_zero_rows_and_constant_columns_stay_finite():
    features = np.array([[1.0, 5, 2], [-1, 5, -2], [0, 5, 0]])
    unit = scaled(features, "unit-norm")
    standard = scaled(features, "standard")
    assert unit[2].tolist() == [0, 0, 0]  # equals the mean
    assert standard[:, 1].tolist() == [0, 0, 0]  # constant
    assert torch.isfinite(unit).all()
    assert torch.isfinite(standard).all()


def test_a_zero_column_has_no_spread():
    fitted = fit_scaling(np.array([[1e9, 0.1], [1e9, 0.2]]), "standard")
    assert fitted.spread[0] == 0
    assert fitted.spread[1] == pytest.approx(0.05)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=4), weighted=st.booleans())
def test_merging_chunks_is_fitting_all(cuts, weighted):
    weights = WEIGHTS + 0.5 if weighted else None
    edges = [0, *sorted(set(cuts)), 200]
    merged = None
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        chunk = fit_scaling(X[part], "standard", None if weights is None else weights[part])
        merged = chunk if merged is None else merged.merge(chunk)
    whole = fit_scaling(X, "standard", weights)
    assert merged.mass == pytest.approx(whole.mass)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(merged.spread, whole.spread, rtol=1e-5)


def test_blocks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(module, "_ENTRIES_PER_BLOCK", 20)
    blocks = list(row_blocks(200, 6))
    assert len(blocks) == 67
    assert np.concatenate([np.arange(200)[block] for block in blocks]).tolist() == list(range(200))
    assert [block.stop - block.start for block in row_blocks(3, 1000)] == [1, 1, 1]


def test_fitting_in_blocks_is_fitting_at_once(monkeypatch):
    whole = fit_scaling(X, "standard", WEIGHTS)
    monkeypatch.setattr(module, "_ENTRIES_PER_BLOCK", 20)
    blocks = fit_scaling(X, "standard", WEIGHTS)
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(blocks.spread, whole.spread, rtol=1e-6)


@pytest.mark.parametrize("kind", SCALINGS)
def test_rows_read_batch_by_batch_are_the_kept_rows(tmp_path, monkeypatch, kind):
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    memmap = np.load(tmp_path / "x.npy", mmap_mode="r")
    fitted = fit_scaling(memmap, kind)
    kept = RepresentedRows(memmap, fitted, CPU)
    monkeypatch.setattr(module, "_KEPT_ENTRIES", X.size - 1)
    read = RepresentedRows(memmap, fitted, CPU)
    assert kept._kept is not None
    assert read._kept is None
    assert len(kept) == len(read) == 200
    for index in (torch.tensor([5, 0, 199, 5]), slice(3, 9), slice(None)):
        # The same up to the order of the sum in a norm.
        torch.testing.assert_close(read[index], kept[index])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kept", [True, False])
def test_the_features_are_neither_shared_nor_changed(monkeypatch, kept):
    if not kept:
        monkeypatch.setattr(module, "_KEPT_ENTRIES", 0)
    features = X.astype(np.float32)[::-1]  # negative strides, which torch refuses
    features.setflags(write=False)  # of which torch warns
    before = features.copy()
    RepresentedRows(features, fit_scaling(features, "none"), CPU)[slice(0, 3)].zero_()
    np.testing.assert_array_equal(features, before)


# Views


def test_the_identity_changes_nothing():
    rows = torch.ones(5, 3)
    assert torch.equal(VectorView()(rows), rows)


def test_dropout_drops_its_share_and_keeps_the_mean():
    rows = torch.ones(400, 250)
    torch.manual_seed(0)
    changed = VectorView(dropout=0.3)(rows)
    assert changed.unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    assert float((changed == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert bool((rows == 1).all())


def test_noise_has_its_standard_deviation():
    rows = torch.full((400, 250), 3.0)
    torch.manual_seed(0)
    changed = VectorView(noise=0.5)(rows)
    assert float(changed.mean()) == pytest.approx(3, abs=0.01)
    assert float(changed.std()) == pytest.approx(0.5, abs=0.01)
