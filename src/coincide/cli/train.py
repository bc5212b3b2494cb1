"""``coincide train``: read images, train, describe, write, print.

A training writes as it goes: a line of JSON an epoch, checkpoints that it can be taken up from;
at the end the files of every run, and a gallery of the clusters.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from coincide._checks import find_device
from coincide._files import as_json
from coincide.cli.console import (
    noted,
    print_candidates,
    print_notes,
    print_training,
    print_written,
    progress_bar,
)
from coincide.cli.memory import keep_freed_memory
from coincide.cli.run import (
    CHECKPOINTS,
    IMAGE_NAMES,
    LOG,
    Prediction,
    Timings,
    as_prediction,
    check_run,
    clear_checkpoints,
    default_name,
    describe,
    now,
    skipped,
    timed,
    write_run,
)
from coincide.data.images import ImageSource, read_images
from coincide.report import matched_confusion, write_gallery
from coincide.training.checkpoint import CheckpointError, Checkpoints, StopRequest
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
from coincide.training.ranks import Ranks


class Stopped(KeyboardInterrupt):
    """The training was asked to stop and has saved where it stands: not an error."""

    def __init__(self) -> None:
        super().__init__("stopped, and saved: the same command with --resume takes it up again.")


def train(arguments: Namespace) -> None:
    """Train a network on images and write the folder of the run."""
    keep_freed_memory()
    named = arguments.out is not None
    folder = arguments.out or Path(f"coincide-{default_name(arguments.source)}")
    if not arguments.resume:
        check_run(folder, replace=arguments.overwrite or not named)
    timings: Timings = {}
    with timed(timings, "read"):
        source = _read(arguments, arguments.split)
    candidates: list[Candidate] = []
    if isinstance(arguments.n_clusters, tuple):
        with timed(timings, "choose"):
            candidates = _choose_clusters(arguments, source)
    config = _config(arguments)
    device = find_device(config.device, "coincide train")
    with join_ranks(device) as ranks, noted() as notes:
        training = ImageTraining(source, config, initial=_initial(arguments), ranks=ranks)
        checkpoints = Checkpoints(folder / CHECKPOINTS)
        if arguments.resume:
            _take_up(arguments, training, checkpoints)
        elif ranks.index == 0:
            clear_checkpoints(folder)
            (folder / LOG).unlink(missing_ok=True)
        with timed(timings, "fit"):
            run = _fit(arguments, training, checkpoints, ranks)
        if ranks.index > 0:
            return
    if not run.method.clusters and run.known is None:
        notes.append(
            f"The method {run.config.method!r} trains features alone, and these clusters mean"
            f" nothing: train another one with --start-from {folder}."
        )
    found = as_prediction(run.probabilities, arguments.probabilities)
    metrics = _describe(arguments, source, run, found, notes=notes, timings=timings)
    if candidates:
        metrics["candidates"] = [asdict(candidate) for candidate in candidates]
    written = write_run(
        arguments,
        folder,
        metrics,
        found,
        features=source.images.reshape(len(source.images), -1),
        write_model=lambda staged: _write_model(staged, source, run),
    )
    if not arguments.keep_checkpoints:
        clear_checkpoints(folder)
    if not arguments.quiet:
        print_training(metrics)
        print_written(written)
    print_notes([*run.signs, *metrics["warnings"]])


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


def _choose_clusters(arguments: Namespace, source: ImageSource) -> list[Candidate]:
    """Compare the numbers of clusters to choose from, and take the best for the training."""
    numbers = arguments.n_clusters
    if arguments.resume or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "A number of clusters is chosen before the training, by one process. Give the one that"
            " was chosen, such as -k 10, to resume or to train with several."
        )
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
    if not arguments.quiet:
        print_candidates([asdict(candidate) for candidate in found], chosen)
    return found


def _initial(arguments: Namespace) -> dict[str, Any] | None:
    """Return the backbone of an earlier run."""
    if arguments.start_from is None:
        return None
    own = arguments.network if ":" in (arguments.network or "") else None
    network = load_image_model(arguments.start_from, network=own, device="cpu").network
    backbone = network.get_submodule("backbone")
    return dict(backbone.state_dict())


# Training


def _fit(
    arguments: Namespace, training: ImageTraining, checkpoints: Checkpoints, ranks: Ranks
) -> ImageRun:
    """Train; save after every epoch and every few minutes, and when asked to stop."""
    alone, main = ranks.size == 1, ranks.index == 0
    saver = _Saver(checkpoints, training, _settings(arguments, training), main=main)
    log = _Log(checkpoints.folder.parent / LOG, training, arguments.log if main else None)
    with (
        StopRequest() as stop,
        _live(arguments.quiet or not main, training) as live,
        contextlib.closing(log),
    ):

        def on_epoch(record: EpochRecord, signs: list[str]) -> None:
            if main:
                log.write(record, signs)
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


class _Saver:
    """Saves a training, and knows how long ago it did."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        training: ImageTraining,
        settings: dict[str, Any],
        *,
        main: bool,
    ) -> None:
        self._checkpoints = checkpoints
        self._training = training
        self._settings = settings
        self._main = main
        self._number = checkpoints.last_number()
        self._saved = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; a full disk is said, and does not end the training."""
        self._saved = time.monotonic()
        if not self._main:
            return
        self._number += 1
        tensors, about = self._training.state()
        log = self._checkpoints.folder.parent / LOG
        logged = log.stat().st_size if log.exists() else 0
        told = {"state": about, "settings": self._settings, "logged": logged}
        try:
            self._checkpoints.save(self._number, tensors, told)
        except CheckpointError as error:
            print_notes([f"No checkpoint was written: {error}"])

    def age(self) -> float:
        """Return the seconds since the last save."""
        return time.monotonic() - self._saved


def _settings(arguments: Namespace, training: ImageTraining) -> dict[str, Any]:
    """Return what a checkpoint and the training that takes it up must have in common."""
    return {
        **asdict(training.config),
        "source": training.source.name,
        "images": list(training.source.images.shape),
        "pixel means": training.mean,
        "start_from": None if arguments.start_from is None else str(arguments.start_from),
        "processes": training.ranks.size,
    }


def _take_up(arguments: Namespace, training: ImageTraining, checkpoints: Checkpoints) -> None:
    """Restore the newest checkpoint, or refuse one of other settings by name."""
    found = checkpoints.latest()
    if found is None:
        raise ValueError(
            f"There is nothing to resume in {checkpoints.folder}: leave out --resume to begin."
        )
    tensors, about = found
    before = about.get("settings", {})
    now = json.loads(json.dumps(_settings(arguments, training)))
    other = [f"{n} = {before.get(n)!r}, not {now[n]!r}" for n in now if before.get(n) != now[n]]
    if other:
        raise ValueError(
            f"The training to resume has {'; '.join(other)}: give the same options, or begin anew"
            " without --resume."
        )
    try:
        training.restore((tensors, about["state"]))
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint in {checkpoints.folder} is of another version: begin anew without"
            " --resume."
        ) from error
    log = checkpoints.folder.parent / LOG
    if training.ranks.index == 0 and log.exists() and log.stat().st_size > about["logged"]:
        os.truncate(log, about["logged"])  # epochs that will be trained again


class _Log:
    """The log of a training: a line of JSON an epoch, and TensorBoard or W&B if asked for."""

    def __init__(self, path: Path, training: ImageTraining, kind: str | None) -> None:
        self._path = path
        self._training = training
        self._writer: Any = None
        self._run: Any = None
        if kind == "tensorboard":
            module = _optional("torch.utils.tensorboard", "tensorboard")
            self._writer = module.SummaryWriter(str(path.parent / "tensorboard"))
        if kind == "wandb":
            module = _optional("wandb", "wandb")
            self._run = module.init(project="coincide", config=asdict(training.config))

    def write(self, record: EpochRecord, signs: list[str]) -> None:
        """Write what an epoch looked like."""
        seed, pretext = self._training.under_way.seed, self._training.pretext is not None
        told = {"time": now(), "seed": seed, "pretext": pretext, **asdict(record), "signs": signs}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        numbers = {k: v for k, v in told.items() if isinstance(v, int | float)}
        numbers |= {f"quantities/{name}": value for name, value in record.quantities.items()}
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(f"{name}/start-{seed}", value, record.epoch)
        if self._run is not None:
            self._run.log(numbers)

    def close(self) -> None:
        """Close what was opened."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"--log {package} needs a package: pip install {package}.") from error


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
        "training": parameters,
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


def _write_model(folder: Path, source: ImageSource, run: ImageRun) -> None:
    """Write the model, the names of the images and their gallery."""
    save_image_model(folder, run)
    if source.ids[0] != "0":  # else the rows are their own names
        names = folder / IMAGE_NAMES
        with names.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "image"])
            writer.writerows(enumerate(source.ids))
    write_gallery(
        folder,
        source.images,
        run.probabilities.argmax(1),
        run.probabilities.max(1),
        known=source.labels,
        names=source.label_names,
    )
