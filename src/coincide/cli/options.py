"""The options that stand for a parameter or a setting: their names, values and defaults.

PyTorch would have to be loaded to look most of them up, and help must not wait for it: a test holds
the tables to the originals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from coincide.training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, ImageTrainingConfig

OBJECTIVES = ("cce+", "cce", "ce+kl")
SOLVERS = (
    "auto",
    "active-set",
    "interior-point",
    "em",
    "projected-gradient",
    "closed-form",
    "sinkhorn",
)
METHODS = ("collision", "mi", "miadm", "sela", "imsat", "iic", "scan", "simclr")
LOGS = ("tensorboard", "wandb", "mlflow")
SHELLS = ("bash", "zsh", "fish")

# One thing has one name in every command; the other one that it had is still understood.
ALIASES = {"--starts": "--restarts", "--epochs": "--max-epochs"}

_TYPES: dict[str, type] = {
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "str": str,
    "str | None": str,
    "bool": bool,
    "bool | None": bool,
}
_METAVARS = {int: "N", float: "X", str: "NAME", bool: ""}
_FLAGS = {"max_epochs": "--epochs", "n_init": "--starts", "n_neighbors": "--neighbors"}
_CHOICES = {
    "objective": OBJECTIVES,
    "solver": SOLVERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option that is None unless it is given, for what then has ``default``.

    What an open default comes to ends the help; ``choices`` are all values, if they are few.
    """

    name: str
    kind: type
    default: object
    help: str
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        """``--name``, or what it is called for short."""
        return _FLAGS.get(self.name, "--" + self.name.replace("_", "-"))

    @property
    def metavar(self) -> str:
        """What stands for the value."""
        return _METAVARS[self.kind]

    @property
    def told(self) -> str:
        """The help, with the choices and the default."""
        what, _, decided = self.help.partition(" (default: ")
        listed = f": {', '.join(self.choices)}" if self.choices else ""
        default = decided.removesuffix(")") or ("no" if self.default is False else self.default)
        return f"{what}{listed}" + ("" if default is None else f" (default: {default})")


_RESTARTS = " (default: 400,000 / (rows x clusters), 1 to 3)"
_EPOCHS = " (default: at least 6 and 240 steps; from clusters 2 and 20)"

# The parameters of CollisionClustering that are options of ``coincide cluster``.
MODEL = (
    Option("prior", str, "auto", "shares of the clusters", ("auto", "equal", "learned")),
    Option(
        "fairness",
        float,
        "auto",
        "how closely sizes follow the prior (default: 100, from clusters 1)",
    ),
    Option(
        "representation",
        str,
        "auto",
        "what the network sees",
        ("auto", "scaled", "landmarks"),
    ),
    Option(
        "scaling",
        str,
        "auto",
        "of the features; standard where columns have own names",
        ("auto", "unit-norm", "standard", "isotropic", "none"),
    ),
    Option("n_neighbors", int, 10, "nearest rows that are views of a row; 0 for none"),
    Option("objective", str, "cce+", "of the pseudo-labels", OBJECTIVES),
    Option("solver", str, "auto", "how pseudo-labels are found", SOLVERS),
    Option("network", str, "linear", "of the features", ("linear", "mlp")),
    Option("init", str, "auto", "how a linear network starts", ("auto", "random", "k-means")),
    Option("n_init", int, "auto", f"of which the best is kept{_RESTARTS}"),
    Option("max_epochs", int, None, f"passes over the rows{_EPOCHS}"),
    Option("batch_size", int, "auto", "rows a step (default: 500, or 8 x clusters if more)"),
    Option("learning_rate", float, 0.3, "step length of the optimizer"),
    Option("momentum", float, 0.9, "of the optimizer"),
    Option(
        "weight_decay", float, "auto", "shrinkage of the weights (default: 0.1, from clusters 0.01)"
    ),
    Option(
        "view_dropout",
        float,
        "auto",
        "share of features dropped from a row's second view (default: 0.3, from clusters none)",
    ),
    Option("view_noise", float, 0.0, "noise added to a row's second view"),
    Option("device", str, "auto", "auto, cpu, cuda, cuda:1, ..."),
)


def settings() -> Iterator[Option]:
    """Yield every setting of a training on images that is an option of its own."""
    for setting in dataclasses.fields(ImageTrainingConfig):
        name = setting.name
        if name in ("n_clusters", "method_options"):
            continue
        kind, told = _TYPES[str(setting.type)], setting.metadata["help"]
        if name == "method":  # no choices: another one may be the user's own, the training says so
            told = f"{told}: {', '.join(METHODS)}"
        yield Option(name, kind, setting.default, told, _CHOICES.get(name))
