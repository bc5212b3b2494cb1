"""Cluster feature vectors, with probabilities: the scikit-learn estimator.

A small network is trained on its own exact pseudo-labels (11) with collision cross-entropy (9):
decisive, fair in the mean, and able to label new data. This file holds manners, not mathematics:
it checks arguments, has candidates fitted, tells what came of it, and warns in plain words.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from coincide._checks import check_prior, find_device
from coincide._files import ModelError
from coincide._threads import threads_for
from coincide.cluster.building import FIRM, fresh_network, new_method, new_trainer, on_device
from coincide.cluster.constraints import (
    OWNER,
    check_number,
    check_parameters,
    check_rows,
    check_stream,
    row_weights,
    settings_of,
)
from coincide.cluster.fitting import Fit
from coincide.cluster.saving import load_estimator, save_estimator
from coincide.cluster.units import choose_scaling
from coincide.networks import check_network
from coincide.representations import (
    Features,
    RepresentedRows,
    Scaling,
    SparseRows,
    fit_scaling,
    read_rows,
    row_blocks,
    rows_with_weight,
    scaling_of,
)
from coincide.training.collapse import ClusteringWarning, signs_of_collapse, sums_of_predictions
from coincide.training.history import EpochRecord
from coincide.training.loop import Data
from coincide.training.randomness import seeded

__all__ = ["ClusteringWarning", "CollisionClustering", "ModelError"]

_RESTLESS = 0.25  # share of rows that still change cluster in the last epoch


class CollisionClustering(TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clustering with probabilities, by self-labeling with collision cross-entropy.

    Every batch's soft labels minimize ``mean H₂(y, σ) + λ KL(u ‖ ȳ)`` (11) exactly for the
    network's predictions ``σ``; the network then takes a step on ``-ln σ'·y`` (9) with ``σ'``
    from a randomly changed view of the same rows, or of their neighbors. Of several trainings the
    one whose clusters agree best with the neighbors of the rows is kept; labels of the truth play
    no part anywhere.

    Parameters
    ----------
    n_clusters : int, "auto" or sequence of int
        K >= 2, at most the number of rows. Of several numbers the evidence of clusters on
        landmarks chooses one, which needs four rows for each cluster, and at most 250 clusters;
        ``"auto"`` are those from 2 to 20 that rows allow.
    objective : {"cce+", "cce", "ce+kl"}
        Of the pseudo-labels, see :func:`coincide.solve_pseudo_labels`: (11), (10) or (5). The
        network's loss is collision cross-entropy whichever it is.
    solver : {"auto", "active-set", "interior-point", "em", ...}
        Of the pseudo-labels, see :func:`coincide.solve_pseudo_labels`.
    fairness : float or "auto"
        ``λ``, relative to the mean loss: how closely cluster sizes follow the prior. ``"auto"``:
        100, the paper's, but 1 from a start whose shares are the prior, and so only a guess.
    prior : {"auto", "equal", "learned"} or array of shape (n_clusters,)
        ``u``, the expected shares of the clusters. ``"learned"``: those of the clusters that the
        training starts from. ``"auto"``: learned on landmarks and on few columns, equal on
        embeddings.
    representation : {"auto", "landmarks", "scaled"}
        What the network sees: affinities to landmarks, in which clusters may have any shape, or
        the scaled rows. ``"auto"`` takes landmarks; where rows have more independent directions
        than there are clusters, it tries both and keeps the one with more evidence.
    scaling : {"auto", "unit-norm", "standard", "isotropic", "none"}
        Center and bring rows to unit length (embeddings), standardize the columns, center and
        divide all by one number, or neither. ``"auto"``: standardize where the range of a column
        is a hundred times that of another, and say so; else unit length where rows have more
        independent directions than there are clusters; else isotropic.
    n_neighbors : int
        On scaled rows, one of so many nearest rows is a further view of each; 0 for none. At most
        as many as a cluster of mean size has beside the row. The evidence counts as many.
    network : {"linear", "mlp"} or torch.nn.Module
        From the representation to K logits. All but linear see scaled rows. A module is copied
        for every restart with its weights.
    init : {"auto", "random", "k-means"}
        On scaled rows, a linear head starts near zero (embeddings), or from the centers of
        clusters: of K-means with three times as many, merged by Ward's criterion.
    n_init : int or "auto"
        Restarts on scaled rows. ``"auto"``: 400,000 / (rows · clusters), at least 1 and at
        most 3.
    max_epochs : int, optional
        Passes over the data; by default at least 6 and at least 240 steps from a random start,
        2 and 20 from clusters, as on landmarks.
    batch_size : int or "auto"
        Rows a step, several times K, or a batch cannot show every cluster. ``"auto"``: 500, or
        8 K where that is more.
    learning_rate, momentum : float
        Of stochastic gradient descent.
    weight_decay : float or "auto"
        How soft the predictions stay. ``"auto"``: 0.1 from a random start, 0.01 from clusters.
    view_dropout : float or "auto"
        Share of the entries that are dropped in the changed view. ``"auto"``: 0.3 from a random
        start, none from clusters.
    view_noise : float
        Standard deviation of Gaussian noise in the changed view.
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
    evidence_ : float
        Mutual information of a row's cluster and its neighbors', relative to the entropy of the
        clusters: 1 where neighbors always agree.
    restarts_, history_ : list of dict
        ``seed``, ``representation``, ``evidence``, ``objective`` of each training, and whether it
        was ``kept``; the epochs of that one.
    n_iter_ : int, its number of epochs
    converged_ : bool
        Whether at most a quarter of the rows changed cluster in the last epoch.
    mean_label_ : ndarray of shape (n_clusters,)
        Mean predicted probabilities of the training rows.
    n_clusters_, numbers_ : int, list of dict
        The number of clusters; ``n_clusters`` and ``evidence`` of each number, of several to
        choose from.
    n_features_in_, feature_names_in_ : int, ndarray of str where the columns had names
    cluster_names_ : list of str, the class of each cluster where ``coincide cluster`` knew any
    network_ : torch.nn.Module
        The trained network, in evaluation mode, on ``device_``.
    representation_ : Scaling or Landmarks
        What is applied to the features before the network.
    prior_ : ndarray of shape (n_clusters,)
        The shares that were expected.
    settings_ : dict
        What the fit made of the parameters that were left open.

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
        n_clusters: int | str | Sequence[int] = 8,
        *,
        objective: str = "cce+",
        solver: str = "auto",
        fairness: float | str = "auto",
        prior: str | ArrayLike = "auto",
        representation: str = "auto",
        scaling: str = "auto",
        n_neighbors: int = 10,
        network: str | nn.Module = "linear",
        init: str = "auto",
        n_init: int | str = "auto",
        max_epochs: int | None = None,
        batch_size: int | str = "auto",
        learning_rate: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float | str = "auto",
        view_dropout: float | str = "auto",
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
        self.representation = representation
        self.scaling = scaling
        self.n_neighbors = n_neighbors
        self.network = network
        self.init = init
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
            Real and finite; a memory map is read batch by batch when it is large, and so is a
            sparse matrix. A tensor may be on any device.
        sample_weight : array of shape (n_rows,), optional
            Non-negative; rows of weight 0 play no part in training.

        Raises
        ------
        ValueError, TypeError
            For unfit parameters, non-finite features, constant features, fewer rows than
            clusters.
        """
        del y
        given = self.get_params(deep=False)
        check_parameters(given)
        features = self._read(X, reset=True)
        weights = row_weights(sample_weight, len(features))
        used = features if weights is None else rows_with_weight(features, weights)
        kept = None if weights is None else weights[weights > 0]
        # A stream that partial_fit began has a network of its own, now replaced.
        self.__dict__.pop("_trainer", None)
        self.device_ = find_device(self.device, OWNER)
        random = check_random_state(self.random_state)
        names = vars(self).get("feature_names_in_")
        with threads_for(used.size):
            fit = Fit(
                given,
                used,
                kept,
                names=names,
                device=self.device_,
                random=random,
                tell=self._tell,
            )
            chosen, tried = fit.run()
            self.network_, self.representation_ = chosen.network, chosen.representation
            self.prior_, self.evidence_ = chosen.prior, chosen.evidence
            self.objective_, self.gap_ = chosen.certificate.objective, chosen.certificate.gap
            self.restarts_ = [{**each.told(), "kept": each is chosen} for each in tried]
            self.history_ = [asdict(record) for record in chosen.records]
            self.n_iter_ = len(chosen.records)
            self.converged_ = bool(self.history_[-1]["changed"] <= _RESTLESS)
            self.n_clusters_ = fit.n_clusters
            self.numbers_ = [
                {"n_clusters": number, "evidence": told}
                for number, told in fit.evidence_by_number.items()
            ]
            given |= {"n_clusters": fit.n_clusters, "fairness": chosen.fairness}
            self.settings_ = {
                "representation": chosen.kind,
                "scaling": scaling_of(chosen.representation).kind,
                "n_init": len(tried),
                "device": str(self.device_),
                **settings_of(given, chosen.origin, self.n_iter_),
            }
            self._describe(features)
        return self

    def partial_fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Take one pass over a chunk of rows, going on from where the last call stopped.

        The first call must bring at least ``n_clusters`` rows; the scaling follows all rows seen.
        The arguments are those of :meth:`fit`. A stream has no landmarks, no neighbors, and
        clusters of equal shares unless `prior` is an array. ``scaling="auto"`` brings its rows to
        unit length, or standardizes columns that have units of their own in the first chunk.
        """
        del y
        given = self.get_params(deep=False)
        check_parameters(given)
        check_stream(given)
        first = not hasattr(self, "network_")
        features = self._read(X, reset=first)
        weights = row_weights(sample_weight, len(features))
        chunk = fit_scaling(features, "unit-norm", weights)
        if first:
            n_clusters = check_number(self.n_clusters)
            check_rows(features, chunk, n_clusters)
            self.device_ = find_device(self.device, OWNER)
            self.n_clusters_ = n_clusters
            names = vars(self).get("feature_names_in_")
            chunk = choose_scaling(self.scaling, features, chunk, names)
            if self.scaling == "auto" and chunk.kind == "isotropic":
                chunk = replace(chunk, kind="unit-norm")
            self.representation_ = chunk
            seed = int(check_random_state(self.random_state).randint(2**31))
            with seeded(seed, self.device_):
                network = fresh_network(self.network, features.shape[1], self.n_clusters_)
                rows = RepresentedRows(features, chunk, self.device_)
                check_network(network.to(self.device_), rows[slice(0, 2)], self.n_clusters_, OWNER)
            prior = None if isinstance(self.prior, str) else self.prior
            self.prior_ = check_prior(prior, self.n_clusters_, OWNER)
            self.network_ = network
            self.settings_ = {"fairness": FIRM if self.fairness == "auto" else self.fairness}
            self.n_iter_, self.history_ = 0, []
        elif isinstance(self.representation_, Scaling):
            self.representation_ = self.representation_.merge(chunk)
        rows = RepresentedRows(features, self.representation_, self.device_)
        if not hasattr(self, "_trainer"):
            seed = int(check_random_state(self.random_state).randint(2**31))
            self._generator = torch.Generator().manual_seed(seed)
            start = "random" if isinstance(self.representation_, Scaling) else "clusters"
            self._trainer = new_trainer(
                given, start, self.network_, self.prior_, len(rows), generator=self._generator
            )
        seed = int(torch.randint(2**31, (), generator=self._generator))
        with seeded(seed, self.device_), threads_for(features.size):
            record = self._trainer.run_epoch(Data(rows, weights=on_device(weights, self.device_)))
        told = {"epoch": self.n_iter_, "loss": record.loss, "live_clusters": record.live_clusters}
        self.history_.append(told)
        self.n_iter_ += 1
        self.labels_ = self.predict(X)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the most probable cluster of each row, ``(n_rows,)``."""
        return self._by_block(X, lambda logits: logits.argmax(1))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each cluster for each row, ``(n_rows, n_clusters)``."""
        return self._by_block(X, lambda logits: torch.softmax(logits, 1))

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probabilities of :meth:`predict_proba`, for a pipeline."""
        return self.predict_proba(X)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """Return the names of the columns of :meth:`transform`, which are its own."""
        check_is_fitted(self, "network_")
        names = [f"{type(self).__name__.lower()}{k}" for k in range(self.n_clusters_)]
        return np.array(names, object)

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return minus the objective of these rows under their best labels: higher is better."""
        del y
        logits = torch.from_numpy(self._by_block(X, lambda logits: logits))
        given = self.get_params(deep=False) | {"fairness": self.settings_["fairness"]}
        method = new_method(given, self.prior_, len(logits), self.device_)
        return -method.evaluate(logits.to(self.device_)).objective

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a folder, which is made if needed.

        A network of your own is saved by its weights; :meth:`load` then asks for the module.
        Not saved are ``labels_``, the callback, and the optimizer of a stream by `partial_fit`.
        """
        check_is_fitted(self, "network_")
        save_estimator(self, Path(folder))

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
        loaded: CollisionClustering = load_estimator(cls, Path(folder), network)
        return loaded

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _read(self, X: ArrayLike, *, reset: bool = False) -> Features:
        """Return checked rows; tensors come from any device, in any precision."""
        if isinstance(X, Tensor):
            tensor = X.detach().cpu()
            half = tensor.dtype in (torch.bfloat16, torch.float16)
            X = (tensor.float() if half else tensor).numpy()
        rows = validate_data(self, X, dtype="numeric", accept_sparse="csr", reset=reset)
        return SparseRows(rows) if issparse(rows) else rows

    def _tell(self, number: int, n_trainings: int, record: EpochRecord) -> None:
        if self.callback is not None:
            told = {"restart": number, "n_restarts": n_trainings, **asdict(record)}
            self.callback(told)

    def _describe(self, features: Features) -> None:
        """Set the training rows' labels and say in plain words what looks wrong."""
        self.labels_, sums, squares = sums_of_predictions(self._logits(features))
        self.mean_label_ = sums / len(features)
        sizes = np.bincount(self.labels_, minlength=self.n_clusters_)
        losses = [float(epoch["loss"]) for epoch in self.history_]
        for sentence in signs_of_collapse(sizes, squares, self.prior_, losses):
            warnings.warn(sentence, ClusteringWarning, stacklevel=3)
        if not self.converged_ and self.n_iter_ > 1:
            warnings.warn(
                f"{self.history_[-1]['changed']:.0%} of the rows still changed cluster in the last"
                " epoch. Train longer (max_epochs) or with a smaller learning_rate.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _logits(self, features: Features) -> Any:
        """Yield the logits of the rows, block by block."""
        network = self.network_.eval()
        for block in row_blocks(len(features), max(features.shape[1], self.n_clusters_)):
            rows = read_rows(features[block]).to(self.device_)
            with torch.no_grad():
                yield network(self.representation_(rows))

    def _by_block(self, X: ArrayLike, of_logits: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        check_is_fitted(self, "network_")
        features = self._read(X)
        with threads_for(features.size):
            return np.concatenate([of_logits(z).cpu().numpy() for z in self._logits(features)])
