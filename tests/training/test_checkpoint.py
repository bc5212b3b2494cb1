"""Checkpoints: bit for bit, whole after any kill, never code; and the flag of a stop request."""

import contextlib
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from coincide.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
    StopRequest,
    checksum,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "random": torch.arange(5, dtype=torch.uint8)}
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)


def assert_same(found, expected):
    """Compare names, dtypes, shapes and bytes, NaN payloads and the sign of zero included."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        one, other = (t.detach().flatten().view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(one, other), name


def stored(folder):
    return sorted(path.name for path in folder.iterdir())


def name_of(number):
    return f"checkpoint-{number:06d}.safetensors"


@pytest.fixture
def two(tmp_path):
    """Checkpoints 1 and 2; the second is to be damaged."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE, {"number": 1})
    checkpoints.save(2, STATE, {"number": 2})
    return checkpoints


def assert_first_is_taken(checkpoints, reason="damaged"):
    pattern = rf"{re.escape(name_of(2))}.*{reason}.*goes on from the one before, {name_of(1)}"
    with pytest.warns(CheckpointWarning, match=pattern):
        tensors, about = checkpoints.latest()
    assert about == {"number": 1}
    assert_same(tensors, STATE)


# What is kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5)], ids=str)
def test_any_bytes_of_any_dtype_and_shape_survive(tmp_path, dtype, shape):
    size = torch.empty(shape, dtype=dtype).nbytes
    high = 2 if dtype == torch.bool else 256  # of floats: NaNs with payloads and subnormals too
    generator = torch.Generator().manual_seed(size)
    noise = torch.randint(high, (size,), generator=generator, dtype=torch.uint8)
    tensors = {"a": noise.view(dtype).reshape(shape)}
    Checkpoints(tmp_path).save(0, tensors, {})
    found, about = Checkpoints(tmp_path).latest()
    assert_same(found, tensors)
    assert about == {}


def test_strides_shared_memory_and_gradients_survive(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": whole,
        "twin": whole,
        "part": whole[1],
        "transposed": whole.T,
        "stepped": whole[::2, ::3],
        "expanded": torch.tensor([5.0]).expand(4),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(whole),
        "channels-last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    plain = torch.contiguous_format
    before = {n: t.detach().resolve_neg().clone(memory_format=plain) for n, t in tensors.items()}
    Checkpoints(tmp_path).save(0, tensors, {})
    found, _ = Checkpoints(tmp_path).latest()
    assert_same(found, before)
    assert found["negated"].item() == -2
    found["twin"].zero_()  # the memory is the caller's, and of no other tensor
    assert_same({"whole": found["whole"]}, {"whole": whole})
    assert_same({"whole": tensors["whole"]}, {"whole": before["whole"]})


def test_a_restored_random_state_draws_the_same(tmp_path):
    generator = torch.Generator().manual_seed(3)
    Checkpoints(tmp_path).save(0, {"generator": generator.get_state()}, {})
    drawn = torch.rand(5, generator=generator)
    other = torch.Generator()
    other.set_state(Checkpoints(tmp_path).latest()[0]["generator"])
    assert torch.equal(torch.rand(5, generator=other), drawn)


@pytest.mark.parametrize(
    "name", ["", "about", "sha256", "state.", "__metadata__", "../../evil", "/evil", "ä\n\0σ"]
)
def test_a_name_is_only_a_name(tmp_path, name):
    folder = tmp_path / "a" / "b"
    Checkpoints(folder).save(0, {name: torch.ones(2), "other": torch.zeros(1)}, {})
    found, _ = Checkpoints(folder).latest()
    assert_same(found, {name: torch.ones(2), "other": torch.zeros(1)})
    assert stored(folder) == [name_of(0)]
    assert stored(tmp_path) == ["a"]
    assert not Path("/evil").exists()


texts = st.text() | st.sampled_from(["!", "!nan", "!!inf", "nan", "NaN", "!x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@settings(max_examples=25, deadline=None)
@given(about=st.dictionaries(texts, values))
def test_about_survives_without_words_that_json_lacks(tmp_path_factory, about):
    checkpoints = Checkpoints(tmp_path_factory.getbasetemp() / "about")
    path = checkpoints.save(0, {}, about)
    # repr tells -0.0 from 0.0, True from 1, and equals itself for NaN.
    assert repr(checkpoints.latest()) == repr(({}, about))

    def refuse(word):
        pytest.fail(f"{word} is not JSON")

    json.loads(load(path.read_bytes())["about"].numpy().tobytes(), parse_constant=refuse)


def test_tuples_come_back_as_lists(tmp_path):
    Checkpoints(tmp_path).save(0, {}, {"a": (1, (2, float("-inf")))})
    assert Checkpoints(tmp_path).latest()[1] == {"a": [1, [2, float("-inf")]]}


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("about", "where"),
    [
        ({"a": [1, {"b": torch.ones(1)}]}, r"about\['a'\]\[1\]\['b'\]"),
        ({"a": {1: 2}}, r"about\['a'\]"),
        ({"a": {1, 2}}, r"about\['a'\]"),
        ({"a": b"bytes"}, r"about\['a'\]"),
        ({1: "a"}, "keys of about must be strings"),
        ([1], "must be a dict"),
    ],
)
def test_about_that_json_would_change_is_refused(tmp_path, about, where):
    with pytest.raises(TypeError, match=where):
        Checkpoints(tmp_path).save(0, {}, about)
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.ones(2, dtype=torch.complex64),
        [1.0],
        None,
    ],
    ids=["sparse", "meta", "complex", "list", "none"],
)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path, tensor):
    with pytest.raises(TypeError, match=r"dense tensors of bool, integers or floats.*'odd'"):
        Checkpoints(tmp_path).save(0, {"odd": tensor}, {})
    assert stored(tmp_path) == []


@pytest.mark.parametrize("number", [-1, 1.0, True, "../1", None])
def test_a_number_is_a_whole_number(tmp_path, number):
    with pytest.raises((TypeError, ValueError), match=r"'number' parameter of Checkpoints\.save"):
        Checkpoints(tmp_path).save(number, STATE, {})
    with pytest.raises((TypeError, ValueError), match="'keep' parameter of Checkpoints"):
        Checkpoints(tmp_path, keep=number)
    with pytest.raises(ValueError, match="an integer >= 1"):
        Checkpoints(tmp_path, keep=0)


# Which are kept, and which is the latest


def test_the_newest_are_kept_and_other_files_left_alone(tmp_path):
    others = ["model.safetensors", "checkpoint-7.safetensors", "checkpoint-000009.safetensors.bak"]
    for other in others:
        (tmp_path / other).write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (8, 90, 999_999, 1_000_000):
        path = checkpoints.save(number, STATE, {"number": number})
        assert path == tmp_path / name_of(number)
        assert checkpoints.latest()[1] == {"number": number}
    assert stored(tmp_path) == sorted([*others, name_of(999_999), name_of(1_000_000)])
    assert all((tmp_path / other).read_text() == "mine" for other in others)


def test_what_was_just_saved_is_never_rotated_out(two):
    assert two.save(0, STATE, {}) == two.folder / name_of(0)
    checkpoints = Checkpoints(two.folder, keep=1)
    checkpoints.save(1, STATE, {"number": "again"})
    assert stored(two.folder) == [name_of(1), name_of(2)]


def test_the_same_number_is_replaced(two):
    two.save(2, {"other": torch.zeros(1)}, {"number": "again"})
    tensors, about = two.latest()
    assert about == {"number": "again"}
    assert_same(tensors, {"other": torch.zeros(1)})
    assert stored(two.folder) == [name_of(1), name_of(2)]


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert Checkpoints(tmp_path).latest() is None
    assert Checkpoints(tmp_path / "absent").latest() is None
    assert not (tmp_path / "absent").exists()
    (tmp_path / f".{name_of(3)}.part").write_bytes(b"half")
    assert Checkpoints(tmp_path).latest() is None


def test_left_overs_are_removed_at_the_next_save(two):
    stale = two.folder / f".{name_of(7)}.part"
    stale.write_bytes(b"half")
    two.save(3, STATE, {})
    assert not stale.exists()


def test_readable_by_whom_other_files_are(two):
    (two.folder / "plain").write_text("")
    assert (two.folder / name_of(2)).stat().st_mode == (two.folder / "plain").stat().st_mode


# Damage


def test_cut_short_anywhere_the_one_before_is_taken(two):
    damaged = two.folder / name_of(2)
    whole = damaged.read_bytes()
    for length in range(0, len(whole), 10):
        damaged.write_bytes(whole[:length])
        assert_first_is_taken(two)
    damaged.write_bytes(whole + b"0")
    assert_first_is_taken(two)


def test_any_flipped_bit_is_noticed(two):
    damaged = two.folder / name_of(2)
    whole = damaged.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        damaged.write_bytes(flipped)
        assert_first_is_taken(two)


@pytest.mark.parametrize(("part", "other"), [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]")])
def test_the_same_bytes_as_another_dtype_or_shape_are_noticed(two, part, other):
    damaged = two.folder / name_of(2)
    whole = damaged.read_bytes()
    assert whole.count(part) == 1
    damaged.write_bytes(whole.replace(part, other))
    assert_first_is_taken(two)


class Malicious:
    def __reduce__(self):
        return os._exit, (66,)


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\0" * 4096, pickle.dumps(Malicious()), save({"weight": torch.ones(2)})],
    ids=["empty", "junk", "zeros", "pickle", "other-safetensors"],
)
def test_what_is_no_checkpoint_is_passed_over_and_never_run(two, content):
    (two.folder / name_of(2)).write_bytes(content)
    assert_first_is_taken(two)


def test_a_saved_torch_archive_is_refused(two):
    torch.save({"odd": Malicious()}, two.folder / name_of(2))
    assert_first_is_taken(two)


def rewritten(path, change):
    """Put a changed document into a checkpoint, with the checksum that fits it."""
    held = load(path.read_bytes())
    document = json.loads(held["about"].numpy().tobytes())
    text = json.dumps(change(document)).encode()
    held["about"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    del held["sha256"]
    held["sha256"] = torch.frombuffer(bytearray(checksum(held)), dtype=torch.uint8)
    path.write_bytes(save(held))


def test_the_rewriting_below_is_not_what_is_noticed(two):
    rewritten(two.folder / name_of(2), lambda document: {**document, "about": {"number": "two"}})
    assert two.latest()[1] == {"number": "two"}


def test_another_format_is_refused(two):
    rewritten(two.folder / name_of(2), lambda document: {**document, "format": 2})
    assert_first_is_taken(two, r"another version \(this one reads format 1\)")


@pytest.mark.parametrize(
    "document", [[], {}, "text", {"format": 1}, {"format": 1, "about": {"a": "!x"}}], ids=str
)
def test_a_forged_document_is_refused(two, document):
    rewritten(two.folder / name_of(2), lambda _: document)
    assert_first_is_taken(two)


def test_two_damaged_ones_are_both_named(two):
    two.save(3, STATE, {})
    for number in (2, 3):
        (two.folder / name_of(number)).write_bytes(b"")
    with pytest.warns(CheckpointWarning) as warned:
        assert two.latest()[1] == {"number": 1}
    assert [str(w.message).partition(" is ")[0][-26:] for w in warned] == [
        name_of(3)[-26:],
        name_of(2)[-26:],
    ]
    assert all(w.filename == __file__ for w in warned)


def test_none_whole_is_an_error_with_the_way_out(two):
    for number in (1, 2):
        (two.folder / name_of(number)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="Move them elsewhere to begin anew") as caught:
        two.latest()
    assert isinstance(caught.value, ValueError)
    assert str(two.folder / name_of(2)) in str(caught.value)
    assert "(2 found)" in str(caught.value)


def test_a_checkpoint_that_cannot_be_opened_is_passed_over(two):
    (two.folder / name_of(2)).unlink()
    (two.folder / name_of(2)).mkdir()
    assert_first_is_taken(two, "cannot be read")


# Folders and disks that refuse


def test_a_folder_that_is_a_file_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"cannot be saved in .*file.*choose a folder"):
            Checkpoints(folder).save(0, STATE, {})
        with pytest.raises(CheckpointError, match=r"cannot be listed \(Not a directory\)"):
            Checkpoints(folder).latest()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said_so(two):
    two.folder.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"\(Permission denied\).*can be written to"):
            two.save(3, STATE, {})
        assert two.latest()[1] == {"number": 2}
        two.folder.chmod(0o300)
        with pytest.raises(CheckpointError, match=r"cannot be listed \(Permission denied\)"):
            two.latest()
    finally:
        two.folder.chmod(0o700)


def refuse_with(number):
    def refusing(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return refusing


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_leaves_the_older_ones(two, monkeypatch, call, number):
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse_with(number))
        sentence = rf"^Checkpoint 2 cannot be saved in .*\({os.strerror(number)}\): make room"
        with pytest.raises(CheckpointError, match=sentence):
            two.save(2, {}, {"number": "new"})
    assert stored(two.folder) == [name_of(1), name_of(2)]
    assert two.latest()[1] == {"number": 2}
    two.save(3, STATE, {"number": 3})
    assert two.latest()[1] == {"number": 3}


@contextlib.contextmanager
def file_size_limit(size):
    """Let the kernel stop every write at a size, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_stops_half_way_leaves_the_older_ones(two):
    with file_size_limit(4096), pytest.raises(CheckpointError, match="make room"):
        two.save(3, {"large": torch.ones(100_000)}, {})
    assert stored(two.folder) == [name_of(1), name_of(2)]
    assert two.latest()[1] == {"number": 2}


def test_an_interrupt_while_writing_leaves_nothing_behind(two, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two.save(3, STATE, {})
    assert stored(two.folder) == [name_of(1), name_of(2)]


def test_the_file_is_on_the_disk_before_its_name_and_its_name_before_others_go(two, monkeypatch):
    done = []

    def watched(name, describe):
        real = getattr(os, name)

        def call(*args, **options):
            done.append((name, describe(args[0])))
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    watched("fsync", lambda number: "folder" if Path(f"/dev/fd/{number}").is_dir() else "file")
    watched("replace", lambda path: Path(path).name)
    watched("unlink", lambda path: Path(path).name)
    Checkpoints(two.folder, keep=2).save(3, STATE, {})
    assert done == [
        ("fsync", "file"),
        ("replace", f".{name_of(3)}.{os.getpid()}.part"),
        ("fsync", "folder"),
        ("unlink", name_of(1)),
    ]


# Kills

KILLS = 20
SAVE_FOR_EVER = f"""
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from coincide.training.checkpoint import Checkpoints

warnings.simplefilter("error")  # a damaged checkpoint would warn
folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder, keep=2)
random.seed(0)
number, half_written, saved = 0, 0, 0

torch.set_num_threads(1)  # a pool of threads does not survive the fork


def save_for_ever(number, told):
    # Every number twice, for the second time in the place of the first.
    for half in range(2 * number, 10**9):
        number = half // 2
        tensors = {{str(i): torch.full((50_000,), number) for i in range(5)}}
        checkpoints.save(number, tensors, {{"number": number}})
        os.write(told, b"%12d" % number)

for kill in range(10 * {KILLS}):
    if kill >= {KILLS} and half_written:
        break
    hear, told = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(number, told)
    os.read(hear, 12)  # it has begun
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(told)
    with os.fdopen(hear, "rb") as file:
        heard = file.read()
    promised = int(heard[-12:]) if heard else number
    half_written += any(folder.glob(".*.part"))
    tensors, about = checkpoints.latest()
    number = about["number"]
    assert number >= promised, (number, promised)
    assert len(tensors) == 5 and all(bool((t == number).all()) for t in tensors.values())
    assert all(t.shape == (50_000,) for t in tensors.values())
    number += 1
checkpoints.save(number, {{}}, {{}})
print(json.dumps([number, half_written, sorted(path.name for path in folder.iterdir())]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_kill_at_any_moment_leaves_a_whole_latest(tmp_path):
    run = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    number, half_written, files = json.loads(done.stdout)
    assert number > KILLS  # it went on after every kill
    assert half_written > 0  # some kills came in the middle of a write
    assert len(files) == 2
    assert files[-1] == name_of(number)


# Stop requests

HANDLED = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_becomes_a_flag(number):
    before = [signal.getsignal(one) for one in HANDLED]
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert [signal.getsignal(one) for one in HANDLED] == before
    assert stop.requested


def test_terminating_twice_is_still_a_flag_but_a_second_interrupt_interrupts():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append([signal.getsignal(one) for one in HANDLED])
        seen.append(stop.requested)

    before = [signal.getsignal(one) for one in HANDLED]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]
