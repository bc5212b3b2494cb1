"""How a network is trained, in one frozen record. Nothing here needs PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("late-linear", "cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")

_LEAST_EPOCHS = 3
_LEAST_STEPS = 120


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of the loop; every field is an option of ``coincide train``.

    Attributes
    ----------
    batch_size : int
        Rows a step over all ranks; also the size of the pseudo-label problem.
    optimizer : {"sgd", "adam", "adamw"}
    learning_rate, momentum, weight_decay : float
        Of the optimizer; the momentum is that of SGD.
    backbone_learning_rate : float or None
        Of the backbone, where it differs from that of the head.
    schedule : {"late-linear", "cosine", "constant"}
        How the learning rate falls to 0: linearly over the last quarter, or along a cosine.
    max_epochs : int or None
        Passes over the data; None: at least 3 and at least 120 steps.
    accumulate : int
        Parts that a batch is cut into, each with a backward pass of its own: less memory.
    precision : {"auto", "float32", "bfloat16"}
        Of the network's products (autocast); losses and labels are always float32 or better.
        ``"auto"``, for images: bfloat16 where the device has units for it and the network is no
        small one.
    known_weight : float
        Of the cross-entropy of rows whose class is known.
    revive : bool or None
        Whether a cluster that an epoch, or a stretch of a long one, left empty takes over half of
        the largest one, see :func:`coincide.training.revival.revive`; for heads of one linear
        layer.
    """

    batch_size: int = _setting(500, "rows a step, over all ranks")
    optimizer: str = _setting("sgd", "that takes the steps")
    learning_rate: float = _setting(0.3, "step length of the optimizer")
    backbone_learning_rate: float | None = _setting(
        None, "another one for the backbone (default: the same)"
    )
    momentum: float = _setting(0.9, "of sgd")
    weight_decay: float = _setting(0.1, "shrinkage of the weights")
    schedule: str = _setting("late-linear", "how the learning rate falls")
    max_epochs: int | None = _setting(None, "passes over the data")
    accumulate: int = _setting(1, "parts of a batch, each with its own backward pass")
    precision: str = _setting("float32", "of the network's products")
    known_weight: float = _setting(2.0, "weight of the cross-entropy of known classes")
    revive: bool | None = _setting(False, "give empty clusters half of the largest one")

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return the number of batches, all of nearly the same size and none above the limit."""
        return math.ceil(n_rows / self.batch_size)

    def epochs(self, n_rows: int) -> int:
        """Return the number of passes over ``n_rows`` rows."""
        if self.max_epochs is not None:
            return self.max_epochs
        return max(_LEAST_EPOCHS, math.ceil(_LEAST_STEPS / self.steps_per_epoch(n_rows)))

    def rate_share(self, progress: float) -> float:
        """Return the learning rate relative to its start, after a share of all steps."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return min(1.0, 4 * (1 - progress))


@dataclass(frozen=True)
class ImageTrainingConfig(TrainingConfig):
    """The settings of training on images, end to end; every field is an option of the command.

    The defaults are the paper's for networks from scratch (Table 3). On small data a SimCLR
    pretext, neighbors in it as further views and a choice among several starts come before them.

    Attributes
    ----------
    learning_rate, max_epochs : optional
        None: 1e-4 and 50, the paper's, but 2e-3 and 36 for the small networks.
    n_clusters : int or None
        None: as many as there are classes.
    method : str
        A key of ``coincide.methods.METHODS``.
    fairness, objective, solver : optional
        Of the method, where it has them; None leaves it its own.
    method_options : dict
        Further fields of the method by name.
    network : str
        A name, ``module:function`` or ``path.py:function``, see
        :func:`coincide.networks.build_image_network`; ``"auto"``: ``"small-conv"`` for images up
        to 16 pixels wide, else ``"vgg4"``.
    view : str
        See :func:`coincide.views.images.build_image_view`.
    labeled_fraction : float
        Share of the labels that training may use, drawn evenly from the classes; 0 for none.
    pretext_epochs : int or None
        Passes of SimCLR over the images before any clusters; None: 30 on small data, else 0.
    revive : bool or None
        None: with the collision method where no classes are known; the other methods stay as
        they were published.
    starts : int or None
        Short starts, of which the best by loss goes on; None: 8 on small data, fewer on large.
    start_epochs : int
        Epochs between two halvings of the starts.
    seed : int
        Of all randomness.
    device : str
        ``"auto"`` takes a GPU if there is one.
    channels_last : bool or None
        Memory format of the network; None: with bfloat16.
    compile : bool
        ``torch.compile`` of the backbone.
    """

    batch_size: int = _setting(250, "images a step, over all ranks")
    optimizer: str = _setting("adam", "that takes the steps")
    learning_rate: float | None = _setting(  # type: ignore[assignment]
        None, "step length of the optimizer (default: 1e-4, small ones 2e-3)"
    )
    weight_decay: float = _setting(0.01, "shrinkage of the weights")
    max_epochs: int | None = _setting(
        None, "passes over the images (default: 50, small networks 36)"
    )
    n_clusters: int | None = _setting(None, "how many clusters (default: the number of classes)")
    method: str = _setting("collision", "what is learned from a batch")
    fairness: float | None = _setting(
        None, "how closely cluster sizes follow the prior (default: 10 with collision)"
    )
    objective: str | None = _setting(None, "of the pseudo-labels (default: that of the method)")
    solver: str | None = _setting(None, "how pseudo-labels are found (default: that of the method)")
    method_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further settings of the method"}
    )
    network: str = _setting("auto", "small-conv, vgg4, resnet18, module:function, ...")
    view: str = _setting("auto", "affine, standard, simclr, strong, none, ...")
    labeled_fraction: float = _setting(0.0, "share of the labels that training may use")
    pretext_epochs: int | None = _setting(
        None, "passes of SimCLR before any clusters (default: 30 on small data, else 0)"
    )
    starts: int | None = _setting(
        None, "short starts, of which the best goes on (default: 8 on small data, else fewer)"
    )
    start_epochs: int = _setting(6, "epochs between two halvings of the starts")
    seed: int = _setting(0, "seed of all randomness")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, ...")
    channels_last: bool | None = _setting(
        None, "lay images out with the channels last (default: with bfloat16)"
    )
    precision: str = _setting("auto", "of the network's products")
    revive: bool | None = _setting(
        None, "give empty clusters half of the largest one (default: the collision method alone)"
    )
    compile: bool = _setting(False, "compile the backbone (torch.compile)")
