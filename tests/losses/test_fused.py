"""The loss in two passes against the same loss composed of operations that autograd records.

A target that requires a gradient is always taken by the composed way: it serves as the oracle.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from coincide import _threads
from coincide._threads import compiled
from coincide.losses import (
    CollisionCrossEntropyLoss,
    collision_cross_entropy,
    fused,
    numba_rows,
)

SHAPES = [
    *((5,), (1, 2), (7, 1), (9, 5), (0, 3), (3, 4, 6), (2, 4, 5, 3), (2, 3, 0), (2, 3, 2, 2, 3)),
    # More than compiled code takes at once: of short rows, classes, images.
    *((150, 3), (3, 70), (2, 9000), (2, 3, 30, 20)),
]


@pytest.fixture(params=["operations", "compiled", "compiled, 3 threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small problems, too, through compiled code, and cut them within a sample."""
    monkeypatch.setattr(fused, "_COMPILED_FROM", math.inf if request.param == "operations" else 1)
    if "threads" in request.param:
        request.getfixturevalue("three_threads")


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_COMPILED_FROM", 1)
    monkeypatch.setattr(_threads, "_ENTRIES_PER_THREAD", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(_threads, "_cores", lambda: 3)


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    logits, other = torch.randn((2, *shape), generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype).requires_grad_(), other.softmax(min(len(shape) - 1, 1)).to(dtype)


def composed(logits: Tensor, probs: Tensor, **options: object) -> Tensor:
    loss = collision_cross_entropy(logits, probs.detach().requires_grad_(), **options)
    assert not is_fused(loss)
    return loss


def is_fused(loss: Tensor) -> bool:
    """Whether the two passes are in the graph of the loss."""
    found, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        found.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return "FusedLogCollisionBackward" in found


def gradient(
    loss: Callable[..., Tensor], logits: Tensor, probs: Tensor, **options: object
) -> Tensor:
    value = loss(logits, probs, **options)
    # Other cotangents in every row.
    cotangent = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return torch.autograd.grad(value, logits, cotangent)[0]


# --- the same results -----------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_is_the_composed_loss(shape: tuple[int, ...]) -> None:
    logits, probs = problem(shape)
    probs[0:1] *= probs[0:1] > 0.1  # exact zeros
    n_classes = shape[min(len(shape) - 1, 1)]
    weights = (None, torch.linspace(0, 2, n_classes, dtype=torch.float64))
    for weight, smoothing, reduction in itertools.product(
        weights, (0.0, 0.2, 1.0), ("none", "sum", "mean")
    ):
        options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        loss = collision_cross_entropy(logits, probs, **options)
        assert is_fused(loss)
        expected = composed(logits, probs, **options)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(
            gradient(collision_cross_entropy, logits, probs, **options),
            gradient(composed, logits, probs, **options),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "dtypes", list(itertools.product([torch.float16, torch.bfloat16], repeat=2))
)
def test_half_precision_rounds_the_gradient_once(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    logits, probs = problem((9, 5, 4), scale=2.0)
    logits, probs = logits.detach().to(dtypes[0]).requires_grad_(), probs.to(dtypes[1])
    found = gradient(collision_cross_entropy, logits, probs, reduction="none")
    assert found.dtype == dtypes[0]
    value = collision_cross_entropy(logits, probs, reduction="none")
    cotangent = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    exact = (logits.double() + probs.double().log()).softmax(1) - logits.double().softmax(1)
    expected = -cotangent.double().unsqueeze(1) * exact
    error = (found.double() - expected).abs()
    assert bool((error <= torch.finfo(dtypes[0]).eps / 2 * expected.abs() + 1e-6).all())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_float32_many_classes(scale: float) -> None:
    logits, probs = problem((40, 9000), torch.float32, scale)
    losses = collision_cross_entropy(logits, probs, reduction="none")
    expected = composed(logits.double(), probs.double(), reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(
        gradient(collision_cross_entropy, logits, probs, reduction="sum").double(),
        gradient(composed, logits.detach().double().requires_grad_(), probs.double()) * 40,
        rtol=1e-4,
        atol=1e-7,
    )


@pytest.mark.usefixtures("way")
def test_layouts_make_no_difference() -> None:
    logits, probs = problem((4, 6, 5, 3))
    images = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    expected = gradient(collision_cross_entropy, logits, probs, reduction="none")
    found = gradient(collision_cross_entropy, images, probs, reduction="none")
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)

    wide, labels = problem((12, 10))
    for view in (lambda x: x.T, lambda x: x[::3, 1::2], lambda x: x[:1].expand(5, -1)):
        z, y = view(wide).detach().requires_grad_(), view(labels)
        loss = collision_cross_entropy(z, y)
        assert is_fused(loss)
        whole = z.detach().contiguous().requires_grad_(), y.contiguous()
        torch.testing.assert_close(loss, composed(*whole))
        torch.testing.assert_close(
            gradient(collision_cross_entropy, z, y), gradient(composed, *whole)
        )


def test_module_and_parameters_go_is_fused() -> None:
    logits, probs = problem((6, 4))
    scores = nn.Parameter(logits.detach())
    loss = CollisionCrossEntropyLoss()(scores, probs)
    assert is_fused(loss)
    loss.backward()
    torch.testing.assert_close(scores.grad, gradient(composed, logits, probs) / -1)


# --- rows that the plain formula cannot do --------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weak_rows_among_others(dtype: torch.dtype) -> None:
    z = [[1e4, 0, -1e4], [0, 1e4, 0], [0.5, 0, 1], [-math.inf, 2, 1], [90, 0, 1], [-1e4, 0, -1e4]]
    y = [[0, 0, 1], [0.5, 0.5, 0], [0.1, 0.9, 0], [0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0]]
    logits = torch.tensor([z, z[::-1]]).transpose(1, 2).to(dtype).requires_grad_()
    probs = torch.tensor([y, y[::-1]]).transpose(1, 2).to(dtype)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    loss = collision_cross_entropy(logits, probs, reduction="none")
    exact = logits.detach().double().requires_grad_(), probs.double()
    expected = composed(*exact, reduction="none")
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    found = gradient(collision_cross_entropy, logits, probs, reduction="none")
    expected = gradient(composed, *exact, reduction="none")
    torch.testing.assert_close(found.double(), expected, **tolerance)
    assert found[0, 0, 3] == 0  # masked: exactly, not nearly
    assert found[1, 0, 2] == 0


@pytest.mark.usefixtures("way")
def test_a_bad_row_leaves_the_others_alone() -> None:
    logits, probs = problem((4, 3))
    logits.detach()[0, 1], logits.detach()[1, 1] = math.nan, math.inf
    probs[2] = 0.0
    losses = collision_cross_entropy(logits, probs, reduction="none")
    torch.testing.assert_close(losses, composed(logits, probs, reduction="none"), equal_nan=True)
    assert losses[2] == math.inf
    found = gradient(collision_cross_entropy, logits, probs, reduction="none")
    assert bool(found[:3].isnan().all())
    torch.testing.assert_close(found[3], gradient(composed, logits[3:], probs[3:])[0] * -2)


@pytest.mark.usefixtures("way")
def test_large_gradients_of_the_loss_do_not_overflow() -> None:
    logits, probs = problem((4, 3), torch.float32)
    loss = collision_cross_entropy(logits, probs)
    scaled = torch.autograd.grad(loss * 2.0**60, logits)[0]
    plain = torch.autograd.grad(collision_cross_entropy(logits, probs), logits)[0]
    torch.testing.assert_close(scaled, plain * 2.0**60, rtol=1e-6, atol=0)


# --- derivatives ----------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 2)])
def test_gradcheck_of_the_logits_alone(shape: tuple[int, ...]) -> None:
    logits, probs = problem(shape, scale=1.0)

    def loss(z: Tensor) -> Tensor:
        return collision_cross_entropy(z, probs, reduction="none", label_smoothing=0.1)

    assert is_fused(loss(logits))
    assert gradcheck(loss, logits, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, logits, check_batched_grad=True)


@pytest.mark.usefixtures("way")
def test_third_derivatives_and_weak_rows() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [900.0, 0.0, 1.0]], dtype=torch.float64)
    probs = torch.tensor([[0.2, 0.0, 0.8], [0.0, 0.5, 0.5]], dtype=torch.float64)

    def third(loss: Callable[..., Tensor]) -> Tensor:
        z = logits.clone().requires_grad_()
        value = loss(z, probs, reduction="sum")
        for power in (2, 3):
            (slope,) = torch.autograd.grad(value, z, create_graph=True)
            value = (slope**power).sum()
        return torch.autograd.grad(value, z)[0]

    torch.testing.assert_close(third(collision_cross_entropy), third(composed))


def test_backward_twice_scaled_and_accumulated() -> None:
    logits, probs = problem((6, 5))
    loss = collision_cross_entropy(logits, probs)
    (expected,) = torch.autograd.grad(composed(logits, probs), logits)
    loss.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, expected)
    (3 * loss).backward()
    torch.testing.assert_close(logits.grad, 4 * expected)


def test_functional_transforms_and_forward_mode() -> None:
    logits, probs = problem((4, 3))
    z, tangent = logits.detach(), torch.randn(4, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(composed(logits, probs), logits)

    def loss(each: Tensor) -> Tensor:
        return collision_cross_entropy(each, probs)

    torch.testing.assert_close(torch.func.grad(loss)(z), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(z), expected)
    each = torch.func.vmap(torch.func.grad(collision_cross_entropy))(z, probs)
    torch.testing.assert_close(each, expected * 4)
    losses = collision_cross_entropy(logits, probs, reduction="none")
    jacobian = torch.func.vmap(lambda v: torch.autograd.grad(losses, logits, v)[0])(torch.eye(4))
    torch.testing.assert_close(jacobian.sum(0), expected * 4)
    hessian = torch.func.hessian(loss)(z)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, z))
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(loss(forward_ad.make_dual(z, tangent))).tangent
    torch.testing.assert_close(slope, (expected * tangent).sum())


def test_compiles_in_one_graph_of_plain_operations() -> None:
    logits, probs = problem((6, 5), torch.float32)
    compiled = torch.compile(collision_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, logits, probs), gradient(composed, logits, probs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_for_any_number_of_rows() -> None:
    logits, probs = problem((6, 5))
    traced = torch.jit.trace(collision_cross_entropy, (logits, probs))
    torch.testing.assert_close(traced(logits[:4], probs[:4]), composed(logits[:4], probs[:4]))


def test_graph_capture_sees_plain_operations() -> None:
    logits, probs = problem((6, 5))
    graph = make_fx(CollisionCrossEntropyLoss())(logits.detach(), probs)
    torch.testing.assert_close(graph(logits[:], probs), composed(logits, probs))


def test_subclasses_keep_their_rules() -> None:
    class Marked(Tensor):
        pass

    logits, probs = problem((6, 5))
    marked = logits.detach().as_subclass(Marked).requires_grad_()
    loss = collision_cross_entropy(marked, probs)
    assert isinstance(loss, Marked)
    assert not is_fused(loss)


# --- threads --------------------------------------------------------------------------------


@pytest.mark.usefixtures("three_threads")
def test_threads_in_inference_mode_and_under_autocast() -> None:
    logits, probs = problem((40, 30), torch.float32)
    expected = composed(logits, probs)
    with torch.inference_mode():
        torch.testing.assert_close(collision_cross_entropy(logits * 1, probs * 1), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(collision_cross_entropy(logits, probs), expected)


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(numba_rows, "_collide_short_rows", fail)
    with pytest.raises(MemoryError):
        collision_cross_entropy(*problem((40, 30)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_starts_its_own_threads() -> None:
    logits, probs = problem((40, 30))
    collision_cross_entropy(logits, probs)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        collision_cross_entropy(logits, probs)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# --- compiled functions ---------------------------------------------------------------------


@compiled
def _exponentials(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(x)):
        out[i] = numba_rows._exp(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponential_is_right_to_the_last_digit(dtype: type[np.floating]) -> None:
    least = 0.8 * math.log(np.finfo(dtype).tiny)
    x = np.concatenate([np.linspace(least * 0.9999, 0, 100_001), -np.geomspace(1e-30, 1, 1000)])
    x = np.append(x, [-0.0, least * 1.0001, -1e4, -np.inf, np.nan]).astype(dtype)
    found = np.empty_like(x)
    _exponentials(x, found)
    expected = np.exp(x.astype(np.longdouble)).astype(dtype)
    expected[-4:-1] = 0
    np.testing.assert_array_max_ulp(found[:-1], expected[:-1], 2)
    assert np.isnan(found[-1])


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    # exp(0) · (of_collision · 1 - 0): the gradient is what is given.
    given = torch.randn(2000, generator=torch.Generator().manual_seed(0)).repeat(3)
    given[:6] = torch.tensor([1.00390625, 1.01171875, math.inf, -math.inf, math.nan, 3.4e38])
    logits, probs = torch.zeros(2, 6000, 1, dtype=torch.bfloat16)
    found = numba_rows.differentiate(logits, probs + 1, *torch.zeros(2, 6000, 1), given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[:, 0], given.bfloat16(), rtol=0, atol=0, equal_nan=True)


# --- what it is for -------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_but_the_inputs_is_kept_for_each_class(dtype: torch.dtype) -> None:
    logits, probs = problem((30, 50), dtype)
    inputs = {logits.data_ptr(), probs.data_ptr()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        collision_cross_entropy(logits, probs)
    assert inputs <= {tensor.data_ptr() for tensor in kept}
    others = [tensor for tensor in kept if tensor.data_ptr() not in inputs]
    assert all(tensor.numel() <= 30 for tensor in others)


def test_the_composed_way_stays_for_class_ids() -> None:
    logits, probs = problem((6, 5))
    ids = probs.argmax(1)
    assert not is_fused(collision_cross_entropy(logits, ids, label_smoothing=0.1))
    assert torch.equal(collision_cross_entropy(logits, ids), F.cross_entropy(logits, ids))
