"""The Triton kernels of the loss beside the composed loss, and through the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coincide import collision_cross_entropy
from coincide.losses.collision import weighted_logsumexp

pytest.importorskip("triton", reason="Triton is not installed")
from coincide.losses.triton_rows import LogCollisionInTriton

# Without a GPU the interpreter takes over.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")


def inputs(
    n_rows: int, n_classes: int, dtype: torch.dtype, *, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Return logits and targets of which a third are exact zeros."""
    source = torch.Generator().manual_seed(n_rows + n_classes)
    logits = scale * torch.randn(n_rows, n_classes, generator=source, dtype=torch.float64)
    targets = torch.rand(n_rows, n_classes, generator=source, dtype=torch.float64)
    targets[targets < 1 / 3] = 0
    targets[:, n_classes // 2] += 1e-20
    targets /= targets.sum(1, keepdim=True)
    return logits.to(DEVICE, dtype).requires_grad_(), targets.to(DEVICE, dtype)


def composed(logits: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    return weighted_logsumexp(F.log_softmax(logits, 1, dtype=dtype), targets.to(dtype), 1)


@pytest.mark.parametrize(("dtype", "bound"), CASES)
@pytest.mark.parametrize("shape", [(5, 7), (2, 1), (3, 4096), (2, 9001), (0, 4)])
def test_values_and_gradients_are_those_of_the_composed_loss(
    shape: tuple[int, int], dtype: torch.dtype, bound: float
) -> None:
    logits, targets = inputs(*shape, dtype)
    computed = torch.promote_types(dtype, torch.float32)
    found = LogCollisionInTriton.apply(logits, targets, computed)
    expected = composed(logits.double(), targets.double(), torch.float64)
    assert found.dtype == computed
    torch.testing.assert_close(found.double(), expected, rtol=min(bound, 1e-5), atol=1e-5 * bound)
    weights = torch.linspace(-1, 2, shape[0], device=DEVICE)
    (gradient,) = torch.autograd.grad(found, logits, weights.to(computed))
    (exact,) = torch.autograd.grad(expected, logits, weights.double())
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), exact.double(), rtol=bound, atol=bound / 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_logits_and_small_probabilities_keep_their_digits(dtype: torch.dtype) -> None:
    rows = [[1e4, -1e4, 0.0], [1e4, 1e4 - 1, -1e4], [-1e4, 0.0, 1e4], [0.0, -torch.inf, 1.0]]
    labels = [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1e-30, 0.0, 1 - 1e-30], [0.0, 0.5, 0.5]]
    logits = torch.tensor(rows, dtype=dtype, device=DEVICE, requires_grad=True)
    targets = torch.tensor(labels, dtype=dtype, device=DEVICE)
    found = LogCollisionInTriton.apply(logits, targets, dtype)
    likely = torch.log(torch.tensor(1.0).exp() / (1 + torch.tensor(1.0).exp())).item()
    expected = [-2e4, torch.tensor(0.5).log().item(), 0.0, torch.tensor(0.5).log().item() + likely]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    found.sum().backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad[0].tolist() == pytest.approx([-1, 1, 0])


def test_a_row_of_zeros_has_no_finite_loss() -> None:
    logits = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
    targets = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], device=DEVICE)
    found = LogCollisionInTriton.apply(logits, targets, torch.float32)
    assert found[0] == -torch.inf
    found.sum().backward()
    assert bool(logits.grad[0].isnan().all())
    assert bool(logits.grad[1].isfinite().all())


def test_derivatives_of_first_and_second_order() -> None:
    logits, targets = inputs(3, 5, torch.float64)

    def loss(z: Tensor) -> Tensor:
        return LogCollisionInTriton.apply(z, targets, torch.float64)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_rows_may_lie_anywhere() -> None:
    logits, targets = inputs(4, 6, torch.float64)
    plain = LogCollisionInTriton.apply(logits, targets, torch.float64)
    wide = torch.stack((logits.detach(), targets), 1)  # rows 12 apart
    sideways = targets.T.contiguous().T
    for z, y in ((wide[:, 0], wide[:, 1]), (logits, sideways)):
        torch.testing.assert_close(LogCollisionInTriton.apply(z, y, torch.float64), plain)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_the_loss_takes_the_kernels_on_a_gpu() -> None:
    logits, targets = inputs(4, 6, torch.float32)
    loss = collision_cross_entropy(logits, targets, reduction="none")
    expected = -composed(logits, targets, torch.float32)
    torch.testing.assert_close(loss, expected)
    names = Counter()
    edge = [loss.grad_fn]
    while edge:
        node = edge.pop()
        names[type(node).__name__] += 1
        edge += [parent for parent, _ in node.next_functions if parent is not None]
    assert names["LogCollisionInTritonBackward"] == 1


def test_every_kernel_compiles(tmp_path: Path) -> None:
    """The interpreter is lenient; the compiler for a GPU is not, and needs none."""
    here = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiled_for_gpus.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=here, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Counter(done.stdout.split()) == {"_collide": 3, "_differentiate": 3}
