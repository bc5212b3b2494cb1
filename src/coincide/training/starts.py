"""Several short starts, of which the best by its own loss goes on: successive halving.

Runs from random weights end in optima of very different worth, and the loss tells them apart
without labels. All starts train for a few epochs, the better half for a few more, and so on; the
last one is trained to the end. The state of all of them is one state, so a stopped choice goes on
where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coincide.training.history import EpochRecord, StepRecord
from coincide.training.loop import Data, Trainer
from coincide.training.randomness import own_generators, seeded

_JUDGED_SHARE = 0.25  # of a round's epochs, its last: their mean loss is what a start is worth
_LOOKED_AT = 100  # rows, for whether predictions are numbers


@dataclass(frozen=True)
class StartRecord:
    """How a start fared in a round.

    Attributes
    ----------
    seed, round : int
        The round is counted from 0.
    loss : float
        Mean of the last quarter of the round's epochs.
    kept : bool
        Whether it went on.
    """

    seed: int
    round: int
    loss: float
    kept: bool


@dataclass
class _Start:
    """A trainer and torch's random states, which are its own while it trains."""

    trainer: Trainer
    random: list[Tensor]
    diverged: bool = False


class Starts:
    """Trainers from several seeds, and the choice among them.

    Parameters
    ----------
    build : callable
        From a seed to a fresh trainer; called under torch's generators seeded with it.
    seeds : sequence of int
        One for every start.
    round_epochs : int
        Epochs between two halvings.
    device : torch.device
        Whose random states belong to a start, beside the CPU's.

    Attributes
    ----------
    records : list of StartRecord
        What was decided so far.
    seed : int
        Of the start under way.
    """

    def __init__(
        self,
        build: Callable[[int], Trainer],
        seeds: Sequence[int],
        *,
        round_epochs: int,
        device: torch.device,
    ) -> None:
        self.records: list[StartRecord] = []
        self.seed = seeds[0]
        self._build = build
        self._alive = list(seeds)
        self._round_epochs = round_epochs
        self._device = device
        self._starts: dict[int, _Start] = {}
        self._round = 0

    @property
    def trainer(self) -> Trainer:
        """The trainer of the start under way."""
        return self._starts[self.seed].trainer

    @property
    def alive(self) -> tuple[int, ...]:
        """The seeds still in the choice."""
        return tuple(self._alive)

    def method_state(self) -> dict[str, Tensor]:
        """Return the state of the method of the first start that was built; empty if none was."""
        built = next(iter(self._starts.values()), None)
        return {} if built is None else built.trainer.method.state()

    def fit(
        self,
        data: Data,
        *,
        on_epoch: Callable[[Starts, EpochRecord], None] | None = None,
        on_step: Callable[[Starts, StepRecord], None] | None = None,
    ) -> Trainer:
        """Train, halve, and train the last one to the end; return its trainer.

        Parameters
        ----------
        data : Data
        on_epoch, on_step : callable, optional
            Called with these starts and every record; what they raise stops the training in a
            state that can be taken up again.
        """
        self.choose(data, on_epoch=on_epoch, on_step=on_step)
        return self._train(self._alive[0], data, None, on_epoch, on_step)

    def choose(
        self,
        data: Data,
        *,
        on_epoch: Callable[[Starts, EpochRecord], None] | None = None,
        on_step: Callable[[Starts, StepRecord], None] | None = None,
    ) -> None:
        """Train and halve until one start is left; the parameters are those of :meth:`fit`."""
        while len(self._alive) > 1:
            until = (self._round + 1) * self._round_epochs
            for seed in self._alive:
                self._train(seed, data, until, on_epoch, on_step)
            self._halve()

    def _train(
        self,
        seed: int,
        data: Data,
        until: int | None,
        on_epoch: Callable[[Starts, EpochRecord], None] | None,
        on_step: Callable[[Starts, StepRecord], None] | None,
    ) -> Trainer:
        """Train a start up to an epoch; one whose weights are no numbers any more has lost."""
        self.seed = seed
        start = self._start(seed)
        network = start.trainer.network

        def step(record: StepRecord) -> None:
            # The head shows it, is small, and is the same on all processes.
            if not _is_finite(network.get_submodule("head")):
                raise ValueError("The loss is no number.")
            if on_step is not None:
                on_step(self, record)

        epoch = None if on_epoch is None else lambda record: on_epoch(self, record)
        try:
            if not start.diverged:
                with self._randomness(start):
                    start.trainer.fit(data, until=until, on_epoch=epoch, on_step=step)
        except ValueError:  # the above, or what a method says of such predictions
            with torch.no_grad():
                logits = network(data.rows[slice(0, _LOOKED_AT)])
            start.diverged = not (_is_finite(network) and bool(logits.isfinite().all()))
            if not start.diverged:
                raise
        if start.diverged and len(self._alive) == 1:
            raise ValueError(
                "The training diverged: the weights of the network, or what it predicts, are no"
                " numbers any more. Try a smaller learning_rate."
            )
        return start.trainer

    def _start(self, seed: int) -> _Start:
        """Return the start of a seed, built when it is first wanted."""
        if seed not in self._starts:
            with seeded(seed, self._device):
                trainer = self._build(seed)
                self._starts[seed] = _Start(trainer, self._random_states())
        return self._starts[seed]

    def _halve(self) -> None:
        """Keep the better half by loss; a start that diverged has NaN, and loses."""
        losses = {seed: self._loss(self._starts[seed]) for seed in self._alive}
        ranked = sorted(self._alive, key=lambda seed: (math.isnan(losses[seed]), losses[seed]))
        kept = ranked[: math.ceil(len(ranked) / 2)]
        self.records += [StartRecord(s, self._round, losses[s], s in kept) for s in self._alive]
        self._alive = [seed for seed in self._alive if seed in kept]
        self._starts = {seed: self._starts[seed] for seed in self._alive}
        self._round += 1

    def _loss(self, start: _Start) -> float:
        """Return what a start is worth after a round."""
        if start.diverged:
            return math.nan
        count = max(1, round(_JUDGED_SHARE * self._round_epochs))
        return float(np.mean([record.loss for record in start.trainer.records[-count:]]))

    def _devices(self) -> list[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _random_states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return states + [torch.cuda.get_rng_state(device) for device in self._devices()]

    @contextmanager
    def _randomness(self, start: _Start) -> Iterator[None]:
        """Give the start its own random states, and keep them when it stops."""
        with own_generators(self._device):
            torch.set_rng_state(start.random[0])
            for device, state in zip(self._devices(), start.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                start.random = self._random_states()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state of all starts; inside a callback, :meth:`running_state` is right."""
        tensors: dict[str, Tensor] = {}
        about: dict[str, Any] = {
            "alive": self._alive,
            "round": self._round,
            "seed": self.seed,
            "records": [asdict(record) for record in self.records],
            "diverged": [seed for seed, start in self._starts.items() if start.diverged],
            "starts": {},
        }
        for seed, start in self._starts.items():
            own, told = start.trainer.state()
            tensors |= {f"{seed}.{name}": tensor for name, tensor in own.items()}
            for number, random in enumerate(start.random):
                tensors[f"{seed}.random.{number}"] = random
            about["starts"][str(seed)] = told
        return tensors, about

    def running_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state from inside a callback, where the random states are torch's own."""
        tensors, about = self.state()
        for number, random in enumerate(self._random_states()):
            tensors[f"{self.seed}.random.{number}"] = random
        return tensors, about

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._alive = list(about["alive"])
        self._round = about["round"]
        self.records = [StartRecord(**record) for record in about["records"]]
        for seed in self._alive:
            if str(seed) not in about["starts"]:
                continue
            prefix = f"{seed}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            start = self._start(seed)
            start.random = [own.pop(f"random.{n}") for n in range(1 + len(self._devices()))]
            start.diverged = seed in about["diverged"]
            start.trainer.restore(own, about["starts"][str(seed)])


def _is_finite(module: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())
