"""The arguments of the commands: what they are called, what they are for, how they are read."""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from coincide import __version__
from coincide.training.config import ImageTrainingConfig

SOURCES = """\
SOURCE is one of:
  digits          scikit-learn's handwritten digits, which need no file
  FILE.npy        a 2-D array, one row per point (memory-mapped)
  FILE.npz        with one 2-D array, or one named features, X or x; labels or y are labels
  FILE.parquet    numeric columns, or a column of equally long lists such as `embedding`
  FILE.csv, .tsv  numeric columns, with or without a header row
  FOLDER          with features.npy (and labels.npy), or with parts *.parquet
A column `label` holds labels unless --columns names it. Labels are never used for training."""

IMAGE_SOURCES = """\
SOURCE is one of:
  digits          scikit-learn's handwritten digits, which need no file
  FOLDER          one folder of images per class, or images alone; unlabeled/ has no class
  FOLDER          in the layout of Hugging Face's `datasets`, or what save_to_disk wrote
  FILE.parquet    with a column of images; FILE.npy, .npz with an array of them
  NAME            of a set on the Hugging Face hub
Labels are used for scores alone, unless some are blank or --labeled-fraction says otherwise."""

_TYPES = {
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "str": str,
    "str | None": str,
    "bool": bool,
    "bool | None": bool,
}


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"coincide: error: {message} (see {self.prog} --help).\n")


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    debug = _Parser(add_help=False)
    # SUPPRESS, so that a command does not reset what was given before its name.
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    parser = _Parser(
        prog="coincide",
        description="Cluster feature vectors and images, with a probability for every cluster.",
        parents=[debug],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"coincide {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_cluster(commands, debug)
    _add_train(commands, debug)
    _add_predict(commands, debug)
    report = _add(commands, debug, "report", "Write the report.html of a run again.", usage="DIR")
    report.add_argument("folder", metavar="DIR", type=Path, help="the folder of a run")
    _add(commands, debug, "info", "Print versions, devices, solvers and objectives.")
    return parser


def _add(
    commands: _Commands,
    debug: _Parser,
    name: str,
    help: str,
    *,
    usage: str = "",
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        usage=f"coincide {name} {usage}".rstrip(),
        help=help,
        description=help,
        epilog=epilog,
        parents=[debug],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_cluster(commands: _Commands, debug: _Parser) -> None:
    cluster = _add(
        commands,
        debug,
        "cluster",
        "Cluster feature vectors; write labels, metrics, the model and a report to a folder.",
        usage="SOURCE [-k K] [--out DIR] [options]",
        epilog=SOURCES,
    )
    _add_source(cluster)
    cluster.add_argument(
        "-k", "--clusters", metavar="K", type=int,
        help="how many clusters (default: the number of classes, if there are labels)",
    )  # fmt: skip
    cluster.add_argument(
        "--seed", metavar="S", type=int, default=0, help="seed of all randomness (default: 0)"
    )
    _add_model(cluster.add_argument_group("model (defaults: those of CollisionClustering)"))
    _add_run_folder(cluster.add_argument_group("output"))


def _add_model(group: argparse._ArgumentGroup) -> None:
    """Add the estimator's parameters, by their names; one that is not given stays None."""
    names = {"--restarts": "n_init", "--epochs": "max_epochs"}
    for flag, kind, metavar, help in (
        ("--fairness", float, "LAMBDA", "how strongly cluster sizes follow the prior"),
        ("--objective", str, "NAME", "cce+, cce or ce+kl (see coincide info)"),
        ("--solver", str, "NAME", "how pseudo-labels are found (see coincide info)"),
        ("--network", str, "NAME", "linear or mlp"),
        ("--init", str, "NAME", "k-means or random"),
        ("--restarts", int, "N", "initializations, of which the best is kept"),
        ("--epochs", int, "N", "passes over the rows, at most"),
        ("--batch-size", int, "N", "rows in a step"),
        ("--learning-rate", float, "X", "step length of the optimizer"),
        ("--weight-decay", float, "X", "shrinkage of the weights"),
        ("--view-dropout", float, "P", "share of features dropped from a row's second view"),
        ("--view-noise", float, "X", "noise added to a row's second view"),
        ("--device", str, "NAME", "auto, cpu, cuda, cuda:1, ..."),
    ):
        group.add_argument(flag, dest=names.get(flag), type=kind, metavar=metavar, help=help)


def _add_train(commands: _Commands, debug: _Parser) -> None:
    train = _add(
        commands,
        debug,
        "train",
        "Train a network on images without labels, or with a few; write a folder as cluster does.",
        usage="SOURCE [-k K] [--method M] [--network N] [--out DIR] [--resume] [options]",
        epilog=IMAGE_SOURCES,
    )
    train.add_argument("source", metavar="SOURCE", help="images (see below)")
    _add_images(train.add_argument_group("images"))
    train.add_argument(
        "-k", "--clusters", dest="n_clusters", metavar="K", type=_clusters,
        help="how many clusters (default: the number of classes, if there are labels); of several,"
        " as in 8,10,12 or 5-15, or auto for 2-20, the one that short starts agree on",
    )  # fmt: skip
    _add_settings(train.add_argument_group("training (every setting of ImageTrainingConfig)"))
    train.add_argument(
        "--set", dest="method_options", metavar="NAME=VALUE", type=_option, action="append",
        help="a setting of the method's own, such as n_views=3 (may be repeated)",
    )  # fmt: skip
    train.add_argument(
        "--start-from", metavar="DIR", type=Path, help="a run whose backbone to start from"
    )
    output = train.add_argument_group("output")
    _add_run_folder(output)
    output.add_argument("--resume", action="store_true", help="take up a training that stopped")
    output.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=600.0,
        help="besides every epoch (default: 600)",
    )  # fmt: skip
    output.add_argument(
        "--keep-checkpoints", action="store_true", help="keep them when the training is done"
    )
    output.add_argument(
        "--log", choices=("tensorboard", "wandb"), help="besides log.jsonl in the folder"
    )


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image-size", metavar="N", type=int, help="side of the square that images are cut to"
    )
    group.add_argument("--channels", type=int, choices=(1, 3), help="grey or RGB")
    _add_split(group)
    group.add_argument("--label-column", metavar="NAME", help="the column of labels, for scores")
    group.add_argument("--no-cache", action="store_true", help="keep no decoded images")


def _add_split(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--split", metavar="NAME", default="train", help="part of the source (default: train)"
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """Add every setting of the configuration; one that is not given keeps its default."""
    for setting in dataclasses.fields(ImageTrainingConfig):
        if setting.name in ("n_clusters", "method_options"):
            continue
        flag, kind = "--" + setting.name.replace("_", "-"), _TYPES[str(setting.type)]
        help = setting.metadata["help"]
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help)
        else:
            default = "" if setting.default is None else f" (default: {setting.default})"
            metavar = {int: "N", float: "X", str: "NAME"}[kind]
            group.add_argument(flag, type=kind, metavar=metavar, help=help + default)


def _clusters(text: str) -> int | tuple[int, ...]:
    """Return a number of clusters, or several to choose from."""
    if text == "auto":
        return tuple(range(2, 21))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        numbers = []
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, no list as 8,10,12 or 5-15")
    return numbers[0] if len(numbers) == 1 else tuple(dict.fromkeys(numbers))


def _option(text: str) -> tuple[str, Any]:
    """Return a name and a value: a number or a truth value where it reads as one."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _add_predict(commands: _Commands, debug: _Parser) -> None:
    predict = _add(
        commands,
        debug,
        "predict",
        "Label new rows or images with the model of a run.",
        usage="DIR SOURCE [--out FILE] [options]",
        epilog=SOURCES + "\nBy default the columns that the model was fitted on are read, by name.",
    )
    predict.add_argument("folder", metavar="DIR", type=Path, help="the folder of a run")
    _add_source(predict)
    images = predict.add_argument_group("images")
    _add_split(images)
    images.add_argument("--network", metavar="NAME", help="the network, if it is your own")
    output = predict.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE", type=Path,
        help="a .csv or .parquet file (default: DIR/predictions.csv, which is replaced)",
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="replace --out FILE")
    _add_output(output)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="feature vectors (see below)")
    parser.add_argument(
        "--columns", metavar="A,B,...", type=_names, help="the columns of features, in this order"
    )
    parser.add_argument("--label-column", metavar="NAME", help="the column of labels, for scores")
    parser.add_argument("--labels", metavar="FILE", help="a file of labels, for scores")


def _add_run_folder(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", metavar="DIR", type=Path,
        help="the folder to write (default: coincide-NAME, where an earlier run is replaced)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true",
        help="replace an earlier run in --out DIR; other folders that hold files are never touched",
    )  # fmt: skip
    _add_output(group)
    group.add_argument(
        "--format", choices=("auto", "csv", "parquet"), default="auto",
        help="of the labels (default: auto, CSV below a million rows)",
    )  # fmt: skip
    group.add_argument("--no-report", action="store_true", help="write no report.html")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--probabilities", action="store_true", help="write all K probabilities of every row"
    )
    group.add_argument("--quiet", action="store_true", help="print warnings and errors only")


def _names(text: str) -> list[str]:
    """Split a comma-separated list; a name that holds a comma is put in double quotes."""
    names = next(csv.reader([text], skipinitialspace=True), [])
    if not names or "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of names")
    return names
