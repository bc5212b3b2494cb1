"""Images end to end: how accurate every method is, seed by seed, with labels for scores alone.

    python experiments/image_training.py digits mnist methods semi --mnist PATH --cifar10 PATH

Every cell is one training through the public API and one JSON file in
``experiments/results/image_training``; a cell whose file exists is not run again. ``--cells`` picks
some of them by name, ``--list`` prints them all, ``--table`` what is there as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sklearn.cluster import KMeans

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from circumstances import circumstances

from coincide.data.images import ImageSource, read_images
from coincide.metrics import score_clustering
from coincide.training.config import ImageTrainingConfig
from coincide.training.images import ImageTraining
from coincide.training.images.model import ImageModel

RESULTS = Path(__file__).parent / "results" / "image_training"
METHODS = ("kmeans", "collision", "mi", "miadm", "sela", "imsat", "iic", "scan")
SHORT = {"network": "small-conv", "max_epochs": 2, "starts": 1, "pretext_epochs": 0}


@dataclass(frozen=True)
class Cell:
    """One training: a source by name, and the settings that differ from the defaults."""

    study: str
    name: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    labels_alone: bool = False  # the network on the known labels, without any method


def cells() -> list[Cell]:
    """Return all cells, in the order in which they matter."""
    digits = [Cell("digits", f"digits-{s}", "digits", {"seed": s}) for s in range(6)]
    mnist = [
        Cell("mnist", f"mnist-{s}", "mnist", {"seed": s, "network": "vgg4", "max_epochs": 5})
        for s in range(3)
    ]
    methods = [
        Cell("methods", f"{source}-{method}", source, {"method": method, **SHORT})
        for source in ("mnist", "cifar10")
        for method in METHODS
    ]
    semi = [
        Cell("semi", f"{source}-{share}-{kind}", source, settings, kind == "labels")
        for source, share in (("mnist", 0.01), ("cifar10", 0.1))
        for kind, settings in (
            (kind, {"labeled_fraction": share, **SHORT, "max_epochs": 3})
            for kind in ("collision", "labels")
        )
    ]
    # λ per image, as Algorithm 1 reads, in batches of 250, and nothing that works against it.
    literal = {"fairness": 100 / 250, "revive": False, "method_options": {"n_neighbors": 0}}
    collapse = [Cell("collapse", "mnist-literal", "mnist", {**SHORT, **literal, "network": "vgg4"})]
    return digits + mnist + methods + semi + collapse


def run(cell: Cell, source: ImageSource, test: ImageSource | None) -> dict[str, Any]:
    """Train one cell and return its scores, its settings and what the guard said."""
    settings = dict(cell.settings)
    if settings.get("method") == "kmeans":
        return run_kmeans(source, test)
    if cell.labels_alone:
        # The method's loss vanishes beside the cross-entropy of the known classes.
        settings["known_weight"] = 1e6
    training = ImageTraining(source, ImageTrainingConfig(**settings))
    started = time.perf_counter()
    found = training.fit()
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "scores": score_clustering(source.labels, found.clusters, found.probabilities.max(1)),
        "seconds": seconds,
        "settings": asdict(found.config),
        "history": [asdict(record) for record in found.history],
        "starts": [asdict(record) for record in found.starts],
        "signs": found.signs,
        "known_labels": 0 if found.known is None else int((found.known >= 0).sum()),
    }
    if test is not None:
        half = found.config.precision == "bfloat16"
        model = ImageModel(
            found.network, found.image_shape, found.config.n_clusters or 0, training.device, half
        )
        probs = model.predict_proba(test.images)
        result["test_scores"] = score_clustering(test.labels, probs.argmax(1), probs.max(1))
        result["test_accuracy_unmatched"] = float((probs.argmax(1) == test.labels).mean())
    return result


def run_kmeans(source: ImageSource, test: ImageSource | None) -> dict[str, Any]:
    """Cluster the pixels by K-means, the reference."""
    started = time.perf_counter()
    settings = {"n_clusters": len(source.label_names or ()), "n_init": 3, "random_state": 0}
    model = KMeans(**settings).fit(source.images.reshape(len(source.images), -1) / 255)
    result: dict[str, Any] = {
        "scores": score_clustering(source.labels, model.labels_),
        "seconds": time.perf_counter() - started,
        "settings": settings,
    }
    if test is not None:
        found = model.predict(test.images.reshape(len(test.images), -1) / 255)
        result["test_scores"] = score_clustering(test.labels, found)
    return result


def print_table() -> None:
    """Print the results that are there as a Markdown table."""
    print("| Cell | Accuracy | Test accuracy | Seconds | Live clusters |")
    print("|---|---|---|---|---|")
    for cell in cells():
        path = RESULTS / f"{cell.name}.json"
        if not path.exists():
            continue
        told = json.loads(path.read_text(encoding="utf-8"))
        test = f"{told['test_scores']['accuracy']:.3f}" if "test_scores" in told else ""
        live = told["history"][-1]["live_clusters"] if "history" in told else ""
        scores = f"{told['scores']['accuracy']:.3f} | {test} | {told['seconds']:.0f} | {live}"
        print(f"| {cell.name} | {scores} |")


def main() -> None:
    """Run the cells that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help="digits, mnist, methods, semi, collapse")
    parser.add_argument("--cells", nargs="*", help="these alone, by name")
    parser.add_argument("--mnist", default="mnist", help="where MNIST is, or its name on the hub")
    parser.add_argument("--cifar10", default="cifar10", help="where CIFAR-10 is, or its name")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
        return
    places = {"digits": "digits", "mnist": arguments.mnist, "cifar10": arguments.cifar10}
    read: dict[tuple[str, str], ImageSource] = {}

    def source(name: str, split: str) -> ImageSource:
        if (name, split) not in read:
            read[name, split] = read_images(places[name], split=split)
        return read[name, split]

    if not (arguments.list or arguments.studies or arguments.cells):
        parser.error("name studies, or --cells, or ask for the --list")
    for cell in cells():
        if arguments.list:
            print(cell.study, cell.name)
        asked_for = not arguments.studies or cell.study in arguments.studies
        wanted = asked_for and (not arguments.cells or cell.name in arguments.cells)
        path = RESULTS / f"{cell.name}.json"
        if arguments.list or not wanted or path.exists():
            continue
        test = None if cell.source == "digits" else source(cell.source, "test")
        result = run(cell, source(cell.source, "train"), test)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = circumstances("image_training.py", ("coincide", "torch"), "experiments")
        told = {"cell": asdict(cell), **result, "circumstances": made}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        scores = result.get("test_scores", result["scores"])
        print(
            f"{cell.name}: accuracy {scores['accuracy']:.3f}, {result['seconds']:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
