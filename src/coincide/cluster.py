"""Cluster feature vectors, with probabilities: the scikit-learn estimator.

A small network is trained on its own exact pseudo-labels (11) with collision cross-entropy (9):
decisive, fair in the mean, and able to label new data. This file holds manners, not mathematics:
it checks arguments, starts networks, chooses among restarts by the objective, warns in plain
words, and saves.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from coincide._checks import check_prior, find_device
from coincide._constraints import OWNER, check_parameters, check_rows, row_weights
from coincide._files import ModelError, as_json, load_model, save_model
from coincide._threads import every_pool_for, threads_for
from coincide.data.scaling import ScaledRows, Scaling, fit_scaling, read_rows, row_blocks
from coincide.methods import CollisionMethod
from coincide.networks import build_network, check_network, start_from_centers
from coincide.pseudolabels.problem import Certificate
from coincide.pseudolabels.rows import choose_passes
from coincide.training.collapse import ClusteringWarning, signs_of_collapse, sums_of_predictions
from coincide.training.config import TrainingConfig
from coincide.training.history import EpochRecord
from coincide.training.loop import Data, Trainer
from coincide.training.randomness import seeded
from coincide.views.vectors import VectorView

__all__ = ["ClusteringWarning", "CollisionClustering", "ModelError"]

_LABEL_TOL = 0.05  # of a batch's pseudo-labels; a hundredth of it for the reported objective
_STARTED_ROWS = 20_000  # that K-means sees
_JUDGED_ROWS = 2_500  # on which restarts are compared
_ENTRIES_PER_RESTART = 2_000_000
_MOST_RESTARTS = 10
_RESTLESS = 0.25  # share of rows that still change cluster in the last epoch


class CollisionClustering(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clustering with probabilities, by self-labeling with collision cross-entropy.

    Every batch's soft labels minimize ``mean H₂(y, σ) + λ KL(u ‖ ȳ)`` (11) exactly for the
    network's predictions ``σ``; the network then takes a step on ``-ln σ'·y`` (9) with ``σ'``
    from a randomly changed view of the same rows. Of several restarts the one with the lowest
    objective stays; labels of the truth play no part anywhere.

    Parameters
    ----------
    n_clusters : int
        K >= 2, at most the number of rows.
    objective : {"cce+", "cce", "ce+kl"}
        Of the pseudo-labels, see :func:`coincide.solve_pseudo_labels`: (11), (10) or (5). The
        network's loss is collision cross-entropy whichever it is.
    solver : {"auto", "active-set", "interior-point", "em", ...}
        Of the pseudo-labels, see :func:`coincide.solve_pseudo_labels`.
    fairness : float
        ``λ``, relative to the mean loss: how closely cluster sizes follow the prior.
    prior : array of shape (n_clusters,), optional
        ``u``, the expected shares of the clusters; equal by default.
    network : {"linear", "mlp"} or torch.nn.Module
        From scaled features to K logits. A module is copied for every restart with its weights.
    init : {"random", "k-means"}
        A linear head starts near zero, or from the directions of K-means' centers.
    scaling : {"unit-norm", "standard", "none"}
        Center and bring rows to unit length (embeddings), standardize the columns, or neither.
    n_init : int or "auto"
        Restarts. ``"auto"``: 2,000,000 / (rows · clusters), at least 1 and at most 10.
    max_epochs : int, optional
        Passes over the data; by default at least 3, and at least 120 steps.
    batch_size : int or "auto"
        Rows a step, several times K, or a batch cannot show every cluster. ``"auto"``: 500, or
        8 K where that is more.
    learning_rate, momentum, weight_decay : float
        Of stochastic gradient descent. The weight decay sets how soft the predictions stay.
    view_dropout, view_noise : float
        The changed view: share of the entries dropped, standard deviation of Gaussian noise.
    device : str
        ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None
        Decides starts, batches and views; an int repeats a fit exactly on the same machine.
    callback : callable, optional
        Called after every epoch with a dict: restart, n_restarts, epoch, n_epochs, loss,
        live_clusters, changed.

    Attributes
    ----------
    labels_ : ndarray of shape (n_rows,)
        Cluster of each training row, equal to ``predict`` on the same rows.
    objective_, gap_ : float
        The objective of the chosen restart under its best labels, on up to 2,500 rows, and the
        certified gap to the optimum of those labels.
    restarts_, history_ : list of dict
        ``seed`` and ``objective`` of each restart; the epochs of the chosen one.
    n_iter_ : int, its number of epochs
    converged_ : bool
        Whether at most a quarter of the rows changed cluster in the last epoch.
    mean_label_ : ndarray of shape (n_clusters,)
        Mean predicted probabilities of the training rows.
    n_features_in_, feature_names_in_ : int, ndarray of str where the columns had names
    cluster_names_ : list of str, the class of each cluster where ``coincide cluster`` knew any
    network_ : torch.nn.Module
        The trained network, in evaluation mode, on ``device_``.
    scaling_ : Scaling
        What is applied to the features before the network.

    Notes
    -----
    ``view_dropout`` draws anew for every row, so fitting with integer weights is close to, not
    the same as, fitting with repeated rows.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from coincide import CollisionClustering
    >>> X, _ = load_digits(return_X_y=True)
    >>> model = CollisionClustering(10, n_init=1, random_state=0).fit(X)
    >>> model.predict_proba(X[:2]).shape
    (2, 10)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        objective: str = "cce+",
        solver: str = "interior-point",
        fairness: float = 100.0,
        prior: ArrayLike | None = None,
        network: str | nn.Module = "linear",
        init: str = "random",
        scaling: str = "unit-norm",
        n_init: int | str = "auto",
        max_epochs: int | None = None,
        batch_size: int | str = "auto",
        learning_rate: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.1,
        view_dropout: float = 0.3,
        view_noise: float = 0.0,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.objective = objective
        self.solver = solver
        self.fairness = fairness
        self.prior = prior
        self.network = network
        self.init = init
        self.scaling = scaling
        self.n_init = n_init
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.view_dropout = view_dropout
        self.view_noise = view_noise
        self.device = device
        self.random_state = random_state
        self.callback = callback

    def fit(self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Cluster the rows of ``X``; return the estimator.

        Parameters
        ----------
        X : array of shape (n_rows, n_features)
            Real and finite; a memory map is read batch by batch when it is large.
        sample_weight : array of shape (n_rows,), optional
            Non-negative; rows of weight 0 play no part in training.

        Raises
        ------
        ValueError, TypeError
            For unfit parameters, non-finite features, constant features, fewer rows than
            clusters.
        """
        del y
        config = check_parameters(self.get_params(deep=False))
        features = validate_data(self, X, dtype="numeric", ensure_min_samples=1)
        weights = row_weights(sample_weight, len(features))
        used = features if weights is None else features[weights > 0]
        kept = None if weights is None else weights[weights > 0]
        # A stream that partial_fit began has a network of its own, now replaced.
        self.__dict__.pop("_trainer", None)
        self.device_ = find_device(self.device, OWNER)
        with threads_for(used.size):
            self.scaling_ = fit_scaling(used, self.scaling, kept)
            check_rows(used, self.scaling_, self.n_clusters, vars(self).get("feature_names_in_"))
            rows = ScaledRows(used, self.scaling_, self.device_)
            self._choose(rows, self._on_device(kept), config, self._seeds(rows))
            self._describe(features)
        return self

    def partial_fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Take one pass over a chunk of rows, going on from where the last call stopped.

        The first call must bring at least ``n_clusters`` rows; the scaling follows all rows seen.
        The arguments are those of :meth:`fit`.
        """
        del y
        config = check_parameters(self.get_params(deep=False))
        first = not hasattr(self, "network_")
        features = validate_data(self, X, dtype="numeric", reset=first)
        weights = row_weights(sample_weight, len(features))
        chunk = fit_scaling(features, self.scaling, weights)
        if first:
            check_rows(features, chunk, self.n_clusters)
            self.device_ = find_device(self.device, OWNER)
            self.scaling_ = chunk
            seed = int(check_random_state(self.random_state).randint(2**31))
            with seeded(seed, self.device_):
                rows = ScaledRows(features, chunk, self.device_)
                self.network_ = self._start_network(rows, 0)
            self.n_iter_, self.history_ = 0, []
        else:
            self.scaling_ = self.scaling_.merge(chunk)
        rows = ScaledRows(features, self.scaling_, self.device_)
        if not hasattr(self, "_trainer"):
            self._generator = torch.Generator().manual_seed(self._seeds(rows)[0])
            self._trainer = self._new_trainer(self.network_, config, len(features), self._generator)
        seed = int(torch.randint(2**31, (), generator=self._generator))
        with seeded(seed, self.device_), threads_for(features.size):
            record = self._trainer.run_epoch(Data(rows, weights=self._on_device(weights)))
        told = {"epoch": self.n_iter_, "loss": record.loss, "live_clusters": record.live_clusters}
        self.history_.append(told)
        self.n_iter_ += 1
        self.labels_ = self.predict(features)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the most probable cluster of each row, ``(n_rows,)``."""
        return self._by_block(X, lambda logits: logits.argmax(1))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each cluster for each row, ``(n_rows, n_clusters)``."""
        return self._by_block(X, lambda logits: torch.softmax(logits, 1))

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return minus the objective of these rows under their best labels: higher is better."""
        del y
        logits = torch.from_numpy(self._by_block(X, lambda logits: logits))
        return -self._method(len(logits)).evaluate(logits.to(self.device_)).objective

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a folder, which is made if needed.

        A network of your own is saved by its weights; :meth:`load` then asks for the module.
        Not saved are ``labels_``, the callback, and the optimizer of a stream by `partial_fit`.
        """
        check_is_fitted(self, "network_")
        parameters = self.get_params(deep=False)
        parameters.pop("callback")
        tensors = {f"network.{name}": t for name, t in self.network_.state_dict().items()}
        tensors |= {f"scaling.{name}": t for name, t in self.scaling_.tensors().items()}
        fitted = {name: getattr(self, name) for name in _SAVED if hasattr(self, name)}
        description = {"parameters": as_json(parameters), "fitted": as_json(fitted)}
        save_model(Path(folder), tensors, description)

    @classmethod
    def load(cls, folder: str | Path, *, network: nn.Module | None = None) -> CollisionClustering:
        """Return a saved model, ready to predict.

        Parameters
        ----------
        folder : str or Path
        network : torch.nn.Module, optional
            The module whose weights were saved, where it was one of your own.

        Raises
        ------
        ModelError
            If a file is missing or corrupt, or the weights do not fit the network.
        """
        tensors, description = load_model(Path(folder))
        try:
            parameters, fitted = description["parameters"], description["fitted"]
            if network is None and parameters["network"] is None:
                raise ModelError("it needs a module of your own, load(folder, network=...).")
            chosen = parameters["network"] if network is None else network
            model = cls(**{**parameters, "network": chosen})
            for name in set(fitted).intersection(_SAVED):
                kind = _SAVED_ARRAYS.get(name)
                setattr(model, name, fitted[name] if kind is None else np.array(fitted[name], kind))
            stored = {name: tensors.pop(f"scaling.{name}") for name in ("mean", "spread", "mass")}
            model.scaling_ = Scaling.from_tensors(model.scaling, stored)
            model.device_ = find_device(model.device, OWNER)
            module = model._fresh_network(model.n_features_in_)
            state = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
            module.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ModelError(f"{folder} does not hold a model that fits: {error}") from error
        model.network_ = module.to(model.device_).eval()
        return model

    def _on_device(self, weights: NDArray[np.float64] | None) -> Tensor | None:
        return None if weights is None else torch.from_numpy(weights).float().to(self.device_)

    def _choose(
        self, rows: ScaledRows, weights: Tensor | None, config: TrainingConfig, seeds: list[int]
    ) -> None:
        """Train from every seed and keep the network with the lowest objective."""
        best: Certificate | None = None
        self.restarts_ = []
        for number, seed in enumerate(seeds):
            with seeded(seed, self.device_):
                network = self._start_network(rows, seed)
                generator = torch.Generator().manual_seed(seed)
                trainer = self._new_trainer(network, config, len(rows), generator, len(seeds))
                tell = partial(self._tell, number, len(seeds))
                records = trainer.fit(Data(rows, weights=weights), on_epoch=tell)
            certificate = self._judge(network.eval(), rows, weights)
            self.restarts_.append({"seed": seed, "objective": certificate.objective})
            # A restart that diverged has NaN, which loses every comparison.
            if best is None or np.isnan(best.objective) or certificate.objective < best.objective:
                best = certificate
                self.network_, self.history_ = network, [asdict(record) for record in records]
        assert best is not None
        if np.isnan(best.objective):
            raise ValueError(
                f"The training of {OWNER} diverged: the predictions are not numbers. Try a smaller"
                " learning_rate."
            )
        self.objective_, self.gap_ = best.objective, best.gap
        self.n_iter_ = len(self.history_)
        self.converged_ = bool(self.history_[-1]["changed"] <= _RESTLESS)

    def _tell(self, restart: int, n_restarts: int, record: EpochRecord) -> None:
        if self.callback is not None:
            self.callback({"restart": restart, "n_restarts": n_restarts, **asdict(record)})

    def _judge(self, network: nn.Module, rows: ScaledRows, weights: Tensor | None) -> Certificate:
        """Return the objective on the same rows for every restart."""
        few = torch.arange(len(rows))
        if len(rows) > _JUDGED_ROWS:
            generator = torch.Generator().manual_seed(0)
            few = torch.randperm(len(rows), generator=generator)[:_JUDGED_ROWS]
        with torch.no_grad():
            logits = network(rows[few])
        chosen = None if weights is None else weights[few.to(weights.device)]
        return self._method(len(few)).evaluate(logits, chosen)

    def _start_network(self, rows: ScaledRows, seed: int) -> nn.Module:
        width = rows[slice(0, 1)].shape[1]
        network = self._fresh_network(width).to(self.device_)
        if self.init == "k-means" and isinstance(network, nn.Linear):
            some = torch.randperm(len(rows))[:_STARTED_ROWS]
            means = KMeans(self.n_clusters, n_init=1, random_state=seed)
            seen = rows[some].cpu().numpy()
            with every_pool_for(seen.size):
                means.fit(seen)
            start_from_centers(network, torch.from_numpy(means.cluster_centers_))
        check_network(network, rows[slice(0, 2)], self.n_clusters, OWNER)
        return network

    def _fresh_network(self, n_features: int) -> nn.Module:
        if isinstance(self.network, nn.Module):
            return copy.deepcopy(self.network)
        return build_network(self.network, n_features, self.n_clusters)

    def _new_trainer(
        self,
        network: nn.Module,
        config: TrainingConfig,
        n_rows: int,
        generator: torch.Generator,
        n_restarts: int = 1,
    ) -> Trainer:
        view = VectorView(self.view_dropout, self.view_noise)
        n_solves = n_restarts * config.epochs(n_rows) * config.steps_per_epoch(n_rows)
        method = self._method(min(config.batch_size, n_rows), n_solves)
        return Trainer(network, method, view, config, generator=generator)

    def _method(self, n_rows: int, n_solves: int = 1) -> CollisionMethod:
        return CollisionMethod(
            n_clusters=self.n_clusters,
            prior=check_prior(self.prior, self.n_clusters, OWNER),
            fairness=float(self.fairness),
            objective=self.objective,
            solver=self.solver,
            label_tol=_LABEL_TOL,
            passes=choose_passes(n_rows * self.n_clusters * n_solves, self.device_),
        )

    def _describe(self, features: NDArray[Any]) -> None:
        """Set the training rows' labels and say in plain words what looks wrong."""
        self.labels_, sums, squares = sums_of_predictions(self._logits(features))
        self.mean_label_ = sums / len(features)
        sizes = np.bincount(self.labels_, minlength=self.n_clusters)
        prior = check_prior(self.prior, self.n_clusters, OWNER)
        losses = [float(epoch["loss"]) for epoch in self.history_]
        for sentence in signs_of_collapse(sizes, squares, prior, losses):
            warnings.warn(sentence, ClusteringWarning, stacklevel=3)
        if not self.converged_ and self.n_iter_ > 1:
            warnings.warn(
                f"{self.history_[-1]['changed']:.0%} of the rows still changed cluster in the last"
                " epoch. Train longer (max_epochs) or with a smaller learning_rate.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _logits(self, features: NDArray[Any]) -> Any:
        """Yield the logits of the rows, block by block."""
        network = self.network_.eval()
        for block in row_blocks(len(features), max(features.shape[1], self.n_clusters)):
            rows = read_rows(features[block]).to(self.device_)
            with torch.no_grad():
                yield network(self.scaling_(rows))

    def _by_block(self, X: ArrayLike, of_logits: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        check_is_fitted(self, "network_")
        features = validate_data(self, X, dtype="numeric", reset=False)
        with threads_for(features.size):
            return np.concatenate([of_logits(z).cpu().numpy() for z in self._logits(features)])

    def _seeds(self, rows: ScaledRows) -> list[int]:
        """Return one seed a restart."""
        fitting = _ENTRIES_PER_RESTART // (len(rows) * self.n_clusters)
        count = min(_MOST_RESTARTS, max(1, fitting)) if self.n_init == "auto" else int(self.n_init)
        drawn: list[int] = check_random_state(self.random_state).randint(2**31, size=count).tolist()
        return drawn


_SAVED_ARRAYS: dict[str, Any] = {"mean_label_": np.float64, "feature_names_in_": object}
_SAVED = (
    *("n_features_in_", "objective_", "gap_", "converged_", "n_iter_", "history_", "restarts_"),
    *("cluster_names_", *_SAVED_ARRAYS),
)
