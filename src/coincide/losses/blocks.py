"""The log-probability of a collision in blocks of rows that stay in the cache of a CPU.

Composed of operations on whole arrays, ``ln σ·y`` reads and writes main memory a dozen times,
and autograd keeps several arrays of the size of the logits. Here every pass over a block but
the first finds it in the cache, and nothing of the size of the logits is allocated except
their gradient.

With ``m = max_k z_k`` and ``e = exp(z - m)`` a row has ``σ·y = Σ e y / Σ e``, and

    ∂ ln σ·y / ∂z = softmax(z + ln y) - softmax(z) = e (y / Σ e y - 1 / Σ e) .

Where ``Σ e y`` is too small for its terms to have all their digits, or not a number, a row is
*weak*, and taken in the logarithmic form instead, in which nothing underflows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.autograd import forward_ad

# Entries of a block: two or three arrays of 512 KiB of float32 stay in L2, and Python's share
# of the time is small.
_BLOCK = 2**17
# More would wait for the interpreter, which a block needs for some 20 µs, and for memory.
_MOST_THREADS = 8

_Index = tuple[slice, ...]


def is_plain(logits: Tensor, probs: Tensor) -> bool:
    """Return whether a gradient in the logits is all that can be asked for: no forward mode."""
    return (
        # Subclasses may have rules of their own for every operation.
        {type(logits), type(probs)} <= {Tensor, nn.Parameter}
        and not (probs.requires_grad and torch.is_grad_enabled())
        and not _is_transformed(logits, probs)
    )


def fits_blocks(logits: Tensor, probs: Tensor) -> bool:
    """Return whether blocks give all that is asked for, on a CPU."""
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


class LogCollisionInBlocks(torch.autograd.Function):
    """``ln Σ_k softmax(z)_k y_k`` of every row; differentiable in ``z``, any number of times.

    ``apply(logits, probs, dtype)`` takes logits and probabilities of shape (N, K, d1, ...) and
    any floating-point dtypes; ``dtype`` is what is computed and returned in. The result has the
    shape (N, d1, ...), and is ``-inf`` for a row of zeros.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
        """Keep three numbers a row, not one for each class: the exponentials are taken again."""
        shape = (3, logits.shape[0], 1, *logits.shape[2:])
        shift, total, collision = logits.new_empty(shape, dtype=dtype)

        def collide(rows: _Index) -> None:
            z = logits[rows].to(dtype)
            shift[rows] = z.amax(1, keepdim=True)
            e = _exp(z - shift[rows])
            total[rows] = e.sum(1, keepdim=True)
            collision[rows] = e.mul_(probs[rows]).sum(1, keepdim=True)

        _in_each_block(logits.shape, collide)
        ctx.save_for_backward(logits, probs, shift, total, collision)
        value: Tensor = (collision / total).log_().squeeze(1)
        weak = _weak(collision)
        if bool(weak.any()):
            joint = _log_joint(*_rows(weak, logits, probs), dtype, -1)
            peak = joint.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            value[weak] = _exp(joint - peak).sum(-1).log_() + peak.squeeze(-1)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient in the logits; composed if that is to be differentiated again."""
        logits, probs, shift, total, collision = ctx.saved_tensors
        scale = grad_outputs[0].unsqueeze(1)
        if is_differentiated_again(scale):
            return composed_gradient(scale, logits, probs, total.dtype), None, None
        gradient = torch.empty_like(logits)
        of_total, of_collision = scale / total, scale / collision

        def differentiate(rows: _Index) -> None:
            e = _exp(logits[rows] - shift[rows])
            slope = (probs[rows] * of_collision[rows]).sub_(of_total[rows])
            torch.mul(e, slope, out=gradient[rows])

        _in_each_block(logits.shape, differentiate)
        weak = _weak(collision)
        if bool(weak.any()):
            of_weak = _log_gradient(*_rows(weak, logits, probs), total.dtype, -1)
            of_weak *= scale.squeeze(1)[weak].unsqueeze(-1)
            gradient.movedim(1, -1)[weak] = of_weak.to(gradient.dtype)
        return gradient, None, None


def is_differentiated_again(gradient: Tensor) -> bool:
    """Return whether a backward pass is recorded, or its gradient stands for many at once."""
    is_legacy: bool = torch._C._functorch.is_legacy_batchedtensor(gradient)
    is_batched = is_legacy or torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() or is_batched


def composed_gradient(scale: Tensor, logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``scale · ∂ ln σ·y / ∂z`` of differentiable operations, computed in ``dtype``."""
    return (scale * _log_gradient(logits, probs, dtype, 1)).to(logits.dtype)


def _in_each_block(shape: torch.Size, work: Callable[[_Index], None]) -> None:
    """Call ``work`` with the index of every block, in as many threads as torch may use.

    Each block stays with one thread. Torch's own way, all threads together in every operation,
    ends each by waiting for the slowest: a dozen times a block, and for long on a busy machine.
    """
    blocks = list(_blocks(shape))
    n_threads = min(torch.get_num_threads(), len(blocks), _MOST_THREADS)
    remaining = iter(blocks)

    # Gradient and inference mode belong to threads; in this one any array may be written to.
    @torch.inference_mode()
    def drain(_: int) -> None:
        for rows in remaining:
            work(rows)

    if n_threads <= 1:
        drain(0)
    else:
        list(_threads(n_threads).map(drain, range(n_threads)))


@cache
def _threads(n_threads: int) -> ThreadPoolExecutor:
    """Return threads, started once, whose operations run in that thread alone."""
    return ThreadPoolExecutor(n_threads, "collision", _work_alone)


if hasattr(os, "register_at_fork"):
    # A forked process has the pools, but none of their threads.
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _work_alone() -> None:
    # Torch sets the number of a new thread at its first question, and would overwrite ours.
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")


def _blocks(shape: torch.Size) -> Iterator[_Index]:
    """Yield indices of blocks of whole rows: cut along N, and along d1 if that is not enough."""
    n_length = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    if len(shape) == 2:
        yield from ((slice(i, i + n_length),) for i in range(0, shape[0], n_length))
        return
    d_length = max(1, _BLOCK // max(1, shape[1] * math.prod(shape[3:])))
    for i in range(0, shape[0], n_length):
        for j in range(0, shape[2], d_length):
            yield slice(i, i + n_length), slice(None), slice(j, j + d_length)


def _exp(x: Tensor) -> Tensor:
    """Return ``exp(x)`` of ``x <= 0``, in its place; 0 for less than tiny to the power 0.8.

    Results and products near the smallest number and below it take up to 200 times as long, in
    vectorized exponentials as in processors.
    """
    floor = 0.8 * math.log(torch.finfo(x.dtype).tiny)
    return torch.threshold_(x.clamp_(min=floor).exp_(), 2 * math.exp(floor), 0.0)


def _weak(collision: Tensor) -> Tensor:
    """Return which rows' ``Σ e y`` is not a number above the root of tiny."""
    return ~(collision > math.sqrt(torch.finfo(collision.dtype).tiny)).squeeze(1)


def _rows(which: Tensor, logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    return logits.movedim(1, -1)[which], probs.movedim(1, -1)[which]


def _log_joint(logits: Tensor, probs: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    """Return ``ln σ + ln y``."""
    return F.log_softmax(logits, dim, dtype=dtype) + probs.to(dtype).log()


def _log_gradient(logits: Tensor, probs: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    """Return ``softmax(z + ln y) - softmax(z)``, differentiable in the logits."""
    joint = _log_joint(logits, probs, dtype, dim)
    return joint.softmax(dim) - F.softmax(logits, dim, dtype=dtype)
