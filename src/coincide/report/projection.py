"""The projection of a run folder: a sample of the rows, seen in two dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from coincide._checks import check_integer
from coincide._files import replacing
from coincide.report.labels import check_clusters
from coincide.report.run_folder import PROJECTION

MAX_ROWS = 5_000


@dataclass(frozen=True)
class Projection:
    """Positions (n, 2) and clusters (n,) of the sampled rows."""

    positions: NDArray[np.float64]
    clusters: NDArray[np.int64]


def write_projection(
    folder: str | Path,
    features: NDArray[np.generic],
    clusters: ArrayLike,
    seed: int,
) -> Path:
    """Write ``projection.csv``: row, x, y, cluster of at most 5,000 rows, by PCA; return its path.

    The two directions are those of largest variance in the sample, which ``seed`` chooses; the rows
    are written in their own order. What is not there is 0: y when D = 1, both when M = 1 or all
    rows are equal. Features are of any real dtype, (M, D); of a memory map only the sampled rows
    are read. A sampled row with NaN or infinity is refused.
    """
    features = np.asanyarray(features)
    labels = check_clusters(clusters, "write_projection")
    M = len(labels)
    if features.ndim != 2 or len(features) != M or features.shape[1] == 0:
        raise ValueError(
            f"The 'features' parameter of write_projection must have shape ({M}, D), one row for"
            f" each of the clusters. Got shape {features.shape} instead."
        )
    if features.dtype.kind not in "fiub":
        raise TypeError(
            "The 'features' parameter of write_projection must hold real numbers."
            f" Got {features.dtype} instead."
        )
    generator = np.random.default_rng(check_integer(seed, "seed", "write_projection", low=0))
    rows = np.arange(M)
    if M > MAX_ROWS:
        rows = np.sort(generator.choice(M, MAX_ROWS, replace=False))
    positions = _principal_plane(features, rows)
    table = pa.table(
        {"row": rows, "x": positions[:, 0], "y": positions[:, 1], "cluster": labels[rows]}
    )
    path = Path(folder) / PROJECTION
    with replacing(path) as temporary:
        pa.csv.write_csv(table, temporary)
    return path


def _principal_plane(features: NDArray[np.generic], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the sampled rows on their first two principal axes, shape (n, 2)."""
    # float16 overflows in sums of squares, integers wrap; float32 is enough for a picture.
    sample = np.array(features[rows], dtype=np.result_type(features.dtype, np.float32))
    finite = np.isfinite(sample).all(axis=1)
    if not finite.all():
        raise ValueError(
            "The 'features' parameter of write_projection must be finite."
            f" Row {rows[np.argmin(finite)]} has NaN or infinity."
        )
    plane = np.zeros((len(rows), 2))
    if bool((sample == sample[0]).all()):
        return plane
    # Keeps squares of huge and tiny features in range; a power of two, so that nothing is rounded.
    scale = math.ldexp(1.0, math.frexp(float(np.abs(sample).max()))[1] - 1)
    n_axes = min(2, *sample.shape)
    pca = PCA(n_axes, random_state=0)
    plane[:, :n_axes] = pca.fit_transform(sample / sample.dtype.type(scale))
    return plane * scale


def read_projection(folder: Path, n_clusters: int) -> Projection | None:
    """Return the folder's projection, None if it has none, or say in a sentence what ails it."""
    path = folder / PROJECTION
    if not path.is_file():
        return None
    types = {"x": pa.float64(), "y": pa.float64(), "cluster": pa.int64()}
    convert = pa.csv.ConvertOptions(column_types=types, include_columns=list(types))
    try:
        table = pa.csv.read_csv(path, convert_options=convert)
    except (pa.ArrowException, OSError, LookupError) as error:
        raise ValueError(
            f"{path} is not a projection that can be read ({' '.join(str(error).split())})."
            " Remove it, or run the command again."
        ) from error
    positions = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    clusters = table["cluster"].to_numpy()
    good = np.isfinite(positions).all(axis=1) & (clusters >= 0) & (clusters < n_clusters)
    if len(table) == 0 or not good.all():
        raise ValueError(
            f"{path} must hold finite positions and clusters below {n_clusters}, in one row at"
            " least. Remove it, or run the command again."
        )
    return Projection(positions, clusters)
