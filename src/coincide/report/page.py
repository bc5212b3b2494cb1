"""The page of a run folder: what it shows, in the order it is read.

Everything comes from the files of the folder, so the page can be rebuilt from them at any time.
Counts and means come from the labels file itself; ``metrics.json`` adds what labels cannot tell.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from coincide._files import write_text
from coincide.report import figures
from coincide.report.confusion import MAX_CLASSES, Confusion, read_confusion
from coincide.report.figures import Plate
from coincide.report.gallery import Gallery, read_gallery
from coincide.report.gallery_cards import gallery_cards
from coincide.report.labels import Extremes, LabelSummary, limits, summarize_labels
from coincide.report.projection import Projection, read_projection
from coincide.report.run_folder import (
    METRICS,
    REPORT,
    number,
    part,
    read_metrics,
    records,
)
from coincide.report.training import read_starts, training_plates
from coincide.report.words import MISSING, compact, counted, decimal, seconds, share, whole

Pairs = list[tuple[str, str]]

MAX_SKIPPED = 20  # named on the page


@dataclass(frozen=True)
class KeyFigure:
    """One number at the top of the page, with a few words on how to read it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Score:
    """One line of the comparison with K-means; ``best`` is which of the values wins, if one."""

    name: str
    meaning: str
    values: tuple[str, ...]
    best: int | None


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` about a run folder: one page that needs no network and no scripts.

    It is made of the metrics and the labels, and of the projection and the gallery if they are
    there. Only ``model.n_clusters`` of the metrics is needed (or ``cluster_sizes``, as long as
    there are clusters); what else is absent is left out. The same folder gives the same page, byte
    by byte. Files that are damaged, or cannot belong to one run, are refused.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    K = _n_clusters(metrics)
    labels = summarize_labels(folder, K)
    view = read_projection(folder, K)
    gallery = read_gallery(folder, K)
    table = read_confusion(metrics, K)
    source = part(metrics, "source", {})
    name = str(source.get("name") or folder.resolve().name)
    noun = "row" if gallery is None else "image"
    n_skipped, skipped = _skipped(metrics)
    text = _template().render(
        name=name,
        title=f"{name}: {counted(K, 'cluster')}",
        summary=_summary(source, labels, noun),
        warnings=_warnings(metrics, labels, gallery),
        key_figures=_key_figures(metrics, source, labels, noun),
        scores=_scores(metrics),
        scores_note=_scores_note(metrics),
        has_kmeans=bool(part(metrics, "kmeans", {})),
        confusion=None if table is None else _confusion_plate(table),
        projection=None if view is None else _projection_plate(view, labels),
        sizes=_sizes_plate(labels),
        certainty=_certainty_plates(labels),
        extremes=[
            ("Least certain", "Worth a look by eye.", _rows(labels.least_certain)),
            ("Most certain", "The clearest members of their clusters.", _rows(labels.most_certain)),
        ],
        gallery=None if gallery is None else gallery_cards(gallery, labels),
        training=training_plates(metrics, K),
        starts=read_starts(metrics),
        n_skipped=n_skipped,
        skipped=skipped,
        command=shlex.join(str(word) for word in part(metrics, "command", [])),
        details=_details(metrics, source),
        created=str(metrics.get("created") or ""),
    )
    return write_text(folder / REPORT, text)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _n_clusters(metrics: dict[str, Any]) -> int:
    """Return K, from the model or else from the list of cluster sizes."""
    sizes = part(metrics, "cluster_sizes", [])
    value = part(metrics, "model", {}).get("n_clusters", len(sizes) or None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"'model' in {METRICS} must give 'n_clusters', an integer >= 1. Got {value!r} instead."
        )
    return value


def _summary(source: dict[str, Any], labels: LabelSummary, noun: str) -> str:
    """Say in plain words what was done with the rows, by the noun they go by."""
    features = number(source.get("features"))
    of = f" of {counted(features, 'feature')}" if math.isfinite(features) else ""
    return (
        f"{counted(labels.n_rows, noun)}{of}, sorted into {counted(labels.n_clusters, 'cluster')}."
        f" Each {noun} has a probability for its cluster: {share(labels.mean_confidence)} on"
        " average."
    )


def _warnings(metrics: dict[str, Any], labels: LabelSummary, gallery: Gallery | None) -> list[str]:
    """Return the run's own warnings, and what the files of the folder disagree about."""
    own = [*part(metrics, "signs", []), *part(metrics, "warnings", [])]
    warnings = list(dict.fromkeys(map(str, own)))
    if metrics.get("converged") is False and not warnings:
        warnings.append(
            "The fit stopped before it had converged. More epochs may give better clusters."
        )
    rows = number(part(metrics, "source", {}).get("rows"))
    sizes = [number(size) for size in part(metrics, "cluster_sizes", [])]
    if math.isfinite(rows) and rows != labels.n_rows:
        warnings.append(
            f"{METRICS} counts {counted(rows, 'row')}, the labels file {whole(labels.n_rows)}:"
            " they may come from different runs, or the labels file may have been cut short."
        )
    elif sizes and sizes != labels.sizes.tolist():
        warnings.append(
            f"{METRICS} and the labels file give different cluster sizes: they may come from"
            " different runs. This page follows the labels file."
        )
    if gallery is not None and any(
        cluster.size != labels.sizes[cluster.cluster] for cluster in gallery.clusters
    ):
        warnings.append(
            "The gallery and the labels file give different cluster sizes: they may come from"
            " different runs."
        )
    return warnings


def _key_figures(
    metrics: dict[str, Any], source: dict[str, Any], labels: LabelSummary, noun: str
) -> list[KeyFigure]:
    """Return the numbers at the top; those the run did not give are left out."""
    K = labels.n_clusters
    empty = int((labels.sizes == 0).sum())
    features, epochs = number(source.get("features")), number(metrics.get("n_epochs"))
    converged = metrics.get("converged")
    timings = [number(value) for value in part(metrics, "timings", {}).values()]
    timings = [value for value in timings if math.isfinite(value)]
    figures_ = [
        KeyFigure(f"{noun.capitalize()}s", whole(labels.n_rows)),
        KeyFigure("Features", whole(features) if math.isfinite(features) else MISSING),
        KeyFigure("Clusters", whole(K), f"{whole(empty)} empty" if empty else "none empty"),
        KeyFigure(
            "Mean confidence", share(labels.mean_confidence), f"{1 / K:.2g} would be a guess"
        ),
        KeyFigure("Objective", decimal(metrics.get("objective"), 5), "lower is better"),
        KeyFigure("Certified gap", decimal(metrics.get("gap"), 2), "labels this close to optimal"),
        KeyFigure(
            "Converged",
            {True: "Yes", False: "No"}[converged] if isinstance(converged, bool) else MISSING,
            f"after {counted(epochs, 'epoch')}" if math.isfinite(epochs) else "",
        ),
        KeyFigure("Time", seconds(sum(timings)) if timings else MISSING, "reading to writing"),
    ]
    return [figure for figure in figures_ if figure.value != MISSING]


def _scores(metrics: dict[str, Any]) -> list[Score]:
    """Return the comparison with the known classes, empty if the run had none."""
    scores = dict(part(metrics, "scores", {}))
    if not scores:
        return []
    kmeans = part(metrics, "kmeans", {})
    scores["seconds"] = part(metrics, "timings", {}).get("fit")
    kinds = [
        ("accuracy", "Accuracy", "share of rows right, clusters matched to classes at best", 1),
        ("nmi", "NMI", "normalized mutual information with the classes; 1 is perfect", 1),
        ("ari", "ARI", "adjusted Rand index; 0 is chance, 1 is perfect", 1),
        ("calibration_error", "Calibration error", "how far confidence is from accuracy", -1),
        ("seconds", "Time to fit", "on the machine below", -1),
    ]
    lines = []
    for key, name, meaning, sign in kinds:
        pair = [number(scores.get(key)), *([number(kmeans.get(key))] if kmeans else [])]
        if not any(math.isfinite(value) for value in pair):
            continue
        show = seconds if key == "seconds" else share
        comparable = len(pair) == 2 and all(map(math.isfinite, pair)) and pair[0] != pair[1]
        best = int(sign * pair[1] > sign * pair[0]) if comparable else None
        lines.append(Score(name, meaning, tuple(show(value) for value in pair), best))
    return lines


def _scores_note(metrics: dict[str, Any]) -> str:
    """Say what the classes were used for."""
    known = number(metrics.get("known_labels"))
    if known > 0:
        return (
            f"The training knew the classes of {counted(known, 'row')}; the scores count all rows"
            " that have a class."
        )
    return "The classes were used for this evaluation only; the clusters were found without them."


def _projection_plate(view: Projection, labels: LabelSummary) -> Plate:
    n = len(view.clusters)
    which = (
        f"a sample of {whole(n)} of the rows" if n < labels.n_rows else f"all {counted(n, 'row')}"
    )
    caption = (
        f"Each dot is a row ({which}), placed by the two directions of largest variance (PCA)."
        " Clusters that overlap here may lie apart in the others."
    )
    if labels.n_clusters <= figures.MAX_NAMED_CLUSTERS:
        caption += " Numbers are cluster ids, at the median of their rows."
    return Plate(
        "The rows in two dimensions",
        figures.projection(view, labels.n_clusters),
        caption + _palette_note(labels.n_clusters),
    )


def _palette_note(n_clusters: int) -> str:
    n = len(figures.PALETTE)
    return f" The {n} colors repeat every {n} clusters." if n_clusters > n else ""


def _sizes_plate(labels: LabelSummary) -> Plate:
    smallest, largest = labels.sizes.min(), labels.sizes.max()
    span = (
        f"From {whole(smallest)} to {counted(largest, 'row')}."
        if smallest < largest
        else f"All have {counted(largest, 'row')}."
    )
    caption = f"{span} The dashed line is an even share, {compact(float(labels.sizes.mean()))}."
    empty = int((labels.sizes == 0).sum())
    if empty:
        are = "is" if empty == 1 else "are"
        caption += f" {counted(empty, 'cluster')} {are} empty."
    return Plate("Cluster sizes", figures.cluster_sizes(labels.sizes), caption)


def _certainty_plates(labels: LabelSummary) -> list[Plate]:
    K = labels.n_clusters
    lowest, widest = limits(K)
    return [
        Plate(
            "Confidence",
            figures.histogram(
                labels.confidence_counts, (lowest, 1.0), "confidence", ("a guess", "certain")
            ),
            f"The largest of each row's {K} probabilities: 1 is certain, {lowest:.2g} a guess."
            f" The mean is {share(labels.mean_confidence)}.",
        ),
        Plate(
            "Entropy",
            figures.histogram(
                labels.entropy_counts, (0.0, widest), "entropy", ("certain", "a guess")
            ),
            f"How spread out the {K} probabilities are, in nats: 0 is certain,"
            f" ln\u00a0{K}\u00a0=\u00a0{widest:.3g} a guess."
            f" The mean is {share(labels.mean_entropy)}.",
        ),
    ]


def _rows(extremes: Extremes) -> list[tuple[str, str, str, str]]:
    """Return the lines of a table: row, cluster, confidence, entropy."""
    return [
        (str(row), str(cluster), f"{confidence:.4f}", f"{round(entropy, 4) + 0.0:.4f}")
        for row, cluster, confidence, entropy in zip(
            extremes.row, extremes.cluster, extremes.confidence, extremes.entropy, strict=True
        )
    ]


def _confusion_plate(table: Confusion) -> Plate | None:
    """Return the confusion matrix, None if its cells would be too many to see."""
    if max(table.counts.shape) > MAX_CLASSES:
        return None
    small = figures.is_small(table)
    shade = "Numbers are percent of the class" if small else "The deeper, the larger its share"
    return Plate(
        "Classes and clusters",
        figures.confusion(table),
        "Where the rows of each class went: a line is a class, a column a cluster. The clusters are"
        f" matched to the classes at best; matched pairs are outlined. {shade}; rest the pointer on"
        " a cell for its count.",
        is_wide=not small,
    )


def _skipped(metrics: dict[str, Any]) -> tuple[int, Pairs]:
    """Return how many entries of the source were left out, and the first with the reasons."""
    pairs = part(metrics, "skipped", [])
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError(f"'skipped' in {METRICS} must be a list of pairs [name, reason].")
    return len(pairs), [(str(name), str(reason)) for name, reason in pairs[:MAX_SKIPPED]]


def _details(metrics: dict[str, Any], source: dict[str, Any]) -> list[tuple[str, Pairs]]:
    """Return how the run was made, as titled lists of names and values; empty ones left out."""
    parameters = dict(part(part(metrics, "model", {}), "parameters", {}))
    if "seed" in metrics:
        parameters = {"seed": metrics["seed"], **parameters}
    training = part(metrics, "training", {})
    if training == part(part(metrics, "model", {}), "parameters", {}):
        training = {}  # said once
    said = " ".join(map(str, part(source, "said", [])))
    told = {name: value for name, value in source.items() if name != "said"}
    groups = [
        ("Source", _pairs((told | {"said": said} if said else told).items())),
        ("Parameters", _pairs(parameters.items())),
        ("Training", _pairs(training.items())),
        (
            "Timings",
            [
                (key, seconds(value))
                for key, value in (
                    *part(metrics, "timings", {}).items(),
                    *part(metrics, "phases", {}).items(),
                )
                if math.isfinite(number(value))
            ],
        ),
        ("Machine", _pairs(part(metrics, "machine", {}).items())),
        ("Versions", _pairs(part(metrics, "versions", {}).items())),
        (
            "Restarts",
            [
                (f"seed {restart.get('seed', MISSING)}", decimal(restart.get("objective"), 8))
                for restart in records(metrics, "restarts")
            ],
        ),
    ]
    return [group for group in groups if group[1]]


def _pairs(items: Iterable[tuple[str, object]]) -> Pairs:
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in items
    ]
