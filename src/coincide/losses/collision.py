"""Collision cross-entropy: learn from class probabilities that are themselves uncertain.

Cross-entropy asks the prediction to copy its target. Collision cross-entropy asks only that the
predicted class and the unknown true class coincide, which happens with probability ``σ·y``:

    H₂(y, softmax(z)) = -ln Σ_k σ_k y_k = -ln Σ_k y_k exp(log_softmax(z)_k)          (9)

Everything is made of differentiable operations, so derivatives of any order, ``torch.func``
and ``torch.compile`` need no code of their own. Only the most frequent case, probabilities and
a gradient in the logits, has some, for speed: ``fused`` on a CPU, ``triton_rows`` on a GPU.
Equation numbers: Zhang & Boykov, *Collision Cross-entropy for Soft Class Labels and Deep
Clustering*, arXiv 2303.07321.
"""

from __future__ import annotations

import importlib.util
import math
import numbers
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coincide._checks import check_option, check_probability_rows, parameter_message
from coincide.losses.fused import FusedLogCollision, is_plain, is_plain_on_cpu

_REDUCTIONS = ("mean", "sum", "none")


def weighted_logsumexp(input: Tensor, weight: Tensor, dim: int = -1) -> Tensor:
    """Return ``ln Σ_k w_k exp(x_k)`` along ``dim``, differentiable where weights are zero, too.

    A weight of zero takes its entry out of the sum, however large ``x_k``; where all are zero the
    result is ``-inf``. The derivative in ``w_k`` is ``exp(x_k) / Σ_j w_j exp(x_j)``. It is finite
    at ``w_k = 0``, where the usual ``logsumexp(x + ln w)`` has 0/0, unless it exceeds the range of
    the dtype; it then saturates near the end of that range. Weights below the smallest normal
    number (1e-38 in float32) count, with the few digits that they have.
    """
    limits = torch.finfo(input.dtype)
    supported = torch.where(weight > 0, input, -math.inf).amax(dim, keepdim=True).detach()
    # Infinite shifts would make inf - inf below; a finite one gives the same sum.
    shift = supported.clamp(min=limits.min)
    # Only entries of zero weight lie above the shift. exp must not overflow there: 0 · inf = NaN.
    # Clamping before the subtraction makes autograd keep `input` rather than one more copy.
    bounded = input.clamp(max=shift + math.log(limits.max / 2))
    total = (weight * (bounded - shift).exp()).sum(dim)
    return shift.squeeze(dim) + total.log()


def collision_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    validate: bool = False,
) -> Tensor:
    r"""Return the collision cross-entropy of logits and class ids or class probabilities.

    The negative log-probability that the predicted and the true class are the same, (9):

    .. math:: H_2(y, \sigma) = -\ln \sum_k \sigma_k y_k, \qquad \sigma = \mathrm{softmax}(z)

    A drop-in replacement for :func:`torch.nn.functional.cross_entropy`, with its shapes and its
    rules. One-hot targets give Shannon's cross-entropy; a uniform target says nothing and gets a
    zero gradient; the more certain a target, the more it counts.

    Parameters
    ----------
    input : Tensor of shape (K,), (N, K) or (N, K, d1, ...)
        Logits ``z`` of ``K`` classes, of a floating-point dtype.
    target : Tensor
        Either class ids, int64 or uint8, of the shape of ``input`` without ``K``; or class
        probabilities ``y``, floating-point, of the shape of ``input``.
    weight : Tensor of shape (K,), optional
        Weight of each class. A row of class id ``l`` weighs ``weight[l]``; a row of
        probabilities weighs its expected class weight ``Σ_k weight_k y_k``, the same on one-hot
        rows. Both are taken before smoothing.
    ignore_index : int
        Class id of rows that count for nothing. It has no meaning for probabilities; like torch,
        a value >= 0 is then refused.
    reduction : {"mean", "sum", "none"}
        As in torch, "mean" divides by the summed weight of the rows that are not ignored for
        class ids, and by the number of rows for probabilities (whatever ``weight`` is).
    label_smoothing : float in [0, 1]
        ``ε``: the loss is taken of the target ``(1 - ε) y + ε/K``, for ids as for probabilities.
    validate : bool
        Look at the values of ``target`` (on a GPU this waits for it) and refuse class ids out of
        range, and rows that are negative, unnormalized or NaN. The row named is counted
        after moving the classes last and flattening the rest: ``(N, K, d1)`` to ``(N·d1, K)``.

    Returns
    -------
    Tensor
        A scalar, or with ``reduction="none"`` one loss a row, of the shape of ``input`` without
        ``K``. The dtype is that of ``input`` (promoted with those of probabilities and
        ``weight``), and under autocast at least float32, as torch's cross-entropy has it.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or of the wrong dtype.
    ValueError
        If shapes do not fit, an option is out of range, or ``validate`` finds a bad row.

    Notes
    -----
    Gradients: ``softmax(z) - softmax(z + ln y)`` in the logits; ``-σ / (σ·y)`` in the target,
    finite where ``y_k = 0``. Derivatives of every order exist, in forward mode, too.

    Boundary conventions: ``ln 0 = -inf`` is exact, so a class of zero probability is out of the
    sum, however large its logit. A row of zeros has loss ``+inf`` and no gradient (NaN). Without
    rows, or with all ignored, "mean" is NaN and "sum" is zero, as in torch.

    float16 and bfloat16 accumulate in float32 and are rounded once, at the end. In float32 and
    float64, class ids without smoothing are torch's cross-entropy, bit for bit.

    On a CPU, and on a GPU for an input of shape (N, K), with probabilities that need no gradient,
    nothing of the size of the input is kept but the input and the target: change neither in place
    before the backward pass.

    There, too, an input of 100,000 entries or more goes through compiled code: a process loads it
    in half a second, and the first on a machine compiles it, for a second or two.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> collision_cross_entropy(logits, torch.tensor([0, 1]))
    tensor(0.4100)
    >>> votes = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    >>> collision_cross_entropy(logits, votes, reduction="none")
    tensor([0.2174, 0.6931])
    """
    owner = "collision_cross_entropy"
    _check_options(ignore_index, reduction, label_smoothing, owner)
    _check_tensors(input, target, weight, ignore_index, owner)
    class_dim = _class_dim(input)
    if validate:
        _check_values(target, input.shape[class_dim], class_dim, ignore_index, owner)

    is_ids = not target.is_floating_point()
    returned = _promoted(input, weight, None if is_ids else target)
    computed = torch.promote_types(returned, torch.float32)
    if torch.is_autocast_enabled(input.device.type):
        returned = computed
    if weight is not None:
        weight = weight.to(computed)

    if is_ids and label_smoothing == 0:
        # long(): torch itself takes uint8 for rows, but not for images.
        z, ids = input.to(computed), target.long()
        loss = F.cross_entropy(z, ids, weight, ignore_index=ignore_index, reduction=reduction)
        return loss.to(returned)
    row_weight: Tensor | None = None
    if is_ids:
        log_probs = F.log_softmax(input, class_dim, dtype=computed)
        log_collision, row_weight = _collide_with_ids(log_probs, target, weight, ignore_index)
        normalizer: Tensor | int = row_weight.sum()
    else:
        log_collision = _log_collision(input, target, computed)
        if weight is not None:
            row_weight = _expected_weight(target, weight)
        normalizer = log_collision.numel()
    loss = -_smooth(log_collision, label_smoothing, input.shape[class_dim])
    if row_weight is not None:
        loss = row_weight * loss
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / normalizer
    return loss.to(returned)


class CollisionCrossEntropyLoss(nn.Module):
    """Collision cross-entropy as a module: :class:`torch.nn.CrossEntropyLoss` for soft labels.

    Parameters
    ----------
    weight : Tensor of shape (K,), optional
        Weight of each class; a buffer of the module.
    ignore_index : int
        Class id of rows that count for nothing.
    reduction : {"mean", "sum", "none"}
        What is done with the losses of the rows.
    label_smoothing : float in [0, 1]
        Share of the uniform distribution mixed into the target.
    validate : bool
        Refuse targets that are no distributions, and class ids out of range.

    See Also
    --------
    collision_cross_entropy : The function, with the exact rules.

    Examples
    --------
    >>> loss = CollisionCrossEntropyLoss()
    >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.9, 0.1]]))
    tensor(0.2174)
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        validate: bool = False,
    ) -> None:
        super().__init__()
        _check_options(ignore_index, reduction, label_smoothing, type(self).__name__)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.validate = validate

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``input`` and class ids or probabilities ``target``."""
        return collision_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        """Return the options, for ``print``."""
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r},"
            f" label_smoothing={self.label_smoothing}, validate={self.validate}"
        )


def _collide_with_ids(
    log_probs: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's class, and the row's weight (0 if ignored)."""
    class_dim = _class_dim(log_probs)
    ignored = target == ignore_index
    ids = target.long().masked_fill(ignored, 0)
    picked = log_probs.gather(class_dim, ids.unsqueeze(class_dim)).squeeze(class_dim)
    row_weight = torch.ones_like(picked) if weight is None else weight[ids]
    # Both are filled: the logits of an ignored row may be NaN, and 0 · NaN is not 0.
    return picked.masked_fill(ignored, 0.0), row_weight.masked_fill(ignored, 0.0)


def _log_collision(logits: Tensor, probs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``ln σ·y`` of each row, computed in ``dtype``."""
    if logits.dim() == 1:
        return _log_collision(logits.unsqueeze(0), probs.unsqueeze(0), dtype).squeeze(0)
    if is_plain_on_cpu(logits, probs):
        fused: Tensor = FusedLogCollision.apply(logits, probs, dtype)  # type: ignore[no-untyped-call]
        return fused
    if _fits_triton(logits, probs):
        from coincide.losses.triton_rows import LogCollisionInTriton  # noqa: PLC0415

        in_triton: Tensor = LogCollisionInTriton.apply(logits, probs, dtype)  # type: ignore[no-untyped-call]
        return in_triton
    return weighted_logsumexp(F.log_softmax(logits, 1, dtype=dtype), probs.to(dtype), 1)


def _fits_triton(logits: Tensor, probs: Tensor) -> bool:
    """Return whether Triton's kernels give all that is asked for: rows of classes on a GPU."""
    on_gpu = logits.device.type == "cuda" and logits.device == probs.device
    return on_gpu and logits.dim() == 2 and is_plain(logits, probs) and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def _expected_weight(probs: Tensor, weight: Tensor) -> Tensor:
    """Return ``Σ_k weight_k y_k`` of each row."""
    # Not a matrix product: autocast would take that in half precision.
    return (probs.movedim(_class_dim(probs), -1) * weight).sum(-1)


def _smooth(log_collision: Tensor, label_smoothing: float, n_classes: int) -> Tensor:
    """Return ``ln((1 - ε) σ·y + ε/K)``, which is ``ln σ·((1 - ε) y + ε/K)`` as Σ σ = 1."""
    if label_smoothing == 0:
        return log_collision
    log_kept = math.log1p(-label_smoothing) if label_smoothing < 1 else -math.inf
    log_uniform = torch.full_like(log_collision, math.log(label_smoothing / n_classes))
    return torch.logaddexp(log_collision + log_kept, log_uniform)


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _promoted(*tensors: Tensor | None) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _check_options(
    ignore_index: object, reduction: object, label_smoothing: object, owner: str
) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(parameter_message("ignore_index", owner, "an integer", ignore_index))
    check_option(reduction, "reduction", owner, _REDUCTIONS)
    expected = "a number in [0, 1]"
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, numbers.Real):
        raise TypeError(parameter_message("label_smoothing", owner, expected, label_smoothing))
    if not 0 <= float(label_smoothing) <= 1:
        raise ValueError(parameter_message("label_smoothing", owner, expected, label_smoothing))


def _check_tensors(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, owner: str
) -> None:
    for value, name in ((input, "input"), (target, "target"), (weight, "weight")):
        if not isinstance(value, Tensor) and not (value is None and name == "weight"):
            raise TypeError(parameter_message(name, owner, "a torch.Tensor", type(value)))
    if not input.is_floating_point():
        raise TypeError(
            parameter_message("input", owner, "logits of a floating-point dtype", input.dtype)
        )
    class_dim = _class_dim(input)
    if input.dim() == 0 or input.shape[class_dim] == 0:
        expected = "logits of shape (K,), (N, K) or (N, K, d1, ...) with at least one class"
        raise ValueError(parameter_message("input", owner, expected, tuple(input.shape)))
    _check_target(input, target, class_dim, ignore_index, owner)
    n_classes = input.shape[class_dim]
    if weight is not None and (weight.shape != (n_classes,) or not weight.is_floating_point()):
        expected = f"{n_classes} floating-point class weights, of shape ({n_classes},)"
        got = tuple(weight.shape) if weight.shape != (n_classes,) else weight.dtype
        error = ValueError if weight.shape != (n_classes,) else TypeError
        raise error(parameter_message("weight", owner, expected, got))


def _check_target(
    input: Tensor, target: Tensor, class_dim: int, ignore_index: int, owner: str
) -> None:
    shape = tuple(input.shape)
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    if target.shape == input.shape:
        if not target.is_floating_point():
            expected = (
                f"floating-point probabilities when its shape is that of the input, {shape}"
                f" (class ids have shape {rows})"
            )
            raise TypeError(parameter_message("target", owner, expected, target.dtype))
        if ignore_index >= 0:
            expected = "negative (unused) when the target holds probabilities"
            raise ValueError(parameter_message("ignore_index", owner, expected, ignore_index))
    elif target.shape == rows:
        if target.dtype not in (torch.int64, torch.uint8):
            expected = (
                f"class ids of dtype torch.int64 or torch.uint8 when its shape is {rows}"
                f" (probabilities have the shape of the input, {shape})"
            )
            raise TypeError(parameter_message("target", owner, expected, target.dtype))
    else:
        expected = (
            f"class ids of shape {rows} or probabilities of shape {shape},"
            f" for an input of shape {shape}"
        )
        raise ValueError(parameter_message("target", owner, expected, tuple(target.shape)))


def _check_values(
    target: Tensor, n_classes: int, class_dim: int, ignore_index: int, owner: str
) -> None:
    if target.is_floating_point():
        rows = target.movedim(class_dim, -1).reshape(-1, n_classes)
        check_probability_rows(rows, "target", owner)
        return
    ids = target.reshape(-1)
    bad = ((ids < 0) | (ids >= n_classes)) & (ids != ignore_index)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        expected = f"class ids from 0 to {n_classes - 1}, or ignore_index ({ignore_index})"
        found = parameter_message("target", owner, expected, int(ids[row]))
        raise ValueError(f"{found} This is row {row}, the first of {int(bad.sum())} such rows.")
