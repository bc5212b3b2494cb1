"""Settings compared without labels: by how much several starts agree, and by their loss.

With the right number of clusters, starts from other weights find the same ones, and what is left
of the loss is small beside ``ln K``, the loss of knowing nothing. With too few, classes are merged
now so and now otherwise; with too many, they are cut in arbitrary places.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coincide._checks import check_integer, parameter_message
from coincide.data.images import ImageSource
from coincide.metrics import ari_of_table, contingency_table
from coincide.training.config import ImageTrainingConfig
from coincide.training.images.run import ImageTraining
from coincide.training.images.settings import check_config, fill_in

_OWNER = "compare_settings"
_ROWS = 5_000  # that the comparison looks at; more would tell little more


@dataclass(frozen=True)
class Candidate:
    """What short starts with some settings came to.

    Attributes
    ----------
    n_clusters : int
    fairness : float or None
        ``λ``; None for that of the method.
    agreement : float
        Mean adjusted Rand index between the clusters of two starts: 1 if they are the same, 0 if
        by chance.
    error : float
        Standard error of the agreement, over the starts.
    loss : float
        Mean of the starts' last losses, relative to ``ln K``.
    """

    n_clusters: int
    fairness: float | None
    agreement: float
    error: float
    loss: float


def compare_settings(
    source: ImageSource,
    configs: Sequence[ImageTrainingConfig],
    *,
    n_starts: int = 4,
    n_epochs: int = 8,
    initial: dict[str, Tensor] | None = None,
    on_candidate: Callable[[Candidate], None] | None = None,
) -> list[Candidate]:
    """Train a few short starts with each of some settings, and measure how they agree.

    Parameters
    ----------
    source : ImageSource
        Of more than 5,000 images so many are looked at, drawn by the seed. Labels are not.
    configs : sequence of ImageTrainingConfig
        Each with its number of clusters. They share the pretext of the first.
    n_starts : int
        Trainings for each of them, at least 2.
    n_epochs : int
        Epochs of each.
    initial : dict of Tensor, optional
        Weights that the backbone starts from, as in
        :class:`~coincide.training.images.ImageTraining`.
    on_candidate : callable, optional
        Called with every candidate as it is known.

    Returns
    -------
    list of Candidate
        In the order of the settings.

    Raises
    ------
    ValueError
        For settings that :class:`~coincide.training.images.ImageTraining` refuses, or none.
    """
    check_integer(n_starts, "n_starts", _OWNER, low=2)
    check_integer(n_epochs, "n_epochs", _OWNER, low=1)
    if not configs:
        raise ValueError(parameter_message("configs", _OWNER, "one or more", configs))
    some = _some_rows(source, configs[0].seed)
    short = [
        dataclasses.replace(
            fill_in(config, some), starts=1, max_epochs=n_epochs, labeled_fraction=0.0
        )
        for config in configs
    ]
    for filled in short:  # all of them, before the first is trained
        check_config(filled, some)
    candidates: list[Candidate] = []
    for filled in short:
        clusterings: list[NDArray[np.int64]] = []
        losses: list[float] = []
        for number in range(n_starts):
            seeded = dataclasses.replace(filled, seed=n_starts * filled.seed + number)
            if candidates or clusterings:  # the pretext of the first is there
                seeded = dataclasses.replace(seeded, pretext_epochs=0)
            training = ImageTraining(some, seeded, initial=initial)
            run = training.fit()
            initial = training.initial
            clusterings.append(run.clusters)
            losses.append(run.history[-1].loss)
        candidates.append(_judge(filled, clusterings, losses))
        if on_candidate is not None:
            on_candidate(candidates[-1])
    return candidates


def choose(candidates: Sequence[Candidate]) -> int:
    """Return the number of the candidate to take.

    Of those whose agreement is the best, or is so up to the standard errors of both, the one of
    lowest relative loss.
    """
    best = max(candidates, key=lambda candidate: candidate.agreement)
    near = [
        number
        for number, candidate in enumerate(candidates)
        if candidate.agreement + candidate.error >= best.agreement - best.error
    ]
    return min(near, key=lambda number: candidates[number].loss)


def _some_rows(source: ImageSource, seed: int) -> ImageSource:
    """Return the images to look at, without their labels."""
    count = len(source.images)
    rows = np.arange(count)
    if count > _ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(count, _ROWS, replace=False))
    return dataclasses.replace(
        source,
        images=source.images[rows],
        labels=None,
        label_names=None,
        ids=tuple(source.ids[row] for row in rows),
        rows=source.rows[rows],
    )


def _judge(
    config: ImageTrainingConfig, clusterings: list[NDArray[np.int64]], losses: list[float]
) -> Candidate:
    assert config.n_clusters is not None
    count = len(clusterings)
    agreement = np.ones((count, count))
    for a in range(count):
        for b in range(a):
            table = contingency_table(clusterings[a], clusterings[b])
            agreement[a, b] = agreement[b, a] = ari_of_table(table)
    of_each = (agreement.sum(1) - 1) / (count - 1)
    return Candidate(
        n_clusters=config.n_clusters,
        fairness=config.fairness,
        agreement=float(of_each.mean()),
        error=float(of_each.std(ddof=1) / math.sqrt(count)),
        loss=float(np.mean(losses)) / math.log(config.n_clusters),
    )
