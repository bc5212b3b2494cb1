"""The settings of a training on images: what was left open decided, what does not fit refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from coincide._checks import (
    UNKNOWN,
    check_integer,
    check_option,
    check_real,
    find_device,
    parameter_message,
)
from coincide._names import closest
from coincide.data.images import ImageSource
from coincide.methods import METHODS, Method
from coincide.pseudolabels import OBJECTIVES
from coincide.pseudolabels.rows import choose_passes
from coincide.training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, ImageTrainingConfig

_OWNER = "train_images"
_SMALL_IMAGE = 16
_SMALL_NETWORKS = ("small-conv", "mlp", "linear")
_SMALL_DATA = 5_000_000  # pixels up to which eight starts are made, and half of them up to twice
_STARTS = 8
_RATE, _EPOCHS = 1e-4, 50  # the paper's
_SMALL_RATE, _SMALL_EPOCHS = 2e-3, 36
_PRETEXT_EPOCHS = 30
_NEIGHBORS = 10  # each of them a further view of an image
_FAIRNESS = 10.0  # the paper's 100 would have every single batch balanced to the image
_SHARED_OPTIONS = ("fairness", "objective", "solver")


def fill_in(config: ImageTrainingConfig, source: ImageSource) -> ImageTrainingConfig:
    """Return the settings with what was left open decided by the images."""
    count, n_channels, height, width = source.images.shape
    pixels = source.images.size
    n_clusters = config.n_clusters
    if n_clusters is None:
        n_clusters = len(source.label_names or ())
        if n_clusters < 2:
            found = "labels of a single class" if n_clusters else "no labels to count"
            raise ValueError(
                f"The images of {source.name} have {found}: say how many clusters (-k, n_clusters)."
            )
    starts = config.starts
    if starts is None:
        starts = max(1, min(_STARTS, _STARTS * _SMALL_DATA // max(pixels, 1)))
    pretext = config.pretext_epochs
    if pretext is None:
        pretext = _PRETEXT_EPOCHS if pixels <= _SMALL_DATA and config.method != "simclr" else 0
    network = config.network
    if network == "auto":
        network = "small-conv" if max(height, width) <= _SMALL_IMAGE else "vgg4"
    options, fairness = config.method_options, config.fairness
    if config.method == "collision":
        fairness = _FAIRNESS if fairness is None else fairness
        # Drawings are near others of their class as they are; photographs only after a pretext.
        if pretext or n_channels == 1:
            options = {"n_neighbors": min(_NEIGHBORS, count - 1)} | options
    tiny = network in _SMALL_NETWORKS
    rate, epochs = config.learning_rate, config.max_epochs
    precision = config.precision
    if precision == "auto":
        half = not tiny and _has_bfloat16_units(find_device(config.device, _OWNER))
        precision = "bfloat16" if half else "float32"
    last = config.channels_last
    revive = config.revive
    if revive is None:  # known classes keep their clusters alive, and by their own numbers
        revive = config.method == "collision" and not _tells_classes(source.labels, config)
    return dataclasses.replace(
        config,
        n_clusters=n_clusters,
        starts=starts,
        network=network,
        pretext_epochs=pretext,
        method_options=options,
        fairness=fairness,
        learning_rate=(_SMALL_RATE if tiny else _RATE) if rate is None else rate,
        max_epochs=(_SMALL_EPOCHS if tiny else _EPOCHS) if epochs is None else epochs,
        precision=precision,
        revive=revive,
        channels_last=precision == "bfloat16" if last is None else last,
    )


def _has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 products are several times as fast as float32 there, not just possible."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and found is not None and bool(found())


def check_config(config: ImageTrainingConfig, source: ImageSource) -> None:
    """Refuse settings that do not fit, each in a sentence."""
    count = len(source.images)
    n_clusters = check_integer(config.n_clusters, "n_clusters", _OWNER, low=2)
    if n_clusters > count:
        expected = f"at most the number of images, {count}"
        raise ValueError(parameter_message("n_clusters", _OWNER, expected, n_clusters))
    if int(source.images.max()) == int(source.images.min()):
        raise ValueError(
            f"All pixels of {source.name} are equal ({int(source.images.max())}): there is"
            " nothing to tell the images apart by."
        )
    if config.method not in METHODS:
        expected = f"one of {', '.join(map(repr, METHODS))}"
        hint = closest(config.method, METHODS)
        raise ValueError(parameter_message("method", _OWNER, expected, config.method, hint))
    check_option(config.optimizer, "optimizer", _OWNER, OPTIMIZERS)
    check_option(config.schedule, "schedule", _OWNER, SCHEDULES)
    check_option(config.precision, "precision", _OWNER, PRECISIONS)
    for name in ("batch_size", "accumulate", "starts", "start_epochs"):
        check_integer(getattr(config, name), name, _OWNER, low=1)
    if count // config.steps_per_epoch(count) // config.accumulate < 2:
        raise ValueError(
            "A batch, or a part of it, of a single image tells nothing of clusters. Choose a larger"
            f" batch_size than {config.batch_size}, or a smaller accumulate than"
            f" {config.accumulate}."
        )
    check_integer(config.max_epochs, "max_epochs", _OWNER, low=1)
    check_integer(config.pretext_epochs, "pretext_epochs", _OWNER, low=0)
    check_integer(config.seed, "seed", _OWNER, low=0)
    check_real(config.learning_rate, "learning_rate", _OWNER, open_low=True)
    for name in ("weight_decay", "momentum", "known_weight"):
        check_real(getattr(config, name), name, _OWNER)
    if check_real(config.labeled_fraction, "labeled_fraction", _OWNER) > 1:
        got = config.labeled_fraction
        raise ValueError(parameter_message("labeled_fraction", _OWNER, "a share, at most 1", got))


def build_method(config: ImageTrainingConfig, device: torch.device) -> Method:
    """Return the configured method; a setting that it does not have is refused by name."""
    kind = METHODS[config.method]
    fields = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    options = {
        name: getattr(config, name) for name in _SHARED_OPTIONS if getattr(config, name) is not None
    } | config.method_options
    own = sorted(fields - {"n_clusters", "prior", "passes"})
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise ValueError(
            f"The method {config.method!r} has no setting {unknown[0]!r}. It has"
            f" {', '.join(own)}. {closest(unknown[0], own)}".rstrip()
        )
    if "fairness" in options:
        check_real(options["fairness"], "fairness", _OWNER)
    if "objective" in options:
        check_option(options["objective"], "objective", _OWNER, OBJECTIVES)
    assert config.n_clusters is not None
    if "prior" in fields:
        options["prior"] = np.full(config.n_clusters, 1 / config.n_clusters)
    if "passes" in fields:
        options["passes"] = choose_passes(1 << 30, device)  # for thousands of batches
    return kind(n_clusters=config.n_clusters, **options)  # type: ignore[call-arg]


def _tells_classes(labels: NDArray[np.int64] | None, config: ImageTrainingConfig) -> bool:
    """Whether training may use some labels."""
    if labels is None:
        return False
    return config.labeled_fraction > 0 or bool((labels == UNKNOWN).any())


def draw_known(
    labels: NDArray[np.int64] | None, config: ImageTrainingConfig
) -> NDArray[np.int64] | None:
    """Return the classes that training may use, -1 elsewhere, or None for none.

    The labels of a source that leaves some blank are meant to be used, all of them. Of complete
    labels ``labeled_fraction`` are drawn, at least one a class, by the seed.
    """
    if labels is None:
        if config.labeled_fraction > 0:
            raise ValueError("labeled_fraction needs labels, and the images have none.")
        return None
    if not _tells_classes(labels, config):
        return None
    assert config.n_clusters is not None
    if labels.max() >= config.n_clusters:
        expected = f"at least the number of classes that are known, {int(labels.max()) + 1}"
        raise ValueError(parameter_message("n_clusters", _OWNER, expected, config.n_clusters))
    if config.labeled_fraction == 0:
        return labels.copy()
    generator = np.random.default_rng(config.seed)
    known = np.full(len(labels), UNKNOWN, np.int64)
    for code in np.unique(labels[labels != UNKNOWN]):
        members = np.flatnonzero(labels == code)
        count = max(1, round(config.labeled_fraction * len(members)))
        chosen = generator.choice(members, count, replace=False)
        known[chosen] = code
    return known
