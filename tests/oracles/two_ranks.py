"""What each of two processes does in the tests of the ranks; ``one_process`` does it alone.

Run as ``python two_ranks.py INDEX FOLDER``.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from coincide.methods import IIC, UNKNOWN, CollisionMethod
from coincide.networks import Network
from coincide.pseudolabels import ActiveSet
from coincide.pseudolabels.problem import reduce_problem
from coincide.pseudolabels.rows import TorchPasses
from coincide.pseudolabels.solver import run_solver
from coincide.training.config import TrainingConfig
from coincide.training.distributed import TorchRanks, join_ranks
from coincide.training.loop import Data, Trainer
from coincide.training.ranks import ALONE

M, K, D = 61, 4, 5
HALVES = (slice(0, 30), slice(30, M))
OBJECTIVES = ("cce+", "cce")
SOLVERS = ("active-set", "interior-point")
# Known rows: on neither process, on the first, all of the first's, all.
KNOWN = {"none": 0, "some": 8, "half": 30, "all": M}
LABELINGS = (
    *itertools.product(OBJECTIVES, SOLVERS, KNOWN, (False, True), (1e-6,)),
    *itertools.product(OBJECTIVES, SOLVERS, ("some",), (True,), (0.05,)),
)
FIRST = (0, 6_000)  # of 20,000 rows, on the first process
TRAININGS = {
    "plain": {},
    "weights": {"weights": True},
    "known": {"known": 12},
    "parts": {"accumulate": 2, "known": 12, "weights": True},
    "adam": {"optimizer": "adam", "learning_rate": 1e-2},
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def method_of(**changes: object) -> CollisionMethod:
    settings = {"n_clusters": K, "prior": np.array([0.1, 0.2, 0.3, 0.4]), "fairness": 10.0}
    return CollisionMethod(**{**settings, **changes})


def known_of(count: int) -> torch.Tensor | None:
    classes = torch.randint(K, (M,), generator=seeded(2))
    return torch.where(torch.arange(M) < count, classes, UNKNOWN) if count else None


def labels_of(case, rows=slice(None), sums=None):
    """Return the labels of two batches, the second warm from the first."""
    objective, solver, known, weighted, tol = case
    method = method_of(objective=objective, solver=solver, label_tol=tol)
    method.sums = sums
    classes = known_of(KNOWN[known])
    found = []
    for seed in (0, 1):
        logits = 2 * torch.randn(M, K, generator=seeded(seed))
        weights = torch.rand(M, generator=seeded(seed + 5)) if weighted else None
        found.append(
            method.labels(
                logits[rows],
                None if weights is None else weights[rows],
                None if classes is None else classes[rows],
            )
        )
    return torch.cat(found, 1)


def labels_of_many(objective, index=None, sums=None):
    """Return labels of so many entries that the solver looks for those that matter."""
    logits = 2 * torch.randn(500, 50, generator=seeded(6))
    method = method_of(n_clusters=50, prior=np.full(50, 0.02), objective=objective, label_tol=1e-6)
    method.sums = sums
    # Unequal parts: all rows of the first may be settled while the second's are not.
    part = slice(None) if index is None else (slice(0, 2), slice(2, 500))[index]
    return method.labels(logits[part])


def solve_lopsided(index=None, sums=None, first=0):
    """Return objective and bound of predictions that ask most rows to move, and if they meet.

    The first process has ``first`` of the rows.
    """
    logits = 2 * torch.randn(20_000, 5, generator=seeded(7)) + torch.linspace(0, 6, 5)
    part = slice(None) if index is None else (slice(0, first), slice(first, None))[index]
    problem = reduce_problem(
        logits[part].double().softmax(1),
        prior=np.full(5, 0.2),
        fairness=100.0,
        objective="cce+",
        passes=TorchPasses(),
        sums=sums,
    ).problem
    outcome = run_solver(ActiveSet(), problem, tol=1e-6, max_iter=500)
    return *outcome.certificate, outcome.converged


def network_of(method):
    torch.manual_seed(0)
    head = (method.head(8) or (lambda: nn.Linear(8, K)))()
    return Network(nn.Sequential(nn.Linear(D, 8), nn.Tanh()), head, 8)


def trainer_of(method, ranks, **settings):
    given = {"batch_size": 31, "max_epochs": 3, "learning_rate": 0.1, "momentum": 0.5} | settings
    config = TrainingConfig(**{"weight_decay": 0.01, **given})
    return Trainer(
        network_of(method), method, lambda x: 1.1 * x, config, generator=seeded(3), ranks=ranks
    )


def data_of(known=0, weights=False):
    rows = torch.randn(M, D, generator=seeded(4))
    return Data(rows, known_of(known), torch.rand(M, generator=seeded(5)) if weights else None)


def train(name, ranks):
    """Return the records and the weights at the end."""
    settings = dict(TRAININGS[name])
    data = data_of(settings.pop("known", 0), settings.pop("weights", False))
    trainer = trainer_of(method_of(label_tol=1e-3), ranks, **settings)
    trainer.fit(data)
    return trainer.records, trainer.network.state_dict()


def revive(ranks):
    """Return the same where a cluster that is empty at first is revived within the only epoch."""
    settings = {"batch_size": 4, "max_epochs": 1, "learning_rate": 0.01, "revive": True}
    trainer = trainer_of(method_of(label_tol=1e-3), ranks, **settings)
    with torch.no_grad():
        trainer.network.head.bias[K - 1] = -50.0
    trainer.fit(Data(torch.randn(2 * 50 * K, D, generator=seeded(4))))  # two stretches of 50 steps
    return trainer.records, trainer.network.state_dict()


def train_iic(ranks):
    """Return the same for a method that reports quantities and rests some heads every epoch."""
    trainer = trainer_of(IIC(K, sub_heads=2), ranks, optimizer="adam", learning_rate=1e-2)
    trainer.fit(data_of())
    return trainer.records, trainer.network.state_dict()


def resume(ranks):
    """Return the records and weights of a training stopped in the middle and taken up again."""

    class Stop(Exception):  # noqa: N818
        pass

    def stop(record):
        if record.step == 5:
            raise Stop

    stopped = trainer_of(method_of(label_tol=1e-3), ranks)
    try:
        stopped.fit(data_of(), on_step=stop)
    except Stop:
        state = stopped.state()
    resumed = trainer_of(method_of(label_tol=1e-3), ranks)
    resumed.restore(*state)
    resumed.fit(data_of())
    return resumed.records, resumed.network.state_dict()


def averaged(ranks):
    """Return the gradients of parameters that both, one, or neither of the processes used."""
    both, one, neither, frozen = (nn.Parameter(torch.zeros(2, 3)) for _ in range(4))
    frozen.requires_grad_(False)
    both.grad = torch.full((2, 3), 1.0 + ranks.index)
    if ranks.index == 0:
        one.grad = torch.arange(6.0).view(2, 3)
    ranks.average_gradients([both, one, neither, frozen])
    return [parameter.grad for parameter in (both, one, neither, frozen)]


def sums(ranks):
    """Return sums of what every process holds, and whether that stayed as it was."""
    vector = np.array([[1e16, 1.0], [0.1, -1e16]]) * (-1) ** ranks.index + ranks.index
    ids = torch.arange(3) + 10 * ranks.index
    before = vector.copy(), ids.clone()
    summed, total = ranks.sum(vector), ranks.total(ids)
    untouched = np.array_equal(vector, before[0]) and torch.equal(ids, before[1])
    return summed, total, ranks.least(3.0 - ranks.index), untouched


def joined():
    """Return what ``join_ranks`` finds of torchrun's environment, and what it leaves."""
    with join_ranks(torch.device("cpu")) as ranks:
        found = ranks.size, ranks.index, float(ranks.sum(np.ones(1))[0])
    return *found, dist.is_initialized()


def main(index: int, folder: Path) -> None:
    """Do all of it as one of two processes and save what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=index, world_size=2
    )
    ranks = TorchRanks(torch.device("cpu"))
    found = {
        "labels": {case: labels_of(case, HALVES[index], ranks) for case in LABELINGS},
        "many": {name: labels_of_many(name, index, ranks) for name in OBJECTIVES},
        "lopsided": [solve_lopsided(index, ranks, first) for first in FIRST],
        "trainings": {name: train(name, ranks) for name in TRAININGS},
        "revived": revive(ranks),
        "iic": train_iic(ranks),
        "resumed": resume(ranks),
        "averaged": averaged(ranks),
        "sums": sums(ranks),
        "sums attached": trainer_of(method_of(), ranks).method.sums is ranks,
    }
    dist.destroy_process_group()
    found["joined"] = joined()
    torch.save(found, folder / f"{index}.pt")


def one_process():
    """Return what a single process makes of the same."""
    return {
        "labels": {case: labels_of(case) for case in LABELINGS},
        "many": {name: labels_of_many(name) for name in OBJECTIVES},
        "lopsided": solve_lopsided(),
        "trainings": {name: train(name, ALONE) for name in TRAININGS},
        "revived": revive(ALONE),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
