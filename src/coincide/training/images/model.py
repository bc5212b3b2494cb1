"""A trained image network on disk, and what it says of new images.

The description names the parts by which the network is built again; weights are numbers only. A
network of the user's own is code, and code never comes from a file: it must be given again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coincide._checks import find_device, parameter_message
from coincide._files import ModelError, as_json, load_model, save_model
from coincide.data.errors import Array
from coincide.data.images import ImageRows
from coincide.networks import IMAGE_NETWORKS, Network, build_image_network, linear_head
from coincide.training.config import ImageTrainingConfig
from coincide.training.images.run import ImageRun
from coincide.training.images.settings import build_method
from coincide.training.rows import PredictedRows

KIND = "images"  # in the description of a model, which tells it from one of feature vectors


@dataclass(frozen=True)
class ImageModel:
    """A network that labels images.

    Attributes
    ----------
    network : nn.Module
        In evaluation mode.
    image_shape : (C, H, W)
        What it was trained on.
    n_clusters : int
    device : torch.device
    half : bool
        Whether its products are in bfloat16, as they were in training.
    white : float
        The integer that became 255 in the images it was trained on: what
        :func:`~coincide.data.images.read_images` takes.
    cluster_names : tuple of str, or None
        What each cluster stands for, "" for nothing, where that is known.
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    n_clusters: int
    device: torch.device
    half: bool = False
    white: float = math.inf
    cluster_names: tuple[str, ...] | None = None

    def predict_proba(self, images: Array) -> NDArray[np.float32]:
        """Return the probability of each cluster for each image.

        Parameters
        ----------
        images : ndarray of shape (M, C, H, W), uint8
            Of the size that the network was trained on.

        Returns
        -------
        ndarray of shape (M, n_clusters), float32
        """
        if images.shape[1:] != self.image_shape:
            expected = (
                f"of the shape that the model knows, (M, {', '.join(map(str, self.image_shape))})"
            )
            raise ValueError(
                parameter_message("images", "predict_proba", expected, tuple(images.shape))
            )
        rows = ImageRows(images, self.device)
        logits = PredictedRows(self.network, rows, half=self.half).logits()
        probs: NDArray[np.float32] = torch.softmax(logits, 1).numpy()
        return probs


def save_image_model(
    folder: Path, run: ImageRun, cluster_names: Sequence[str] | None = None
) -> None:
    """Write the network of a run, how to build it again, and what the clusters stand for."""
    own = not isinstance(run.config.network, str) or ":" in run.config.network
    description = {
        "kind": KIND,
        "image_shape": list(run.image_shape),
        "mean": run.mean,
        "std": run.std,
        "white": None if math.isinf(run.white) else run.white,
        "own_network": own,
        "cluster_names": None if cluster_names is None else list(cluster_names),
        "config": as_json(asdict(run.config)),
    }
    tensors = {f"network.{name}": t for name, t in run.network.state_dict().items()}
    save_model(folder, tensors, description)


def load_image_model(
    folder: Path, *, network: str | nn.Module | None = None, device: str = "auto"
) -> ImageModel:
    """Return a saved model, ready to label images.

    Parameters
    ----------
    folder : Path
    network : str or nn.Module, optional
        The network, where it was one of the user's own.
    device : str

    Raises
    ------
    ModelError
        If a file is missing or corrupt, the network is the user's and is not given, or the weights
        do not fit.
    """
    tensors, description = load_model(folder)
    try:
        config = ImageTrainingConfig(**description["config"])
        kind = network or config.network
        if network is None and (description["own_network"] or kind not in IMAGE_NETWORKS):
            raise ModelError(
                f"its network is {kind!r}, code that is not part of the model: give it again"
                " (--network)."
            )
        channels, height, width = description["image_shape"]
        shape = (int(channels), int(height), int(width))
        backbone, features = build_image_network(
            kind, shape, description["mean"], description["std"]
        )
        head = build_method(config, torch.device("cpu")).head(features)
        assert config.n_clusters is not None
        module = Network(
            backbone, head() if head else linear_head(features, config.n_clusters), features
        )
        told = description.get("white")  # absent in models from before: the full depth
        white = math.inf if told is None else float(told)
        state = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        module.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder} does not hold a model that fits: {error}") from error
    place = find_device(device, "load_image_model")
    module = module.to(place).eval()
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = config.precision == "bfloat16"
    named = description.get("cluster_names")
    names = None if named is None else tuple(map(str, named))
    return ImageModel(module, shape, config.n_clusters, place, half, white, names)
