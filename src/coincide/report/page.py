"""The page of a run folder: what it shows, in the order it is read.

Everything comes from the files of the folder, so the page can be rebuilt from them at any time.
Counts and means come from the labels file itself; ``metrics.json`` adds what labels cannot tell.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from coincide.report import figures
from coincide.report.labels import Extremes, LabelSummary, summarize_labels
from coincide.report.projection import Projection, read_projection
from coincide.report.run_folder import (
    METRICS,
    REPORT,
    number,
    part,
    read_metrics,
    records,
    write_text,
)
from coincide.report.words import MISSING, compact, counted, decimal, seconds, share, whole

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class KeyFigure:
    """One number at the top of the page, with a few words on how to read it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Plate:
    """One figure of the page with its heading and caption."""

    heading: str
    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Score:
    """One line of the comparison with K-means; ``best`` is which of the values wins, if one."""

    name: str
    meaning: str
    values: tuple[str, ...]
    best: int | None


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` about a run folder: one page that needs no network and no scripts.

    Parameters
    ----------
    folder : path
        Holds ``metrics.json``, ``labels.csv`` or ``labels.parquet``, and ``projection.csv`` if
        the page is to show one.

    Returns
    -------
    Path
        The file written, whole or not at all. The same folder gives the same page, byte by byte.

    Raises
    ------
    FileNotFoundError
        If the folder, its metrics or its labels are not there.
    ValueError
        If one of its files is damaged, or they cannot belong to one run.

    Notes
    -----
    Only ``model.n_clusters`` of the metrics is needed (or ``cluster_sizes``, as long as there are
    clusters); what else is absent is left out of the page.

    Examples
    --------
    >>> import tempfile
    >>> from coincide.report import write_labels, write_metrics, write_report
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_labels(folder, [0, 1], [0.9, 0.8], [0.33, 0.5])
    ...     _ = write_metrics(folder, {"model": {"n_clusters": 2}})
    ...     write_report(folder).name
    'report.html'
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    K = _n_clusters(metrics)
    labels = summarize_labels(folder, K)
    view = read_projection(folder, K)
    source = part(metrics, "source", {})
    name = str(source.get("name") or folder.resolve().name)
    text = _template().render(
        name=name,
        title=f"{name}: {counted(K, 'cluster')}",
        summary=_summary(source, labels),
        warnings=_warnings(metrics, labels),
        key_figures=_key_figures(metrics, source, labels),
        scores=_scores(metrics),
        has_kmeans=bool(part(metrics, "kmeans", {})),
        projection=None if view is None else _projection_plate(view, labels),
        sizes=_sizes_plate(labels),
        certainty=_certainty_plates(labels),
        extremes=[
            ("Least certain", "Worth a look by eye.", _rows(labels.least_certain)),
            ("Most certain", "The clearest members of their clusters.", _rows(labels.most_certain)),
        ],
        training=_training_plates(metrics),
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


def _summary(source: dict[str, Any], labels: LabelSummary) -> str:
    """Say in plain words what was done."""
    features = number(source.get("features"))
    of = f" of {counted(features, 'feature')}" if math.isfinite(features) else ""
    return (
        f"{counted(labels.n_rows, 'row')}{of}, sorted into {counted(labels.n_clusters, 'cluster')}."
        f" Each row has a probability for its cluster: {share(labels.mean_confidence)} on average."
    )


def _warnings(metrics: dict[str, Any], labels: LabelSummary) -> list[str]:
    """Return the run's own warnings, and what the files of the folder disagree about."""
    warnings = [str(warning) for warning in part(metrics, "warnings", [])]
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
    return warnings


def _key_figures(
    metrics: dict[str, Any], source: dict[str, Any], labels: LabelSummary
) -> list[KeyFigure]:
    """Return the numbers at the top; those the run did not give are left out."""
    K = labels.n_clusters
    empty = int((labels.sizes == 0).sum())
    features, epochs = number(source.get("features")), number(metrics.get("n_epochs"))
    converged = metrics.get("converged")
    timings = [number(value) for value in part(metrics, "timings", {}).values()]
    timings = [value for value in timings if math.isfinite(value)]
    figures_ = [
        KeyFigure("Rows", whole(labels.n_rows)),
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
    lowest, widest = (1 / K, math.log(K)) if K > 1 else (0.0, 1.0)
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


def _training_plates(metrics: dict[str, Any]) -> list[Plate]:
    """Return the loss by epoch and the objectives of the restarts, where the run gave them."""
    restarts = records(metrics, "restarts")
    finished = [
        (f"restart {n}", objective)
        for n, restart in enumerate(restarts, start=1)
        if math.isfinite(objective := number(restart.get("objective")))
    ]
    objectives = [objective for _, objective in finished]
    plates = []
    curves = _curves(records(metrics, "history"))
    if curves:
        # The history may hold only the restart that was kept.
        matched = len(curves) == len(finished) == len(restarts)
        kept = int(np.argmin(objectives if matched else [losses[-1] for _, losses in curves]))
        caption = f"The training loss of each epoch{_last_epoch(metrics)}."
        if len(curves) > 1:
            caption += " The restart that was kept is in color, the others are in gray."
        plates.append(Plate("Loss", figures.loss_curve(curves, kept), caption))
    if len(finished) > 1:
        kept = int(np.argmin(objectives))
        caption = (
            f"{counted(len(restarts), 'restart')} from different seeds; the filled dot has the"
            " lowest objective and was kept. They differ by"
            f" {decimal(max(objectives) - min(objectives), 2)} at most."
        )
        if failed := len(restarts) - len(finished):
            caption += f" {counted(failed, 'restart')} ended without an objective."
        names = [name for name, _ in finished]
        plates.append(Plate("Restarts", figures.restarts(names, objectives, kept), caption))
    return plates


def _last_epoch(metrics: dict[str, Any]) -> str:
    """Say how many clusters were in use at the end of the only history there is."""
    history = records(metrics, "history")
    live = number(history[-1].get("live_clusters"))
    if not math.isfinite(live) or len({entry.get("restart") for entry in history}) > 1:
        return ""
    return f"; in the last one, {counted(live, 'cluster')} had rows"


def _curves(history: Sequence[dict[str, Any]]) -> list[tuple[list[float], list[float]]]:
    """Return (epochs, losses) of each restart that has a finite loss, in their order."""
    curves = []
    for _, epochs in groupby(history, key=lambda entry: entry.get("restart")):
        points = [(number(entry.get("epoch")), number(entry.get("loss"))) for entry in epochs]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points:
            curves.append(([x for x, _ in points], [y for _, y in points]))
    return curves


def _details(metrics: dict[str, Any], source: dict[str, Any]) -> list[tuple[str, Pairs]]:
    """Return how the run was made, as titled lists of names and values; empty ones left out."""
    parameters = dict(part(part(metrics, "model", {}), "parameters", {}))
    if "seed" in metrics:
        parameters = {"seed": metrics["seed"], **parameters}
    groups = [
        ("Source", _pairs(source.items())),
        ("Parameters", _pairs(parameters.items())),
        (
            "Timings",
            [
                (key, seconds(value))
                for key, value in part(metrics, "timings", {}).items()
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
