"""What the page says of an image run beside its gallery: classes, curves, starts, what was lost."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coincide.metrics import clustering_accuracy, contingency_table
from coincide.report import matched_confusion
from report_runs import Page, write_run

EVIL = '<script>alert("1")</script>&amp;'


def page_of(folder: Path, M: int = 60, K: int = 4, **changes: object) -> Page:
    write_run(folder, M=M, K=K, **changes)
    return Page(folder / "report.html")


# --- the confusion matrix -------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_confusion_is_the_contingency_table_with_its_best_diagonal(C, K, seed):
    generator = np.random.default_rng(seed)
    y, clusters = generator.integers(C, size=40), generator.integers(K, size=40)
    names = [f"class {c}" for c in range(C)]
    found = matched_confusion(y, clusters, K, names)
    assert sorted(found["classes"]) == names
    assert sorted(found["clusters"]) == list(range(K))
    table = contingency_table(y, clusters, C, K)
    for name, line in zip(found["classes"], found["counts"], strict=True):
        assert line == table[names.index(name), found["clusters"]].tolist()
    diagonal = sum(found["counts"][n][n] for n in range(min(C, K)))
    assert diagonal / 40 == pytest.approx(clustering_accuracy(y, clusters))
    # Classes keep their order, but for those that are left without a cluster.
    matched = found["classes"][: min(C, K)]
    assert matched == sorted(matched)


def test_confusion_leaves_unknown_classes_out():
    found = matched_confusion([0, -1, 1, -1], [1, 1, 0, 0], 3, ["a", "b"])
    assert found == {
        "classes": ["a", "b"],
        "clusters": [1, 0, 2],
        "counts": [[1, 0, 0], [0, 1, 0]],
    }


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([-1, -1], [0, 1], 2, ["a"]), ValueError, "'y_true'.*one point at least"),
        (([], [], 2, ["a"]), ValueError, "'y_true'.*one point at least"),
        (([0, 1], [0, 1], 2, ["a"]), ValueError, "'y_true'.*from 0 to 0. Got 1"),
        (([0, 0], [0, 2], 2, ["a"]), ValueError, "'y_pred'.*from 0 to 1. Got 2"),
        (([0, 0], [0], 2, ["a"]), ValueError, r"'clusters'.*\(2,\).*Got \(1,\)"),
        (([0.5, 0], [0, 1], 2, ["a"]), TypeError, "'y_true'.*integers"),
    ],
)
def test_unfit_classes_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        matched_confusion(*arguments)


TABLE = {
    "classes": ["cat", EVIL, "eel"],
    "clusters": [2, 0, 1, 3],
    "counts": [[8, 2, 0, 0], [0, 1999, 1, 0], [0, 0, 0, 0]],
}


def test_page_draws_the_confusion_matrix(tmp_path):
    page = page_of(tmp_path, confusion=TABLE)
    (drawing,) = [words for words in page.drawings() if words.startswith("Confusion")]
    assert "each class (3) went to each cluster (4)" in drawing
    titles = re.findall(r"<title>([^<]*)</title></title>|<title>([^<]*)</title>", page.html)
    assert len(titles) == 1 + 4  # the page's own, and one for each cell that is not zero
    assert page.tags("script") == []
    for words in [
        "cat in cluster 2: 8 of 10",
        "cat in cluster 0: 2 of 10",
        f"{EVIL} in cluster 0: 1,999 of 2,000",
        f"{EVIL} in cluster 1: 1 of 2,000",
        "Numbers are percent of the class",
    ]:
        assert words in page.text
    svg = next(svg for svg in page.html.split("<svg") if "Confusion" in svg).split("</svg>")[0]
    numbers = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    # The shares that round to 1% or more; the names, the long one cut; the clusters as matched.
    assert [n for n in numbers if n in ("80", "20", "100", "0")] == ["0", "80", "20", "100"]
    assert numbers[:4] == ["2", "0", "1", "3"]
    assert "cat" in numbers
    assert "&lt;script&gt;…"[:12] in "".join(numbers)


@pytest.mark.parametrize("size", [1, 12, 13, 60, 61])
def test_confusion_of_any_size(tmp_path, size):
    counts = np.random.default_rng(0).binomial(1, 0.1, (size, size)) + np.eye(size, dtype=int)
    table = {
        "classes": [f"name {c}" for c in range(size)],
        "clusters": list(range(size)),
        "counts": counts.tolist(),
    }
    page = page_of(tmp_path, M=130, K=size, confusion=table)
    assert any(words.startswith("Confusion") for words in page.drawings()) == (size <= 60)
    assert ("Numbers are percent" in page.text) == (size <= 12)
    assert ('class="card wide"' in page.html) == (12 < size <= 60)
    assert ("name 0 in cluster 0: " in page.text) == (size <= 60)
    assert len(page.html) < 3_000_000


@pytest.mark.filterwarnings("error")
def test_class_names_are_words_not_formulas(tmp_path):
    names = ["$\\frac$", "猫", "", "two\nlines", "\udcff", "x" * 500]
    table = {"classes": names, "clusters": [0], "counts": [[1]] * 6}
    page = page_of(tmp_path, K=4, confusion=table)
    for words in ("$\\frac$", "猫", "two lines", "\\udcff", "xxxxxxxxx…"):
        assert words in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a"]},
        {"clusters": [0, 1, 2, 9]},
        {"clusters": None},
        {"counts": [[1, 2], [3]]},
        {"counts": [[0.5] * 4] * 3},
        {"counts": [[-1] * 4] * 3},
        {"counts": []},
    ],
)
def test_damaged_confusion_is_named(tmp_path, changes):
    with pytest.raises(ValueError, match=r"'confusion' in metrics\.json must give"):
        write_run(tmp_path, M=20, K=4, confusion=TABLE | changes)


# --- curves ---------------------------------------------------------------------------------


def epochs(live: list[int], n_clusters: int = 4) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "loss": 2.0 - epoch / 10,
            "live_clusters": alive,
            "changed": 0.5,
            "least_share": 0.1 if alive == n_clusters else 0.0,
            "largest_share": 0.375,
        }
        for epoch, alive in enumerate(live)
    ]


def test_shares_are_drawn_and_a_steady_number_of_clusters_is_told(tmp_path):
    page = page_of(tmp_path, history=epochs([4, 4, 4]))
    assert (
        "Shares of the smallest and the largest of 4 clusters over 3 epochs; in the last, 10.0%"
        " and 37.5%."
    ) in page.drawings()
    assert "Loss over 3 epochs, from 2 to 1.8." in page.drawings()
    assert "an even share, 25%. In every epoch all 4 clusters had rows." in page.text
    assert "Clusters in use" not in page.text


def test_dying_clusters_are_drawn(tmp_path):
    page = page_of(tmp_path, history=epochs([4, 2, 1, 3]))
    assert "Clusters in use over 4 epochs, from 4 to 3 of 4." in page.drawings()
    assert "4 in the first epoch, 1 at the fewest (epoch 2), 3 in the last" in page.text


def test_lost_shares_leave_the_loss_as_it_was(tmp_path):
    history = [entry | {"least_share": None} for entry in epochs([4, 4])]
    page = page_of(tmp_path, history=history)
    assert "Shares of the clusters" not in page.text
    assert "Loss over 2 epochs, from 2 to 1.9." in page.drawings()


def test_shares_of_several_restarts_are_not_mixed(tmp_path):
    history = [entry | {"restart": restart} for restart in range(2) for entry in epochs([4, 4])]
    assert "Shares of the clusters" not in page_of(tmp_path, history=history).text


# --- starts ---------------------------------------------------------------------------------


def starts_table(page: Page) -> list[tuple[str, list[str]]]:
    """Return the seed of each line and its cells, a star on what is set apart."""
    table = re.search(r'<table class="starts">.*?</table>', page.html, flags=re.DOTALL)
    assert table is not None
    starred = table[0].replace("<strong>", "*").replace("</strong>", "")
    return [
        (seed, re.findall(r"<td>(.*?)</td>", rest))
        for seed, rest in re.findall(
            r'<th scope="row">(.*?)</th>(.*?)</tr>', starred, flags=re.DOTALL
        )
    ]


@pytest.mark.parametrize("first", [0, 1])
def test_starts_show_who_went_on(tmp_path, first):
    starts = [
        {"seed": seed, "round": first + n, "loss": loss, "kept": kept}
        for seed, n, loss, kept in [
            (7, 0, 1.5, False),
            (8, 0, 1.25, True),
            (9, 0, 1.0, True),
            (6, 0, None, False),
            (8, 1, 0.5, True),
            (9, 1, 0.75, False),
        ]
    ]
    page = page_of(tmp_path, starts=starts)
    assert starts_table(page) == [
        ("8", ["*1.2500", "*0.5000"]),
        ("9", ["*1.0000", "0.7500"]),
        ("7", ["1.5000", ""]),
        ("6", ["–", ""]),
    ]
    assert "4 short starts after each of 2 rounds" in page.text
    assert "The full training is that of seed 8." in page.text


def test_many_starts_show_the_best_twelve(tmp_path):
    starts = [{"seed": n, "round": 0, "loss": 50 - n, "kept": n == 29} for n in range(30)]
    page = page_of(tmp_path, starts=starts)
    assert [seed for seed, _ in starts_table(page)] == [str(n) for n in range(29, 17, -1)]
    assert "18 starts that did no better are left out of the table." in page.text


def test_starts_of_which_none_was_kept_name_no_winner(tmp_path):
    page = page_of(tmp_path, starts=[{"seed": 1}, {"seed": EVIL, "loss": 1.0}])
    assert "The full training" not in page.text
    assert page.tags("script") == []
    assert "2 short starts" in page.text


# --- the number of clusters -----------------------------------------------------------------


def candidates_of(*numbers):
    return [
        {"n_clusters": n, "fairness": 10.0, "agreement": n / 10, "error": 0.01, "loss": 0.1}
        for n in numbers
    ]


def test_the_choice_of_a_number_shows_its_evidence(tmp_path):
    page = page_of(tmp_path, K=4, candidates=candidates_of(3, 5, 4))
    assert "Number of clusters" in page.text
    drawn = "Agreement of starts at 3 numbers of clusters; at the chosen 4 it is 0.400."
    assert drawn in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "candidates", [[], candidates_of(4), candidates_of(3, 5), [{"n_clusters": "four"}] * 2]
)
def test_without_a_choice_there_is_no_evidence(tmp_path, candidates):
    assert "Number of clusters" not in page_of(tmp_path, K=4, candidates=candidates).text


# --- signs, settings, what was skipped ------------------------------------------------------


def test_signs_stand_on_top_and_once(tmp_path):
    sign = "Clusters 3 and 5 hold the same images: raise fairness."
    text = page_of(tmp_path, signs=[sign, EVIL], warnings=[sign, "Slow."]).text
    assert f"Before you rely on it {sign} {EVIL} Slow. Rows" in text
    assert text.count(sign) == 1


def test_settings_are_listed(tmp_path):
    training = {"method": "collision", "batch_size": 250, "fairness": None, EVIL: {"a": [EVIL]}}
    page = page_of(tmp_path, training=training)
    assert "Training method collision batch_size 250 fairness null" in page.text
    assert page.tags("script") == []


def test_settings_that_are_the_parameters_are_listed_once(tmp_path):
    settings = {"method": "collision"}
    model = {"n_clusters": 4, "parameters": settings}
    assert page_of(tmp_path, model=model, training=settings).text.count("method collision") == 1


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (0, "The classes were used for this evaluation only"),
        (1, "The training knew the classes of 1 row;"),
        (1_200, "The training knew the classes of 1,200 rows;"),
    ],
)
def test_the_use_of_classes_is_told_as_it_was(tmp_path, known, words):
    page = page_of(tmp_path, known_labels=known)
    assert words in page.text
    assert ("found without them" in page.text) == (known == 0)


@pytest.mark.parametrize(("n", "words"), [(1, "1 entry of"), (20, "20 entries"), (23, "23 ent")])
def test_skipped_files_are_listed_up_to_twenty(tmp_path, n, words):
    skipped = [[f"{EVIL}{i}.jpg", f"reason {i}"] for i in range(n)]
    page = page_of(tmp_path, skipped=skipped)
    assert page.tags("script") == []
    assert words in page.text
    listed = re.search(r'<ul class="card skipped">.*?</ul>', page.html, flags=re.DOTALL)
    assert listed is not None
    assert listed[0].count("<li>") == min(n, 20) + (n > 20)
    assert ("and 3 more" in listed[0]) == (n == 23)
    assert f"{EVIL}0.jpg reason 0" in page.text


@pytest.mark.parametrize("skipped", [["a.jpg"], [["a.jpg"]], [{"name": "a", "reason": "b"}]])
def test_damaged_skipped_is_named(tmp_path, skipped):
    with pytest.raises(ValueError, match=r"'skipped' in metrics\.json must be a list of pairs"):
        write_run(tmp_path, M=20, K=2, skipped=skipped)


@pytest.mark.parametrize("empty", [None, "empty"])
def test_parts_of_an_image_run_may_be_empty(tmp_path, empty):
    kinds = {"training": {}, "confusion": {}, "starts": [], "signs": [], "skipped": []}
    write_run(tmp_path / "with", M=20, K=2, **(dict.fromkeys(kinds) if empty is None else kinds))
    write_run(tmp_path / "without", M=20, K=2)
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("with", "without")]
    assert pages[0] == pages[1]
