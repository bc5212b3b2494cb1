"""A few digits, tiny settings and commands, for the tests of training on images."""

import contextlib
import dataclasses
import json

import numpy as np
import torch

from coincide.cli import main
from coincide.data.images import read_images
from coincide.training.config import ImageTrainingConfig
from coincide.training.images import ImageTraining

DIGITS = read_images("digits")
TINY = {
    "network": "mlp",
    "batch_size": 40,
    "max_epochs": 2,
    "learning_rate": 1e-3,
    "starts": 1,
    "start_epochs": 1,
    "pretext_epochs": 0,
    "device": "cpu",
}
OPTIONS = [
    text for name, value in TINY.items() for text in (f"--{name.replace('_', '-')}", str(value))
]


@contextlib.contextmanager
def one_thread():
    """Sums depend on how they are shared out among threads, and tiny ones are slow on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def digits(count=120, **changes):
    """Return the first digits, with other labels or pixels if they are given."""
    parts = {"images": DIGITS.images[:count], "labels": DIGITS.labels[:count]}
    named = {"ids": DIGITS.ids[:count], "rows": DIGITS.rows[:count]}
    return dataclasses.replace(DIGITS, **{**parts, **named, **changes})


def training(source=None, *, own_network=None, own_view=None, initial=None, **settings):
    """Return a tiny training on the first digits."""
    return ImageTraining(
        digits() if source is None else source,
        ImageTrainingConfig(**{**TINY, **settings}),
        network=own_network,
        view=own_view,
        initial=initial,
    )


def save_digits(path, count=120, labels=None):
    """Write the first digits, and labels or none (``False``) beside them."""
    arrays = {"images": DIGITS.images[:count, 0]}
    if labels is not False:
        arrays["labels"] = DIGITS.labels[:count] if labels is None else labels
    np.savez(path, **arrays)
    return path


def train(*arguments, source="small.npz", out="run", report=False):
    """Run ``coincide train`` with tiny settings, the given ones instead; return its status.

    The page is left out unless asked for: it takes longer than all the rest.
    """
    given = [str(argument) for argument in arguments]
    given += [] if report else ["--no-report"]
    return main(
        ["train", str(source), "--out", str(out), "--quiet", "--no-cache", *OPTIONS, *given]
    )


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def log_of(folder):
    """Return the epochs of a log, which must be JSON to the letter."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def assert_same_run(found, expected):
    """Two trainings ended alike to the last bit: weights, probabilities, all that was recorded."""
    assert_same_weights(found.network.state_dict(), expected.network.state_dict())
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.clusters, expected.clusters)
    assert found.history == expected.history
    assert found.starts == expected.starts
    assert found.signs == expected.signs
