"""Accuracy and time of CollisionClustering beside scikit-learn's K-means, same seeds and features.

    python benchmarks/clustering.py NAME=SOURCE [NAME=SOURCE ...] --out results.json

It prints the Markdown table of the README.

SOURCE is whatever ``coincide cluster`` reads, with labels. Labels score the methods afterwards;
they choose nothing: of K-means' ten starts the one of least inertia is taken. Every seed fits all
in turn in one process, after one unmeasured warm-up fit each; the JSON holds every figure with
command, seeds, versions, machine and commit.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from circumstances import circumstances
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from coincide import CollisionClustering
from coincide.data import load_source
from coincide.metrics import score_clustering

PACKAGES = ("coincide", "torch", "scikit-learn", "numpy", "numba")


def timed(estimator: Any, features: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Fit and return the labels and the seconds it took."""
    started = time.perf_counter()
    labels = estimator.fit_predict(features)
    return labels, time.perf_counter() - started


def compare(source: str, seeds: range) -> dict[str, Any]:
    """Return the scores and times of all methods for every seed."""
    read = load_source(source)
    if read.labels is None:
        raise SystemExit(f"{source} holds no labels to score by.")
    features = np.asarray(read.features, np.float32)
    n_clusters = len(np.unique(read.labels))
    methods = {
        "coincide": lambda seed: CollisionClustering(n_clusters, random_state=seed),
        "k-means": lambda seed: KMeans(n_clusters, n_init=1, random_state=seed),
        "k-means, 10 starts": lambda seed: KMeans(n_clusters, n_init=10, random_state=seed),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for make in methods.values():
        timed(make(seeds[0]), features)
    for seed in seeds:
        for name, make in methods.items():
            labels, seconds = timed(make(seed), features)
            scores = score_clustering(read.labels, labels)
            runs[name].append({"seed": seed, "seconds": seconds, **scores})
    return {
        "rows": len(features),
        "features": features.shape[1],
        "clusters": n_clusters,
        "runs": runs,
        "summary": {name: summarize(rows) for name, rows in runs.items()},
    }


def summarize(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return mean and standard deviation of each figure."""
    summary = {}
    for key in ("accuracy", "nmi", "ari", "seconds"):
        values = np.array([row[key] for row in rows])
        summary[key], summary[f"{key}_std"] = float(values.mean()), float(values.std())
    summary["seconds_median"] = float(np.median([row["seconds"] for row in rows]))
    return summary


def main() -> None:
    """Run the comparison and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("sources", nargs="+", metavar="NAME=SOURCE")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    results = {**circumstances("clustering.py", PACKAGES), "labels": "for scores only", "sets": {}}
    print("| set | rows × features | K | coincide | K-means | K-means, 10 starts |")
    print("|---|---|---|---|---|---|")
    for item in arguments.sources:
        name, source = item.split("=", 1)
        found = compare(source, range(arguments.seeds))
        results["sets"][name] = found
        cells = (
            f"{each['accuracy']:.3f} ± {each['accuracy_std']:.3f}, {each['seconds']:.2f} s"
            for each in found["summary"].values()
        )
        size = f"{found['rows']:,} × {found['features']} | {found['clusters']}"
        print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
