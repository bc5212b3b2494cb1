"""One fit: heads on several representations, of which the one with the most evidence is kept.

    rows ─▶ scaling ─┬─▶ random starts, neighbors as views ─┐
                     └─▶ landmarks, from proposed clusters ─┴─▶ training (11), (9) ─▶ evidence

Embeddings have more directions than clusters, and a linear head on their rows can tell every
cluster from the rest; on few columns it cannot, and what landmarks see is needed. A head that
starts from clusters is trained on a sample of 20,000 rows, one that starts at random on all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from coincide._checks import Vector, check_prior
from coincide._threads import every_pool_for
from coincide.cluster.building import FIRM, fresh_network, new_method, new_trainer, on_device
from coincide.cluster.candidates import SIMPLER, Candidate, best_of
from coincide.cluster.constraints import OWNER, check_rows, n_restarts
from coincide.cluster.evidence import NeighborEvidence, effective_dimension
from coincide.cluster.number import choose_number, numbers_to_try
from coincide.cluster.proposals import (
    Proposal,
    Resolution,
    merged_clusters,
    nearest_centers,
    place_landmarks,
    propose,
)
from coincide.cluster.units import choose_scaling
from coincide.networks import build_network, check_network, start_from_centers
from coincide.representations import (
    Features,
    Points,
    Representation,
    RepresentedRows,
    Scaling,
    can_have_landmarks,
    fit_scaling,
    nearest_rows,
    read_rows,
)
from coincide.training.history import EpochRecord
from coincide.training.loop import Data
from coincide.training.randomness import seeded

_SAMPLED_ROWS = 20_000  # that landmarks, K-means and the evidence see
_SAMPLED_ENTRIES = 50_000_000  # of them, where rows are very wide
_SAMPLED_PER_CLUSTER = 4  # rows, at the least
_JUDGED_ROWS = 2_500  # that the reported objective is of
_ALL_PAIRS = 50_000  # rows up to which the neighbors of a row are sought among all others
_CENTERS_PER_CLUSTER = 3  # that are merged for a start on scaled rows
_MOST_MERGED = 6_000  # for Ward takes the square of their number
_PASSES = 5  # of K-means, which only has to place them
_NEIGHBORS = 10  # that the evidence counts where views have none
_LOOSE = 1.0  # λ where the shares are but a guess

Tell = Callable[[int, int, EpochRecord], None]


@dataclass(frozen=True)
class Start:
    """A network before it is trained, and what it is trained on."""

    network: nn.Module
    representation: Representation
    prior: Vector
    rows: RepresentedRows
    weights: Vector | None = None
    origin: str = "clusters"  # that it starts from; or "random"
    neighbors: Tensor | None = None


class Fit:
    """The candidates for one set of rows.

    ``n_clusters`` is their number, ``evidence_by_number`` what chose it, where it was left open.

    Parameters
    ----------
    given : mapping
        The checked parameters of the estimator.
    features : array of shape (M, D)
    weights : array of shape (M,), optional
        Positive.
    names : sequence of str, optional
        Of the columns.
    device : torch.device
    random : RandomState
    tell : callable
        Told the number of the training, the number of all, and every epoch's record.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        features: Features,
        weights: NDArray[np.float64] | None = None,
        *,
        names: Any,
        device: torch.device,
        random: np.random.RandomState,
        tell: Tell,
    ) -> None:
        self._given = dict(given)
        self._features = features
        self._weights = weights
        self._device = device
        self._tell = tell
        numbers = numbers_to_try(given["n_clusters"], len(features))
        measured = fit_scaling(features, "isotropic", weights)
        check_rows(features, measured, numbers[0])
        # More restarts leave the first ones, and the sample, as they are.
        first = int(random.randint(2**31))
        order = np.random.RandomState(first).permutation(len(features))
        self._sample = order[: _sample_size(features.shape[1], numbers[-1])]
        self._sampled = read_rows(features[self._sample])
        self.scaling = choose_scaling(given["scaling"], features, measured, names)
        self._points = self._scaled_sample(self.scaling)
        self._evidence = NeighborEvidence(self._points, self._neighbors_of(numbers[0]))
        self.n_clusters = numbers[-1]
        self._resolutions: list[Resolution] = []
        self.evidence_by_number: dict[int, float] = {}
        if self._on_landmarks_too() or len(numbers) > 1:
            self._resolutions = place_landmarks(
                self._points,
                self.scaling,
                numbers[-1],
                weights=self._sampled_weights(),
                seed=first,
            )
        if len(numbers) > 1:
            self.n_clusters, self.evidence_by_number = choose_number(
                numbers, self._resolutions, self._evidence, self._sampled_weights()
            )
        self._given["n_clusters"] = self.n_clusters
        self._wide = effective_dimension(self._points) > self.n_clusters
        others = random.randint(2**31, size=n_restarts(self._given, len(features)) - 1)
        self._seeds = [first, *others.tolist()]

    def _neighbors_of(self, n_clusters: int) -> int:
        """Return how many neighbors tell: no more than a cluster of mean size has beside a row."""
        wanted = int(self._given["n_neighbors"]) or _NEIGHBORS
        return max(1, min(wanted, len(self._features) // n_clusters - 1))

    def run(self) -> tuple[Candidate, list[Candidate]]:
        """Train every candidate; return the one to keep, and all."""
        n_trainings = self._on_landmarks_too() + len(self._seeds) * self._on_scaled_too()
        tried = []
        if self._on_landmarks_too():
            start = self._on_landmarks()
            tried.append(self._train(start, self._seeds[0], 0, n_trainings))
        # Where neighbors agree nearly always, plain rows cannot do better by more than is asked.
        if self._on_scaled_too() and not (tried and tried[0].evidence >= SIMPLER):
            for start, seed in self._on_scaled_rows():
                tried.append(self._train(start, seed, len(tried), n_trainings))
        return best_of(tried), tried

    # What is looked at

    def _on_landmarks_too(self) -> bool:
        """Whether heads on landmarks are tried."""
        asked = self._given["representation"]
        if asked != "auto":
            return bool(asked == "landmarks")
        possible = can_have_landmarks(len(self._points), self.n_clusters)
        return possible and self._given["network"] == "linear"

    def _on_scaled_too(self) -> bool:
        """Whether heads on scaled rows are tried."""
        asked = self._given["representation"]
        if asked != "auto":
            return bool(asked == "scaled")
        return self._wide or not self._on_landmarks_too()

    def _scaling_of_rows(self) -> Scaling:
        """Return the scaling of rows that the network sees as they are."""
        unit = self._given["scaling"] == "auto" and self.scaling.kind == "isotropic" and self._wide
        return replace(self.scaling, kind="unit-norm") if unit else self.scaling

    def _scaled_sample(self, scaling: Scaling) -> Points:
        return np.asarray(scaling(self._sampled).numpy(), np.float32)

    def _all_rows(self, representation: Representation) -> RepresentedRows:
        return RepresentedRows(self._features, representation, self._device)

    def _sampled_rows(self, representation: Representation) -> RepresentedRows:
        return RepresentedRows(self._features[self._sample], representation, self._device)

    def _neighbors(self, rows: RepresentedRows, points: Points) -> Tensor | None:
        """Return the nearest rows of every row, among the sample where there are many."""
        if not self._given["n_neighbors"] or len(rows) < 2 * self.n_clusters:
            return None
        count = self._neighbors_of(self.n_clusters)
        if len(rows) <= _ALL_PAIRS:
            own = np.asarray(rows[slice(None)].cpu().numpy())
            return torch.from_numpy(nearest_rows(own, count))
        found = []
        for start in range(0, len(rows), _SAMPLED_ROWS):
            block = np.asarray(rows[slice(start, start + _SAMPLED_ROWS)].cpu().numpy())
            both = np.concatenate([points, block])
            numbers = np.arange(len(points), len(both))
            found.append(nearest_rows(both, count, numbers, among=len(points)))
        return torch.from_numpy(self._sample[np.concatenate(found)])

    # The candidates

    def _on_landmarks(self) -> Start:
        """Return a head that starts from the clusters proposed on landmarks."""
        weights = self._sampled_weights()
        proposal = propose(self._resolutions, self.n_clusters, self._evidence, weights)
        proposal = _in_order_of(self._given["prior"], proposal)
        with seeded(self._seeds[0], self._device):
            network = build_network("linear", proposal.centers.shape[1], self.n_clusters)
        assert isinstance(network, nn.Linear)
        start_from_centers(network, torch.from_numpy(proposal.centers))
        rows = self._sampled_rows(proposal.landmarks)
        return Start(network, proposal.landmarks, self._prior(proposal.shares), rows, weights)

    def _on_scaled_rows(self) -> Iterator[tuple[Start, int]]:
        """Yield networks on scaled rows, one for every seed."""
        given = self._given
        scaling = self._scaling_of_rows()
        points = self._scaled_sample(scaling)
        learned = isinstance(given["prior"], str) and given["prior"] == "learned"
        init = given["init"]
        if init == "auto":
            mergeable = _CENTERS_PER_CLUSTER * self.n_clusters <= _MOST_MERGED
            init = "k-means" if learned or (mergeable and not self._wide) else "random"
        if given["network"] != "linear":
            init = "random"
        rows = self._all_rows(scaling) if init == "random" else self._sampled_rows(scaling)
        neighbors = self._neighbors(rows, points) if init == "random" else None
        for seed in self._seeds:
            with seeded(seed, self._device):
                network = fresh_network(given["network"], points.shape[1], self.n_clusters)
            check_network(network, torch.from_numpy(points[:2]), self.n_clusters, OWNER)
            if init == "random":
                prior = self._prior(None)
                start = Start(network, scaling, prior, rows, self._weights, init, neighbors)
            else:
                assert isinstance(network, nn.Linear)
                centers, shares = self._means(points, seed)
                start_from_centers(network, torch.from_numpy(centers))
                prior = self._prior(shares if learned or not self._wide else None)
                start = Start(network, scaling, prior, rows, self._sampled_weights())
            yield start, seed

    def _sampled_weights(self) -> Vector | None:
        return None if self._weights is None else self._weights[self._sample]

    def _means(self, points: Points, seed: int) -> tuple[Points, Vector]:
        """Return the centers of clusters of the sampled rows, and their shares."""
        weights = self._sampled_weights()
        count = min(_CENTERS_PER_CLUSTER * self.n_clusters, max(_MOST_MERGED, self.n_clusters))
        centers = points
        if len(points) > count:
            means = KMeans(count, n_init=1, max_iter=_PASSES, random_state=seed)
            with warnings.catch_warnings(), every_pool_for(points.size * count):
                warnings.simplefilter("ignore", ConvergenceWarning)
                centers = means.fit(points, sample_weight=weights).cluster_centers_
        if len(centers) > self.n_clusters:
            centers, _ = merged_clusters(centers, self.n_clusters)
        clusters = nearest_centers(points, centers)
        shares = np.bincount(clusters, weights, minlength=self.n_clusters)
        return centers, shares / shares.sum()

    def _prior(self, shares: Vector | None) -> Vector:
        given = self._given["prior"]
        if not isinstance(given, str):
            return check_prior(given, self.n_clusters, OWNER)
        if given == "equal" or shares is None:
            return check_prior(None, self.n_clusters, OWNER)
        # As if every cluster had one row more: none is given up before the training.
        counts = shares * len(self._sample) + 1
        return np.asarray(counts / counts.sum())

    def _train(self, start: Start, seed: int, number: int, n_trainings: int) -> Candidate:
        rows, prior = start.rows, start.prior
        given = self._given | {"fairness": self._fairness(start)}
        with seeded(seed, self._device):
            trainer = new_trainer(
                given,
                start.origin,
                start.network.to(self._device),
                prior,
                len(rows),
                generator=torch.Generator().manual_seed(seed),
                neighbors=start.neighbors,
            )
            records = trainer.fit(
                Data(rows, weights=on_device(start.weights, self._device)),
                on_epoch=lambda record: self._tell(number, n_trainings, record),
            )
        network, shown = start.network.eval(), start.representation
        with torch.no_grad():
            logits = network(shown(self._sampled.to(self._device)))
        judged = logits[:_JUDGED_ROWS]
        weights = on_device(self._sampled_weights(), self._device)
        certificate = new_method(given, prior, len(judged), self._device).evaluate(
            judged, None if weights is None else weights[:_JUDGED_ROWS]
        )
        evidence = self._evidence.of(logits.argmax(1).cpu().numpy())
        return Candidate(
            network,
            shown,
            prior,
            given["fairness"],
            records,
            certificate,
            evidence,
            start.origin,
            seed,
        )

    def _fairness(self, start: Start) -> float:
        """Return λ: a start from clusters has their sizes, which nothing needs to press."""
        if self._given["fairness"] != "auto":
            return float(self._given["fairness"])
        guessed = isinstance(self._given["prior"], str) and self._given["prior"] != "equal"
        return _LOOSE if guessed and start.origin == "clusters" else FIRM


def _sample_size(width: int, n_clusters: int) -> int:
    return max(min(_SAMPLED_ROWS, _SAMPLED_ENTRIES // width), _SAMPLED_PER_CLUSTER * n_clusters)


def _in_order_of(prior: Any, proposal: Proposal) -> Proposal:
    """Return the proposal with its largest cluster where a given prior is largest, and so on."""
    if isinstance(prior, str):
        return proposal
    order = np.empty(len(proposal.shares), np.int64)
    order[np.argsort(-np.asarray(prior, float), kind="stable")] = np.argsort(-proposal.shares)
    return Proposal(
        proposal.landmarks, proposal.centers[order], proposal.shares[order], proposal.evidence
    )
