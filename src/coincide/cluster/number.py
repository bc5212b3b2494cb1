"""How many clusters, where nobody says: as many as the rows' neighbors bear out.

Clusters that are merged still agree with the neighbors of their rows; one that is cut does not
along the cut. So the evidence stays near its best up to the number of clusters that are there, and
falls beyond it: the largest number near the best is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral

from coincide.cluster.evidence import NeighborEvidence
from coincide.cluster.proposals import Resolution, propose
from coincide.representations import can_have_landmarks, most_clusters
from coincide.representations.landmarks import Floats
from coincide.training.collapse import ClusteringWarning

AUTO = range(2, 21)

_NEAR = 0.02  # of the best evidence; settled on blobs and on the smaller sets of the panel


def numbers_to_try(asked: object, n_rows: int) -> list[int]:
    """Return the numbers that were asked for, or 2 to 20; of several, those that rows can bear."""
    if isinstance(asked, Integral):
        return [int(asked)]
    several = AUTO if isinstance(asked, str) else asked
    assert isinstance(several, Sequence)
    numbers = sorted({int(number) for number in several})
    borne = [number for number in numbers if can_have_landmarks(n_rows, number)]
    if not isinstance(asked, str) and borne != numbers:
        left_out = [number for number in numbers if number not in borne]
        raise ValueError(
            f"Of the n_clusters to choose from, {left_out[0]} is too many: evidence needs four rows"
            f" for each cluster and at most {most_clusters()} clusters, and there are {n_rows:,}"
            " rows. Leave the larger numbers out, or give one number."
        )
    return borne or numbers[:1]


def choose_number(
    numbers: Sequence[int],
    resolutions: list[Resolution],
    evidence: NeighborEvidence,
    weights: Floats | None = None,
) -> tuple[int, dict[int, float]]:
    """Return the number of clusters, and the evidence for each.

    Parameters
    ----------
    numbers : sequence of int
        Rising.
    resolutions, evidence, weights
        As :func:`coincide.cluster.proposals.propose` takes them.
    """
    found = {k: propose(resolutions, k, evidence, weights).evidence for k in numbers}
    best = max(found.values())
    chosen = max(number for number in numbers if found[number] >= best - _NEAR)
    if chosen == numbers[-1] and len(numbers) > 1:
        warnings.warn(
            f"The evidence for {chosen} clusters, the most that were tried, is no less than that"
            " for fewer: there may be more clusters (give larger numbers to choose from), or none.",
            ClusteringWarning,
            stacklevel=6,
        )
    return chosen, found
