"""``coincide train``: read images, train, describe, write, print.

A training writes as it goes: a line of JSON an epoch, checkpoints that it can be taken up from;
at the end the files of every run, and a gallery of the clusters.
"""

from __future__ import annotations

import dataclasses
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from coincide._checks import find_device
from coincide._files import as_json
from coincide.cli.console import (
    noted,
    print_candidates,
    print_notes,
    print_settings,
    print_timings,
    print_training,
    print_written,
    progress_bar,
)
from coincide.cli.folder import (
    LOG,
    STANDARD,
    clear_checkpoints,
    files_of,
    finished_run,
    is_unfinished,
    of_training,
    remove,
    run_folder,
)
from coincide.cli.logs import Writer, append_line, check_log, open_log
from coincide.cli.memory import keep_freed_memory
from coincide.cli.resume import Saver, chosen_before, is_done, take_up, what_is_shared
from coincide.cli.run import (
    Prediction,
    Timings,
    as_prediction,
    classes_of_clusters,
    describe,
    image_names,
    now,
    skipped,
    timed,
    told_of_run,
    write_run,
)
from coincide.cli.stdin import NO_IMAGES
from coincide.data.images import ImageSource, read_images
from coincide.report import matched_confusion, write_gallery
from coincide.training.checkpoint import StopRequest
from coincide.training.config import ImageTrainingConfig
from coincide.training.distributed import join_ranks
from coincide.training.history import EpochRecord, StepRecord
from coincide.training.images import (
    Candidate,
    ImageRun,
    ImageTraining,
    choose,
    compare_settings,
    load_image_model,
    save_image_model,
)


class Stopped(KeyboardInterrupt):
    """The training was asked to stop and has saved where it stands: not an error."""

    def __init__(self) -> None:
        super().__init__("stopped, and saved: the same command with --resume takes it up again.")


def train(arguments: Namespace) -> dict[str, Any] | None:
    """Train a network on images and write the folder of the run; return what is told of it.

    Nothing is told by a process that is not the first of several.
    """
    keep_freed_memory()
    if arguments.source == STANDARD:
        raise ValueError(NO_IMAGES)
    check_log(arguments.log)
    folder = run_folder(arguments)
    timings: Timings = {}
    with timed(timings, "read"):
        source = _read(arguments, arguments.split or "train")
    candidates: list[dict[str, Any]] = []
    if isinstance(arguments.n_clusters, tuple):
        with timed(timings, "choose"):
            candidates = _choose_clusters(arguments, source, folder)
    config = _config(arguments)
    device = find_device(config.device, "coincide train")
    with join_ranks(device) as ranks, noted() as notes:
        if source.note and not (arguments.quiet or ranks.index):
            print_notes([source.note], "note")
        initial = _initial(arguments)
        training = ImageTraining(source, config, initial=initial, ranks=ranks)
        shared = what_is_shared(training, initial, candidates)
        if not _begin(arguments, folder, training, shared):
            return told_of_run(folder, files_of(folder))
        with timed(timings, "fit"):
            run = _fit(arguments, training, Saver(folder, training, shared))
        if ranks.index > 0:
            return None
    if not run.method.clusters and run.known is None:
        notes.append(
            f"The method {run.config.method!r} trains features alone, and these clusters mean"
            f" nothing: train another one with --start-from {folder}."
        )
    classes = _classes_of_clusters(source, run)
    found = replace(
        as_prediction(run.probabilities, arguments.probabilities),
        rows=image_names(source),
        classes=classes,
    )
    metrics = _describe(arguments, source, run, found, notes=notes, timings=timings) | shared
    written = _write(arguments, folder, metrics, found, source=source, run=run)
    if not arguments.quiet:
        print_training(metrics)
        print_written(written)
    if arguments.verbose:
        print_timings(metrics["timings"] | metrics["phases"])
    print_notes([*run.signs, *metrics["warnings"]])
    return told_of_run(folder, written)


def _begin(
    arguments: Namespace, folder: Path, training: ImageTraining, shared: dict[str, Any]
) -> bool:
    """Take a training up, or clear the place for it; whether there is anything to train."""
    if arguments.verbose and training.ranks.index == 0:
        print_settings({"device": str(training.device)} | shared["training"])
    main = training.ranks.index == 0
    if arguments.resume and (is_unfinished(folder) or finished_run(folder) is None):
        if take_up(folder, training, shared):
            return True
        if main:
            print_notes([f"There is nothing to resume in {folder}: the training begins."])
    elif arguments.resume and is_done(folder, shared, replace=arguments.overwrite):
        if main:
            print_notes([f"The training in {folder} is finished, nothing is left to resume."])
        return False
    if main:
        remove(of_training(folder))
    return True


# Reading and configuring


def _read(arguments: Namespace, split: str) -> ImageSource:
    with progress_bar(arguments.quiet, "reading") as move:
        return read_images(
            arguments.source,
            image_size=arguments.image_size,
            split=split,
            label_column=arguments.label_column,
            channels=arguments.channels,
            cache=not arguments.no_cache,
            progress=lambda done, total: move(done, total, "reading"),
        )


def _config(arguments: Namespace) -> ImageTrainingConfig:
    """Return the settings: the defaults but for the options that were given."""
    fields = [field.name for field in dataclasses.fields(ImageTrainingConfig)]
    given = {name: getattr(arguments, name) for name in fields if hasattr(arguments, name)}
    given["method_options"] = dict(arguments.method_options or ())
    return ImageTrainingConfig(**{k: v for k, v in given.items() if v is not None})


def _choose_clusters(
    arguments: Namespace, source: ImageSource, folder: Path
) -> list[dict[str, Any]]:
    """Compare the numbers of clusters to choose from, and take the best for the training.

    A training to resume has chosen already.
    """
    numbers = arguments.n_clusters
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "A number of clusters is chosen before the training, by one process. Give the one that"
            " was chosen, such as -k 10, to train with several."
        )
    if arguments.resume and (before := chosen_before(folder, numbers)):
        arguments.n_clusters, told = before
        return told
    config = _config(arguments)
    configs = [dataclasses.replace(config, n_clusters=number) for number in numbers]
    found: list[Candidate] = []
    with progress_bar(arguments.quiet, "choosing") as move:

        def on_candidate(candidate: Candidate) -> None:
            found.append(candidate)
            move(len(found), len(numbers), f"choosing: {candidate.n_clusters} clusters")

        compare_settings(source, configs, initial=_initial(arguments), on_candidate=on_candidate)
    chosen = choose(found)
    arguments.n_clusters = found[chosen].n_clusters
    told = [asdict(candidate) for candidate in found]
    if not arguments.quiet:
        print_candidates(told, chosen)
    return told


def _initial(arguments: Namespace) -> dict[str, Any] | None:
    """Return the backbone of an earlier run."""
    if arguments.start_from is None:
        return None
    own = arguments.network if ":" in (arguments.network or "") else None
    network = load_image_model(arguments.start_from, network=own, device="cpu").network
    backbone = network.get_submodule("backbone")
    return dict(backbone.state_dict())


# Training


def _fit(arguments: Namespace, training: ImageTraining, saver: Saver) -> ImageRun:
    """Train; save after every epoch and every few minutes, and when asked to stop."""
    ranks = training.ranks
    alone, main = ranks.size == 1, ranks.index == 0
    settings = asdict(training.config)
    with (
        StopRequest() as stop,
        _live(arguments.quiet or not main, training) as live,
        open_log(arguments.log if main else None, saver.folder, settings) as writer,
    ):

        def on_epoch(record: EpochRecord, signs: list[str]) -> None:
            if main:
                _log(saver.folder / LOG, training, record, signs, writer)
                print_notes(signs)
            saver.save()
            # Several processes stop together, or the others would wait for ever.
            if not alone and ranks.least(-float(stop.requested)) < 0:
                raise Stopped

        def on_step(record: StepRecord) -> None:
            live(record)
            # Between epochs only, where several processes would have to agree on the step.
            if not alone:
                return
            if stop.requested:
                saver.save()
                raise Stopped
            if saver.age() > arguments.checkpoint_every:
                saver.save()

        return training.fit(on_epoch=on_epoch, on_step=on_step)


def _log(
    path: Path, training: ImageTraining, record: EpochRecord, signs: list[str], writer: Writer
) -> None:
    """Write what an epoch looked like."""
    seed, pretext = training.under_way.seed, training.pretext is not None
    told = {"time": now(), "seed": seed, "pretext": pretext, **asdict(record), "signs": signs}
    append_line(path, told)
    numbers = {k: v for k, v in told.items() if isinstance(v, int | float)}
    numbers |= {f"quantities/{name}": value for name, value in record.quantities.items()}
    writer.write(numbers, record.epoch, seed)


@contextmanager
def _live(quiet: bool, training: ImageTraining) -> Iterator[Callable[[StepRecord], None]]:
    """Yield a callback that shows where the training stands: loss, clusters, images a second."""
    rows, started = 0, time.monotonic()
    with progress_bar(quiet, "training") as move:

        def show(record: StepRecord) -> None:
            nonlocal rows
            rows += record.rows
            speed = rows / max(time.monotonic() - started, 1e-9)
            trainer = training.under_way.trainer
            start = f"start {training.starts.seed % 1000 + 1}"
            parts = ["pretext" if training.pretext is not None else start]
            parts.append(f"loss {float(record.loss):.3f}")
            if trainer.records and trainer.method.clusters:
                last = trainer.records[-1]
                shares = f"{last.least_share:.1%} to {last.largest_share:.1%}"
                parts.append(f"{last.live_clusters} clusters of {shares}")
            parts.append(f"{speed:,.0f} images/s")
            move(record.step, record.n_steps, ", ".join(parts))

        yield show


# Describing and writing


def _write(
    arguments: Namespace,
    folder: Path,
    metrics: dict[str, Any],
    found: Prediction,
    *,
    source: ImageSource,
    run: ImageRun,
) -> list[Path]:
    """Write the files of the run; where that fails, its checkpoints stay to write them from."""
    try:
        written = write_run(
            arguments,
            folder,
            metrics,
            found,
            features=source.images.reshape(len(source.images), -1),
            write_model=lambda staged: _write_model(staged, source, run, found.classes),
        )
    except KeyboardInterrupt as stop:  # the last epoch has been saved
        raise Stopped from stop
    except OSError as error:
        raise OSError(
            f"The run cannot be written to {folder} ({error.strerror or error}). What was trained"
            " is kept there: make room, and the same command with --resume writes it."
        ) from error
    if not arguments.keep_checkpoints:
        clear_checkpoints(folder)
    return written


def _describe(
    arguments: Namespace,
    source: ImageSource,
    run: ImageRun,
    found: Prediction,
    *,
    notes: list[str],
    timings: Timings,
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a training."""
    n_clusters = run.probabilities.shape[1]
    parameters = as_json(asdict(run.config))
    metrics = {
        **describe(
            arguments,
            found,
            source.labels,
            n_clusters=n_clusters,
            device=str(next(run.network.parameters()).device),
            timings=timings,
        ),
        "source": {
            "name": source.name,
            "rows": len(source.images),
            "features": int(np.prod(run.image_shape)),
            "dtype": "uint8",
            "columns": None,
            "image_shape": list(run.image_shape),
            "note": source.note,
        },
        "model": {"n_clusters": n_clusters, "parameters": parameters},
        "seed": run.config.seed,
        "n_epochs": len(run.history),
        "history": [asdict(record) for record in run.history],
        "starts": [asdict(record) for record in run.starts],
        "phases": run.seconds,
        "signs": run.signs,
        "skipped": [list(item) for item in source.skipped],
        "warnings": [*notes, *skipped(source)],
    }
    if run.known is not None:
        metrics["known_labels"] = int((run.known >= 0).sum())
    if source.labels is not None:
        names = source.label_names or ()
        metrics["confusion"] = matched_confusion(source.labels, run.clusters, n_clusters, names)
    return metrics


def _classes_of_clusters(source: ImageSource, run: ImageRun) -> list[str] | None:
    """Return what each cluster stands for: the class that was known, or the matched one."""
    n_clusters = run.probabilities.shape[1]
    if run.known is None or source.label_names is None:
        return classes_of_clusters(source.labels, source.label_names, run.clusters, n_clusters)
    names = source.label_names[:n_clusters]
    return [*names, *[""] * (n_clusters - len(names))]


def _write_model(
    folder: Path, source: ImageSource, run: ImageRun, classes: Sequence[str] | None
) -> None:
    """Write the model and the gallery of the images."""
    save_image_model(folder, run, classes)
    write_gallery(
        folder,
        source.images,
        run.probabilities.argmax(1),
        run.probabilities.max(1),
        known=source.labels,
        names=source.label_names,
    )
