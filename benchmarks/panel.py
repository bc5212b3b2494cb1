"""Every clusterer with its defaults on many sets: accuracy, NMI, ARI, and the time of a fit.

    python benchmarks/panel.py FOLDER [NAME=SOURCE ...] --out benchmarks/results/panel.json

FOLDER holds Parquet files of columns and a ``label`` (0: noise, left out of the scores), such as
Gagolewski's clustering benchmarks; further sets are what ``coincide cluster`` reads, with labels.
scikit-learn's toy sets, and some of uneven sizes, are always there. All methods are told the number
of clusters and nothing else; labels score, afterwards. What the JSON holds already is skipped.
``--methods`` and ``--sets`` choose some by name.

HDBSCAN finds its own number of clusters, and leaves out noise, here one cluster more. Genie and
GemClus are there if ``genieclust`` and ``gemclus`` are installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from circumstances import circumstances
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn import datasets
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.mixture import GaussianMixture

from coincide import CollisionClustering
from coincide.data import load_source
from coincide.metrics import score_clustering

PACKAGES = ("coincide", "torch", "scikit-learn", "numpy", "numba")
_MOST_FEATURES = {"mixture": 100}  # of full covariance
_MOST_ROWS = {"spectral": 5_000, "ward": 12_000, "hdbscan": 12_000, "gemclus": 500}
_CALIBRATED_BINS = 15


class LabeledSet(NamedTuple):
    """Rows, and the label of each: 0 for noise, 1 to K."""

    group: str
    features: NDArray[np.float64]
    labels: NDArray[np.int64]


def toy_sets() -> Iterator[tuple[str, LabeledSet]]:
    """Yield scikit-learn's toy sets, as its comparison draws them, and uneven blobs."""
    few = {"n_samples": 500, "random_state": 30}
    drawn = {
        "moons": datasets.make_moons(noise=0.05, **few),
        "circles": datasets.make_circles(factor=0.5, noise=0.05, **few),
        "blobs": datasets.make_blobs(**few),
        "varied": datasets.make_blobs(500, cluster_std=[1.0, 2.5, 0.5], random_state=170),
        "uneven": datasets.make_blobs(
            [900, 80, 20], centers=[[0, 0], [6, 0], [0, 6]], random_state=0
        ),
    }
    stretched, labels = datasets.make_blobs(500, random_state=170)
    drawn["anisotropic"] = (stretched @ [[0.6, -0.6], [-0.4, 0.8]], labels)
    centers = 4 * np.random.RandomState(0).randn(10, 8)
    sizes = [2000 // (3 * size) for size in range(1, 11)]
    drawn["long tail"] = datasets.make_blobs(sizes, centers=centers, random_state=0)
    for name in ("wine", "breast_cancer"):
        drawn[name] = getattr(datasets, f"load_{name}")(return_X_y=True)
    for name, (features, found) in drawn.items():
        yield name, LabeledSet("toy", np.asarray(features, float), found + 1)


def panel_sets(folder: Path) -> Iterator[tuple[str, LabeledSet]]:
    """Yield the Parquet files of a folder."""
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        columns = [name for name in table.column_names if name != "label"]
        features = np.stack([table[name].to_numpy() for name in columns], 1)
        yield path.stem, LabeledSet("panel", features.astype(float), table["label"].to_numpy())


def other_sets(sources: list[str]) -> Iterator[tuple[str, LabeledSet]]:
    """Yield sources with labels."""
    for item in sources:
        name, source = item.split("=", 1)
        read = load_source(source)
        if read.labels is None:
            raise SystemExit(f"{source} holds no labels to score by.")
        yield name, LabeledSet("source", np.asarray(read.features, np.float32), read.labels + 1)


def methods() -> dict[str, Callable[[int, int], Any]]:
    """Return what makes a clusterer from the number of clusters and a seed."""
    made: dict[str, Callable[[int, int], Any]] = {
        "coincide": lambda k, seed: CollisionClustering(k, random_state=seed),
        "k-means": lambda k, seed: KMeans(k, n_init=10, random_state=seed),
        "mixture": lambda k, seed: GaussianMixture(k, random_state=seed),
        "spectral": lambda k, seed: SpectralClustering(
            k, affinity="nearest_neighbors", assign_labels="cluster_qr", random_state=seed
        ),
        "ward": lambda k, seed: AgglomerativeClustering(k),
        "hdbscan": lambda k, seed: HDBSCAN(copy=True),
    }
    if find_spec("genieclust"):
        genie = importlib.import_module("genieclust")
        made["genie"] = lambda k, seed: genie.Genie(k)
    if find_spec("gemclus"):
        gemclus = importlib.import_module("gemclus.mlp")
        made["gemclus"] = lambda k, seed: gemclus.MLPMMD(k, random_state=seed)
    return made


def measure(make: Callable[[int, int], Any], each: LabeledSet, seed: int) -> dict[str, float]:
    """Return the scores and the seconds of a fit."""
    known = each.labels > 0
    n_clusters = len(np.unique(each.labels[known]))
    estimator = make(n_clusters, seed)
    started = time.perf_counter()
    found = estimator.fit_predict(each.features)
    seconds = time.perf_counter() - started
    clusters = found - min(0, found.min())
    scores = score_clustering(each.labels[known] - 1, clusters[known])
    result = {"seed": seed, "seconds": seconds, **scores}
    if isinstance(estimator, CollisionClustering):
        sure = estimator.predict_proba(each.features).max(1)[known]
        result["calibration_error"] = calibration_error(sure, each.labels[known], clusters[known])
        result["representation"] = estimator.settings_["representation"]
    return result


def calibration_error(
    sure: NDArray[np.float32], labels: NDArray[np.int64], clusters: NDArray[np.int64]
) -> float:
    """Return the mean gap between confidence and accuracy, over 15 bins of confidence.

    A cluster is right about the rows of the class it is matched with.
    """
    size = max(labels.max(), clusters.max() + 1)
    joint = np.zeros((size, size), int)
    np.add.at(joint, (clusters, labels - 1), 1)
    right = linear_sum_assignment(-joint)[1][clusters] == labels - 1
    bins = np.minimum((sure * _CALIBRATED_BINS).astype(int), _CALIBRATED_BINS - 1)
    gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(sure))


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of means over sets and seeds, group by group."""
    lines = []
    for group in sorted({each["group"] for each in results.values()}):
        sets = {name: each["runs"] for name, each in results.items() if each["group"] == group}
        lines += [
            f"\n{group}: {len(sets)} sets",
            "",
            "| method | sets | accuracy | NMI | ARI | seconds, median | times K-means |",
            "|---|---|---|---|---|---|---|",
        ]
        names = sorted({method for runs in sets.values() for method in runs})
        for method in names:
            rows = [runs[method] for runs in sets.values() if runs.get(method)]
            means = [
                np.mean([[r[k] for r in row] for k in ("accuracy", "nmi", "ari")], 1)
                for row in rows
            ]
            accuracy, nmi, ari = np.mean(means, 0)
            own = np.array([np.mean([r["seconds"] for r in row]) for row in rows])
            peer = [runs for runs in sets.values() if runs.get(method) and runs.get("k-means")]
            ratio = np.median(
                [
                    np.mean([r["seconds"] for r in runs[method]])
                    / np.mean([r["seconds"] for r in runs["k-means"]])
                    for runs in peer
                ]
            )
            lines.append(
                f"| {method} | {len(rows)} | {accuracy:.3f} | {nmi:.3f} | {ari:.3f} |"
                f" {np.median(own):.3f} | {ratio:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure what is not there yet, write it set by set, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("sources", nargs="*", metavar="NAME=SOURCE")
    parser.add_argument("--methods", nargs="+", choices=list(methods()), default=list(methods()))
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    written: dict[str, Any] = {"labels": "for scores only", "measured": [], "sets": {}}
    if arguments.out.is_file():
        written = json.loads(arguments.out.read_text(encoding="utf-8"))
    written["measured"].append(circumstances("panel.py", PACKAGES))
    sets = {**dict(panel_sets(arguments.folder)), **dict(toy_sets())}
    sets |= dict(other_sets(arguments.sources))
    made = methods()
    first = next(iter(sets.values()))
    for method in arguments.methods:  # what is compiled or loaded at the first call
        measure(made[method], first, 0)
    for name, each in sets.items():
        if arguments.sets and name not in arguments.sets:
            continue
        held = written["sets"].setdefault(name, {"group": each.group, "runs": {}})
        held |= {"rows": len(each.features), "features": each.features.shape[1]}
        for method in arguments.methods:
            runs = held["runs"].setdefault(method, [])
            rows, features = each.features.shape
            if rows > _MOST_ROWS.get(method, rows):
                continue
            if features > _MOST_FEATURES.get(method, features):
                continue
            for seed in range(len(runs), arguments.seeds):
                runs.append(measure(made[method], each, seed))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        line = (
            f"{m} {np.mean([r['accuracy'] for r in held['runs'][m]]):.3f}"
            for m in arguments.methods
            if held["runs"][m]
        )
        print(name, *line, sep="  ", flush=True)
    print(table(written["sets"]))


if __name__ == "__main__":
    main()
