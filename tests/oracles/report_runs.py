"""Run folders for the tests of the report, and their pages read back."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from coincide.report import write_labels, write_metrics, write_projection, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A page read back: its text, its elements, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def drawings(self) -> list[str]:
        return [str(svg["aria-label"]) for svg in self.tags("svg")]


def blobs(M: int, K: int, D: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (M, D) around K centers, and probabilities (M, K) by distance to them."""
    generator = np.random.default_rng(seed)
    centers = 2 * generator.normal(size=(K, D))
    truth = np.concatenate([np.arange(K), generator.integers(K, size=M - K)])
    features = centers[truth] + generator.normal(size=(M, D))
    logits = -0.2 * np.square(features[:, None] - centers).sum(-1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return features.astype(np.float32), weights / weights.sum(1, keepdims=True)


def full_metrics(M: int, K: int, sizes: np.ndarray, epochs: int = 12) -> dict[str, object]:
    return {
        "schema": 1,
        "command": ["coincide", "cluster", "my data.npy", "-k", str(K)],
        "source": {"name": "my data.npy", "rows": M, "features": 8, "dtype": "float32"},
        "model": {"n_clusters": K, "parameters": {"fairness": 100.0, "prior": None}},
        "objective": 1.2345678,
        "gap": 3.4e-8,
        "converged": True,
        "n_epochs": epochs,
        "seed": 7,
        "restarts": [{"seed": 7, "objective": 1.25}, {"seed": 8, "objective": 1.2345678}],
        "cluster_sizes": sizes,
        "mean_confidence": 0.9,
        "mean_entropy": 0.2,
        "history": [
            {
                "restart": restart,
                "epoch": epoch,
                "loss": 1.2 + 1 / epoch,
                "gap": 1e-7,
                "live_clusters": K,
            }
            for restart in range(2)
            for epoch in range(1, epochs + 1)
        ],
        "warnings": [],
        "versions": {"coincide": "0.1.0"},
        "machine": {"cores": 4},
        "timings": {"read": 0.5, "fit": 70.0, "predict": 1.5, "write": 1.0},
        "created": "2025-06-01 12:30 UTC",
        "scores": {"accuracy": 0.875, "nmi": 0.75, "ari": 0.5, "calibration_error": 0.03},
        "kmeans": {"accuracy": 0.625, "nmi": 0.8, "ari": 0.4, "seconds": 0.1},
    }


def write_run(folder: Path, M: int = 300, K: int = 4, **changes: object) -> np.ndarray:
    """Write a whole run of M rows and K clusters to ``folder``; return the probabilities."""
    features, probs = blobs(M, K)
    clusters = probs.argmax(1)
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(1)
    write_labels(folder, clusters, probs.max(1), entropy)
    write_projection(folder, features, clusters, seed=0)
    metrics = full_metrics(M, K, np.bincount(clusters, minlength=K)) | changes
    write_metrics(folder, {key: value for key, value in metrics.items() if value is not ...})
    write_report(folder)
    return probs
