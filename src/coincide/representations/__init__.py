"""What the network sees of feature vectors: one file a representation.

A representation is fitted on rows, maps new ones batch by batch, and is saved as tensors:
``scaled`` columns or rows of unit length, or affinities to ``landmarks``.
"""

from coincide.representations.landmarks import (
    Landmarks,
    can_have_landmarks,
    fit_landmarks,
    most_clusters,
)
from coincide.representations.neighbors import nearest_rows
from coincide.representations.rows import (
    Features,
    Points,
    RepresentedRows,
    SparseRows,
    read_rows,
    row_blocks,
    rows_with_weight,
)
from coincide.representations.scaling import SCALINGS, Scaling, fit_scaling

Representation = Scaling | Landmarks
REPRESENTATIONS = ("scaled", "landmarks")


def scaling_of(representation: Representation) -> Scaling:
    """Return the scaling of the rows, before anything else."""
    return representation if isinstance(representation, Scaling) else representation.scaling


__all__ = [
    "REPRESENTATIONS",
    "SCALINGS",
    "Features",
    "Landmarks",
    "Points",
    "Representation",
    "RepresentedRows",
    "Scaling",
    "SparseRows",
    "can_have_landmarks",
    "fit_landmarks",
    "fit_scaling",
    "most_clusters",
    "nearest_rows",
    "read_rows",
    "row_blocks",
    "rows_with_weight",
    "scaling_of",
]
