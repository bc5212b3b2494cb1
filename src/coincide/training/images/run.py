"""Images in, classes out: the parts of a training put together and run.

A source gives images, a name gives the network, the view and the method; the loop trains several
short starts and takes the best one on. The guard looks at every epoch and says what looks wrong
while it can still be changed. Labels of the truth enter only where the user says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coincide._checks import find_device, parameter_message
from coincide.data.images import ImageRows, ImageSource, channel_statistics
from coincide.methods import Method, SimCLR
from coincide.networks import Network, build_image_network, linear_head
from coincide.training.collapse import IMAGE_ADVICE, signs_of_collapse
from coincide.training.config import ImageTrainingConfig
from coincide.training.history import EpochRecord, StepRecord
from coincide.training.images.settings import build_method, check_config, draw_known, fill_in
from coincide.training.loop import Data, Trainer
from coincide.training.ranks import ALONE, Ranks
from coincide.training.rows import PredictedRows
from coincide.training.starts import StartRecord, Starts
from coincide.views.images import build_image_view

_OWNER = "train_images"
_PRETEXT_DECAY = 1e-4
_NEIGHBORS = "neighbors"  # in the state of a method that mines them

State = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class ImageRun:
    """A trained network, and what it says of the images it was trained on.

    Attributes
    ----------
    network : Network
        In evaluation mode, on its device.
    method : Method
    config : ImageTrainingConfig
        With nothing left open: the number of clusters, the network, the starts are filled in.
    image_shape : (C, H, W)
    mean, std : list of C floats
        Of the pixels, which the network normalizes by.
    white : float
        Of the source (:class:`~coincide.data.images.ImageSource`).
    clusters : ndarray of shape (M,), int64
    probabilities : ndarray of shape (M, K), float32
    known : ndarray of shape (M,), int64, or None
        The classes that training used.
    history : list of EpochRecord
        Of the start that went on.
    starts : list of StartRecord
    signs : list of str
        What looks wrong with these clusters, in plain words.
    seconds : dict of str to float
        What each phase took, since it was begun or taken up: ``"pretext"`` and ``"starts"``,
        where there are any, and ``"training"``.
    """

    network: nn.Module
    method: Method
    config: ImageTrainingConfig
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    white: float
    clusters: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    known: NDArray[np.int64] | None
    history: list[EpochRecord]
    starts: list[StartRecord]
    signs: list[str]
    seconds: dict[str, float]


@dataclass
class ImageTraining:
    """A training on images that can be watched, stopped and taken up again.

    Parameters
    ----------
    source : ImageSource
    config : ImageTrainingConfig
    network : nn.Module, optional
        A backbone of the user's own instead of the configured name.
    view : callable, optional
        A view of the user's own.
    initial : dict of Tensor, optional
        Weights that the backbone starts from, such as those of an earlier run.
    ranks : Ranks, optional
        The processes that share every batch.

    Raises
    ------
    ValueError, TypeError
        For settings that do not fit, fewer images than clusters, or constant images.
    """

    source: ImageSource
    config: ImageTrainingConfig
    network: nn.Module | None = None
    view: Callable[[Tensor], Tensor] | None = None
    initial: dict[str, Tensor] | None = None
    ranks: Ranks = ALONE
    signs: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        images = self.source.images
        if self.network is not None:
            kind = type(self.network)
            if not isinstance(self.network, nn.Module):
                expected = "a torch.nn.Module (a name is a setting of the configuration)"
                raise TypeError(parameter_message("network", _OWNER, expected, self.network))
            # A name that nothing is ever built from: a saved model wants the network again.
            name = f"{kind.__module__}:{kind.__qualname__}"
            self.config = dataclasses.replace(self.config, network=name)
        self.config = fill_in(self.config, self.source)
        check_config(self.config, self.source)
        self.device = find_device(self.config.device, _OWNER)
        self.image_shape = tuple(images.shape[1:])
        self.mean, self.std = (values.tolist() for values in channel_statistics(images))
        self.known = draw_known(self.source.labels, self.config)
        # Refused before a pretext is trained.
        if build_method(self.config, self.device).head(1) is not None and self.config.revive:
            raise ValueError(
                f"The method {self.config.method!r} has a head of more than one linear layer, whose"
                " clusters cannot be revived: leave 'revive' out."
            )
        view = self.config.view if self.view is None else self.view
        self._view = build_image_view(view, self.image_shape)
        rows = ImageRows(images, self.device)
        self.data = Data(rows, known=None if self.known is None else torch.from_numpy(self.known))
        seeds = [1000 * self.config.seed + number for number in range(self.config.starts or 1)]
        self.starts = Starts(
            self._build, seeds, round_epochs=self.config.start_epochs, device=self.device
        )
        self.pretext: Starts | None = None
        if self.config.pretext_epochs:
            self.pretext = Starts(
                self._build_pretext, seeds[:1], round_epochs=1, device=self.device
            )

    def fit(
        self,
        *,
        on_epoch: Callable[[EpochRecord, list[str]], None] | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> ImageRun:
        """Train, choose, train to the end, and label the images.

        Parameters
        ----------
        on_epoch : callable, optional
            Called with every record and what the guard newly found wrong.
        on_step : callable, optional
            What it raises stops the training; :meth:`state` is then what to go on from.
        """

        def watch(starts: Starts, record: EpochRecord) -> None:
            found = self._look(starts)
            if on_epoch is not None:
                on_epoch(record, found)

        step = None if on_step is None else lambda _, record: on_step(record)
        seconds = {}
        if self.pretext is not None:
            began = time.perf_counter()
            trained = self.pretext.fit(self.data, on_epoch=watch, on_step=step)
            self.initial = dict(trained.network.get_submodule("backbone").state_dict())
            self.pretext = None
            seconds["pretext"] = time.perf_counter() - began
        began = time.perf_counter()
        if len(self.starts.alive) > 1:
            self.starts.choose(self.data, on_epoch=watch, on_step=step)
            seconds["starts"] = time.perf_counter() - began
            began = time.perf_counter()
        trainer = self.starts.fit(self.data, on_epoch=watch, on_step=step)
        seconds["training"] = time.perf_counter() - began
        return self._describe(trainer, seconds)

    @property
    def under_way(self) -> Starts:
        """The pretext while it lasts, then the starts."""
        return self.starts if self.pretext is None else self.pretext

    def state(self) -> State:
        """Return all that the training depends on, from inside a callback of :meth:`fit`."""
        if self.pretext is not None:
            tensors, about = self.pretext.running_state()
            return tensors, {"pretext": about}
        tensors, about = self.starts.running_state()
        if self.initial is not None:
            tensors |= {f"initial.{name}": tensor for name, tensor in self.initial.items()}
        return tensors, {"starts": about, "signs": self.signs}

    def restore(self, state: State) -> None:
        """Take up a state of a training with the same source and settings."""
        tensors, about = state
        if "pretext" in about:
            assert self.pretext is not None
            self.pretext.restore(tensors, about["pretext"])
            return
        self.pretext = None
        initial = {n.removeprefix("initial."): t for n, t in tensors.items() if n[:8] == "initial."}
        self.initial = initial or self.initial
        self.signs = list(about["signs"])
        self.starts.restore(tensors, about["starts"])

    def _build(self, seed: int) -> Trainer:
        """Return a fresh trainer; torch's generators are seeded already."""
        method = build_method(self.config, self.device)
        # All starts see the same images through the same backbone: they have the same neighbors.
        if self.initial is not None and _NEIGHBORS in (found := self.starts.method_state()):
            method.restore({_NEIGHBORS: found[_NEIGHBORS]})
        return self._assemble(method, self.config, seed)

    def _build_pretext(self, seed: int) -> Trainer:
        """Return a fresh trainer of SimCLR."""
        assert self.config.n_clusters is not None
        config = dataclasses.replace(
            self.config,
            max_epochs=self.config.pretext_epochs,
            schedule="cosine",
            weight_decay=_PRETEXT_DECAY,
            revive=False,
        )
        return self._assemble(SimCLR(self.config.n_clusters), config, seed)

    def _assemble(self, method: Method, config: ImageTrainingConfig, seed: int) -> Trainer:
        kind = config.network if self.network is None else self.network
        backbone, width = build_image_network(kind, self.image_shape, self.mean, self.std)
        if self.initial is not None:
            try:
                backbone.load_state_dict(self.initial)
            except RuntimeError as error:
                raise ValueError(
                    "The weights to start from are not those of this network on images of this"
                    " size: name the network that they were trained in."
                ) from error
        head = method.head(width)
        network = Network(
            backbone, head() if head else linear_head(width, method.n_clusters), width
        ).to(self.device)
        if config.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            network.backbone.compile()
        generator = torch.Generator().manual_seed(seed)
        return Trainer(
            network,
            method,
            self._view,
            config,
            generator=generator,
            ranks=self.ranks,
            row_shape=self.image_shape,
        )

    def _look(self, starts: Starts) -> list[str]:
        """Return the signs of collapse in the start under way, of kinds not met before."""
        trainer = starts.trainer
        # With several starts in the choice, the choice is the way out.
        if not trainer.method.clusters or len(starts.alive) > 1:
            return []
        expected = np.full(trainer.method.n_clusters, 1 / trainer.method.n_clusters)
        if trainer.revives(trainer.records[-1].n_epochs):
            expected[:] = 0  # no cluster will stay empty
        losses = [record.loss for record in trainer.records]
        found = signs_of_collapse(trainer.sizes, trainer.products, expected, losses, IMAGE_ADVICE)
        # With other clusters every epoch it is the same sign.
        met = {_advice(sign) for sign in self.signs}
        new = [sign for sign in found if _advice(sign) not in met]
        self.signs += new
        return new

    def _describe(self, trainer: Trainer, seconds: dict[str, float]) -> ImageRun:
        half = self.config.precision == "bfloat16"
        logits = PredictedRows(trainer.network, self.data.rows, half=half).logits()
        probs = torch.softmax(logits, 1).numpy()
        clusters = probs.argmax(1)
        signs = []
        if trainer.method.clusters:
            # Of what the user gets: the epochs saw the views of images, in batches.
            n_clusters = trainer.method.n_clusters
            sizes = np.bincount(clusters, minlength=n_clusters)
            expected = np.full(n_clusters, 1 / n_clusters)
            losses = [record.loss for record in trainer.records]
            signs = signs_of_collapse(sizes, probs.T @ probs, expected, losses, IMAGE_ADVICE)
        return ImageRun(
            network=trainer.network.eval(),
            method=trainer.method,
            config=self.config,
            image_shape=self.image_shape,
            mean=self.mean,
            std=self.std,
            white=self.source.white,
            clusters=clusters,
            probabilities=probs,
            known=self.known,
            history=trainer.records,
            starts=self.starts.records,
            signs=signs,
            seconds=seconds,
        )


def _advice(sign: str) -> str:
    """Return the way out that a sign names, which tells its kind."""
    return next(advice for advice in IMAGE_ADVICE if sign.endswith(advice))
