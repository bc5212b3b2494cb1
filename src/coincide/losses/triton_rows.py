"""The log-probability of a collision in Triton: one read of logits and targets, and one back.

A program goes along a row once. With ``m`` the largest logit so far it keeps ``Σ exp(z - m)`` and,
by its logarithm, ``Σ y exp(z - m)``: neither large logits nor small probabilities lose digits. The
gradient ``softmax(z + ln y) - softmax(z)`` then needs three numbers a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from coincide.losses.fused import composed_gradient, is_differentiated_again

_MOST_AT_ONCE = 4096  # classes that a program holds


@triton.jit
def _finite(x):
    """Return ``x``, or 0 for ``-inf``: a shift by it would be ``inf - inf``."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def _collide(
    logits, probs, peaks, totals, collisions, n_classes, logits_row, probs_row, block: tl.constexpr
):
    """Fill ``m``, ``ln Σ exp(z - m)`` and ``ln Σ y exp(z - m)`` of the program's row."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = peaks.dtype.element_ty
    peak = tl.full((), float("-inf"), dtype)
    total = tl.full((), 0.0, dtype)
    joint_peak = tl.full((), float("-inf"), dtype)  # of z - m + ln y
    joint_total = tl.full((), 0.0, dtype)
    for first in range(0, n_classes, block):
        classes = first + tl.arange(0, block)
        exists = classes < n_classes
        z = tl.load(logits + row * logits_row + classes, exists, float("-inf")).to(dtype)
        y = tl.load(probs + row * probs_row + classes, exists, 0.0).to(dtype)
        higher = _finite(tl.maximum(peak, tl.max(z, 0)))
        rise = peak - higher
        z -= higher
        total = total * tl.exp(rise) + tl.sum(tl.exp(z), 0)
        joint = tl.where(y > 0, z + tl.log(y), float("-inf"))
        joint_before = joint_peak + rise
        joint_peak = tl.maximum(joint_before, tl.max(joint, 0))
        shift = _finite(joint_peak)
        joint_total = joint_total * tl.exp(joint_before - shift) + tl.sum(tl.exp(joint - shift), 0)
        peak = higher
    tl.store(peaks + row, peak)
    tl.store(totals + row, tl.log(total))
    tl.store(collisions + row, _finite(joint_peak) + tl.log(joint_total))


@triton.jit
def _differentiate(
    logits, probs, peaks, totals, collisions, scales, gradients, n_classes, logits_row, probs_row,
    block: tl.constexpr,
):  # fmt: skip
    """Fill ``scale · (softmax(z + ln y) - softmax(z))`` of a part of a row."""
    row = tl.program_id(0).to(tl.int64)
    classes = tl.program_id(1) * block + tl.arange(0, block)
    exists = classes < n_classes
    dtype: tl.constexpr = peaks.dtype.element_ty
    z = tl.load(logits + row * logits_row + classes, exists, 0.0).to(dtype) - tl.load(peaks + row)
    y = tl.load(probs + row * probs_row + classes, exists, 0.0).to(dtype)
    joint = tl.where(y > 0, z + tl.log(y), float("-inf"))
    slope = tl.exp(joint - tl.load(collisions + row)) - tl.exp(z - tl.load(totals + row))
    gradient = tl.load(scales + row) * slope
    tl.store(gradients + row * n_classes + classes, gradient, exists)


class LogCollisionInTriton(torch.autograd.Function):
    """``ln Σ_k softmax(z)_k y_k`` of every row; differentiable in ``z``, any number of times.

    ``apply(logits, probs, dtype)`` takes logits and probabilities of shape (N, K) on a GPU, of any
    floating-point dtypes; ``dtype`` is what is computed and returned in. The result has the shape
    (N,), and is ``-inf`` for a row of zeros.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
        """Keep three numbers a row, not one for each class: the exponentials are taken again."""
        rows = [x if x.stride(1) == 1 else x.contiguous() for x in (logits, probs)]
        peak, total, collision = logits.new_empty(3, len(logits), dtype=dtype)
        if len(logits):
            _collide[(len(logits),)](
                *rows, peak, total, collision, logits.shape[1], *(x.stride(0) for x in rows),
                **_block(logits.shape[1]),
            )  # fmt: skip
        ctx.save_for_backward(*rows, peak, total, collision)
        value: Tensor = collision - total
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient in the logits; composed if that is to be differentiated again."""
        logits, probs, peak, total, collision = ctx.saved_tensors
        scale = grad_outputs[0]
        if is_differentiated_again(scale):
            return composed_gradient(scale.unsqueeze(1), logits, probs, total.dtype), None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        if len(logits):
            size = _block(logits.shape[1])
            _differentiate[(len(logits), triton.cdiv(logits.shape[1], size["block"]))](
                logits, probs, peak, total, collision, scale.contiguous(), gradient,
                logits.shape[1], logits.stride(0), probs.stride(0), **size,
            )  # fmt: skip
        return gradient, None, None


def _block(n_classes: int) -> dict[str, int]:
    """Return how many classes a program holds, and the warps that share them."""
    block = min(int(triton.next_power_of_2(n_classes)), _MOST_AT_ONCE)
    return {"block": block, "num_warps": max(1, min(block // 256, 8))}
