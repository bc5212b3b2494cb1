"""The information measures against their formulas in 60 digits, their laws and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import logsumexp
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from coincide import losses
from coincide.losses import (
    bhattacharyya_distance,
    collision_cross_entropy,
    collision_cross_entropy_of_probs,
    collision_entropy,
    cross_entropy,
    entropy,
    kl_divergence,
    natural_renyi_cross_entropy,
    renyi_divergence,
    renyi_entropy,
    shifted_renyi_cross_entropy,
)
from coincide.losses.collision import weighted_logsumexp

mp.dps = 60
LAWS = settings(max_examples=60, deadline=None)
ORDERS = [0, 1e-6, 0.3, 0.5, 1 - 1e-7, 1, 1 + 1e-12, 1 + 1e-6, 1.01, 1.7, 2, 5, 300, 1e6, 1e40]
TINY = 1e-30
PAIRS: list[Callable[[Tensor, Tensor, float], Tensor]] = [
    shifted_renyi_cross_entropy,
    natural_renyi_cross_entropy,
    renyi_divergence,
]


@st.composite
def distributions(draw: st.DrawFn, count: int = 2, zeros: bool = False) -> list[Tensor]:
    """Draw distributions of one size, from flat to nearly one-hot, exact zeros on request."""
    size = draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    drawn = []
    for _ in range(count):
        logits = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        if zeros:
            out = torch.rand(size, generator=generator) < 0.4
            out[torch.randint(size, (), generator=generator)] = False
            logits = logits.masked_fill(out, -math.inf)
        drawn.append(logits.softmax(-1))
    return drawn


def exact_power_mean(p: Tensor, ratios: list[mpf], exponent: float) -> float:
    """Return ``(1/t) ln Σ p r^t`` over ``p > 0``, in 60 digits of the very numbers given."""
    weights = [mpf(float(value)) for value in p]
    total = mp.fsum(weights)  # 1 up to the rounding of the dtype, which is not under test
    pairs = [(w / total, r) for w, r in zip(weights, ratios, strict=True) if w > 0]
    if exponent == math.inf or exponent > 1e9:
        return float(mp.log(max(r for _, r in pairs)))
    if exponent == 0:
        return float(mp.fsum(w * mp.log(r) for w, r in pairs))
    t = mpf(exponent)
    return float(mp.log(mp.fsum(w * r**t for w, r in pairs)) / t)


def exact(name: str, p: Tensor, q: Tensor, order: float) -> float:
    ps, qs = ([mpf(float(value)) for value in vector] for vector in (p, q))
    t = math.inf if order > 1e9 else float(mpf(order) - 1)
    if name == "renyi_entropy":
        return -exact_power_mean(p, ps, t)
    if name == "shifted_renyi_cross_entropy":
        return -exact_power_mean(p, qs, t)
    ratios = [a / b for a, b in zip(ps, qs, strict=True)]
    divergence = exact_power_mean(p, ratios, t)
    if name == "renyi_divergence":
        return divergence
    return divergence - exact_power_mean(p, ps, t)


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_every_order_agrees_with_the_formula(
    order: float, dtype: torch.dtype, tolerance: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    p, q = logits.softmax(-1).to(dtype)
    # A value is a mean of logarithms of which the largest sets the scale of the rounding.
    size = 1 + float((p.log().abs() + q.log().abs()).max())
    found = {
        "renyi_entropy": renyi_entropy(p, order),
        **{measure.__name__: measure(p, q, order) for measure in PAIRS},
    }
    for name, value in found.items():
        expected = exact(name, p, q, order)
        assert float(value) == pytest.approx(expected, rel=tolerance, abs=tolerance * size), name


def test_values_by_hand() -> None:
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    q = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64)
    ln2 = math.log(2)
    expected = [
        (entropy(p), 1.5 * ln2),
        (renyi_entropy(p, 0), math.log(3)),
        (renyi_entropy(p, math.inf), ln2),
        (collision_entropy(p), -math.log(0.375)),
        (cross_entropy(p, q), 2.0 * ln2),
        (kl_divergence(p, q), 0.5 * ln2),
        (collision_cross_entropy_of_probs(p, q), -math.log(0.125 + 0.125 + 0.03125)),
        (shifted_renyi_cross_entropy(p, q, 0), math.log(2 + 0.5 + 2)),
        (shifted_renyi_cross_entropy(p, q, math.inf), ln2),
        (renyi_divergence(p, q, 0), -math.log(0.875)),
        (renyi_divergence(p, q, 2), math.log(1 + 0.125 + 0.5)),
        (renyi_divergence(p, q, math.inf), ln2),
        (
            bhattacharyya_distance(p, q),
            -math.log(0.125**0.5 + 0.125**0.5 + 0.03125**0.5),
        ),
    ]
    for found, value in expected:
        assert float(found) == pytest.approx(value, rel=1e-14)


@LAWS
@given(distributions(zeros=True), st.sampled_from([0.0, 0.5, 1.0, 1.001, 2.0, 7.0, math.inf]))
def test_zeros_follow_their_conventions(vectors: list[Tensor], order: float) -> None:
    p, q = vectors
    support = p > 0
    lost, shared = bool((q[support] == 0).any()), bool((q[support] > 0).any())
    shifted = float(shifted_renyi_cross_entropy(p, q, order))
    assert math.isinf(shifted) == (lost if order <= 1 else not shared)
    divergence = float(renyi_divergence(p, q, order))
    assert math.isinf(divergence) == (lost if order >= 1 else not shared)
    # Entries of zero probability are as good as absent.
    assert float(renyi_entropy(p, order)) == pytest.approx(
        float(renyi_entropy(p[support], order)), rel=1e-12, abs=1e-12
    )
    if not math.isinf(shifted):
        assert shifted == pytest.approx(
            float(shifted_renyi_cross_entropy(p[support], q[support], order)), rel=1e-12, abs=1e-12
        )


@pytest.mark.parametrize("order", [0.999, 1, 1.001, 2, math.inf])
def test_one_hot_target_reads_off_its_class(order: float) -> None:
    p = torch.tensor([0.0, 1.0, 0.0])
    q = torch.tensor([0.2, 0.3, 0.5])
    for measure in PAIRS:
        assert float(measure(p, q, order)) == pytest.approx(-math.log(0.3), rel=1e-6)
    assert float(renyi_entropy(p, order)) == 0


def test_tiny_probabilities_do_not_underflow() -> None:
    p = torch.tensor([1.0, TINY, 0.0])
    q = torch.tensor([0.0, TINY, 1.0])
    value = -2 * math.log(TINY)  # the product, 1e-60, is no float32
    assert float(collision_cross_entropy_of_probs(p, q)) == pytest.approx(value, rel=1e-6)
    assert float(shifted_renyi_cross_entropy(p, q, 2)) == pytest.approx(value, rel=1e-6)
    assert float(bhattacharyya_distance(p, q)) == pytest.approx(value / 2, rel=1e-6)


# --- laws -----------------------------------------------------------------------------------


@LAWS
@given(distributions())
def test_cosine_identity(vectors: list[Tensor]) -> None:
    p, q = vectors
    cosine = torch.cosine_similarity(p, q, dim=-1)
    expected = -cosine.log() + (collision_entropy(p) + collision_entropy(q)) / 2
    torch.testing.assert_close(collision_cross_entropy_of_probs(p, q), expected)


@LAWS
@given(distributions(zeros=True))
def test_the_symmetric_ones_are_symmetric(vectors: list[Tensor]) -> None:
    p, q = vectors
    for measure in (collision_cross_entropy_of_probs, bhattacharyya_distance):
        torch.testing.assert_close(measure(p, q), measure(q, p))


@LAWS
@given(distributions())
def test_order_two_is_the_collision_family(vectors: list[Tensor]) -> None:
    p, q = vectors
    torch.testing.assert_close(renyi_entropy(p, 2), collision_entropy(p))
    collision = collision_cross_entropy_of_probs(p, q)
    torch.testing.assert_close(shifted_renyi_cross_entropy(p, q, 2), collision)
    torch.testing.assert_close(collision_cross_entropy(q.log(), p), collision)


@LAWS
@given(distributions())
def test_order_one_is_shannons(vectors: list[Tensor]) -> None:
    p, q = vectors
    shannon = -(p * q.log()).sum()
    for measure in (shifted_renyi_cross_entropy, natural_renyi_cross_entropy):
        torch.testing.assert_close(measure(p, q, 1), shannon)
    torch.testing.assert_close(cross_entropy(p, q), entropy(p) + kl_divergence(p, q))
    torch.testing.assert_close(renyi_divergence(p, q, 1), kl_divergence(p, q))


@LAWS
@given(distributions(), st.floats(0, 20), st.floats(0, 20))
def test_monotone_in_the_order(vectors: list[Tensor], first: float, second: float) -> None:
    p, q = vectors
    low, high = sorted((first, second))
    slack = 1e-12
    assert float(renyi_entropy(p, low)) >= float(renyi_entropy(p, high)) - slack
    assert float(renyi_divergence(p, q, low)) <= float(renyi_divergence(p, q, high)) + slack
    shifted = [float(shifted_renyi_cross_entropy(p, q, order)) for order in (low, high)]
    assert shifted[0] >= shifted[1] - slack


@LAWS
@given(distributions(), st.sampled_from([0.0, 1.0]), st.floats(-1e-9, 1e-9))
def test_limits_are_continuous(vectors: list[Tensor], order: float, step: float) -> None:
    p, q = vectors
    near = abs(step) if order == 0 else order + step
    for measure in PAIRS:
        torch.testing.assert_close(measure(p, q, near), measure(p, q, order), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            measure(p, q, 1e12), measure(p, q, math.inf), rtol=1e-8, atol=1e-8
        )
    torch.testing.assert_close(renyi_entropy(p, near), renyi_entropy(p, order))


@LAWS
@given(distributions(), st.sampled_from([0.0, 0.5, 1.0, 1.0001, 2.0, math.inf]))
def test_divergences_vanish_only_at_equality(vectors: list[Tensor], order: float) -> None:
    p, q = vectors
    assert abs(float(renyi_divergence(p, p, order))) < 1e-14
    if order > 0:
        assert float(renyi_divergence(p, q, order)) > 0
    assert float(renyi_entropy(p, order)) + 1e-14 >= 0
    assert float(renyi_entropy(p, order)) <= math.log(len(p)) + 1e-14


@LAWS
@given(distributions(), st.floats(0.01, 0.99))
def test_skew_symmetry_of_renyi_divergence(vectors: list[Tensor], order: float) -> None:
    p, q = vectors
    forward = (1 - order) * renyi_divergence(p, q, order)
    torch.testing.assert_close(forward, order * renyi_divergence(q, p, 1 - order))


@LAWS
@given(distributions(), st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf]))
def test_classes_may_be_permuted(vectors: list[Tensor], order: float) -> None:
    p, q = vectors
    for measure in PAIRS:
        torch.testing.assert_close(measure(p.flip(0), q.flip(0), order), measure(p, q, order))


@LAWS
@given(distributions())
def test_collision_lies_between_its_bounds(vectors: list[Tensor]) -> None:
    p, q = vectors
    value = float(collision_cross_entropy_of_probs(p, q))
    assert value >= -math.log(float(q.max())) - 1e-12
    assert value <= float(cross_entropy(p, q)) + 1e-12  # Jensen


@LAWS
@given(distributions(zeros=True), st.integers(0, 2**31 - 1), st.floats(0.1, 200))
def test_weighted_logsumexp_is_scipys(vectors: list[Tensor], seed: int, scale: float) -> None:
    weights = torch.stack(vectors)
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(
        weighted_logsumexp(x, weights).numpy(),
        logsumexp(x.numpy(), b=weights.numpy(), axis=1),
        rtol=1e-12,
        atol=1e-13,
    )
    along_rows = weighted_logsumexp(x.T, weights.T, 0)
    torch.testing.assert_close(along_rows, weighted_logsumexp(x, weights))


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 1.001, 2.0, 9.0, math.inf])
def test_gradcheck_along_the_simplex(order: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    inputs = tuple(logits.requires_grad_().unbind())

    def all_measures(a: Tensor, b: Tensor) -> Tensor:
        p, q = a.softmax(-1), b.softmax(-1)
        return torch.stack([renyi_entropy(p, order), *(f(p, q, order) for f in PAIRS)])

    assert gradcheck(all_measures, inputs)
    assert gradgradcheck(all_measures, inputs)


@pytest.mark.parametrize("order", ORDERS)
def test_float32_gradients_follow_float64(order: float) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 5, 6, generator=generator)

    def gradient(dtype: torch.dtype, measure: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
        z = logits.to(dtype, copy=True).requires_grad_()
        value = measure(z[0].softmax(-1), z[1].softmax(-1), order).sum()
        return torch.autograd.grad(value, z)[0].double()

    for measure in PAIRS:
        single, double = (gradient(dtype, measure) for dtype in (torch.float32, torch.float64))
        torch.testing.assert_close(single, double, rtol=1e-4, atol=2e-6)


def test_collision_gradient_is_finite_at_zeros() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [1.0, TINY, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.0, 0.5], [0.0, TINY, 1.0]], dtype=torch.float64)
    p.requires_grad_()
    q.requires_grad_()
    value = collision_cross_entropy_of_probs(p, q).sum()
    of_p, of_q = torch.autograd.grad(value, (p, q))
    product = (p * q).sum(-1, keepdim=True)
    torch.testing.assert_close(of_p, -q / product)
    torch.testing.assert_close(of_q, -p / product)


def test_cross_entropy_gradient_at_zero_targets_is_the_code_length() -> None:
    p = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    q = torch.tensor([0.2, 0.3, 0.5])
    (gradient,) = torch.autograd.grad(cross_entropy(p, q), p)
    torch.testing.assert_close(gradient, -q.log())


def test_gradient_is_finite_where_nearly_all_mass_is_lost() -> None:
    # Of the 1 + O(t) that the near-order-1 form expects, 1e-9 is left: less than float32 sees.
    p = torch.tensor([1e-9, 1.0], requires_grad=True)
    q = torch.tensor([1.0, 0.0])
    (gradient,) = torch.autograd.grad(shifted_renyi_cross_entropy(p, q, 1.5), p)
    torch.testing.assert_close(gradient, torch.tensor([-2e9, 0.0]))


# --- shapes and dtypes ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, math.inf])
def test_batches_broadcast(order: float) -> None:
    generator = torch.Generator().manual_seed(9)
    p = torch.rand(3, 1, 5, generator=generator).softmax(-1)
    q = torch.rand(4, 5, generator=generator).softmax(-1)
    for measure in PAIRS:
        grid = measure(p, q, order)
        assert grid.shape == (3, 4)
        torch.testing.assert_close(grid[2, 1], measure(p[2, 0], q[1], order))
        assert measure(q, p, order).shape == (3, 4)
    assert collision_cross_entropy_of_probs(p, q).shape == (3, 4)
    assert renyi_entropy(p, order).shape == (3, 1)
    assert renyi_entropy(p[:0], order).shape == (0, 1)


def test_half_precision_is_computed_in_float32() -> None:
    p = torch.tensor([0.3, 0.7], dtype=torch.bfloat16)
    assert entropy(p).dtype == torch.float32
    assert torch.equal(entropy(p), entropy(p.float()))
    assert kl_divergence(p.double(), p).dtype == torch.float64


def test_public_names_are_documented_with_an_example() -> None:
    for name in losses.__all__:
        assert ">>>" in (getattr(losses, name).__doc__ or ""), name


# --- refusals -------------------------------------------------------------------------------

P = torch.tensor([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: entropy([0.5, 0.5]), TypeError, "'p' parameter of entropy .* torch.Tensor"),
        (lambda: entropy(P.long()), TypeError, "floating-point .* torch.int64"),
        (lambda: entropy(torch.tensor(1.0)), ValueError, r"\(\.\.\., K\)"),
        (lambda: entropy(P[:, :0]), ValueError, "at least one class"),
        (lambda: kl_divergence(P, P[:, :1]), ValueError, "'p' parameter of kl_divergence"),
        (lambda: cross_entropy(P, P.repeat(2, 1)), ValueError, "'p' .* cross_entropy"),
        (lambda: renyi_entropy(P, -0.5), ValueError, "'order' .* >= 0 .* Got -0.5"),
        (lambda: renyi_entropy(P, math.nan), ValueError, "'order' .* Got nan"),
        (lambda: renyi_divergence(P, P, "2"), TypeError, "'order' parameter of renyi_divergence"),
        (lambda: shifted_renyi_cross_entropy(P, P, True), TypeError, "'order'"),
    ],
)
def test_refused(call: Callable[[], Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("name", ["entropy", "kl_divergence", "cross_entropy", "renyi_entropy"])
def test_a_softmax_that_underflowed_gets_a_gradient(name):
    """An entry of exactly 0 lies at the boundary, where that of the formula is infinite."""
    logits = torch.tensor([[1e4, 0.0, -1e4], [200.0, 199.0, -1e4]], requires_grad=True)
    p, q = torch.softmax(logits, 1), torch.softmax(torch.tensor([[3.0, 1.0, -1e4]]), 1)
    values = {
        "entropy": lambda: losses.entropy(p),
        "kl_divergence": lambda: losses.kl_divergence(p, q),
        "cross_entropy": lambda: losses.cross_entropy(p, q),
        "renyi_entropy": lambda: losses.renyi_entropy(p, 0.5),
    }[name]()
    (found,) = torch.autograd.grad(values.sum(), logits)
    assert found.isfinite().all()
    assert found[0].abs().max() < 1e-6
    assert found[1, :2].abs().min() > 1e-3
    assert float(found[1, 2]) == 0
