"""The linear system of a Newton step that ties the rows together through the mean label.

With ``h = Φ''(ȳ)`` and the rows eliminated, ``s = -Δw`` is the solution of

    s/h + (Σ_i ω_i P_i) s = Σ_i ω_i P_i r_i + (w + Φ'(ȳ))/h,

here in forms that hold for ``h = 0`` too: ``s = 0`` there. It has one unknown a class, or two a
row, whichever are fewer. It is solved on the CPU.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.linalg import blas, lapack

from coincide.pseudolabels.kernels import RowSystem
from coincide.pseudolabels.objectives import Vector
from coincide.pseudolabels.problem import Problem

MOST_UNKNOWNS = 10_000


class Coupling(Protocol):
    """The system of one step; ``broken`` where it is not positive definite."""

    broken: bool

    def apply(self, vector: Vector) -> Vector:
        """Return ``(Σ_i ω_i P_i) vector``."""
        ...

    def solve(self, pull: Vector) -> Vector:
        """Return ``s = -Δw``, from ``pull = Σ_i ω_i P_i r_i``."""
        ...


def check_unknowns(problem: Problem, solver: str) -> None:
    """Refuse a problem whose system would be too large, in the name of a solver."""
    if problem.unknowns > MOST_UNKNOWNS:
        raise ValueError(
            f"The {solver!r} solver solves a dense system with an unknown a class, or two a row"
            f" where these are fewer. For this problem of {len(problem.probs):,} ×"
            f" {len(problem.prior):,} that is {problem.unknowns:,} unknowns, more than"
            f" {MOST_UNKNOWNS:,}. Take 'projected-gradient', or 'em' for 'cce+'."
        )


def coupling_of(gram: Vector | RowSystem, curvature: Vector, off: Vector) -> Coupling:
    """Return the system in the unknowns that the kernels offer.

    Parameters
    ----------
    gram : array of shape (K, K), or RowSystem
        See :class:`coincide.pseudolabels.kernels.Factors`; an array's diagonal is overwritten.
    curvature : array of shape (K,)
        ``h``.
    off : array of shape (K,)
        ``w + Φ'(ȳ)``.
    """
    if isinstance(gram, np.ndarray):
        return _ClassCoupling(gram, curvature, off)
    return _RowCoupling(gram, curvature, off)


def answer_to(change: Vector, curvature: Vector, off: Vector) -> Vector:
    """Return ``Δȳ``, from ``s = -Δw``; 0 where the coupling has no curvature.

    Parameters
    ----------
    change : array of shape (K,)
        ``s``.
    curvature, off : array of shape (K,)
        As in :func:`coupling_of`.
    """
    return _divided(change - off, curvature)


class _ClassCoupling:
    """One unknown a class: ``(I + √h (Σ_i ω_i P_i) √h) s/√h = √h pull + off/√h``."""

    def __init__(self, gram: Vector, curvature: Vector, off: Vector) -> None:
        gram.flat[:: len(off) + 1] = 0
        # BLAS and LAPACK order matrices by columns: there it is the lower triangle that counts.
        self._gram = gram.T
        # The rows of Σ P_i sum to 0: their diagonal follows from the rest without cancellation.
        self._diagonal = blas.dsymv(1.0, self._gram, np.ones_like(off), lower=1)
        self._root = np.sqrt(curvature)
        self._off = _divided(off, self._root)
        system = gram * -self._root[:, None]
        system *= self._root
        system.flat[:: len(off) + 1] = 1 + self._diagonal * curvature
        self._factor, info = lapack.dpotrf(system.T, lower=1, overwrite_a=1, clean=0)
        self.broken = info != 0

    def apply(self, vector: Vector) -> Vector:
        product: Vector = self._diagonal * vector
        product -= blas.dsymv(1.0, self._gram, vector, lower=1)
        return product

    def solve(self, pull: Vector) -> Vector:
        scaled, _ = lapack.dpotrs(self._factor, self._root * pull + self._off, lower=1)
        change: Vector = self._root * scaled
        return change


class _RowCoupling:
    """Two unknowns a row, ``β_i`` and ``γ_i`` of ``P_i s``: the classes are eliminated.

    ``(1 + h D) s = h (pull + Σ_i ω_i (d_i β_i + e_i γ_i)) + off`` with ``D = Σ_i ω_i d_i``.
    """

    def __init__(self, rows: RowSystem, curvature: Vector, off: Vector) -> None:
        self._rows, self._curvature = rows, curvature
        self._off = np.where(curvature > 0, off, 0.0)
        self._soft = 1 + curvature * rows.mass
        # Row by row the lower triangle is LAPACK's upper one.
        system = rows.assemble(curvature)
        self._factor, info = lapack.dpotrf(system.T, lower=0, overwrite_a=1, clean=0)
        self.broken = info != 0

    def apply(self, vector: Vector) -> Vector:
        return self._rows.apply(vector)

    def solve(self, pull: Vector) -> Vector:
        direct = (self._curvature * pull + self._off) / self._soft
        levels, _ = lapack.dpotrs(self._factor, self._rows.gather(direct), lower=0)
        change: Vector = direct + self._curvature / self._soft * self._rows.scatter(levels)
        return change


def _divided(above: Vector, below: Vector) -> Vector:
    """Return ``above/below``; 0 where ``below`` is 0."""
    if below.all():
        return above / below
    quotient: Vector = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
