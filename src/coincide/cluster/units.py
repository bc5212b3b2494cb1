"""Which scaling suits the columns: whether they have units of their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from coincide._checks import Vector
from coincide.representations import Features, Scaling, row_blocks
from coincide.training.collapse import ClusteringWarning

_OTHER_UNITS = 100  # times the range of another column
_ONE_LENGTH = 1e-2  # rows whose lengths differ by less are embeddings, of one unit


def choose_scaling(
    asked: str, features: Features, measured: Scaling, names: Sequence[str] | None
) -> Scaling:
    """Return the scaling that was asked for; of ``"auto"``, ``"standard"`` or ``"isotropic"``.

    Parameters
    ----------
    asked : {"auto", "unit-norm", "standard", "isotropic", "none"}
    features : array of shape (M, D)
    measured : Scaling
        Of these features, of any kind.
    names : sequence of str, optional
        Of the columns.
    """
    if asked not in ("auto", "unit-norm"):
        return replace(measured, kind=asked)
    units = differing_units(features, measured.spread.numpy(), names)
    if units is not None:
        way_out = (
            "they were standardized, each to the same spread. If their spreads are to count, take"
            " scaling='isotropic'."
            if asked == "auto"
            else "only the widest count, for rows are brought to unit length. Where columns have"
            " units of their own, take scaling='standard'."
        )
        warnings.warn(f"{units}: {way_out}", ClusteringWarning, stacklevel=5)
    if asked == "auto":
        asked = "isotropic" if units is None else "standard"
    return replace(measured, kind=asked)


def differing_units(
    features: Features, spread: Vector, names: Sequence[str] | None = None
) -> str | None:
    """Return a clause that says so where columns have units of their own.

    That is told by their ranges: a standard deviation is small also where a value is rare. Rows of
    one length are embeddings, whatever their columns.
    """
    varied = spread > 0
    if spread.max() < _OTHER_UNITS * spread[varied].min():
        return None
    low, high = np.full(len(spread), np.inf), np.full(len(spread), -np.inf)
    shortest, longest = np.inf, 0.0
    for block in row_blocks(*features.shape):
        rows = np.asarray(features[block], np.float64)
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
        lengths = np.linalg.norm(rows, axis=1)
        shortest, longest = min(shortest, lengths.min()), max(longest, lengths.max())
    if longest - shortest < _ONE_LENGTH * longest:
        return None
    ranges = np.where(varied, high - low, np.nan)
    least, most = int(np.nanargmin(ranges)), int(np.nanargmax(ranges))
    if ranges[most] < _OTHER_UNITS * ranges[least]:
        return None
    called = [repr(str(number if names is None else names[number])) for number in (most, least)]
    return (
        f"Columns differ in spread by {ranges[most] / ranges[least]:.2g} (range {ranges[most]:.2g}"
        f" of column {called[0]}, {ranges[least]:.2g} of {called[1]})"
    )
