"""The log-probability of a collision in two passes, one forward and one back.

Composed of operations that autograd records, ``ln σ·y`` keeps several arrays of the size of the
logits. Here three numbers a row are kept, and the exponentials are taken again.

With ``m = max_k z_k`` and ``e = exp(z - m)`` a row has ``σ·y = Σ e y / Σ e``, and

    ∂ ln σ·y / ∂z = softmax(z + ln y) - softmax(z) = e (y / Σ e y - 1 / Σ e) .

Where ``Σ e y`` is too small for its terms to have all their digits, or not a number, a row is
*weak*, and taken in the logarithmic form instead, in which nothing underflows. Large inputs go
through compiled code (``numba_rows``), which reads them once from memory each way; for small ones
it would take longer to load than it saves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from coincide._threads import threads_for

# Entries from which compiled code pays for the half second that it takes to load, in a training
# of a thousand steps.
_COMPILED_FROM = 100_000


def is_plain(logits: Tensor, probs: Tensor) -> bool:
    """Return whether a gradient in the logits is all that can be asked for: no forward mode."""
    return (
        # Subclasses may have rules of their own for every operation.
        {type(logits), type(probs)} <= {Tensor, nn.Parameter}
        and not (probs.requires_grad and torch.is_grad_enabled())
        and not _is_transformed(logits, probs)
    )


def is_plain_on_cpu(logits: Tensor, probs: Tensor) -> bool:
    """Return whether the gradient in the logits is all that can be asked for, on a CPU."""
    return logits.device.type == probs.device.type == "cpu" and is_plain(logits, probs)


def _is_transformed(*inputs: Tensor) -> bool:
    """Return whether more than the plain computation is wanted, each with torch's own test."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)  # type: ignore[no-untyped-call]
    )


class FusedLogCollision(torch.autograd.Function):
    """``ln Σ_k softmax(z)_k y_k`` of every row; differentiable in ``z``, any number of times.

    ``apply(logits, probs, dtype)`` takes logits and probabilities of shape (N, K, d1, ...) on a CPU
    and of any floating-point dtypes; ``dtype``, float32 or float64, is what is computed and
    returned in. The result has the shape (N, d1, ...), and is ``-inf`` for a row of zeros.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
        """Keep three numbers a row, not one for each class: the exponentials are taken again."""
        with threads_for(logits.numel()):
            return FusedLogCollision._forward(ctx, logits, probs, dtype)

    @staticmethod
    def _forward(ctx: Any, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
        shift, total, collision = _collide(logits, probs, dtype)
        ctx.save_for_backward(logits, probs, shift, total, collision)
        value: Tensor = (collision / total).log_().squeeze(1)
        weak = ~(collision > math.sqrt(torch.finfo(dtype).tiny)).squeeze(1)
        ctx.weak = weak if bool(weak.any()) else None
        if ctx.weak is not None:
            joint = _log_joint(*_rows(weak, logits, probs), dtype, -1)
            peak = joint.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            value[weak] = _exp(joint - peak).sum(-1).log_() + peak.squeeze(-1)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient in the logits; composed if that is to be differentiated again."""
        with threads_for(ctx.saved_tensors[0].numel()):
            return FusedLogCollision._backward(ctx, grad_outputs[0]), None, None

    @staticmethod
    def _backward(ctx: Any, grad_output: Tensor) -> Tensor:
        logits, probs, shift, total, collision = ctx.saved_tensors
        scale = grad_output.unsqueeze(1)
        if is_differentiated_again(scale):
            return composed_gradient(scale, logits, probs, total.dtype)
        gradient = _differentiate(logits, probs, shift, scale / total, scale / collision)
        if ctx.weak is not None:
            of_weak = _log_gradient(*_rows(ctx.weak, logits, probs), total.dtype, -1)
            of_weak *= scale.squeeze(1)[ctx.weak].unsqueeze(-1)
            gradient.movedim(1, -1)[ctx.weak] = of_weak.to(gradient.dtype)
        return gradient


def is_differentiated_again(gradient: Tensor) -> bool:
    """Return whether a backward pass is recorded, or its gradient stands for many at once."""
    is_legacy: bool = torch._C._functorch.is_legacy_batchedtensor(gradient)
    is_batched = is_legacy or torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() or is_batched


def composed_gradient(scale: Tensor, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``scale · ∂ ln σ·y / ∂z`` of differentiable operations, computed in ``dtype``."""
    return (scale * _log_gradient(logits, probs, dtype, 1)).to(logits.dtype)


def _collide(logits: Tensor, probs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``m``, ``Σ e`` and ``Σ e y`` of every row, of shape (N, 1, d1, ...)."""
    if logits.numel() >= _COMPILED_FROM:
        from coincide.losses import numba_rows  # noqa: PLC0415

        shape = (3, logits.shape[0], 1, *logits.shape[2:])
        shift, total, collision = logits.new_empty(shape, dtype=dtype)
        z, y = (_readable(x, dtype) for x in (logits, probs))
        numba_rows.collide(z, y, shift, total, collision)
        return shift, total, collision
    z = logits.to(dtype)
    shift = z.amax(1, keepdim=True)
    e = _exp(z - shift)
    total = e.sum(1, keepdim=True)
    return shift, total, e.mul_(probs).sum(1, keepdim=True)


def _differentiate(
    logits: Tensor, probs: Tensor, shift: Tensor, of_total: Tensor, of_collision: Tensor
) -> Tensor:
    """Return ``e (of_collision · y - of_total)``, of the shape and dtype of the logits."""
    if logits.numel() >= _COMPILED_FROM:
        from coincide.losses import numba_rows  # noqa: PLC0415

        z, y = (_readable(x, shift.dtype) for x in (logits, probs))
        gradient = numba_rows.differentiate(z, y, shift, of_total, of_collision)
        return gradient.to(logits.dtype)
    slope = (probs * of_collision).sub_(of_total)
    return torch.mul(_exp(logits - shift), slope, out=torch.empty_like(logits))


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the entries in a dtype that the compiled code reads when it computes in ``dtype``."""
    is_read = x.dtype == dtype or (x.dtype, dtype) == (torch.bfloat16, torch.float32)
    return x if is_read else x.to(dtype)


def _exp(x: Tensor) -> Tensor:
    """Return ``exp(x)`` of ``x <= 0``, in its place; 0 for less than tiny to the power 0.8.

    Results and products near the smallest number and below it take up to 200 times as long, in
    vectorized exponentials as in processors.
    """
    floor = 0.8 * math.log(torch.finfo(x.dtype).tiny)
    return torch.threshold_(x.clamp_(min=floor).exp_(), 2 * math.exp(floor), 0.0)


def _rows(which: Tensor, logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    return logits.movedim(1, -1)[which], probs.movedim(1, -1)[which]


def _log_joint(logits: Tensor, probs: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    """Return ``ln σ + ln y``."""
    return F.log_softmax(logits, dim, dtype=dtype) + probs.to(dtype).log()


def _log_gradient(logits: Tensor, probs: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    """Return ``softmax(z + ln y) - softmax(z)``, differentiable in the logits."""
    joint = _log_joint(logits, probs, dtype, dim)
    return joint.softmax(dim) - F.softmax(logits, dim, dtype=dtype)
