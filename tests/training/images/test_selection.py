"""Settings compared without labels, and the number of clusters that is chosen by it."""

import dataclasses

import numpy as np
import pytest

from coincide.cli import main
from coincide.data.images import read_images
from coincide.training.config import ImageTrainingConfig
from coincide.training.images import selection
from coincide.training.images.selection import Candidate, choose, compare_settings
from small_images import OPTIONS, TINY, metrics_of, one_thread, save_digits


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def three_kinds(count=150):
    """Return noisy images of three patterns, in equal parts."""
    generator = np.random.default_rng(0)
    patterns = np.zeros((3, 8, 8))
    patterns[0, :, :3], patterns[1, :3, :], patterns[2, 4:, 4:] = 200, 200, 200
    kinds = np.arange(count) % 3
    noisy = patterns[kinds] + generator.uniform(0, 55, (count, 8, 8))
    return read_images(noisy.astype(np.uint8), labels=kinds)


def configs_of(*numbers, **settings):
    settings = {**TINY, "learning_rate": 3e-3, **settings}
    return [ImageTrainingConfig(**settings, n_clusters=number) for number in numbers]


def candidate(agreement, loss, error=0.02, n_clusters=5):
    return Candidate(n_clusters, 10.0, agreement, error, loss)


def test_three_kinds_are_three_clusters():
    found = compare_settings(three_kinds(), configs_of(2, 3, 6))
    assert [one.n_clusters for one in found] == [2, 3, 6]
    assert found[1].agreement > 0.95
    assert choose(found) == 1
    assert all(-1 <= one.agreement <= 1 and one.error >= 0 for one in found)


def test_labels_make_no_difference():
    source = three_kinds()
    wrong = dataclasses.replace(source, labels=source.labels[::-1].copy(), label_names=None)
    settings = {"n_starts": 2, "n_epochs": 2}
    expected = compare_settings(source, configs_of(2), **settings)
    assert compare_settings(wrong, configs_of(2), **settings) == expected
    assert compare_settings(source, configs_of(2, labeled_fraction=0.5), **settings) == expected


def test_agreement_is_the_mean_rand_index_of_the_pairs(monkeypatch):
    clusterings = iter([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])

    class Fixed:
        """A training with known results."""

        initial = None

        def __init__(self, source, config, initial):
            self.config = config

        def fit(self):
            record = type("Record", (), {"loss": np.log(2) / 4})
            return type("Run", (), {"clusters": np.array(next(clusterings)), "history": [record]})

    monkeypatch.setattr(selection, "ImageTraining", Fixed)
    (found,) = compare_settings(three_kinds(), configs_of(2), n_starts=3)
    # The first two agree; with the third each has a Rand index of -1/2.
    each = np.array([(1 - 0.5) / 2, (1 - 0.5) / 2, -0.5])
    assert found.agreement == pytest.approx(each.mean())
    assert found.error == pytest.approx(each.std(ddof=1) / np.sqrt(3))
    assert found.loss == pytest.approx(1 / 4)


def test_one_pretext_serves_all(monkeypatch):
    seen = []

    class Watched(selection.ImageTraining):
        def __post_init__(self):
            seen.append((self.config.pretext_epochs, self.initial is not None))
            super().__post_init__()

    monkeypatch.setattr(selection, "ImageTraining", Watched)
    compare_settings(three_kinds(), configs_of(2, 3, pretext_epochs=1), n_starts=2, n_epochs=1)
    assert seen == [(1, False), (0, True), (0, True), (0, True)]


def test_weights_to_start_from_reach_every_start(monkeypatch):
    seen = []

    class Watched(selection.ImageTraining):
        def __post_init__(self):
            seen.append(self.initial)
            super().__post_init__()

    source = three_kinds()
    (config,) = configs_of(2)
    run = selection.ImageTraining(source, config).fit()
    weights = dict(run.network.backbone.state_dict())
    monkeypatch.setattr(selection, "ImageTraining", Watched)
    compare_settings(source, configs_of(2, 3), n_starts=2, n_epochs=1, initial=weights)
    assert len(seen) == 4
    assert all(initial is weights for initial in seen)


def test_large_data_is_sampled(monkeypatch):
    monkeypatch.setattr(selection, "_ROWS", 20)
    some = selection._some_rows(three_kinds(), seed=1)
    assert some.images.shape == (20, 1, 8, 8)
    assert some.labels is None
    assert len(set(some.ids)) == 20
    place = int(some.ids[3])
    np.testing.assert_array_equal(some.images[3], three_kinds().images[place])


def test_the_lowest_loss_of_those_that_agree_best():
    agreed = [candidate(0.5, 0.01), candidate(0.80, 0.09), candidate(0.77, 0.08)]
    assert choose(agreed) == 2
    assert choose([*agreed, candidate(0.82, 0.5)]) == 1  # 0.77 ± 0.02 is worse than 0.82 ± 0.02
    assert choose([*agreed, candidate(0.85, 0.5)]) == 3
    assert choose(agreed[:1]) == 0


def test_too_few_starts_are_refused():
    with pytest.raises(ValueError, match=r"'n_starts' parameter of compare_settings .* >= 2"):
        compare_settings(three_kinds(), configs_of(2), n_starts=1)
    with pytest.raises(ValueError, match="'configs'"):
        compare_settings(three_kinds(), [])


def test_all_settings_are_checked_before_the_first_is_trained(monkeypatch):
    monkeypatch.setattr(selection, "ImageTraining", None)
    with pytest.raises(ValueError, match=r"'n_clusters'.*>= 2\. Got 1"):
        compare_settings(three_kinds(), configs_of(3, 1))


# The command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits("small.npz", count=60)
    return tmp_path


COMMAND = ["train", "small.npz", "--out", "run", "--no-report", *OPTIONS]


def test_the_command_chooses_among_numbers(folder, capsys):
    assert main([*COMMAND, "-k", "2,4"]) == 0
    printed = capsys.readouterr().out
    assert "agreement of starts" in printed
    assert printed.count("chosen") == 1
    metrics = metrics_of(folder / "run")
    assert [one["n_clusters"] for one in metrics["candidates"]] == [2, 4]
    taken = choose([Candidate(**one) for one in metrics["candidates"]])
    assert metrics["model"]["n_clusters"] == [2, 4][taken]


def test_ranges_and_lists_of_numbers(folder, capsys):
    assert main([*COMMAND, "--clusters", "3-4,3,6", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert [one["n_clusters"] for one in metrics_of(folder / "run")["candidates"]] == [3, 4, 6]


@pytest.mark.parametrize("text", ["many", "5-3", "", "2,", "2-"])
def test_what_is_no_number_is_refused(folder, capsys, text):
    assert main([*COMMAND, "--clusters", text]) == 2
    assert "is no number, no list as 8,10,12 or 5-15" in capsys.readouterr().err


def test_the_choice_is_that_of_one_process(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*COMMAND, "--clusters", "auto"]) == 2
    assert "Give the one that was chosen, such as -k 10" in capsys.readouterr().err
