"""The command line's habits: help, names, defaults, JSON, standard input and output, completion."""

import dataclasses
import gzip
import inspect
import io
import json
import shlex
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coincide
from coincide.cli import main
from coincide.cli.arguments import EXAMPLES, build_parser
from coincide.cli.options import ALIASES, METHODS, MODEL, OBJECTIVES, SHELLS, SOLVERS, settings
from coincide.cluster import CollisionClustering
from coincide.cluster.constraints import PRIORS
from coincide.networks import NETWORKS
from coincide.representations import REPRESENTATIONS, SCALINGS
from coincide.training.config import ImageTrainingConfig
from small_images import OPTIONS, save_digits

COMMANDS = tuple(EXAMPLES)
CLUSTER = ("cluster", "points.csv", "-k", "2", "--epochs", "1", "--starts", "1", "--no-report")
TRAIN = ("train", "small.npz", "--no-cache", "--no-report", *OPTIONS)
PREDICT = ("predict", "run", "points.csv")
ROWS = [(1.0, 2.0), (3.5, 4.0), (5.0, 0.5), (0.25, 7.0)]
CSV = "a,b\n" + "".join(f"{a},{b}\n" for a, b in ROWS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text(CSV)
    save_digits("small.npz", count=40)
    return tmp_path


@pytest.fixture
def run(folder):
    assert main([*CLUSTER, "--out", "run", "--quiet"]) == 0
    return folder / "run"


def complaint(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("coincide: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# Help


@pytest.mark.parametrize("command", ["--help", *(f"{command} --help" for command in COMMANDS)])
def test_help_is_light(command):
    """No numerical library may be loaded to print help: it would take seconds."""
    code = (
        f"import sys; from coincide.cli import main; assert main({command.split()!r}) == 0;"
        "print({'torch', 'numpy', 'sklearn', 'rich', 'pyarrow'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: coincide")
    assert run.stdout.endswith("set()\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_are_commands(command):
    lines = EXAMPLES[command].splitlines()
    assert 2 <= len(lines) <= 4
    for line in lines:
        words = shlex.split(line[line.index("coincide ") :].partition(">")[0].partition("|")[0])
        assert build_parser().parse_args(words[1:]).command == command


def helps():
    """Yield the command, the action and the help of every option that is shown."""
    commands = next(a.choices for a in build_parser()._actions if a.choices)
    for name, parser in commands.items():
        for action in parser._actions:
            if action.help != "==SUPPRESS==" and action.option_strings:
                yield name, action, action.help


def test_every_option_with_a_default_tells_it():
    for name, action, told in helps():
        if action.default not in (None, False, "==SUPPRESS=="):
            assert (
                f"(default: {action.default:g}" in told
                if isinstance(action.default, float)
                else f"(default: {action.default}" in told
            ), (name, action.option_strings)
        if action.choices and action.metavar:
            assert all(choice in told for choice in action.choices)


def test_defaults_and_choices_are_those_of_the_estimator():
    parameters = inspect.signature(CollisionClustering).parameters
    choices = {
        "objective": OBJECTIVES,
        "solver": SOLVERS,
        "network": tuple(NETWORKS),
        "init": ("auto", "random", "k-means"),
        "prior": PRIORS,
        "representation": ("auto", *REPRESENTATIONS),
        "scaling": ("auto", *SCALINGS),
    }
    for option in MODEL:
        assert option.default == parameters[option.name].default
        assert option.choices == choices.get(option.name)
        assert "(default: " in option.told
    # What is no option: a function, and those that have options of their own.
    left_out = {"n_clusters", "random_state", "callback"}
    assert parameters.keys() - {option.name for option in MODEL} == left_out


def test_every_setting_of_a_training_is_an_option():
    fields = {field.name for field in dataclasses.fields(ImageTrainingConfig)}
    options = {option.name: option for option in settings()}
    assert fields - options.keys() == {"n_clusters", "method_options"}
    assert all("(default: " in option.told for option in options.values())
    for method in METHODS:
        assert method in options["method"].told


def test_tables_that_keep_help_light_are_the_originals():
    assert tuple(coincide.methods.METHODS) == METHODS
    assert ("auto", *coincide.pseudolabels.SOLVERS) == SOLVERS
    assert tuple(coincide.pseudolabels.OBJECTIVES) == OBJECTIVES


# Names


@pytest.mark.parametrize("command", ["cluster", "train"])
@pytest.mark.parametrize("name", ALIASES)
def test_the_other_name_of_an_option_works_silently(command, name):
    parse = build_parser().parse_args
    assert parse([command, "x", name, "3"]) == parse([command, "x", ALIASES[name], "3"])
    assert parse([command, "x", name, "3"]) != parse([command, "x"])
    shown = [action for c, action, _ in helps() if c == command and name in action.option_strings]
    assert len(shown) == 1
    assert ALIASES[name] not in shown[0].option_strings


@pytest.mark.parametrize(
    ("given", "close"),
    [
        ("clutser digits", "'cluster'"),
        ("cluster digits --solver interior-pont", "'interior-point'"),
        ("cluster digits --objective CCE", "'cce'"),
        ("cluster digits --init kmeans", "'k-means'"),
        ("cluster digits --scaling unitnorm", "'unit-norm'"),
        ("cluster digits --format parket", "'parquet'"),
        ("train digits --optimizer adamm", "'adam'"),
        ("train digits --schedule cosin", "'cosine'"),
        ("train digits --precision float", "'float32'"),
        ("train digits --log tensorbord", "'tensorboard'"),
        ("train digits --method colision", "'collision'"),
        ("completion bsh", "'bash'"),
        ("cluster digits --colums a", "'--columns'"),
        ("train digits --epoch=3", "'--epochs'"),
        ("predict run x --overwrit", "'--overwrite'"),
    ],
)
def test_a_wrong_word_is_refused_with_the_closest(capsys, given, close):
    assert f"Did you mean {close}?" in complaint(capsys, *given.split())


def test_usage_errors_are_one_line(capsys):
    assert "see coincide --help" in complaint(capsys, "clutser", "digits")
    assert "see coincide cluster --help" in complaint(capsys, "cluster")
    both = complaint(capsys, "cluster", "digits", "-q", "-v")
    assert "not allowed with argument" in both


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"coincide {coincide.__version__}\n"


def test_debug_shows_the_traceback():
    for words in (["cluster", "x.npy", "-k", "2", "--debug"], ["--debug", "cluster", "x.npy"]):
        with pytest.raises(ValueError, match="does not exist"):
            main(words)


# What is said, and where


@pytest.mark.parametrize(
    "command",
    [(*CLUSTER, "--out", "new"), (*TRAIN, "--out", "new"), ("report", "run")],
    ids=["cluster", "train", "report"],
)
def test_json_of_a_run_is_its_metrics_its_folder_and_its_files(folder, run, capsys, command):
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    where = folder / told.pop("folder")
    files = {folder / name for name in told.pop("files")}
    metrics = where / "metrics.json"
    assert files >= {metrics} if "new" in command else files == {where / "report.html"}
    assert all(file.is_file() for file in files)
    assert told == json.loads(metrics.read_text())
    assert "wrote" in printed.err


def test_json_of_a_finished_training_that_is_resumed(folder, capsys):
    told = []
    for options in ((), ("--resume",)):
        assert main([*TRAIN, "--out", "new", "--json", "-q", *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert set(told[0].pop("files")) <= set(told[1].pop("files"))
    assert told[0] == told[1]


def test_json_of_a_prediction_and_of_the_installation(run, capsys):
    capsys.readouterr()
    assert main([*PREDICT, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["files"] == ["run/predictions.csv"]
    assert sum(told["cluster_sizes"]) == len(ROWS)
    assert "mean confidence" in printed.err
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["coincide"] == coincide.__version__
    assert told["methods"] == list(METHODS)


@pytest.mark.parametrize(
    "given",
    ["cluster absent.npy", "cluster", "clutser", "train absent.npz", "predict absent points.csv",
     "report absent", "cluster points.csv --out -", "info --nothing"],
)  # fmt: skip
def test_an_error_is_an_object_too(capsys, given):
    assert main([*given.split(), "--json"]) == 2
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told.keys() == {"error"}
    assert printed.err == f"coincide: error: {told['error']}\n"


def test_a_stop_is_an_object_too(capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(CollisionClustering, "fit", stop)
    assert main([*CLUSTER, "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"error": "stopped."}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (CLUSTER, ["batch_size", "scaling", "device", "seconds of write"]),
        (TRAIN, ["batch_size", "revive", "device", "seconds of training"]),
    ],
    ids=["cluster", "train"],
)
def test_verbose_prints_what_was_decided_and_timings(folder, capsys, command, words):
    for number, (flag, said) in enumerate([("-v", True), ("--verbose", True), ("--debug", False)]):
        assert main([*command, flag, "--out", f"run{number}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(any(line.startswith(word) for line in lines) == said for word in words)
        assert not any(line.endswith(" auto") for line in lines if "batch_size" in line)


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_prints_nothing(run, capsys, flag):
    capsys.readouterr()
    for command in ((*CLUSTER, "--overwrite"), PREDICT, ("report", "run")):
        assert main([*command, flag]) == 0
        assert capsys.readouterr().out == ""


def test_a_verbose_prediction_prints_what_it_read_and_timings(run, capsys):
    for flag, said in (("-v", True), ("--debug", False)):
        capsys.readouterr()
        assert main([*PREDICT, flag]) == 0
        lines = capsys.readouterr().out.splitlines()
        for word in ("input ", "seconds of read", "seconds of predict", "seconds of write"):
            assert any(line.startswith(word) for line in lines) == said


# Standard input and output


def as_parquet():
    table = pa.table({"a": [row[0] for row in ROWS], "b": [row[1] for row in ROWS]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.fixture
def pipe(monkeypatch):
    """Return a function that puts bytes on standard input."""

    def put(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


@pytest.mark.parametrize(
    "data",
    [CSV.encode(), gzip.compress(CSV.encode()), as_parquet()],
    ids=["csv", "gzip", "parquet"],
)
def test_standard_input_is_a_source(folder, run, pipe, data):
    pipe(data)
    assert main(["cluster", "-", *CLUSTER[2:], "--quiet"]) == 0
    found = folder / "coincide-stdin"
    assert (found / "labels.csv").read_text() == (run / "labels.csv").read_text()
    metrics = json.loads((found / "metrics.json").read_text())
    assert metrics["source"]["name"] == "stdin"
    assert metrics["source"]["columns"] == ["a", "b"]
    pipe(data)
    assert main(["predict", "run", "-", "--quiet"]) == 0
    assert (run / "predictions.csv").read_text() == (run / "labels.csv").read_text()


def test_another_stream_is_another_source(pipe, capsys):
    pipe(CSV.encode())
    assert main(["cluster", "-", *CLUSTER[2:], "--quiet"]) == 0
    pipe(CSV.encode())
    assert "another command or source" in complaint(capsys, "cluster", "-", *CLUSTER[2:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "standard input is empty"),
        (b"a,b\n1,x\n", "'b'"),
        (b"a,b\n1,2\n3\n", "Row 3 of standard input has 1 cells"),
        (b"a,b\n1,nan\n2,3\n", "Column 'b' of standard input has no value in row 0"),
        (b"PAR1 and no more", "standard input"),
        (gzip.compress(CSV.encode())[:-9], "Standard input is gzip that is cut short"),
        (b"\x1f\x8b\x08 and no more", "Standard input is gzip that is cut short"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said_of_it(pipe, capsys, data, words):
    pipe(data)
    error = complaint(capsys, "cluster", "-", "-k", "2")
    assert words in error
    assert "/tmp" not in error


def test_images_are_not_read_from_standard_input(folder, capsys):
    assert "Images cannot be read from standard input" in complaint(capsys, "train", "-")
    assert main([*TRAIN, "--out", "images", "-q"]) == 0
    error = complaint(capsys, "predict", "images", "-")
    assert "Images cannot be read from standard input" in error


def test_predictions_go_to_standard_output(run, capsys):
    capsys.readouterr()
    assert main([*PREDICT, "--out", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (run / "labels.csv").read_text()
    assert "mean confidence" in printed.err
    assert {path.name for path in run.parent.iterdir()} == {"run", "points.csv", "small.npz"}
    assert main([*PREDICT, "--out", "-", "--json"]) == 2
    assert "leave one out" in json.loads(capsys.readouterr().out)["error"]


# Completion

BASH = """
eval "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_coincide
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { }
eval "$SCRIPT"
compadd() { shift; for word in "$@"; do [[ $word == ${words[-1]}* ]] && print -r -- $word; done }
_files() { }
words=("$@"); CURRENT=$#
_coincide
"""
FISH = (
    'echo "$SCRIPT" | source; complete -C (string join " " -- $argv) | string replace -r "\\t.*" ""'
)
RUNS = {
    "bash": ["bash", "-c", BASH, "-"],
    "zsh": ["zsh", "-fc", ZSH, "-"],
    "fish": ["fish", "--no-config", "-c", FISH],
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("cl", {"cluster"}),
        ("cluster --solv", {"--solver"}),
        ("cluster digits --solver ", set(SOLVERS)),
        ("cluster digits --solver in", {"interior-point"}),
        ("train digits --method s", {"sela", "scan", "simclr"}),
        ("train digits --max-ep", set()),
        ("predict run x --overw", {"--overwrite"}),
        ("completion ", set(SHELLS)),
    ],
)
def test_shells_complete(shell, typed, expected, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    words = ["coincide", *typed.split(" ")]
    run = subprocess.run(
        [*RUNS[shell], *words],
        env={"SCRIPT": script, "PATH": "/usr/bin:/bin", "HOME": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    assert set(run.stdout.split()) == expected
