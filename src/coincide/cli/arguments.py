"""The arguments of the commands: what they are called, what they are for, how they are read."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from coincide import __version__
from coincide.cli.options import ALIASES, LOGS, MODEL, SHELLS, Option, settings

SOURCES = """\
SOURCE is one of:
  digits          scikit-learn's handwritten digits, which need no file
  FILE.npy        a 2-D array, one row per point (memory-mapped)
  FILE.npz        with one 2-D array, or one named features, X or x; or sparse, as SciPy writes it
  FILE.csv        or .tsv, .txt, also .gz: numeric columns, with or without a header row
  FILE.parquet    or .feather, .jsonl: numeric columns, or lists of equal length (`embedding`)
  FILE.h5ad       cells by genes
  FOLDER          with features.npy (and labels.npy), parts *.parquet, or from save_to_disk
  -               standard input: CSV, gzip of CSV, or Parquet
Columns called label, class or target hold labels, those called id, or that number the rows, name
these: both are no features unless --columns says so. Labels are never used for training."""

IMAGE_SOURCES = """\
SOURCE is one of:
  digits          scikit-learn's handwritten digits, which need no file
  FOLDER          one folder of images per class, or images alone; unlabeled/ has no class
  FOLDER          in the layout of Hugging Face's `datasets`, or what save_to_disk wrote
  FILE.parquet    with a column of images; FILE.npy, .npz with an array of them
  NAME            of a set on the Hugging Face hub
Labels are used for scores alone, unless some are blank or --labeled-fraction says otherwise."""

EXAMPLES = {
    "cluster": """\
  coincide cluster table.csv -k 5
  coincide cluster embeddings.npy -k 20 --out topics --seed 1
  zcat points.csv.gz | coincide cluster - -k 5 --out points --json > points.json""",
    "train": """\
  coincide train digits --out trained
  coincide train photos -k 20 --network resnet18 --out animals --resume
  coincide train photos -k 8-12 --labeled-fraction 0.01 --log tensorboard""",
    "predict": """\
  coincide predict coincide-digits digits
  coincide predict topics new.npy --out new.parquet --probabilities
  cat new.csv | coincide predict points - --out - > clusters.csv""",
    "report": """\
  coincide report coincide-digits
  coincide report topics --json""",
    "info": """\
  coincide info
  coincide info --json""",
    "completion": """\
  coincide completion bash > ~/.local/share/bash-completion/completions/coincide
  coincide completion zsh > ~/.zfunc/_coincide
  coincide completion fish > ~/.config/fish/completions/coincide.fish""",
}


class UsageError(ValueError):
    """Arguments that cannot be read."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like every other, with the closest name that there is."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help).")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = f" {_closest(str(value), names)}".rstrip()
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r} is none of {', '.join(names)}.{hint}"
            )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; an option that there is not is refused with the closest one."""
        found, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return found
        commands = next(a.choices for a in self._actions if a.dest == "command")
        assert isinstance(commands, dict)
        parser = commands[found.command]
        flags = [flag for a in parser._actions for flag in a.option_strings if a.help != _HIDDEN]
        hint = f" {_closest(unknown[0].partition('=')[0], flags)}".rstrip()
        return parser.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")


def _closest(name: str, names: Collection[str]) -> str:
    """Return the hint of :func:`coincide._names.closest`, which PyTorch comes with."""
    return str(importlib.import_module("coincide._names").closest(name, names))


_HIDDEN = argparse.SUPPRESS
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    debug = _Parser(add_help=False)
    # SUPPRESS, so that a command does not reset what was given before its name.
    debug.add_argument("--debug", action="store_true", default=_HIDDEN, help="show tracebacks")
    parser = _Parser(
        prog="coincide",
        description="Cluster feature vectors and images, with a probability for every cluster.",
        epilog="Examples:\n" + "\n".join(text.splitlines()[0] for text in EXAMPLES.values()),
        parents=[debug],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coincide {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_cluster(commands, debug)
    _add_train(commands, debug)
    _add_predict(commands, debug)
    report = _add(commands, debug, "report", "Write the report.html of a run again.", usage="DIR")
    report.add_argument("folder", metavar="DIR", type=Path, help="the folder of a run")
    _add_speech(report)
    info = _add(commands, debug, "info", "Print versions, devices, solvers and objectives.")
    _add_speech(info)
    completion = _add(
        commands, debug, "completion", "Print a script that completes commands in a shell.",
        usage="SHELL",
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return parser


def _add(
    commands: _Commands,
    debug: _Parser,
    name: str,
    help: str,
    *,
    usage: str = "",
    notes: str = "",
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        usage=f"coincide {name} {usage}".rstrip(),
        help=help,
        description=help,
        epilog=f"Examples:\n{EXAMPLES[name]}\n\n{notes}".rstrip(),
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
        notes=SOURCES,
    )
    _add_source(cluster)
    _add_split(cluster)
    cluster.add_argument(
        "-k", "--clusters", metavar="K", type=_clusters,
        help="how many clusters (default: the number of classes, if there are labels); of several,"
        " as 8,10 or 5-15 or auto (2-20), the evidence chooses",
    )  # fmt: skip
    cluster.add_argument(
        "--seed", metavar="S", type=int, default=0, help="seed of all randomness (default: 0)"
    )
    group = cluster.add_argument_group("model")
    for option in MODEL:
        _add_option(group, option)
    _add_run_folder(cluster.add_argument_group("output"))


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add an option, and the other name that it had."""
    if option.kind is bool:
        yes_or_no = argparse.BooleanOptionalAction
        group.add_argument(option.flag, action=yes_or_no, help=option.told)
        return
    for flag, told in ((option.flag, option.told), (ALIASES.get(option.flag), _HIDDEN)):
        if flag is not None:
            group.add_argument(
                flag, dest=option.name, type=option.kind, metavar=option.metavar,
                choices=option.choices, help=told,
            )  # fmt: skip


def _add_train(commands: _Commands, debug: _Parser) -> None:
    train = _add(
        commands,
        debug,
        "train",
        "Train a network on images without labels, or with a few; write a folder as cluster does.",
        usage="SOURCE [-k K] [--method M] [--network N] [--out DIR] [--resume] [options]",
        notes=IMAGE_SOURCES,
    )
    train.add_argument("source", metavar="SOURCE", help="images (see below)")
    _add_images(train.add_argument_group("images"))
    train.add_argument(
        "-k", "--clusters", dest="n_clusters", metavar="K", type=_clusters,
        help="how many clusters (default: the number of classes, if there are labels); of several,"
        " as in 8,10,12 or 5-15, or auto for 2-20, the one that short starts agree on",
    )  # fmt: skip
    group = train.add_argument_group("training (every setting of ImageTrainingConfig)")
    for option in settings():
        _add_option(group, option)
    train.add_argument(
        "--set", dest="method_options", metavar="NAME=VALUE", type=_option, action="append",
        help="a setting of the method's own, such as n_views=3 (may be repeated)",
    )  # fmt: skip
    train.add_argument(
        "--start-from", metavar="DIR", type=Path, help="a run whose backbone to start from"
    )
    output = train.add_argument_group("output")
    _add_run_folder(output)
    output.add_argument(
        "--resume", action="store_true",
        help="take up a training that stopped; begin if there is none, end if it is finished",
    )  # fmt: skip
    output.add_argument(
        "--checkpoint-every", metavar="SECONDS", type=float, default=600.0,
        help="besides every epoch (default: 600)",
    )  # fmt: skip
    output.add_argument(
        "--keep-checkpoints", action="store_true", help="keep them when the training is done"
    )


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image-size", metavar="N", type=int,
        help="side of the square that images are cut to (default: that of the images, 64 at most"
        " if they are of several)",
    )  # fmt: skip
    group.add_argument(
        "--channels", type=int, choices=(1, 3), help="grey or RGB (default: grey if all are)"
    )
    _add_split(group)
    group.add_argument("--label-column", metavar="NAME", help="the column of labels, for scores")
    group.add_argument("--no-cache", action="store_true", help="keep no decoded images")


def _add_split(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--split", metavar="NAME", help="part of the source (default: train, if it has several)"
    )


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
        notes=SOURCES + "\nBy default the columns that the model was fitted on are read, by name.",
    )
    predict.add_argument("folder", metavar="DIR", type=Path, help="the folder of a run")
    _add_source(predict)
    images = predict.add_argument_group("images")
    _add_split(images)
    images.add_argument("--network", metavar="NAME", help="the network, if it is your own")
    output = predict.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE", type=_file,
        help="a .csv or .parquet file, or - for CSV on standard output (default:"
        " DIR/predictions.csv, which is replaced)",
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="replace --out FILE")
    _add_probabilities(output)
    _add_speech(output, verbose=True)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="feature vectors (see below)")
    parser.add_argument(
        "--columns", metavar="A,B,...", type=_names, help="the columns of features, in this order"
    )
    parser.add_argument("--label-column", metavar="NAME", help="the column of labels, for scores")
    parser.add_argument("--id-column", metavar="NAME", help="the column that names the rows")
    parser.add_argument("--labels", metavar="FILE", help="a file of labels, for scores")
    parser.add_argument(
        "--header", action=argparse.BooleanOptionalAction, default=None,
        help="whether the first row of a text file names the columns (default: found out)",
    )  # fmt: skip


def _add_run_folder(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", metavar="DIR", type=_folder,
        help="the folder to write (default: coincide-NAME, where a finished run of the same command"
        " and source is replaced)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true",
        help="replace an earlier run, finished or not; files that are not of a run are never"
        " touched",
    )  # fmt: skip
    _add_probabilities(group)
    group.add_argument(
        "--format", choices=("auto", "csv", "parquet"), default="auto",
        help="of the labels (default: auto, CSV below a million rows)",
    )  # fmt: skip
    group.add_argument("--no-report", action="store_true", help="write no report.html")
    group.add_argument("--log", choices=LOGS, help="where epochs are told, too")
    _add_speech(group, verbose=True)


def _add_probabilities(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--probabilities", action="store_true", help="write all K probabilities of every row"
    )


def _add_speech(group: argparse._ActionsContainer, *, verbose: bool = False) -> None:
    """Add what a command says, and to whom."""
    group.add_argument(
        "--json", action="store_true",
        help="print one JSON object on standard output, everything else on standard error",
    )  # fmt: skip
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="print warnings and errors only"
    )
    if verbose:
        loudness.add_argument(
            "-v", "--verbose", action="store_true", help="print what was decided, and timings"
        )


def _folder(text: str) -> Path:
    """Return the folder of a run, which is several files."""
    if text.strip() in ("", "-"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no folder, and a run is several files: name one, such as runs/first"
        )
    return Path(text)


def _file(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no file: name one, or - for standard output")
    return Path(text)


def _names(text: str) -> list[str]:
    """Split a comma-separated list; a name that holds a comma is put in double quotes."""
    names = next(csv.reader([text], skipinitialspace=True), [])
    if not names or "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of names")
    return names
