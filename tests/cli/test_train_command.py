"""``coincide train`` and ``predict`` on images: what they write, and what they refuse, and how."""

import csv
import os
import platform
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from coincide.cli import main
from coincide.cli import train as train_module
from coincide.data.images import read_images
from coincide.methods import METHODS
from coincide.training.images.model import load_image_model
from coincide.training.ranks import Ranks
from photos import odd_folder, photo, save
from small_images import (
    OPTIONS,
    TINY,
    assert_same_weights,
    digits,
    log_of,
    metrics_of,
    one_thread,
    save_digits,
    train,
    training,
)

RUN_FILES = {
    "gallery",
    "labels.csv",
    "log.jsonl",
    "metrics.json",
    "model.json",
    "model.safetensors",
    "projection.csv",
}
TIMEOUT = 90  # seconds, for a machine that is busy with other things


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder with a file of images."""
    monkeypatch.chdir(tmp_path)
    save_digits("small.npz")
    return tmp_path


@pytest.fixture
def run(folder):
    assert train("--probabilities") == 0
    return folder / "run"


@pytest.fixture
def fails(capsys):
    """Return a function that runs a command in vain and returns its one line of complaint."""

    def complaint(command, *arguments):
        capsys.readouterr()
        assert command(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("coincide: error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return complaint


def names(folder):
    return {path.name for path in folder.iterdir()}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities_of(path):
    return np.array([[float(row[f"p{k}"]) for k in range(10)] for row in rows_of(path)])


# What a run writes


def test_train_writes_the_run(run):
    assert names(run) == RUN_FILES
    assert train("--overwrite", report=True) == 0
    assert names(run) == RUN_FILES | {"report.html"}
    assert train("--probabilities", "--overwrite") == 0
    assert names(run) == RUN_FILES
    rows = rows_of(run / "labels.csv")
    assert [int(row["row"]) for row in rows] == list(range(120))
    model = load_image_model(run, device="cpu")
    probabilities = model.predict_proba(digits().images)
    np.testing.assert_allclose(probabilities_of(run / "labels.csv"), probabilities, rtol=1e-6)
    assert [int(row["cluster"]) for row in rows] == probabilities.argmax(1).tolist()


def test_the_command_is_the_training_of_python(run):
    expected = training(view="auto").fit()
    model = load_image_model(run, device="cpu")
    assert_same_weights(model.network.state_dict(), expected.network.state_dict())


def test_metrics_say_what_was_done(run):
    metrics = metrics_of(run)
    assert metrics["command"][:3] == ["coincide", "train", "small.npz"]
    assert metrics["source"]["name"] == "small"
    assert metrics["source"]["rows"] == 120
    assert metrics["source"]["image_shape"] == [1, 8, 8]
    assert metrics["training"]["method"] == "collision"
    assert {name: metrics["training"][name] for name in TINY} == TINY
    assert metrics["model"]["n_clusters"] == 10
    assert sum(metrics["cluster_sizes"]) == 120
    assert metrics["n_epochs"] == len(metrics["history"]) == 2
    assert metrics["starts"] == []
    assert "known_labels" not in metrics
    assert set(metrics["scores"]) >= {"accuracy", "nmi", "ari"}
    assert set(metrics["timings"]) == {"read", "fit", "write"}
    assert 0 < sum(metrics["phases"].values()) <= metrics["timings"]["fit"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_only_its_name_changed(folder, method):
    assert train("--method", method, report=True) == 0
    assert names(folder / "run") == RUN_FILES | {"report.html"}
    assert metrics_of(folder / "run")["training"]["method"] == method
    page = (folder / "run" / "report.html").read_text()
    assert 'class="gallery' in page
    assert page.count("data:image/png;base64,") >= 1
    assert len(rows_of(folder / "run" / "labels.csv")) == 120
    load_image_model(folder / "run")


def test_the_log_has_one_line_of_json_an_epoch(folder):
    options = ("--starts", "4", "--pretext-epochs", "2", "--epochs", "4")
    assert train(*options) == 0
    lines = log_of(folder / "run")
    assert [line["pretext"] for line in lines] == [True] * 2 + [False] * 8
    of_start = [(line["seed"], line["epoch"]) for line in lines[2:]]
    assert of_start[:4] == [(seed, 0) for seed in range(4)]
    assert [epoch for _, epoch in of_start[4:]] == [1, 1, 2, 3]
    last = of_start[-1][0]
    history = [line for line in lines[2:] if line["seed"] == last]
    recorded = metrics_of(folder / "run")["history"]
    assert [line["loss"] for line in history] == [record["loss"] for record in recorded]
    assert all(len(line["signs"]) == 0 for line in lines[:-2])


def test_an_earlier_run_is_replaced_only_when_asked(run, fails):
    before = (run / "model.safetensors").read_bytes()
    assert "--overwrite" in fails(train, "--seed", "1")
    assert (run / "model.safetensors").read_bytes() == before
    assert train("--seed", "1", "--overwrite") == 0
    assert names(run) == RUN_FILES
    assert (run / "model.safetensors").read_bytes() != before
    assert len(log_of(run)) == 2


def test_without_out_the_folder_has_the_name_of_the_source(folder):
    for seed in ("0", "1"):
        assert main(["train", "small.npz", *DEFAULT, *OPTIONS, "--seed", seed]) == 0
        assert metrics_of(folder / "coincide-small")["seed"] == int(seed)
    assert names(folder / "coincide-small") == RUN_FILES


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DEFAULT = ("--quiet", "--no-report")
TRAIN = ("train", "small.npz", "--no-cache", *DEFAULT, *OPTIONS)
CLUSTER = ("cluster", "small.csv", "-k", "2", "--epochs", "1", "--starts", "1", *DEFAULT)
OTHER = {
    "train": ("train", "other/small.npz", "--no-cache", *DEFAULT, *OPTIONS),
    "cluster": ("cluster", "other/small.csv", *CLUSTER[2:]),
}


@pytest.fixture
def sources(folder):
    """Write two sources of one name in two folders, of images and of vectors."""
    (folder / "other").mkdir()
    save_digits("other/small.npz")
    for name in ("small.csv", "other/small.csv"):
        (folder / name).write_text("a,b\n1,2\n3,4\n5,0\n")
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TRAIN, CLUSTER),
        (CLUSTER, TRAIN),
        (TRAIN, OTHER["train"]),
        (CLUSTER, OTHER["cluster"]),
        (TRAIN, (*TRAIN, "--split", "training")),
        (CLUSTER, ("cluster", "-", *CLUSTER[2:], "--out", "coincide-small")),
    ],
    ids=[
        *("clustered after", "trained after", "other images", "other vectors"),
        *("another split", "by its name"),
    ],
)
def test_the_default_folder_keeps_a_run_of_anything_else(sources, fails, first, second):
    assert main([*first]) == 0
    before = contents(sources / "coincide-small")
    error = fails(lambda: main([*second]))
    assert "--overwrite" in error
    assert "--out" in error
    assert contents(sources / "coincide-small") == before
    assert main([*first]) == 0


@pytest.mark.parametrize("command", [TRAIN, CLUSTER, (*TRAIN, "--out", "coincide-small")])
def test_an_unfinished_training_is_kept_wherever_it_is(sources, fails, monkeypatch, command):
    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "_write", cut)
        assert main([*TRAIN]) == 130
    before = contents(sources / "coincide-small")
    assert any(path.suffix == ".safetensors" for path in before)
    error = fails(lambda: main([*command]))
    assert "holds an unfinished training" in error
    assert ("--resume" in error) == (command[0] == "train")
    assert contents(sources / "coincide-small") == before
    assert main([*command, "--overwrite"]) == 0


def test_overwriting_removes_all_of_the_earlier_run_and_nothing_else(sources, written):
    assert main([*TRAIN, "--keep-checkpoints", "--log", "tensorboard"]) == 0
    run = sources / "coincide-small"
    (run / "tensorboard").mkdir(exist_ok=True)
    (run / "tensorboard" / "events.out.tfevents.1.host").write_text("")
    assert names(run) == RUN_FILES | {"checkpoints", "tensorboard"}
    kept = {run / "notes.txt", run / "gallery" / "notes.txt", run / "checkpoints" / "notes.txt"}
    for path in kept:
        path.write_text("mine")
    assert main([*CLUSTER, "--overwrite"]) == 0
    of_clustering = {"labels.csv", "metrics.json", "model.json", "model.safetensors"}
    found = {path for path in run.rglob("*") if path.is_file()}
    assert found == kept | {run / name for name in of_clustering | {"projection.csv"}}


def test_what_is_printed(folder, capsys):
    options = [*OPTIONS, "--learning-rate", "1e-12", "--no-revive"]
    assert main(["train", "small.npz", "--out", "run", *options]) == 0
    printed = capsys.readouterr()
    for part in ("rows", "clusters", "loss", "seconds", "training", "ACC", "wrote run/"):
        assert part in printed.out
    warnings = printed.err.splitlines()
    assert all(line.startswith("coincide: warning: ") for line in warnings)
    assert any("The loss did not fall" in line for line in warnings)


def test_options_of_output(folder):
    assert train("--format", "parquet", "--probabilities") == 0
    assert names(folder / "run") == (RUN_FILES - {"labels.csv"}) | {"labels.parquet"}
    table = pq.read_table(folder / "run" / "labels.parquet")
    assert table.num_rows == 120
    assert main(["report", "run"]) == 0
    assert (folder / "run" / "report.html").is_file()


# SimCLR, and starting from it


def test_simclr_says_that_its_clusters_mean_nothing_and_gives_its_backbone(folder, capsys):
    assert train("--method", "simclr", out="first") == 0
    assert "--start-from first" in capsys.readouterr().err
    metrics = metrics_of(folder / "first")
    assert any("clusters mean nothing" in warning for warning in metrics["warnings"])
    assert metrics["signs"] == []
    still = ("--start-from", "first", "--learning-rate", "1e-30", "--weight-decay", "0")
    assert train(*still, "--method", "scan", out="next") == 0
    first, following = (
        load_file(folder / name / "model.safetensors") for name in ("first", "next")
    )
    backbone = {
        name: tensor
        for name, tensor in first.items()
        if name.startswith("network.backbone.") and name.endswith((".weight", ".bias"))
    }
    assert len(backbone) >= 4
    for name, tensor in backbone.items():
        torch.testing.assert_close(following[name], tensor)


def test_simclr_with_classes_has_clusters_that_mean_something(folder, capsys):
    assert train("--method", "simclr", "--labeled-fraction", "0.5") == 0
    assert "mean nothing" not in capsys.readouterr().err


def test_weights_to_start_from_must_fit(folder, run, fails):
    assert "no saved model" in fails(train, "--start-from", "nowhere", "--overwrite")
    for options in (("--network", "small-conv"), ("--image-size", "6")):
        error = fails(train, "--start-from", "run", "--overwrite", *options)
        assert "not those of this network" in error
    (folder / "vectors").mkdir()
    assert main(["cluster", "digits", "--out", "vectors", "--quiet", "--epochs", "1"]) == 0
    assert "model" in fails(train, "--start-from", "vectors", "--overwrite")


# A few labels


def test_labels_beside_blanks_are_used(folder):
    labels = digits().labels.copy()
    labels[30:] = -1
    save_digits("some.npz", labels=labels)
    options = ("--epochs", "30", "--known-weight", "20")
    assert train(*options, source="some.npz", report=True) == 0
    metrics = metrics_of(folder / "run")
    assert metrics["known_labels"] == 30
    assert metrics["scores"]["accuracy"] > 0.9
    assert sum(sum(row) for row in metrics["confusion"]["counts"]) == 30
    assert "knew the classes" in (folder / "run" / "report.html").read_text()


def test_a_folder_unlabeled_has_no_classes(folder):
    images, labels = digits().images, digits().labels
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = "unlabeled" if row % 2 else f"class {label}"
        save(Image.fromarray(image[0]), folder / "sorted" / place / f"{row}.png")
    assert train(source="sorted") == 0
    metrics = metrics_of(folder / "run")
    assert metrics["known_labels"] == 60
    assert metrics["model"]["n_clusters"] == 10
    assert names(folder / "run") == RUN_FILES
    rows = rows_of(folder / "run" / "labels.csv")
    named = [row["image"] for row in rows]
    # Known classes keep their clusters.
    assert all(row["class"] == f"class {row['cluster']}" for row in rows)
    assert len(named) == 120
    assert [name.startswith("unlabeled/") for name in named] == [True] * 60 + [False] * 60
    assert len(rows_of(folder / "run" / "labels.csv")) == 120


def test_a_share_of_the_labels_is_used_when_asked_for(folder):
    assert train("--labeled-fraction", "0.1") == 0
    assert metrics_of(folder / "run")["known_labels"] == sum(
        max(1, round(0.1 * count)) for count in np.bincount(digits().labels)
    )


def test_complete_labels_change_nothing_but_the_scores(folder):
    shuffled = np.random.default_rng(0).permutation(digits().labels)
    save_digits("shuffled.npz", labels=shuffled)
    save_digits("nameless.npz", labels=False)
    assert train("--epochs", "10", out="true") == 0
    assert train("--epochs", "10", source="shuffled.npz", out="shuffled") == 0
    assert train("--epochs", "10", "-k", "10", source="nameless.npz", out="nameless") == 0
    runs = [folder / name for name in ("true", "shuffled", "nameless")]
    models = [load_file(run / "model.safetensors") for run in runs]
    for model in models[1:]:
        assert_same_weights(model, models[0])
    rows = [rows_of(run / "labels.csv") for run in runs]
    assert all(row.pop("class") for run in rows[:2] for row in run)  # matched, and named
    assert rows[0] == rows[1] == rows[2]
    metrics = [metrics_of(run) for run in runs]
    assert metrics[0]["history"] == metrics[1]["history"] == metrics[2]["history"]
    assert metrics[0]["scores"]["nmi"] > metrics[1]["scores"]["nmi"]
    assert "scores" not in metrics[2]


# Odd images


def test_odd_photos_train_and_what_could_not_be_read_is_named(folder, capsys):
    odd_folder(folder / "photos")
    assert train("-k", "3", "--pretext-epochs", "1", source="photos") == 0
    warning = capsys.readouterr().err
    assert "Not read: " in warning
    metrics = metrics_of(folder / "run")
    skipped = dict(metrics["skipped"])
    assert skipped.keys() == {"17.png", "18.png", "19.jpg", "20.txt"}
    assert all(reason for reason in skipped.values())
    assert metrics["source"]["rows"] == 16
    assert any("and 3 more" in note for note in metrics["warnings"])
    assert len({row["image"] for row in rows_of(folder / "run" / "labels.csv")}) == 16


def test_photos_of_which_none_can_be_read_are_refused_with_reasons(folder, fails):
    for number in range(3):
        save(photo(20, 20), folder / "photos" / f"{number}.png").write_text("a letter")
    error = fails(lambda: train("-k", "2", source="photos"))
    assert "None of 3 images in photos can be read: 0.png (" in error


def test_one_folder_is_no_class(folder, fails):
    for number in range(4):
        save(photo(20, 20, seed=number), folder / "photos" / "cat" / f"{number}.png")
    assert "say how many clusters (-k" in fails(lambda: train(source="photos"))
    assert train("-k", "2", source="photos") == 0


def test_constant_images_are_refused(folder, fails):
    np.save("constant.npy", np.full((10, 8, 8), 7, np.uint8))
    assert "All pixels of constant are equal" in fails(
        lambda: train("-k", "2", source="constant.npy")
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("-k", "1"), ">= 2. Got 1"),
        (("-k", "121"), "at most the number of images, 120. Got 121"),
        (("--method", "colision"), "Did you mean 'collision'?"),
        (("--network", "small-con"), "Did you mean 'small-conv'?"),
        (("--network", "mynets.py:build"), "mynets.py"),
        (("--view", "afine"), "Did you mean 'affine'?"),
        (("--set", "n_view=3"), "Did you mean 'n_views'?"),
        (("--set", "n_views"), "is not NAME=VALUE"),
        (("--lerning-rate", "1"), "--lerning-rate"),
        (("--learning-rate", "1e6", "--optimizer", "sgd"), "Try a smaller learning_rate."),
        (("-k", "5", "--labeled-fraction", "0.1"), "classes that are known, 10. Got 5"),
        (("--split", "test"), "no split 'test'"),
        (("--set", "n_neighbors=500"), "below the number of rows, 120"),
        (("--batch-size", "1"), "larger batch_size"),
        (("--device", "gpu"), "'device'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(folder, capsys, arguments, match):
    assert train(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("coincide: error: ")
    assert match in error
    assert not (folder / "run" / "metrics.json").exists()


def test_a_choice_in_which_every_start_diverges_ends_in_one_line(folder, fails):
    options = ("--learning-rate", "1e6", "--optimizer", "sgd", "--starts", "4")
    assert "Try a smaller learning_rate." in fails(train, *options)
    # What was begun is not taken for a run, and does not stand in the way of the next one.
    assert train("--overwrite") == 0


# Logs elsewhere


PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@pytest.mark.parametrize("command", ["train", "cluster"])
@pytest.mark.parametrize("kind", PACKAGES)
def test_a_log_without_its_package_says_how_to_install_it(
    folder, fails, monkeypatch, kind, command
):
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    # Before the source is looked for, even.
    assert f"pip install {kind}." in fails(lambda: main([command, "absent.npy", "--log", kind]))


class Recorder:
    """Stands for the module of a log, and for what it hands out; keeps what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        def take(*values, **named):
            self.told.append((name, *values, *named.values()))
            return self

        return take

    def of(self, name):
        return [values for called, *values in self.told if called == name]


@pytest.fixture
def written(monkeypatch):
    """Return what is written to logs whose packages are not there."""
    recorder = Recorder()
    for module in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, recorder)
    return recorder


def told_by(kind, recorder):
    """Return the losses that a log was told, with their epochs, and how it began and ended."""
    if kind == "tensorboard":
        ((place,),) = recorder.of("SummaryWriter")
        losses = [(value, epoch) for name, value, epoch in recorder.of("add_scalar")
                  if name.startswith("loss/start-")]  # fmt: skip
        return losses, Path(place).name, recorder.of("close")
    if kind == "wandb":
        ((project, _, settings),) = recorder.of("init")
        assert settings["n_clusters"] > 1
        told = [numbers for (numbers,) in recorder.of("log")]
        return [(one["loss"], one["epoch"]) for one in told], project, recorder.of("finish")
    ((experiment,),) = recorder.of("set_experiment")
    ((settings,),) = recorder.of("log_params")
    assert settings["n_clusters"] > 1
    losses = [
        (value, epoch)
        for numbers, epoch in recorder.of("log_metrics")
        for name, value in numbers.items()
        if name.startswith("loss/start-")
    ]
    return losses, experiment, recorder.of("end_run")


@pytest.mark.parametrize("command", [TRAIN, CLUSTER], ids=["train", "cluster"])
@pytest.mark.parametrize("kind", PACKAGES)
def test_a_log_gets_the_numbers_of_every_epoch_and_is_closed(sources, written, kind, command):
    assert main([*command, "--log", kind]) == 0
    history = metrics_of(sources / "coincide-small")["history"]
    losses, place, ends = told_by(kind, written)
    assert losses == [(record["loss"], epoch) for epoch, record in enumerate(history)]
    assert place == ("tensorboard" if kind == "tensorboard" else "coincide")
    assert len(ends) == 1


# New images


def predict(*arguments):
    return main(["predict", "run", *(str(argument) for argument in arguments), "--quiet"])


def test_the_same_images_get_the_same_probabilities(run):
    assert predict("small.npz", "--probabilities") == 0
    assert (run / "predictions.csv").read_text() == (run / "labels.csv").read_text()


def test_new_images_are_labeled(run, folder):
    images = read_images("digits").images
    np.save("new.npy", images[120:180])
    assert predict("new.npy", "--probabilities", "--out", "new.csv") == 0
    found = probabilities_of(folder / "new.csv")
    expected = load_image_model(run, device="cpu").predict_proba(images[120:180])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_images_of_another_size_and_color_are_made_to_fit(run, folder, monkeypatch):
    grey = digits().images[:20, 0]
    large = np.repeat(np.repeat(grey, 3, axis=1), 3, axis=2)
    np.save("large.npy", np.stack([large] * 3, axis=-1))
    assert predict("large.npy", "--probabilities", "--out", "large.csv") == 0
    found = probabilities_of(folder / "large.csv")
    cut = read_images("large.npy", image_size=8, channels=1).images
    expected = load_image_model(run, device="cpu").predict_proba(cut)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Enlarged and made smaller again, an image is nearly itself.
    assert np.abs(found - probabilities_of(run / "labels.csv")[:20]).mean() < 0.02
    for number, image in enumerate(large[:5]):
        save(Image.fromarray(image), folder / "photos" / f"{number}.png")
    (folder / "photos" / "bad.png").write_text("a letter")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert predict("photos", "--out", "photos.csv") == 0
    assert len(rows_of(folder / "photos.csv")) == 5


def test_prediction_says_how_well_it_fits_the_labels(run, capsys):
    assert main(["predict", "run", "small.npz"]) == 0
    assert "ACC" in capsys.readouterr().out


def test_a_network_of_ones_own_is_given_again(folder, fails):
    (folder / "mynets.py").write_text(
        "from torch import nn\n"
        "def build(n_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(n_channels * image_size ** 2, 9))\n"
    )
    own = ("--network", "mynets.py:build")
    assert train(*own) == 0
    error = fails(lambda: predict("small.npz"))
    assert "give it again (--network)" in error
    assert predict("small.npz", *own) == 0
    labels, predictions = ((folder / "run" / f"{n}.csv") for n in ("labels", "predictions"))
    assert predictions.read_text() == labels.read_text()
    assert train(*own, "--start-from", "run", out="next") == 0


# Two processes


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start_both(*arguments):
    """Start the command as torchrun would start it twice, each with a folder of its own."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    command = ["train", "small.npz", "--no-cache", *OPTIONS, *arguments]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "coincide", *command, "--out", f"rank{rank}"],
            env={**os.environ, **meeting, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def ended(processes):
    try:
        said = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def test_two_processes_write_a_run_once(folder):
    options = ("--batch-size", "120", "--pretext-epochs", "1", "--probabilities")
    codes, said = ended(start_both(*options))
    assert codes == [0, 0], said
    assert "wrote rank0/" in said[0][0]
    assert said[1][0] == ""
    assert not (folder / "rank1").exists()
    assert names(folder / "rank0") == RUN_FILES | {"report.html"}
    lines = log_of(folder / "rank0")
    assert [(line["pretext"], line["epoch"]) for line in lines] == [
        (True, 0),
        (False, 0),
        (False, 1),
    ]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert len(rows_of(folder / "rank0" / "labels.csv")) == 120
    assert main(["predict", "rank0", "small.npz", "--quiet", "--probabilities"]) == 0
    written = ("predictions.csv", "labels.csv")
    predictions, labels = (probabilities_of(folder / "rank0" / name) for name in written)
    np.testing.assert_allclose(predictions, labels, atol=1e-6)


class Pair(Ranks):
    """The first of two processes, of which the other is asked to stop after its third epoch."""

    size = 2
    epochs = 0

    def least(self, value):
        self.epochs += 1
        return min(value, -1.0 if self.epochs == 3 else 0.0)


def test_processes_stop_when_any_of_them_is_asked_to(folder, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "join_ranks", lambda device: nullcontext(Pair()))
    assert train("--method", "mi", "--epochs", "6") == 130
    assert "--resume takes it up again" in capsys.readouterr().err
    assert len(log_of(folder / "run")) == 3
    assert train("--method", "mi", "--epochs", "6", "--resume") == 130
    assert [line["epoch"] for line in log_of(folder / "run")] == list(range(6))
    assert train("--method", "mi", "--epochs", "6", "--resume") == 0
    assert names(folder / "run") == RUN_FILES


def test_a_training_of_two_processes_is_not_taken_up_by_one(folder, monkeypatch, fails):
    with monkeypatch.context() as patched:
        patched.setattr(train_module, "join_ranks", lambda device: nullcontext(Pair()))
        assert train("--method", "mi", "--epochs", "6") == 130
    error = fails(train, "--method", "mi", "--epochs", "6", "--resume")
    assert "processes = 2, not 1" in error


# The memory that the process keeps


# Of a block of 64 MiB, above all that glibc keeps by itself, taken and freed again and again.
FAULTS = """
import resource
from coincide.cli.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed_memory()
faults()  # until the heap has room for it
print(before, faults())
"""
OWN = ("MALLOC_", "GLIBC_TUNABLES")


def faults(**settings):
    """Return the page faults before and after the call, in a process of its own."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(OWN)} | settings
    run = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, printed.stdout.split())
    return before, after


def test_freed_memory_is_kept():
    before, after = faults()
    if platform.libc_ver()[0] == "glibc":
        assert after < before / 10


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_own_settings_of_the_allocator_stay(name):
    before, after = faults(**{name: "glibc.malloc.arena_max=2" if name[0] == "G" else "2"})
    assert after > before / 2
