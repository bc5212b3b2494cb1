"""Entropies, cross-entropies and divergences of probability vectors, in nats.

All but one are a power mean of likelihoods under ``p``, seen in logs:

    M_t(p, v) = (1/t) ln Σ_k p_k exp(t v_k) ,    M_0 = Σ_k p_k v_k ,    M_∞ = max of v where p > 0

    Rényi's entropy                   H_α(p)    = -M_{α-1}(p, ln p)
    shifted Rényi cross-entropy       H_α(p; q) = -M_{α-1}(p, ln q)
    Rényi's divergence                D_α(p‖q)  =  M_{α-1}(p, ln p - ln q)

so one function carries them all, with their limits. Order 1 is Shannon's, order 2 the collision
family. ``p`` and ``q`` have the shape ``(..., K)``, the result has ``(...)``, and there they
broadcast. Vectors are taken as they are: not normalized, not checked to be distributions. float16
and bfloat16 are computed and returned in float32.

Gradients are those of the formula and finite inside the simplex; they are determined along the
simplex only, that is up to a constant per vector, which a softmax above it removes. Where an entry
is 0 the gradient there is its finite part, so that a softmax that underflowed gets numbers.

Sources: Zhang & Boykov, arXiv 2303.07321, for the numbers (6), (8), (9); Thierrin, Alajaji &
Linder, *Rényi Cross-Entropy Measures for Common Distributions and Processes with Memory*,
Entropy 24 (2022), for the shifted and the natural cross-entropy.
"""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from coincide._checks import parameter_message
from coincide.losses.collision import weighted_logsumexp

# Beyond this, M_t differs from its limit by less than any float dtype resolves.
_INFINITE_ORDER = 1e30


def entropy(p: Tensor) -> Tensor:
    """Return Shannon's entropy ``-Σ_k p_k ln p_k``, with ``0 ln 0 = 0``.

    From 0 (one-hot) to ``ln K`` (uniform).

    Examples
    --------
    >>> entropy(torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    (p,) = _vectors("entropy", p=p)
    return -_log_power_mean(p, _log(p, p), 0.0)


def renyi_entropy(p: Tensor, order: float) -> Tensor:
    """Return Rényi's entropy ``1/(1-α) ln Σ_k p_k^α`` of order ``α >= 0``.

    At 0 the logarithm of the number of non-zero entries, at 1 Shannon's entropy, at 2 the collision
    entropy, at ``inf`` ``-ln max_k p_k``. It falls as ``α`` grows.

    Examples
    --------
    >>> renyi_entropy(torch.tensor([0.5, 0.25, 0.25]), float("inf"))
    tensor(0.6931)
    """
    (p,) = _vectors("renyi_entropy", p=p)
    return -_log_power_mean(p, _log(p, p), _exponent(order, "renyi_entropy"))


def collision_entropy(p: Tensor) -> Tensor:
    """Return the collision entropy ``H₂(p) = -ln Σ_k p_k²`` (6), Rényi's entropy of order 2.

    Examples
    --------
    >>> collision_entropy(torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    (p,) = _vectors("collision_entropy", p=p)
    return collision_cross_entropy_of_probs(p, p)


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Return Shannon's cross-entropy ``-Σ_k p_k ln q_k`` (8), with ``0 ln 0 = 0``.

    It is ``+inf`` where some ``p_k > 0 = q_k``.

    Examples
    --------
    >>> cross_entropy(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    p, q = _vectors("cross_entropy", p=p, q=q)
    return -_log_power_mean(p, _log(q, p), 0.0)


def collision_cross_entropy_of_probs(p: Tensor, q: Tensor) -> Tensor:
    """Return the collision cross-entropy ``H₂(p, q) = -ln Σ_k p_k q_k`` (9), which is symmetric.

    For training from logits take :func:`coincide.losses.collision_cross_entropy`: a softmax
    loses what its small entries were. It is ``+inf`` where ``p`` and ``q`` share no class. The
    gradient ``-q / (p·q)`` in ``p`` is finite at zeros of ``p`` and ``q``, too.

    Examples
    --------
    >>> collision_cross_entropy_of_probs(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    tensor(0.6931)
    """
    p, q = _vectors("collision_cross_entropy_of_probs", p=p, q=q)
    # Where all products underflow both vectors are scaled first, by a power of two, so that
    # nothing is rounded. Elsewhere the scale is 1.
    limits = torch.finfo(p.dtype)
    total = (p * q).sum(-1, keepdim=True).detach()
    half_range = 2.0 ** (math.floor(math.log2(limits.max)) // 2)
    scale = torch.ones_like(total).masked_fill(total < limits.tiny / limits.eps, half_range)
    return 2 * scale.squeeze(-1).log() - ((p * scale) * (q * scale)).sum(-1).log()


def shifted_renyi_cross_entropy(p: Tensor, q: Tensor, order: float) -> Tensor:
    """Return the shifted Rényi cross-entropy ``1/(1-α) ln Σ_k p_k q_k^(α-1)`` of order ``α >= 0``.

    At 0 ``ln Σ_k p_k/q_k``, at 1 Shannon's cross-entropy, at 2 the collision cross-entropy (9), at
    ``inf`` ``-ln max {q_k : p_k > 0}``. It falls as ``α`` grows. It is ``+inf`` where some
    ``p_k > 0 = q_k`` if ``α <= 1``, and where that is so for all ``p_k > 0`` if ``α > 1``.

    Examples
    --------
    >>> shifted_renyi_cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), 2)
    tensor(0.6931)
    """
    p, q = _vectors("shifted_renyi_cross_entropy", p=p, q=q)
    return -_log_power_mean(p, _log(q, p), _exponent(order, "shifted_renyi_cross_entropy"))


def natural_renyi_cross_entropy(p: Tensor, q: Tensor, order: float) -> Tensor:
    """Return the natural Rényi cross-entropy ``D_α(p‖q) + H_α(p)`` of order ``α >= 0``.

    At 1 Shannon's cross-entropy. At 2 it is *not* the collision cross-entropy; that is the shifted
    one. It is ``+inf`` where the divergence is.

    Examples
    --------
    >>> natural_renyi_cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), 1)
    tensor(1.2040)
    """
    return renyi_divergence(p, q, order) + renyi_entropy(p, order)


def renyi_divergence(p: Tensor, q: Tensor, order: float) -> Tensor:
    """Return Rényi's divergence ``1/(α-1) ln Σ_k p_k^α q_k^(1-α)`` of order ``α >= 0``.

    At 0 ``-ln q(p > 0)``, at 1 Kullback and Leibler's divergence, at ``inf`` ``ln max_k p_k/q_k``.
    It grows with ``α``. It is ``+inf`` where some ``p_k > 0 = q_k`` if ``α >= 1``, and where ``p``
    and ``q`` share no class if ``α < 1``.

    Examples
    --------
    >>> renyi_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]), float("inf"))
    tensor(1.3863)
    """
    p, q = _vectors("renyi_divergence", p=p, q=q)
    return _log_power_mean(p, _log(p, p) - _log(q, p), _exponent(order, "renyi_divergence"))


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return ``KL(p‖q) = Σ_k p_k ln(p_k/q_k)``, with ``0 ln 0 = 0``.

    The reverse divergence ``KL(q‖p)`` is ``kl_divergence(q, p)``. With the mean label ``ȳ`` and
    the prior ``u``, the fairness term of (10) is ``kl_divergence(ȳ, u)`` and that of (11)
    ``kl_divergence(u, ȳ)``. It is ``+inf`` where some ``p_k > 0 = q_k``.

    Examples
    --------
    >>> kl_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    p, q = _vectors("kl_divergence", p=p, q=q)
    return _log_power_mean(p, _log(p, p) - _log(q, p), 0.0)


def bhattacharyya_distance(p: Tensor, q: Tensor) -> Tensor:
    """Return ``-ln Σ_k sqrt(p_k q_k)``, half of Rényi's divergence of order 1/2; it is symmetric.

    It is ``+inf`` where ``p`` and ``q`` share no class.

    Examples
    --------
    >>> bhattacharyya_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]))
    tensor(0.6931)
    """
    p, q = _vectors("bhattacharyya_distance", p=p, q=q)
    return _log_power_mean(p, _log(p, p) - _log(q, p), -0.5) / 2


def _log(x: Tensor, p: Tensor) -> Tensor:
    """Return ``ln x``, and 0 for an ``x = 0`` that does not count, as its gradient would be NaN."""
    return x.masked_fill((x == 0) & (p == 0), 1.0).log()


def _log_power_mean(p: Tensor, logs: Tensor, exponent: float) -> Tensor:
    """Return ``M_t(p, v) = (1/t) ln Σ_k p_k exp(t v_k)`` and its limits at 0 and infinity."""
    # An entry of zero probability does not count, even with an infinite (0 ln 0) or undefined
    # (0/0) likelihood. The finite ones stay, for their gradient in p.
    logs = logs.masked_fill((p == 0) & ~logs.isfinite(), 0.0)
    if exponent == 0:
        return (p * logs).sum(-1)
    if exponent == math.inf:
        return logs.masked_fill(p == 0, -math.inf).amax(-1)
    return _log_mean_exp(p, exponent * logs) / exponent


def _log_mean_exp(p: Tensor, x: Tensor) -> Tensor:
    """Return ``ln Σ_k p_k exp(x_k)`` for ``Σ p = 1``, to full precision where it is small, too.

    Near order 1 every ``x`` is small, the sum is 1 + O(x), and its logarithm would have no digits
    left. Taken around the mean ``c = Σ p x``, ``c + ln(1 + Σ p expm1(x - c))`` has them all.
    """
    infinite = (x == math.inf).any(-1)
    x = x.masked_fill(x == math.inf, 0.0)
    # The value does not depend on the center, so neither must the gradient.
    center = (p * x.masked_fill(x == -math.inf, 0.0)).sum(-1, keepdim=True).detach()
    # Both bounds only keep the branch that `where` does not take from making NaN gradients.
    excess = (p * (x - center).clamp(max=50.0).expm1()).sum(-1)
    near = center.squeeze(-1) + excess.clamp(-0.5, 1.0).log1p()
    is_near = (excess >= -0.5) & (excess <= 1.0)
    return torch.where(is_near, near, weighted_logsumexp(x, p)).masked_fill(infinite, math.inf)


def _vectors(owner: str, **named: Tensor) -> list[Tensor]:
    """Return the vectors in one dtype, at least float32, or refuse them."""
    for name, vector in named.items():
        if not isinstance(vector, Tensor) or not vector.is_floating_point():
            expected = "a floating-point torch.Tensor of probabilities"
            got = vector.dtype if isinstance(vector, Tensor) else type(vector)
            raise TypeError(parameter_message(name, owner, expected, got))
        if vector.dim() == 0 or vector.shape[-1] == 0:
            expected = "of shape (..., K) with at least one class"
            raise ValueError(parameter_message(name, owner, expected, tuple(vector.shape)))
    first, last = named["p"], named.get("q", named["p"])
    leading = zip(reversed(first.shape[:-1]), reversed(last.shape[:-1]), strict=False)
    if first.shape[-1] != last.shape[-1] or not all(m == n or 1 in (m, n) for m, n in leading):
        expected = f"of a shape that goes with q's, {tuple(last.shape)}: the same K, a like batch"
        raise ValueError(parameter_message("p", owner, expected, tuple(first.shape)))
    dtype = torch.float32
    for vector in named.values():
        dtype = torch.promote_types(dtype, vector.dtype)
    return [vector.to(dtype) for vector in named.values()]


def _exponent(order: object, owner: str) -> float:
    """Return ``α - 1`` for the order ``α``, or refuse it."""
    expected = "a number >= 0 (math.inf included)"
    if isinstance(order, bool) or not isinstance(order, numbers.Real):
        raise TypeError(parameter_message("order", owner, expected, order))
    alpha = float(order)
    if not alpha >= 0:
        raise ValueError(parameter_message("order", owner, expected, order))
    return math.inf if alpha > _INFINITE_ORDER else alpha - 1
