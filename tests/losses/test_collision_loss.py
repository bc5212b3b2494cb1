"""The loss against float64 references, torch's cross-entropy, and the laws it must obey."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from coincide.losses import CollisionCrossEntropyLoss, collision_cross_entropy

SHAPES = [(5,), (1, 2), (7, 5), (4, 3, 6), (2, 4, 3, 2)]
LAWS = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 9))


def class_dim(shape: tuple[int, ...]) -> int:
    return min(len(shape) - 1, 1)


def id_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[: class_dim(shape)] + shape[class_dim(shape) + 1 :]


def one_hot(ids: Tensor, n_classes: int, dim: int) -> Tensor:
    return F.one_hot(ids, n_classes).movedim(-1, dim).double()


def random_problem(
    shape: tuple[int, ...], seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, other = torch.randn((2, *shape), generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype), other.softmax(class_dim(shape)).to(dtype)


def reference(logits: Tensor, probs: Tensor, dim: int) -> np.ndarray:
    """Return the rows' losses in float64, by SciPy: no line in common with the code tested."""
    z, y = logits.double().numpy(), probs.double().numpy()
    return -logsumexp(log_softmax(z, axis=dim), b=y, axis=dim)


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 15.0])
def test_float32_agrees_with_float64_reference(shape: tuple[int, ...], scale: float) -> None:
    logits, probs = random_problem(shape, scale=scale, dtype=torch.float32)
    loss = collision_cross_entropy(logits, probs, reduction="none")
    assert loss.shape == id_shape(shape)
    expected = reference(logits, probs, class_dim(shape))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6, atol=2e-7)


def test_hundred_thousand_classes() -> None:
    logits, probs = random_problem((3, 100_000), dtype=torch.float32)
    logits.requires_grad_()
    loss = collision_cross_entropy(logits, probs, reduction="none")
    np.testing.assert_allclose(
        loss.detach().numpy(), reference(logits.detach(), probs, 1), rtol=1e-6
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    expected = logits.double().softmax(1) - (logits.double() + probs.double().log()).softmax(1)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=2e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_options_are_those_of_torch_on_class_ids(shape: tuple[int, ...]) -> None:
    n_classes = shape[class_dim(shape)]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(n_classes, id_shape(shape), generator=generator)
    class_weight = torch.rand(n_classes, generator=generator) + 0.1
    target = torch.where(torch.rand(target.shape, generator=generator) < 0.2, -100, target)
    other = torch.where(target < 0, 1, target)
    for weight, (ids, ignore_index), reduction in itertools.product(
        (None, class_weight),
        ((target, -100), (other, 1), (other, -100), (other.to(torch.uint8), 1)),
        ("mean", "sum", "none"),
    ):
        options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
        ours = collision_cross_entropy(logits, ids, **options)
        theirs = F.cross_entropy(logits, ids.long(), **options)
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs) or bool(ours.isnan() & theirs.isnan())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_ids_and_their_one_hot_rows_agree(
    shape: tuple[int, ...], label_smoothing: float, weighted: bool
) -> None:
    dim, n_classes = class_dim(shape), shape[class_dim(shape)]
    logits, _ = random_problem(shape)
    ids = torch.randint(n_classes, id_shape(shape), generator=torch.Generator().manual_seed(2))
    weight = torch.linspace(0.5, 2.0, n_classes, dtype=torch.float64) if weighted else None
    options = {"weight": weight, "label_smoothing": label_smoothing}
    hot = one_hot(ids, n_classes, dim)
    for reduction in ("none", "sum"):
        torch.testing.assert_close(
            collision_cross_entropy(logits, ids, reduction=reduction, **options),
            collision_cross_entropy(logits, hot, reduction=reduction, **options),
        )
    # The means divide by different things, as torch's do.
    total = collision_cross_entropy(logits, ids, reduction="sum", **options)
    row_weights = torch.ones(ids.shape, dtype=torch.float64) if weight is None else weight[ids]
    by_ids = collision_cross_entropy(logits, ids, **options)
    torch.testing.assert_close(by_ids, total / row_weights.sum())
    by_rows = collision_cross_entropy(logits, hot, **options)
    torch.testing.assert_close(by_rows, total / ids.numel())


def test_row_weight_is_expected_class_weight() -> None:
    logits, probs = random_problem((6, 4, 3))
    weight = torch.tensor([0.0, 1.0, 2.5, 7.0], dtype=torch.float64)
    rows = collision_cross_entropy(logits, probs, reduction="none")
    weighted = collision_cross_entropy(logits, probs, weight=weight, reduction="none")
    torch.testing.assert_close(weighted, rows * torch.einsum("nkd,k->nd", probs, weight))
    mean = collision_cross_entropy(logits, probs, weight=weight)
    torch.testing.assert_close(mean, weighted.mean())


@pytest.mark.parametrize("label_smoothing", [1e-3, 0.1, 0.5, 1.0])
def test_smoothing_is_a_smoothed_target(label_smoothing: float) -> None:
    logits, probs = random_problem((5, 4, 3))
    smoothed = (1 - label_smoothing) * probs + label_smoothing / 4
    torch.testing.assert_close(
        collision_cross_entropy(logits, probs, label_smoothing=label_smoothing),
        collision_cross_entropy(logits, smoothed),
    )


def test_smoothing_ignores_rows_even_with_nan_logits() -> None:
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.5, 0.0]])
    target = torch.tensor([0, -100, 1])
    losses = collision_cross_entropy(logits, target, label_smoothing=0.2, reduction="none")
    assert losses[1] == 0
    mean = collision_cross_entropy(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(mean, losses[[0, 2]].mean())


# --- laws -----------------------------------------------------------------------------------


@LAWS
@given(sizes, seeds)
def test_one_hot_is_negative_log_likelihood(size: tuple[int, int], seed: int) -> None:
    logits, probs = random_problem(size, seed)
    ids = probs.argmax(1)
    torch.testing.assert_close(
        collision_cross_entropy(logits, one_hot(ids, size[1], 1)), F.cross_entropy(logits, ids)
    )


@LAWS
@given(sizes, seeds, st.sampled_from([torch.float32, torch.float64]))
def test_uniform_target_is_ln_k_without_gradient(
    size: tuple[int, int], seed: int, dtype: torch.dtype
) -> None:
    logits, _ = random_problem(size, seed, dtype=dtype)
    logits.requires_grad_()
    loss = collision_cross_entropy(logits, torch.full(size, 1 / size[1], dtype=dtype))
    assert loss.item() == pytest.approx(math.log(size[1]), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient.abs().max()) <= 4 * torch.finfo(dtype).eps


@LAWS
@given(sizes, seeds)
def test_classes_may_be_permuted(size: tuple[int, int], seed: int) -> None:
    logits, probs = random_problem(size, seed)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed))
    logits.requires_grad_()
    loss = collision_cross_entropy(logits, probs)
    permuted = collision_cross_entropy(logits[:, order], probs[:, order])
    torch.testing.assert_close(loss, permuted)
    (gradient,) = torch.autograd.grad(loss, logits)
    again = logits.detach()[:, order].requires_grad_()
    (moved,) = torch.autograd.grad(collision_cross_entropy(again, probs[:, order]), again)
    torch.testing.assert_close(gradient[:, order], moved)


@LAWS
@given(sizes, seeds)
def test_closed_form_gradients(size: tuple[int, int], seed: int) -> None:
    logits, probs = random_problem(size, seed)
    before = logits.clone(), probs.clone()
    inputs = (logits.requires_grad_(), probs.requires_grad_())
    loss = collision_cross_entropy(*inputs, reduction="sum")
    of_logits, of_target = torch.autograd.grad(loss, (logits, probs))
    sigma = logits.softmax(1)
    torch.testing.assert_close(of_logits, sigma - (logits + probs.log()).softmax(1))
    torch.testing.assert_close(of_target, -sigma / (sigma * probs).sum(1, keepdim=True))
    assert all(map(torch.equal, inputs, before))  # untouched


# --- derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_gradcheck_for_logits_and_target(shape: tuple[int, ...], label_smoothing: float) -> None:
    logits, probs = random_problem(shape, scale=1.0)
    weight = torch.linspace(1, 2, shape[class_dim(shape)], dtype=torch.float64)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return collision_cross_entropy(
            z, y, weight=weight, label_smoothing=label_smoothing, reduction="none"
        )

    inputs = (logits.requires_grad_(), probs.requires_grad_())
    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)


def test_gradcheck_for_smoothed_class_ids() -> None:
    logits = random_problem((4, 3), scale=1.0)[0].requires_grad_()
    target = torch.tensor([0, 2, -100, 1])

    def loss(z: Tensor) -> Tensor:
        return collision_cross_entropy(z, target, label_smoothing=0.2, reduction="none")

    assert gradcheck(loss, (logits,), check_forward_ad=True)
    assert gradgradcheck(loss, (logits,))


def test_derivatives_are_those_of_the_formula_at_zero_probabilities() -> None:
    # gradcheck would step to negative probabilities; the plain formula is smooth across zero.
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -2.0]], dtype=torch.float64)
    probs = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)

    def plain(z: Tensor, y: Tensor) -> Tensor:
        return -(z.softmax(-1) * y).sum(-1).log().sum()

    def ours(z: Tensor, y: Tensor) -> Tensor:
        return collision_cross_entropy(z, y, reduction="sum")

    for order in (torch.func.jacrev, torch.func.hessian):
        found = order(ours, argnums=(0, 1))(logits, probs)
        expected = order(plain, argnums=(0, 1))(logits, probs)
        torch.testing.assert_close(found, expected)


def test_target_gradient_survives_vmap_inside_grad() -> None:
    logits, probs = random_problem((5, 3))
    probs[0] = torch.tensor([0.0, 1.0, 0.0])

    def total(y: Tensor) -> Tensor:
        return torch.func.vmap(collision_cross_entropy)(logits, y).sum()

    sigma = logits.softmax(1)
    torch.testing.assert_close(
        torch.func.grad(total)(probs), -sigma / (sigma * probs).sum(1, keepdim=True)
    )


def test_per_sample_gradients() -> None:
    logits, probs = random_problem((5, 3))
    each = torch.func.vmap(torch.func.grad(collision_cross_entropy))(logits, probs)
    torch.testing.assert_close(each, logits.softmax(1) - (logits + probs.log()).softmax(1))


def test_compiles_in_one_graph() -> None:
    logits, probs = random_problem((6, 5), dtype=torch.float32)
    probs[0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    inputs = (logits.requires_grad_(), probs.requires_grad_())
    # The graph and its derivative are traced; generating C++ would take most of a minute.
    compiled = torch.compile(collision_cross_entropy, fullgraph=True, backend="aot_eager")
    for options in ({}, {"label_smoothing": 0.1, "weight": torch.rand(5)}):
        ours = compiled(*inputs, **options)
        eager = collision_cross_entropy(*inputs, **options)
        torch.testing.assert_close(ours, eager)
        torch.testing.assert_close(
            torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs)
        )


# --- adversarial input ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_extreme_logits_give_no_nan(dtype: torch.dtype, label_smoothing: float) -> None:
    logits = torch.tensor(list(itertools.product((1e4, 0.0, -1e4), repeat=3)), dtype=dtype)
    for row in ([0, 1, 0], [0, 0.5, 0.5], [1e-3, 0.999, 0], [1 / 3, 1 / 3, 1 / 3]):
        probs = torch.tensor(row, dtype=dtype).expand_as(logits)
        z = logits.clone().requires_grad_()
        losses = collision_cross_entropy(
            z, probs, reduction="none", label_smoothing=label_smoothing
        )
        smoothed = (1 - label_smoothing) * probs.double() + label_smoothing / 3
        tolerance = max(1e-6, torch.finfo(dtype).eps)
        np.testing.assert_allclose(
            losses.detach().double().numpy(),
            reference(logits, smoothed, 1),
            rtol=tolerance,
            atol=tolerance,
        )
        (gradient,) = torch.autograd.grad(losses.float().sum(), z)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) <= 1.001
        assert float(gradient.double().sum(1).abs().max()) <= 4 * torch.finfo(dtype).eps


def test_second_derivatives_of_extreme_logits_give_no_nan() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    hot = torch.tensor([[0.0, 1.0, 0.0]])
    hessian = torch.func.hessian(collision_cross_entropy)(logits, hot)
    assert bool(hessian.isfinite().all())


def test_target_gradient_saturates_instead_of_overflowing() -> None:
    probs = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = collision_cross_entropy(torch.tensor([[1e4, 0.0]]), probs)
    (gradient,) = torch.autograd.grad(loss, probs)
    assert float(gradient[0, 1]) == -1
    assert -math.inf < float(gradient[0, 0]) < -1e38


def test_subnormal_probabilities_count() -> None:
    logits = torch.tensor([[200.0, 0.0]])
    probs = torch.tensor([[1e-40, 1.0]])
    np.testing.assert_allclose(
        collision_cross_entropy(logits, probs).item(), reference(logits, probs, 1)[0], rtol=1e-5
    )


def test_minus_infinity_masks_a_class() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    probs = torch.tensor([[0.3, 0.6, 0.1]])
    loss = collision_cross_entropy(logits, probs)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, collision_cross_entropy(logits[:, :2], probs[:, :2]))
    assert bool(gradient.isfinite().all())
    assert gradient[0, 2] == 0


def test_row_of_zeros_is_infinite() -> None:
    losses = collision_cross_entropy(torch.zeros(2, 3), torch.eye(3)[:2] * 0, reduction="none")
    assert losses.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("target", ["ids", "probs"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_no_rows_or_all_ignored(target: str, label_smoothing: float) -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64) if target == "ids" else torch.zeros(0, 4)
    options = {"label_smoothing": label_smoothing}
    assert bool(collision_cross_entropy(logits, empty, **options).isnan())
    assert collision_cross_entropy(logits, empty, reduction="sum", **options) == 0
    assert collision_cross_entropy(logits, empty, reduction="none", **options).shape == (0,)
    if target == "ids":
        ignored = torch.full((3,), -100)
        assert bool(collision_cross_entropy(torch.zeros(3, 4), ignored, **options).isnan())


# --- dtypes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", ["ids", "probs"])
def test_half_precision_is_rounded_once(dtype: torch.dtype, target: str) -> None:
    # The sum, 4,096 losses of about 100, is far beyond float16; the mean is not.
    logits, probs = random_problem((4096, 10), scale=60.0, dtype=dtype)
    labels = probs.argmax(1) if target == "ids" else probs
    loss = collision_cross_entropy(logits, labels)
    assert loss.dtype == dtype
    exact = collision_cross_entropy(logits.double(), labels if target == "ids" else probs.double())
    assert float(loss) == pytest.approx(float(exact), rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("logits", "probs"), list(itertools.product((torch.float16, torch.float32), repeat=2))
)
def test_result_dtype_is_torchs(logits: torch.dtype, probs: torch.dtype) -> None:
    z, y = torch.randn(4, 3).to(logits), torch.rand(4, 3).softmax(1).to(probs)
    ids = torch.tensor([0, 1, 2, 0])
    for target in (y, ids):
        assert collision_cross_entropy(z, target).dtype == F.cross_entropy(z, target).dtype
        with torch.autocast("cpu", torch.bfloat16):
            ours = collision_cross_entropy(z, target)
            theirs = F.cross_entropy(z, target)
            smooth = collision_cross_entropy(z, target, label_smoothing=0.1)
        assert ours.dtype == theirs.dtype == smooth.dtype == torch.float32


def test_autocast_computes_in_float32() -> None:
    logits, probs = random_problem((64, 10), dtype=torch.bfloat16)
    weight = torch.linspace(0.1, 3, 10)
    with torch.autocast("cpu", torch.bfloat16):
        loss = collision_cross_entropy(logits, probs, weight=weight)
    exact = collision_cross_entropy(logits.double(), probs.double(), weight=weight.double())
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


# --- the module -----------------------------------------------------------------------------


def test_module_is_the_function() -> None:
    logits, probs = random_problem((5, 3))
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    options = {"weight": weight, "reduction": "sum", "label_smoothing": 0.2}
    module = CollisionCrossEntropyLoss(**options)
    assert torch.equal(module(logits, probs), collision_cross_entropy(logits, probs, **options))
    ids = probs.argmax(1)
    ignoring = CollisionCrossEntropyLoss(ignore_index=1)
    assert torch.equal(ignoring(logits, ids), F.cross_entropy(logits, ids, ignore_index=1))


def test_module_carries_its_weight() -> None:
    module = CollisionCrossEntropyLoss(weight=torch.ones(3)).double()
    assert module.weight is not None
    assert module.weight.dtype == torch.float64
    assert "weight" in module.state_dict()
    assert "weight" not in CollisionCrossEntropyLoss().state_dict()
    assert "reduction='mean'" in repr(module)


# --- refusals -------------------------------------------------------------------------------

LOGITS, IDS, PROBS = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), torch.full((5, 4), 0.25)


@pytest.mark.parametrize(
    ("input", "target", "options", "error", "words"),
    [
        ([0.0], IDS, {}, TypeError, "'input' .* must be a torch.Tensor"),
        (LOGITS, [0], {}, TypeError, "'target' .* must be a torch.Tensor"),
        (LOGITS.long(), IDS, {}, TypeError, "'input' .* floating-point .* torch.int64"),
        (torch.tensor(0.0), IDS[0], {}, ValueError, "'input' .* at least one class"),
        (LOGITS[:, :0], IDS, {}, ValueError, "'input' .* at least one class"),
        (LOGITS, IDS.float(), {}, TypeError, "'target' .* class ids .* torch.float32"),
        (LOGITS, IDS.int(), {}, TypeError, "'target' .* torch.int64 or torch.uint8"),
        (LOGITS, PROBS.long(), {}, TypeError, "'target' .* floating-point probabilities"),
        (LOGITS, IDS[:3], {}, ValueError, r"shape \(5,\) or .* \(5, 4\).* Got \(3,\)"),
        (LOGITS, PROBS.T, {}, ValueError, r"Got \(4, 5\)"),
        (LOGITS, PROBS[:, :1], {}, ValueError, r"Got \(5, 1\)"),
        (LOGITS, IDS, {"weight": torch.ones(3)}, ValueError, r"'weight' .* \(4,\)"),
        (LOGITS, IDS, {"weight": IDS[:4]}, TypeError, "'weight' .* floating-point"),
        (LOGITS, IDS, {"weight": [1.0] * 4}, TypeError, "'weight' .* torch.Tensor"),
        (LOGITS, IDS, {"reduction": "avg"}, ValueError, "'reduction' .* 'mean', 'sum', 'none'"),
        (LOGITS, IDS, {"label_smoothing": 1.5}, ValueError, r"'label_smoothing' .* \[0, 1\]"),
        (LOGITS, IDS, {"label_smoothing": -0.1}, ValueError, r"\[0, 1\]"),
        (LOGITS, IDS, {"label_smoothing": math.nan}, ValueError, r"\[0, 1\]"),
        (LOGITS, IDS, {"label_smoothing": True}, TypeError, r"\[0, 1\]"),
        (LOGITS, IDS, {"ignore_index": 0.5}, TypeError, "'ignore_index' .* an integer"),
        (LOGITS, PROBS, {"ignore_index": 0}, ValueError, "'ignore_index' .* probabilities"),
    ],
)
def test_refused(
    input: object, target: object, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        collision_cross_entropy(input, target, **options)


def test_validate_names_the_first_bad_row() -> None:
    probs = PROBS.clone()
    probs[3, 1] = -0.25
    probs[3, 0] = 0.75
    with pytest.raises(ValueError, match=r"Row 3 has a negative entry, -0\.25"):
        collision_cross_entropy(LOGITS, probs, validate=True)
    probs[1, 0] = math.nan
    with pytest.raises(ValueError, match="Row 1 has NaN"):
        CollisionCrossEntropyLoss(validate=True)(LOGITS, probs)
    collision_cross_entropy(LOGITS, PROBS, validate=True)


def test_validate_counts_dense_rows_flat() -> None:
    probs = torch.full((2, 4, 3), 0.25)
    probs[1, :, 2] = 1.0
    probs[1, :, 1] = 0.0
    with pytest.raises(ValueError, match=r"Row 4 sums to 0 .*\(2 of 6"):
        collision_cross_entropy(torch.zeros(2, 4, 3), probs, validate=True)


def test_validate_refuses_class_ids_out_of_range() -> None:
    ids = torch.tensor([0, -100, 3, 4, -1])
    with pytest.raises(ValueError, match=r"from 0 to 3.* Got 4 .* row 3, the first of 2"):
        collision_cross_entropy(LOGITS, ids, validate=True)
    collision_cross_entropy(LOGITS[:3], ids[:3], validate=True)


def test_constructor_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="'reduction' parameter of CollisionCrossEntropyLoss"):
        CollisionCrossEntropyLoss(reduction="avg")
    with pytest.raises(ValueError, match="'label_smoothing' parameter of CollisionCross"):
        CollisionCrossEntropyLoss(label_smoothing=2)
