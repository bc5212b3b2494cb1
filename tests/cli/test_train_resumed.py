"""A training on images that is stopped or killed ends, taken up again, as if never disturbed."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coincide.cli import main
from coincide.cli import train as train_module
from coincide.cli.resume import digest
from coincide.training.checkpoint import Checkpoints
from coincide.training.images import ImageTraining
from photos import photo, save
from small_images import (
    OPTIONS,
    assert_same_run,
    assert_same_weights,
    digits,
    log_of,
    metrics_of,
    one_thread,
    save_digits,
    train,
    training,
)

CUTS = 20
STOPPED = "coincide: stopped, and saved: the same command with --resume takes it up again."
TIMEOUT = 90  # seconds, for a machine that is busy with other things
CHOICE = {"starts": 4, "pretext_epochs": 1, "max_epochs": 5}
COLLISION = {"n_neighbors": 3, "labeled_by": "views"}
TRAININGS = {
    "collision": {**CHOICE, "method_options": COLLISION},
    "teacher": {**CHOICE, "method_options": {"labeled_by": "teacher"}, "optimizer": "sgd"},
    "sela": {**CHOICE, "method": "sela"},
    "scan": {
        **CHOICE,
        "method": "scan",
        "method_options": {"n_neighbors": 5, "self_label_share": 0.5, "threshold": 0.1},
    },
    "iic": {"method": "iic", "starts": 2, "max_epochs": 8, "method_options": {"sub_heads": 2}},
    "imsat": {"method": "imsat", "starts": 2, "max_epochs": 8, "network": "small-conv"},
    "known": {**CHOICE, "labeled_fraction": 0.2, "accumulate": 2, "optimizer": "adamw"},
}


class Cut(Exception):  # noqa: N818
    """Raised in the middle of a training."""


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


# In Python, bit for bit


def cut_up(name, checkpoints, cuts):
    """Train, stopped after each of the steps of ``cuts`` and taken up from disk every time."""
    done, state = 0, None
    for cut in [*cuts, None]:
        running = training(**TRAININGS[name])
        if state is not None:
            running.restore(state)

        def on_step(record, running=running, cut=cut):
            nonlocal done
            done += 1
            if done == cut:
                checkpoints.save(done, *running.state())
                raise Cut

        torch.manual_seed(done + 1)  # whatever the process did before must not matter
        try:
            return running.fit(on_step=on_step)
        except Cut:
            state = checkpoints.latest()
    raise AssertionError("the training has fewer steps than that")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_cut_at_twenty_random_steps_goes_on_bit_for_bit(name, tmp_path):
    steps = []
    whole = training(**TRAININGS[name]).fit(on_step=lambda record: steps.append(record.loss))
    generator = random.Random(name)
    cuts = sorted(generator.sample(range(1, len(steps) + 1), CUTS))
    assert_same_run(cut_up(name, Checkpoints(tmp_path), cuts), whole)


def test_a_training_cut_after_every_epoch_goes_on_bit_for_bit(tmp_path):
    whole = training(**TRAININGS["collision"]).fit()
    checkpoints, told, state = Checkpoints(tmp_path), [], None
    while True:
        running = training(**TRAININGS["collision"])
        if state is not None:
            running.restore(state)

        def on_epoch(record, signs, running=running):
            told.append(record)
            checkpoints.save(len(told), *running.state())
            raise Cut

        try:
            run = running.fit(on_epoch=on_epoch)
            break
        except Cut:
            state = checkpoints.latest()
    assert_same_run(run, whole)
    # 1 of the pretext, 4 and 2 in the choice, 3 more of the one that is left.
    assert len(told) == 1 + 4 + 2 + 3


def test_another_start_of_the_random_numbers_is_another_training():
    """Or the above would hold for anything."""
    ends = [training(**{**TRAININGS["collision"], "seed": seed}).fit() for seed in (0, 1)]
    assert not np.array_equal(ends[0].probabilities, ends[1].probabilities)


def test_what_the_guard_said_survives():
    def cut(record, signs):
        states.append(running.state())
        raise Cut

    states = []
    running = training(fairness=0.01, learning_rate=1e-9)
    with pytest.raises(Cut):
        running.fit(on_epoch=cut)
    assert running.signs
    resumed = training(fairness=0.01, learning_rate=1e-9)
    resumed.restore(states[0])
    assert resumed.signs == running.signs


def test_weights_to_start_from_survive_for_the_starts_that_are_not_built_yet():
    """Taken up without them, the later starts must still begin from them."""
    first = training().fit().network.backbone.state_dict()
    whole = training(initial=first, starts=2).fit()
    states = []

    def cut(record):
        states.append(running.state())
        raise Cut

    running = training(initial=first, starts=2)
    with pytest.raises(Cut):
        running.fit(on_step=cut)
    resumed = training(starts=2)
    resumed.restore(states[0])
    assert_same_run(resumed.fit(), whole)


def test_a_start_that_diverged_stays_lost():
    source, settings = digits(), {"starts": 2, "optimizer": "sgd", "learning_rate": 1e-2}
    states = []

    def spoil(record):
        """Spoil the first start in the last step but one of its round; cut in the second."""
        if running.starts.seed == 0 and record.step == 2:
            with torch.no_grad():
                running.starts.trainer.network.head.weight.fill_(torch.nan)
        if running.starts.seed == 1:
            states.append(running.state())
            raise Cut

    running = training(source, **settings)
    with pytest.raises(Cut):
        running.fit(on_step=spoil)
    resumed = training(source, **settings)
    resumed.restore(states[0])
    run = resumed.fit()
    assert [(start.seed, start.kept) for start in run.starts] == [(0, False), (1, True)]
    assert np.isnan(run.starts[0].loss)
    assert np.isfinite(run.probabilities).all()


# The command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits("small.npz")
    return tmp_path


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function after which a training is asked to stop once that many steps are done."""

    class Interruption:
        looks = 0

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        @property
        def requested(self):
            Interruption.looks += 1
            return Interruption.looks == self.after

    def after(steps):
        Interruption.looks, Interruption.after = 0, steps
        monkeypatch.setattr(train_module, "StopRequest", Interruption)

    return after


@pytest.fixture
def stopped(folder, interrupt):
    """A training that was stopped in its fifth step, the second of its second epoch."""
    interrupt(5)
    assert train() == 130
    return folder


def complaint(capsys, *arguments, **where):
    capsys.readouterr()
    assert train(*arguments, **where) == 2
    error = capsys.readouterr().err
    assert error.startswith("coincide: error: ")
    assert error.count("\n") == 1
    return error


def test_stopping_says_how_to_go_on(folder, interrupt, capsys):
    interrupt(5)
    assert train() == 130
    assert capsys.readouterr().err.splitlines()[-1] == STOPPED
    assert {path.name for path in (folder / "run").iterdir()} == {"checkpoints", "log.jsonl"}
    assert len(log_of(folder / "run")) == 1


def test_a_resumed_command_writes_what_the_undisturbed_one_does(stopped):
    assert train("--resume") == 0
    assert train(out="whole") == 0
    run, whole = stopped / "run", stopped / "whole"
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    assert_same_weights(
        load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    )
    assert (run / "labels.csv").read_text() == (whole / "labels.csv").read_text()
    found, expected = metrics_of(run), metrics_of(whole)
    for part in ("history", "starts", "signs", "scores", "confusion", "n_epochs"):
        assert found[part] == expected[part]


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--learning-rate", "0.5"), "learning_rate = 0.001, not 0.5"),
        (("--set", "n_views=2"), "method_options"),
        (("--method", "sela"), "method = 'collision', not 'sela'"),
        (("-k", "7"), "n_clusters = 10, not 7"),
        (("--seed", "1"), "seed = 0, not 1"),
        (("--view", "none"), "view = 'auto', not 'none'"),
        (("--network", "linear"), "network = 'mlp', not 'linear'"),
        (("--epochs", "9"), "max_epochs = 2, not 9"),
        (("--labeled-fraction", "0.5"), "labeled_fraction"),
        (("--image-size", "6"), "[120, 1, 8, 8], not [120, 1, 6, 6]"),
    ],
)
def test_other_settings_are_refused_by_name(stopped, capsys, options, setting):
    before = (stopped / "run" / "log.jsonl").read_text()
    error = complaint(capsys, "--resume", *options)
    assert setting in error
    assert "begin anew with --overwrite instead of --resume" in error
    assert (stopped / "run" / "log.jsonl").read_text() == before
    assert train("--resume") == 0


def change_array(images=None, labels=None):
    """Return what writes the digits again, with some of them changed."""

    def change():
        source = digits()
        given = {} if images is None else {"images": images(source.images.copy())}
        save_digits("small.npz", labels=source.labels if labels is None else labels(source.labels))
        if given:
            np.savez(
                "small.npz", images=given["images"][:, 0], labels=np.load("small.npz")["labels"]
            )

    return change


def permute(rows):
    return np.roll(rows, 1, axis=0)


def change_one(rows):
    rows = rows.copy()
    rows[-1] = rows[0]
    return rows


def rename(old, new):
    return lambda: Path("photos", old).rename(Path("photos", new))


CHANGES = {
    "a pixel": ("small.npz", change_array(images=change_one), "other images"),
    "all pixels": ("small.npz", change_array(images=lambda images: 255 - images), "other images"),
    "the order": ("small.npz", change_array(images=permute, labels=permute), "other images"),
    "the labels": ("small.npz", change_array(labels=permute), "other labels"),
    "a class's name": ("photos", rename("cat", "cow"), "other names of the classes"),
    "an image's name": ("photos", rename("cat/1.png", "cat/1b.png"), "other names of the images"),
    "an image's class": ("photos", rename("cat/3.png", "dog/0.png"), "other labels"),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_other_contents_of_the_same_name_are_refused_by_part(folder, interrupt, capsys, changed):
    source, change, part = CHANGES[changed]
    for number in range(1, 7):
        place = "cat" if number < 4 else "dog"
        save(photo(8, 8, seed=number), folder / "photos" / place / f"{number}.png")
    interrupt(2)
    assert train(source=source) == 130
    change()
    assert part in complaint(capsys, "--resume", source=source)


def arrays():
    """Return an array, and others of the same bytes that are or are not the same."""
    rows = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    np.save("rows.npy", rows)
    same = [np.load("rows.npy", mmap_mode="r"), np.asfortranarray(rows), rows[::-1].copy()[::-1]]
    last = rows.copy()
    last[-1, -1, -1, -1] ^= 1
    other = [rows[::-1], rows[:-1], rows.reshape(7, 3, 2, 8), rows.view(np.int8), last]
    return rows, same, other


@pytest.mark.parametrize("block", [1, 100, 16 << 20])
def test_a_digest_is_of_every_byte_however_they_lie(folder, monkeypatch, block):
    monkeypatch.setattr("coincide.cli.resume._BLOCK_BYTES", block)
    rows, same, other = arrays()
    assert {digest(array) for array in same} == {digest(rows)}
    assert len({digest(array) for array in [rows, *other]}) == 1 + len(other)


def test_other_weights_to_start_from_are_refused(folder, interrupt, capsys):
    assert train("--method", "simclr", out="first") == 0
    interrupt(5)
    assert train("--start-from", "first") == 130
    for other in ((), ("--start-from", "second")):
        if other:
            assert train("--method", "simclr", "--seed", "1", out="second") == 0
        assert "other weights to start from" in complaint(capsys, "--resume", *other)
    # What counts is what it holds, not what it is called.
    (folder / "first").rename(folder / "renamed")
    assert train("--resume", "--start-from", "renamed") == 0


NETWORK = """
from torch import nn
def build(n_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_channels * image_size ** 2, 9), nn.ACTIVATION())
"""


@pytest.mark.parametrize("place", ["ownnet.py:build", "ownnet:build"])
def test_other_code_of_a_network_is_refused(folder, interrupt, capsys, monkeypatch, place):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)
    (folder / "ownnet.py").write_text(NETWORK.replace("ACTIVATION", "ReLU"))
    interrupt(5)
    assert train("--network", place) == 130
    (folder / "ownnet.py").write_text(NETWORK.replace("ACTIVATION", "Tanh"))
    assert "other code of its own network" in complaint(capsys, "--resume", "--network", place)
    (folder / "ownnet.py").write_text(NETWORK.replace("ACTIVATION", "ReLU"))
    assert train("--resume", "--network", place) == 0


@pytest.mark.parametrize("begun", [False, True], ids=["no folder", "a log without a checkpoint"])
def test_resume_begins_where_there_is_nothing_to_resume(folder, capsys, begun):
    if begun:
        (folder / "run").mkdir()
        (folder / "run" / "log.jsonl").write_text('{"epoch": 0}\n')
        assert "holds an unfinished training" in complaint(capsys)
    assert train("--resume") == 0
    assert "There is nothing to resume in run: the training begins." in capsys.readouterr().err
    assert train(out="whole") == 0
    assert_same_folder(folder / "run", folder / "whole")


@pytest.mark.parametrize("kept", [(), ("--keep-checkpoints",)])
def test_a_finished_training_is_not_trained_again(folder, capsys, monkeypatch, kept):
    assert train(*kept) == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    monkeypatch.setattr(ImageTraining, "fit", None)
    assert train("--resume", *kept) == 0
    assert "The training in run is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "part"), [(("--seed", "1"), "seed = 0, not 1"), (("--image-size", "6"), "images")]
)
def test_another_finished_training_is_refused_by_part(folder, capsys, options, part):
    assert train("--keep-checkpoints") == 0
    error = complaint(capsys, "--resume", *options)
    assert part in error
    assert "--overwrite" in error
    assert train("--resume", "--overwrite", *options) == 0
    assert train(*options, out="whole") == 0
    assert_same_folder(folder / "run", folder / "whole")


def test_a_number_of_clusters_is_chosen_once(folder, interrupt, monkeypatch):
    several = ("-k", "2,4", "--resume")
    assert train(*several, out="whole") == 0
    interrupt(5)
    assert train(*several) == 130
    monkeypatch.setattr(train_module, "compare_settings", None)
    for _ in ("taken up", "finished"):
        assert train(*several) == 0
    assert_same_folder(folder / "run", folder / "whole")
    found, expected = (metrics_of(folder / name)["candidates"] for name in ("run", "whole"))
    assert found == expected


def test_a_training_that_replaces_a_finished_one_is_taken_up(folder, interrupt, capsys):
    assert train() == 0
    interrupt(5)
    assert train("--overwrite", "--seed", "1") == 130
    assert "holds an unfinished training" in complaint(capsys, "--seed", "1")
    assert train("--resume", "--seed", "1") == 0
    assert train("--seed", "1", out="whole") == 0
    assert_same_folder(folder / "run", folder / "whole")


def test_a_stop_while_the_files_are_written_says_how_to_go_on(folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("coincide.cli.run.write_projection", stop)
        assert train() == 130
    assert capsys.readouterr().err.splitlines()[-1] == STOPPED
    assert train("--resume") == 0
    assert train(out="whole") == 0
    assert_same_folder(folder / "run", folder / "whole")


def test_where_the_files_cannot_be_written_the_training_is_kept(folder, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("coincide.cli.run.write_projection", full)
        assert train() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error
    assert "the same command with --resume writes it" in error
    with monkeypatch.context() as patched:
        patched.setattr("coincide.training.loop.Trainer.run_epoch", full)
        assert train("--resume") == 0
    assert train(out="whole") == 0
    assert_same_folder(folder / "run", folder / "whole")


def test_a_log_that_cannot_be_written_does_not_end_the_training(folder, capsys, monkeypatch):
    def full(self, mode="r", **options):
        opened = Path.__dict__["real_open"](self, mode, **options)
        if self.name == "log.jsonl" and mode == "a":
            opened.write('{"half')
            opened.close()
            raise OSError(28, "No space left on device")
        return opened

    monkeypatch.setattr(Path, "real_open", Path.open, raising=False)
    monkeypatch.setattr(Path, "open", full)
    assert train() == 0
    assert "An epoch is missing in run/log.jsonl" in capsys.readouterr().err
    assert (folder / "run" / "log.jsonl").read_text() == ""


@pytest.mark.parametrize("missing", ["head.weight", "num_batches_tracked", "generator"])
def test_a_checkpoint_of_another_training_loop_is_refused(stopped, capsys, missing):
    checkpoints = Checkpoints(stopped / "run" / "checkpoints")
    tensors, about = checkpoints.latest()
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(missing)}
    assert len(kept) < len(tensors)
    checkpoints.save(checkpoints.last_number() + 1, kept, about)
    assert "another version" in complaint(capsys, "--resume")


def test_a_checkpoint_without_settings_is_refused(stopped, capsys):
    checkpoints = Checkpoints(stopped / "run" / "checkpoints")
    tensors, _ = checkpoints.latest()
    checkpoints.save(checkpoints.last_number() + 1, tensors, {})
    error = complaint(capsys, "--resume")
    assert "no record of its settings" in error
    assert "give the same options" in error


def newest(folder):
    return max((folder / "run" / "checkpoints").glob("*.safetensors"))


def test_a_checkpoint_cut_short_is_passed_over_with_a_warning(stopped, capsys):
    path = newest(stopped)
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    assert train("--resume") == 0
    error = capsys.readouterr().err
    assert f"{path.name} is damaged" in error
    assert "Training goes on from the one before" in error
    assert train(out="whole") == 0
    models = [load_file(stopped / name / "model.safetensors") for name in ("run", "whole")]
    assert_same_weights(*models)
    # The epoch that was trained again stands in the log once.
    assert [line["epoch"] for line in log_of(stopped / "run")] == [0, 1]


def test_epochs_that_are_trained_again_are_logged_once(stopped):
    """As after a kill between the line of the log and the checkpoint, or a lost checkpoint."""
    log = stopped / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"epoch": 1, "loss": 3}\n{"epoch": 2, "lo')
    assert train("--resume") == 0
    assert [line["epoch"] for line in log_of(stopped / "run")] == [0, 1]


class Evil:
    """Pickled, it makes a file as soon as it is read."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_bytes(pickle.dumps(Evil())), lambda path: torch.save(Evil(), path)],
    ids=["pickle", "torch.save"],
)
def test_a_checkpoint_that_would_run_code_is_no_checkpoint(stopped, capsys, write):
    write(newest(stopped).with_name("checkpoint-000099.safetensors"))
    assert train("--resume", "--keep-checkpoints") == 0
    assert "checkpoint-000099.safetensors is damaged" in capsys.readouterr().err
    for path in (stopped / "run" / "checkpoints").iterdir():
        write(path)
    assert "No checkpoint in" in complaint(capsys, "--resume")
    assert not (stopped / "hacked").exists()


def test_an_unfinished_training_is_not_replaced_by_accident(stopped, capsys):
    assert "take it up with --resume" in complaint(capsys)
    # Nor for a command that fails at once.
    complaint(capsys, "--overwrite", source="nothing.npz")
    complaint(capsys, "--overwrite", "-k", "1000")
    assert newest(stopped).is_file()
    (stopped / "run" / "notes.txt").write_text("mine")
    (stopped / "run" / "checkpoints" / "notes.txt").write_text("mine")
    assert train("--overwrite", "--max-epochs", "1") == 0
    assert len(log_of(stopped / "run")) == 1
    for path in ("notes.txt", "checkpoints/notes.txt"):
        assert (stopped / "run" / path).read_text() == "mine"


def test_a_folder_with_checkpoints_of_someone_else_is_left_alone(folder, capsys):
    mine = folder / "run" / "checkpoints" / "epoch-1.pt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert "not of a run" in complaint(capsys, "--overwrite")
    assert mine.read_text() == "mine"


def test_checkpoints_can_be_kept(folder):
    assert train("--keep-checkpoints", "--checkpoint-every", "0") == 0
    kept = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert kept == [f"checkpoint-{number:06d}.safetensors" for number in (6, 7, 8)]


# The command, killed


CHOSEN = ("--starts", "4", "--pretext-epochs", "1", "--max-epochs", "5", "--batch-size", "250")
CHOSEN += ("--set", "labeled_by=views", "--set", "n_neighbors=3")


def start(out, *arguments):
    """Start ``coincide train digits``, with a checkpoint after every step, in another process."""
    command = ["train", "digits", "--quiet", *OPTIONS, *CHOSEN, "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "coincide", *command, "--checkpoint-every", "0", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process, folder, number):
    """Wait until a checkpoint of that number or a later one is there."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if Checkpoints(folder / "checkpoints").last_number() >= number:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint {number}: {process.communicate()}")


def assert_same_folder(found, expected):
    models = [load_file(folder / "model.safetensors") for folder in (found, expected)]
    assert_same_weights(*models)
    assert (found / "labels.csv").read_text() == (expected / "labels.csv").read_text()
    logs = [[{**line, "time": None} for line in log_of(folder)] for folder in (found, expected)]
    assert logs[0] == logs[1]
    assert metrics_of(found)["history"] == metrics_of(expected)["history"]
    assert not (found / "checkpoints").exists()


def test_killed_three_times_and_terminated_once_it_ends_as_undisturbed(tmp_path):
    generator = random.Random(0)
    run, resume = tmp_path / "run", ()
    for moment, ending in zip(sorted(generator.sample(range(2, 30), 4)), "KKKT", strict=True):
        process = start(run, *resume)
        resume = ("--resume",)
        wait_for_checkpoint(process, run, moment)
        time.sleep(generator.random() / 100)
        if ending == "K":
            process.kill()
            process.communicate(timeout=TIMEOUT)
            assert process.returncode == -signal.SIGKILL
            continue
        process.terminate()
        said, error = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, said) == (130, "")
        assert error.splitlines()[-1] == STOPPED
        assert "Traceback" not in error
        assert not (run / "metrics.json").exists()
    assert train(*CHOSEN, "--resume", source="digits", out=run) == 0
    assert train(*CHOSEN, source="digits", out=tmp_path / "whole") == 0
    assert_same_folder(run, tmp_path / "whole")


# Models that would run code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    save_digits(folder / "small.npz")
    assert train("--max-epochs", "1", source=folder / "small.npz", out=folder / "run") == 0
    return folder


@pytest.fixture
def model(finished, folder):
    """A copy of a finished run, in a folder with code that must never run."""
    shutil.copytree(finished / "run", folder / "run")
    code = "import os\nos.mkdir('hacked')\ndef build(n_channels, image_size): os.mkdir('hacked')\n"
    for name in ("evil.py", "evilmodule.py"):
        (folder / name).write_text(code)
    return folder / "run"


def predict(*arguments):
    return main(["predict", "run", "small.npz", "--quiet", *arguments])


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("network", ["evil.py:build", "evilmodule:build", "timm:evil", ["evil"]])
def test_a_model_never_names_code_to_run(model, capsys, monkeypatch, network, own):
    folder, path = model.parent, model / "model.json"
    monkeypatch.syspath_prepend(str(folder))
    description = json.loads(path.read_text())
    description["config"]["network"], description["own_network"] = network, own
    description["config"]["view"] = "evil.py:build"
    path.write_text(json.dumps(description))
    assert predict() == 2
    assert "coincide: error: " in capsys.readouterr().err
    assert train("--start-from", "run", out="next") == 2
    assert not (folder / "hacked").exists()
    assert "evilmodule" not in sys.modules


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_no_model(model, folder, capsys, file, write):
    with (model / file).open("wb") as opened:
        write(Evil(), opened)
    assert predict() == 2
    error = capsys.readouterr().err
    assert error.startswith("coincide: error: ")
    assert file in error
    assert not (folder / "hacked").exists()


def test_the_traps_are_traps(folder):
    """Each of the above would have made the folder, had it been read the careless way."""
    pickle.loads(pickle.dumps(Evil()))
    assert (folder / "hacked").is_dir()
