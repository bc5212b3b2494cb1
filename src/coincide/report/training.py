"""How the fit went: the curves of its epochs, its restarts, and the starts it chose among."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from coincide.report import figures
from coincide.report.figures import Plate
from coincide.report.run_folder import number, records
from coincide.report.words import MISSING, counted, decimal, whole

MAX_STARTS = 12  # shown


@dataclass(frozen=True)
class Starts:
    """The table of the starts, those that got furthest first.

    A line is a start's seed, and for each round that it was in, its loss and whether it went on.
    """

    rounds: int
    lines: list[tuple[str, list[tuple[str, bool]]]]
    caption: str


def training_plates(metrics: dict[str, Any], n_clusters: int) -> list[Plate]:
    """Return the curves by epoch and the objectives of the restarts, where the run gave them."""
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
    plates.extend(_cluster_plates(metrics, n_clusters))
    plates.extend(_evidence_plates(restarts))
    plates.extend(_candidate_plates(metrics, n_clusters))
    if len(finished) > 1 and "evidence" not in restarts[0]:
        kept = int(np.argmin(objectives))
        caption = (
            f"{counted(len(restarts), 'restart')} from different seeds; the filled dot has the"
            " lowest objective and was kept. They differ by"
            f" {decimal(max(objectives) - min(objectives), 2)} at most."
        )
        if failed := len(restarts) - len(finished):
            caption += f" {counted(failed, 'restart')} ended without an objective."
        names = [name for name, _ in finished]
        told = "Objectives of {}; the lowest was kept."
        drawn = figures.restarts(names, objectives, kept, "objective", told)
        plates.append(Plate("Restarts", drawn, caption))
    return plates


def _evidence_plates(restarts: list[dict[str, Any]]) -> list[Plate]:
    """Return the evidence for each training, where it chose among several."""
    told = [number(restart.get("evidence")) for restart in restarts]
    kept = [n for n, restart in enumerate(restarts) if restart.get("kept") is True]
    if len(told) < 2 or len(kept) != 1 or not all(map(math.isfinite, told)):
        return []
    names = [f"{n} {restart.get('representation', '')}" for n, restart in enumerate(restarts, 1)]
    caption = (
        "How much a row's cluster tells about its neighbors', relative to the entropy of the"
        " clusters, after each training; the filled one was kept. Plain rows (scaled) are, if they"
        " come within a twentieth of the best."
    )
    words = "Evidence of {}; the filled one was kept."
    drawn = figures.restarts(names, told, kept[0], "evidence", words)
    return [Plate("Trainings", drawn, caption)]


def read_starts(metrics: dict[str, Any]) -> Starts | None:
    """Return the table of the starts, None if the run had none."""
    found = records(metrics, "starts")
    if not found:
        return None
    # Rounds may be counted from 0 or from 1.
    rounds = {n: place for place, n in enumerate(sorted({_round(start) for start in found}))}
    by_seed: dict[str, dict[int, tuple[float, bool]]] = {}
    for start in found:
        outcome = number(start.get("loss")), start.get("kept") is True
        by_seed.setdefault(str(start.get("seed")), {})[rounds[_round(start)]] = outcome
    order = sorted(by_seed.items(), key=lambda item: _place(item[1]))
    lines = [
        (seed, [(_loss(loss), kept) for loss, kept in _in_rounds(outcomes)])
        for seed, outcomes in order[:MAX_STARTS]
    ]
    caption = (
        f"The loss of {counted(len(by_seed), 'short start')} after each of"
        f" {counted(len(rounds), 'round')}; those in color went on."
    )
    seed, outcomes = order[0]
    if outcomes.get(len(rounds) - 1, (math.nan, False))[1]:
        caption += f" The full training is that of seed {seed}."
    if (more := len(order) - MAX_STARTS) > 0:
        caption += f" {counted(more, 'start')} that did no better {'is' if more == 1 else 'are'}"
        caption += " left out of the table."
    return Starts(len(rounds), lines, caption)


def _round(start: dict[str, Any]) -> float:
    found = number(start.get("round"))
    return found if math.isfinite(found) else 0.0


def _place(outcomes: dict[int, tuple[float, bool]]) -> tuple[int, bool, float]:
    """Return the key that puts the start which got furthest first, then the lowest loss."""
    last = max(outcomes)
    loss, kept = outcomes[last]
    return -last, not kept, loss if math.isfinite(loss) else math.inf


def _in_rounds(outcomes: dict[int, tuple[float, bool]]) -> list[tuple[float, bool]]:
    """Return the outcome of every round up to the last, without a loss where there is none."""
    return [outcomes.get(place, (math.nan, False)) for place in range(max(outcomes) + 1)]


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else MISSING


def _last_epoch(metrics: dict[str, Any]) -> str:
    """Say how many clusters were in use at the end of the only history there is."""
    history = records(metrics, "history")
    live = number(history[-1].get("live_clusters"))
    if not math.isfinite(live) or not _is_one_run(history):
        return ""
    return f"; in the last one, {counted(live, 'cluster')} had rows"


def _is_one_run(history: Sequence[dict[str, Any]]) -> bool:
    return len({entry.get("restart") for entry in history}) == 1


def _curves(history: Sequence[dict[str, Any]]) -> list[tuple[list[float], list[float]]]:
    """Return (epochs, losses) of each restart that has a finite loss, in their order."""
    curves = []
    for _, epochs in groupby(history, key=lambda entry: entry.get("restart")):
        points = _points(list(epochs), "loss")
        if points:
            curves.append(([x for x, _ in points], [y for _, y in points]))
    return curves


def _points(history: Sequence[dict[str, Any]], *names: str) -> list[tuple[float, ...]]:
    """Return the epoch and the quantities named of each entry that has them all."""
    points = [tuple(number(entry.get(name)) for name in ("epoch", *names)) for entry in history]
    return [point for point in points if all(map(math.isfinite, point))]


def _candidate_plates(metrics: dict[str, Any], n_clusters: int) -> list[Plate]:
    """Return the evidence for the number of clusters, where it was chosen among several."""
    names = ("n_clusters", "agreement", "error")
    found = [
        [number(entry.get(name)) for name in names] for entry in records(metrics, "candidates")
    ]
    found = sorted(values for values in found if all(map(math.isfinite, values)))
    numbers = [int(values[0]) for values in found]
    if len(found) < 2 or n_clusters not in numbers:
        return []
    caption = (
        "How far short starts from other weights found the same clusters, by their number: 1 is"
        " the same, 0 is chance, bars are standard errors. Of the best, the filled one had the"
        " lowest loss relative to ln K."
    )
    agreement, error = ([values[n] for values in found] for n in (1, 2))
    drawing = figures.candidates(numbers, agreement, error, n_clusters)
    return [Plate("Number of clusters", drawing, caption)]


def _cluster_plates(metrics: dict[str, Any], n_clusters: int) -> list[Plate]:
    """Return the range of the clusters' shares by epoch, and how many had rows if that changed."""
    history = records(metrics, "history")
    points = _points(history, "least_share", "largest_share", "live_clusters")
    if not points or not _is_one_run(history):
        return []
    epochs, least, largest, live = map(list, zip(*points, strict=True))
    caption = (
        "The shares of the smallest and of the largest cluster in each epoch. The dashed line is"
        f" an even share, {100 / n_clusters:.3g}%."
    )
    plates = []
    if len(set(live)) == 1:
        all_ = f"all {whole(n_clusters)}" if live[0] == n_clusters else whole(live[0])
        caption += f" In every epoch {all_} clusters had rows."
    else:
        at = epochs[int(np.argmin(live))]
        words = (
            f"Clusters that had rows, of {whole(n_clusters)}: {whole(live[0])} in the first epoch,"
            f" {whole(min(live))} at the fewest (epoch {whole(at)}), {whole(live[-1])} in the last."
        )
        drawing = figures.live_clusters(epochs, live, n_clusters)
        plates.append(Plate("Clusters in use", drawing, words))
    drawing = figures.share_range(epochs, least, largest, n_clusters)
    return [Plate("Shares of the clusters", drawing, caption), *plates]
