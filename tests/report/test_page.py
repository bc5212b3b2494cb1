"""The run folder's files and the page: what is written is read back, and what is said is true."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from coincide._files import replacing
from coincide.report import (
    figures,
    labels,
    write_labels,
    write_metrics,
    write_projection,
    write_report,
)
from coincide.report.words import compact, decimal, seconds
from report_runs import Page, blobs, full_metrics, write_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_run(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A whole run of 300 rows and 4 clusters, to be damaged at will."""
    return shutil.copytree(finished, tmp_path / "run")


def read_labels(path: Path) -> pa.Table:
    return pa.csv.read_csv(path) if path.suffix == ".csv" else pa.parquet.read_table(path)


# --- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_labels_read_back_equal(tmp_path, monkeypatch, format, dtype):
    monkeypatch.setattr(labels, "BLOCK_VALUES", 500)  # many blocks, the last one short
    probs = blobs(337, 5)[1].astype(dtype)
    clusters, entropy = probs.argmax(1), probs.std(1)
    path = write_labels(tmp_path, clusters, probs.max(1), entropy, probs, format=format)
    table = read_labels(path)
    assert path.name == f"labels.{format}"
    assert table.column_names == [
        "row",
        "cluster",
        "confidence",
        "entropy",
        "p0",
        "p1",
        "p2",
        "p3",
        "p4",
    ]
    np.testing.assert_array_equal(table["row"], np.arange(337))
    np.testing.assert_array_equal(table["cluster"], clusters)
    for name, values in [("confidence", probs.max(1)), ("entropy", entropy)]:
        np.testing.assert_array_equal(np.asarray(table[name]).astype(dtype), values)
    for k in range(5):
        np.testing.assert_array_equal(np.asarray(table[f"p{k}"]).astype(dtype), probs[:, k])


def test_labels_take_a_memory_map_and_leave_it_alone(tmp_path):
    probs = blobs(50, 3)[1]
    np.save(tmp_path / "p.npy", probs)
    table = np.load(tmp_path / "p.npy", mmap_mode="r")
    path = write_labels(tmp_path, probs.argmax(1), probs.max(1), probs.std(1), table)
    np.testing.assert_array_equal(read_labels(path)["p2"], probs[:, 2])


def test_auto_format_goes_by_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "PARQUET_FROM_ROWS", 10)
    for rows, name in [(9, "labels.csv"), (10, "labels.parquet"), (9, "labels.csv")]:
        write_labels(tmp_path, np.zeros(rows, int), np.ones(rows), np.zeros(rows))
        # The file of the other format is stale now, and gone.
        assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_refused_row_leaves_the_old_labels(tmp_path, monkeypatch, format):
    monkeypatch.setattr(labels, "BLOCK_VALUES", 40)
    path = write_labels(tmp_path, [0, 1], [0.5, 0.5], [0.6, 0.6], format=format)
    before = path.read_bytes()
    confidence = np.ones(100)
    confidence[73] = np.nan
    with pytest.raises(ValueError, match="Row 73 has NaN"):
        write_labels(tmp_path, np.zeros(100, int), confidence, np.zeros(100), format=format)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0.5], [1], [0]), TypeError, "'clusters'.*must hold integers. Got float64"),
        (([-1], [1], [0]), ValueError, "'clusters'.*Row 0 is -1"),
        (([], [], []), ValueError, "'clusters'.*M >= 1"),
        (([0, 1], [1], [0, 0]), ValueError, r"'confidence'.*shape \(2,\).*Got \(1,\)"),
        (([0], [1], ["a"]), TypeError, "'entropy'.*real numbers"),
        (([0], [1], [0], [[0.5], [0.5]]), ValueError, r"'probabilities'.*\(1, K\)"),
    ],
)
def test_unfit_labels_are_refused(tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        write_labels(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_format_is_one_of_three(tmp_path):
    with pytest.raises(ValueError, match=r"'format'.*'auto', 'csv', 'parquet'. Got 'xlsx'"):
        write_labels(tmp_path, [0], [1], [0], format="xlsx")


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_summary_matches_numpy(tmp_path, monkeypatch, levels):
    # Few levels: ties in confidence, and then in entropy, decide the extremes.
    generator = np.random.default_rng(levels)
    M, K = 500, 4
    clusters = generator.integers(K, size=M)
    confidence = 0.25 + 0.75 * generator.integers(1, levels + 1, M) / levels
    entropy = math.log(K) * generator.integers(1, levels + 1, M) / levels
    path = write_labels(tmp_path, clusters, confidence, entropy, format="parquet")
    # Row groups smaller than the file: the extremes of several blocks must be joined.
    pa.parquet.write_table(pa.parquet.read_table(path), path, row_group_size=64)
    summary = labels.summarize_labels(tmp_path, K)
    np.testing.assert_array_equal(summary.sizes, np.bincount(clusters))
    assert summary.mean_confidence == pytest.approx(confidence.mean())
    assert summary.mean_entropy == pytest.approx(entropy.mean())
    np.testing.assert_array_equal(
        summary.confidence_counts, np.histogram(confidence, labels.N_BINS, (0.25, 1))[0]
    )
    assert summary.entropy_counts.sum() == M
    rows = np.arange(M)
    np.testing.assert_array_equal(
        summary.least_certain.row, np.lexsort([rows, -entropy, confidence])[:10]
    )
    np.testing.assert_array_equal(
        summary.most_certain.row, np.lexsort([rows, entropy, -confidence])[:10]
    )


@pytest.mark.parametrize("n", [1, 4, 10, 30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_are_a_sort_cut_short(n, sign):
    generator = np.random.default_rng(n)
    columns = (generator.integers(3, size=n) for _ in range(3))
    cluster, confidence, entropy = (column.astype(float) for column in columns)
    rows = labels.Extremes(np.arange(n), cluster, confidence, entropy)
    nothing = labels.Extremes(*(column[:0] for column in vars(rows).values()))
    order = np.lexsort([rows.row, -sign * entropy, sign * confidence])[:10]
    np.testing.assert_array_equal(nothing.joined(rows, sign).row, order)


# --- metrics --------------------------------------------------------------------------------


def test_metrics_are_valid_json(tmp_path):
    path = write_metrics(
        tmp_path,
        {
            "gap": float("nan"),
            "loss": np.float32("inf"),
            "sizes": np.array([3, 4]),
            "ok": np.bool_(True),
            "nested": {"list": [(1, None), Path("a")], "values": np.array([0.5, -np.inf])},
            "name": "naïve \udcff",  # a file name with a byte that is not UTF-8
        },
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_bytes(), parse_constant=refuse) == {
        "gap": None,
        "loss": None,
        "sizes": [3, 4],
        "ok": True,
        "nested": {"list": [[1, None], "a"], "values": [0.5, None]},
        "name": "naïve \udcff",
    }


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"a": [{"b": object()}]}, r"metrics\['a'\]\[0\]\['b'\] must be a number.*Got object"),
        ({"a": {1: 2}}, r"keys of metrics\['a'\] must be strings. Got 1"),
    ],
)
def test_unfit_metrics_are_refused_and_the_old_kept(tmp_path, metrics, words):
    path = write_metrics(tmp_path, {"schema": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=words):
        write_metrics(tmp_path, metrics)
    assert path.read_bytes() == before


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()  # nothing to be seen before the end
    assert path.read_text() == "new"

    def stop_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


# --- projection -----------------------------------------------------------------------------


def read_projection(folder: Path) -> dict[str, np.ndarray]:
    table = pa.csv.read_csv(folder / "projection.csv")
    assert table.column_names == ["row", "x", "y", "cluster"]
    return {name: np.asarray(table[name]) for name in table.column_names}


def test_projection_is_the_plane_of_largest_variance(tmp_path):
    generator = np.random.default_rng(1)
    plane = generator.normal(size=(40, 2)) * [5, 2]
    basis = np.linalg.qr(generator.normal(size=(6, 6)))[0][:2]
    write_projection(tmp_path, plane @ basis + 3, np.arange(40) % 4, seed=0)
    found = read_projection(tmp_path)
    positions = np.stack([found["x"], found["y"]], 1)
    # The plane holds everything, so all distances survive.
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    expected = np.linalg.norm(plane[:, None] - plane, axis=-1)
    np.testing.assert_allclose(distances, expected, atol=1e-10)
    assert positions[:, 0].var() > positions[:, 1].var()
    np.testing.assert_array_equal(found["cluster"], np.arange(40) % 4)


def test_projection_samples_rows_in_order(tmp_path):
    M = 12_000
    features = np.arange(M, dtype=np.float64)[:, None]
    np.save(tmp_path / "x.npy", features)
    written = []
    for seed in (0, 0, 1):
        write_projection(tmp_path, np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(M), seed)
        written.append(read_projection(tmp_path))
    first, again, other = written
    assert len(np.unique(first["row"])) == 5_000
    assert (np.diff(first["row"]) > 0).all()
    np.testing.assert_array_equal(first["cluster"], first["row"])
    np.testing.assert_array_equal(again["row"], first["row"])
    assert not np.array_equal(other["row"], first["row"])
    np.testing.assert_allclose(np.abs(np.diff(first["x"])), np.diff(first["row"]), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint64, np.bool_])
def test_projection_takes_any_real_dtype(tmp_path, dtype):
    features = (blobs(30, 2)[0] > 0).astype(dtype)
    write_projection(tmp_path, features, np.zeros(30, int), seed=0)
    found = read_projection(tmp_path)
    centered = features.astype(np.float64) - features.astype(np.float64).mean(0)
    strengths = np.linalg.svd(centered, compute_uv=False)[:2]
    lengths = [np.linalg.norm(found["x"]), np.linalg.norm(found["y"])]
    np.testing.assert_allclose(lengths, strengths, rtol=1e-5)


@pytest.mark.parametrize(
    "features", [np.ones((4, 3)), np.ones((1, 3)), np.array([[1e200, 0], [-1e200, 1]])]
)
def test_projection_of_degenerate_rows_is_finite(tmp_path, features):
    write_projection(tmp_path, features, np.zeros(len(features), int), seed=0)
    found = read_projection(tmp_path)
    assert np.isfinite(found["x"]).all()
    assert np.isfinite(found["y"]).all()


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (np.ones((3, 2)), ValueError, r"'features'.*\(2, D\).*Got shape \(3, 2\)"),
        (np.array([[1.0], [np.nan]]), ValueError, "'features'.*Row 1 has NaN"),
        (np.ones((2, 2), complex), TypeError, "'features'.*real numbers. Got complex128"),
    ],
)
def test_unfit_features_are_refused(tmp_path, features, error, words):
    with pytest.raises(error, match=words):
        write_projection(tmp_path, features, [0, 1], seed=0)


# --- the page -------------------------------------------------------------------------------


def test_page_says_what_the_files_hold(tmp_path):
    probs = write_run(tmp_path)
    page = Page(tmp_path / "report.html")
    sizes = np.bincount(probs.argmax(1), minlength=4)
    confidence = probs.max(1)
    for words in [
        "300 rows of 8 features, sorted into 4 clusters",
        f"{confidence.mean():.3f} on average",
        "Objective 1.2346",
        "Certified gap 3.4e-08",
        "Converged Yes after 12 epochs",
        "Time 1 min 13 s",
        "coincide cluster 'my data.npy' -k 4",
        "used for this evaluation only",
        f"From {sizes.min()} to {sizes.max()} rows.",
        "2 restarts from different seeds",
        "seed 8 1.2345678",
        "prior null",
        "Made by coincide on 2025-06-01 12:30 UTC",
    ]:
        assert words in page.text
    assert "Before you rely on it" not in page.text
    rows = re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td><td>([\d.]+)</td>", page.html)
    assert len(rows) == 20
    least, most = np.argsort(confidence)[:10], np.argsort(-confidence)[:10]
    for (row, cluster, shown), expected in zip(rows, [*least, *most], strict=True):
        assert int(row) == expected
        assert int(cluster) == probs[expected].argmax()
        assert shown == f"{confidence[expected]:.4f}"


def test_scores_mark_the_better_one(run):
    cells = [
        re.findall(r"<td>(.*?)</td>", line)
        for line in re.findall(
            r'<th scope="row">.*?</tr>', (run / "report.html").read_text(), flags=re.DOTALL
        )
    ]
    assert cells == [
        ["<strong>0.875</strong>", "0.625"],
        ["0.750", "<strong>0.800</strong>"],
        ["<strong>0.500</strong>", "0.400"],
        ["0.030", "–"],
        ["1 min 10 s", "<strong>0.1 s</strong>"],
    ]


def test_page_loads_nothing_from_outside(run):
    page = Page(run / "report.html")
    assert page.tags("script") == []
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert re.search(r"url\((?!#)|@import|https?://", page.html) is None
    assert len(page.html) < 1_500_000


def test_page_ids_are_unique_and_references_resolve(run):
    page = Page(run / "report.html")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', page.html)
    assert references
    assert set(references) <= set(ids)


def test_figures_follow_the_page(run):
    page = Page(run / "report.html")
    assert len(page.drawings()) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.tags("svg"))
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    for role in ("currentColor", "var(--muted)", "var(--rule)", "var(--accent)"):
        assert role in drawn
    for stand_in in figures.ROLES:
        assert stand_in not in page.html
    assert "font:" not in drawn
    assert re.findall(r'id="projection-mark-(\d+)"', drawn) == ["0", "1", "2", "3"]


def test_everything_from_the_run_is_escaped(tmp_path):
    evil = '<script>alert("1")</script>&amp;'
    write_run(
        tmp_path,
        source={"name": evil, evil: evil},
        command=[evil],
        warnings=[evil],
        versions={evil: evil},
        restarts=[{"seed": evil, "objective": 1.0}, {"seed": 1, "objective": 2.0}],
        created=evil,
    )
    page = Page(tmp_path / "report.html")
    assert page.tags("script") == []
    assert page.text.count(evil) >= 8


def test_same_folder_same_page(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "report.html"
    before = path.read_bytes()
    path.unlink()
    with mpl.rc_context({"axes.grid": True, "font.size": 30, "svg.fonttype": "path"}):
        # Neither the user's Matplotlib style nor the random state has a say, or is changed.
        np.random.seed(5)
        write_report(tmp_path)
        assert mpl.rcParams["font.size"] == 30
    assert path.read_bytes() == before
    assert {item.name for item in tmp_path.iterdir()} == {
        "labels.csv",
        "metrics.json",
        "projection.csv",
        "report.html",
    }


@pytest.mark.parametrize("K", [1, 2, 13, 60, 61, 200, 1000])
def test_any_number_of_clusters(tmp_path, K):
    write_run(tmp_path, M=max(2 * K, 50), K=K)
    page = Page(tmp_path / "report.html")
    assert ("repeat every 10 clusters" in page.text) == (K > 10)
    assert ("clusters, largest first" in page.text) == (K > 60)
    assert ("projection-mark-0" in page.html) == (K <= 60)
    assert len(page.html) < 1_500_000


def test_parquet_and_csv_give_the_same_page(tmp_path):
    write_run(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    table = read_labels(tmp_path / "labels.csv")
    columns = [np.asarray(table[name]) for name in ("cluster", "confidence", "entropy")]
    write_labels(tmp_path, *columns, format="parquet")
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_only_the_number_of_clusters_is_needed(tmp_path):
    write_labels(tmp_path, [0, 1, 1], [0.9, 0.8, 0.7], [0.33, 0.5, 0.61])
    write_metrics(tmp_path, {"model": {"n_clusters": 3}})
    write_report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert len(page.drawings()) == 3
    assert "3 rows, sorted into 3 clusters" in page.text
    assert "1 empty" in page.text
    for words in ("None", "nan", "null", "K-means", "How the fit went", "How it was made"):
        assert words not in page.text


OPTIONAL = sorted(set(full_metrics(8, 2, np.array([4, 4]))) - {"model"})


@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_optional_part_may_be_absent(tmp_path, missing):
    write_run(tmp_path, M=20, K=2, **{missing: ...})
    page = Page(tmp_path / "report.html")
    assert "20 rows" in page.text
    assert re.search(r"\b(None|nan|inf)\b", page.text) is None


def test_optional_parts_may_be_null(tmp_path):
    write_run(tmp_path, M=20, K=2, **dict.fromkeys(OPTIONAL))
    page = Page(tmp_path / "report.html")
    assert len(page.drawings()) == 4
    assert "20 rows, sorted" in page.text


def test_single_epoch_shows_as_a_dot(tmp_path):
    history = [{"restart": 0, "epoch": 1, "loss": 2.5, "gap": None, "live_clusters": 1}]
    write_run(tmp_path, history=history, restarts=[{"seed": 0, "objective": 2.5}])
    page = Page(tmp_path / "report.html")
    assert "Loss over 1 epoch, from 2.5 to 2.5." in page.drawings()
    assert "in the last one, 1 cluster had rows" in page.text
    loss = next(svg for svg in page.html.split("<svg") if "Loss over" in svg)
    assert re.search(r'<use href="#loss-\w+"[^>]*var\(--accent\)', loss)


def test_lost_losses_and_restarts_are_told_not_drawn(tmp_path):
    history = [
        {"restart": 0, "epoch": 1, "loss": 3.0},
        {"restart": 0, "epoch": 2, "loss": None},
        {"restart": 1, "epoch": 1, "loss": None},
    ]
    restarts = [{"seed": seed, "objective": value} for seed, value in enumerate([3.0, None, 2.0])]
    write_run(tmp_path, history=history, restarts=restarts)
    page = Page(tmp_path / "report.html")
    assert "Loss over 1 epoch, from 3 to 3." in page.drawings()
    assert "Objectives of 2 restarts, from 2 to 3; the lowest was kept." in page.drawings()
    assert "1 restart ended without an objective" in page.text


def test_kept_restart_is_the_one_with_the_lowest_objective(tmp_path):
    history = [
        {"restart": restart, "epoch": epoch, "loss": loss}
        for restart, loss in enumerate([5.0, 4.0, 6.0])
        for epoch in (1, 2)
    ]
    restarts = [{"seed": seed, "objective": value} for seed, value in enumerate([2.0, 3.0, 1.0])]
    write_run(tmp_path, history=history, restarts=restarts)
    drawings = Page(tmp_path / "report.html").drawings()
    assert "Loss over 2 epochs, from 6 to 6; 2 other restarts in gray." in drawings


def test_many_restarts_are_drawn_without_names(tmp_path):
    restarts = [{"seed": seed, "objective": 1 + seed / 7} for seed in range(40)]
    write_run(tmp_path, restarts=restarts)
    svg = next(
        svg for svg in (tmp_path / "report.html").read_text().split("<svg") if "of 40" in svg
    )
    assert "seed" not in svg.split("</svg>")[0]


@pytest.mark.parametrize(("confidence", "entropy"), [(1.0, 0.0), (0.25, math.log(4))])
def test_all_equal_confidence(tmp_path, confidence, entropy):
    write_labels(tmp_path, np.arange(40) % 4, np.full(40, confidence), np.full(40, entropy))
    write_metrics(tmp_path, {"model": {"n_clusters": 4}})
    write_report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert sum("holds 40 rows" in words for words in page.drawings()) == 2
    assert "-0.0" not in page.text


def test_a_row_in_float32_may_round_past_certainty(tmp_path):
    one = np.nextafter(np.float32(1), np.float32(2))
    write_labels(tmp_path, [0, 1], np.array([one, 0.5]), np.array([-1e-7, 0.69314724], np.float32))
    write_metrics(tmp_path, {"model": {"n_clusters": 2}})
    write_report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert "All have 1 row." in page.text
    assert "-0.0" not in page.text


def test_warnings_come_first(tmp_path):
    write_run(tmp_path, warnings=["The data had 3 constant columns."], converged=False)
    text = Page(tmp_path / "report.html").text
    assert "Before you rely on it The data had 3 constant columns." in text
    assert "Converged No" in text
    assert text.index("3 constant columns") < text.index("Certified gap")


def test_page_warns_of_its_own(tmp_path):
    write_run(tmp_path, converged=False)
    assert "stopped before it had converged" in Page(tmp_path / "report.html").text
    write_run(tmp_path, source={"rows": 301})
    assert "counts 301 rows, the labels file 300" in Page(tmp_path / "report.html").text
    write_run(tmp_path, cluster_sizes=[75, 75, 75, 75])
    assert "different cluster sizes" in Page(tmp_path / "report.html").text


HEADER = "row,cluster,confidence,entropy\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.json", "{", "not valid JSON"),
        ("metrics.json", "[1]", "must hold a JSON object"),
        ("metrics.json", '{"schema": 2}', "'schema'.*must be 1. Got 2"),
        ("metrics.json", '{"model": {}}', "must give 'n_clusters'.*Got None"),
        ("metrics.json", '{"model": {"n_clusters": 4}, "history": [3]}', "'history'.*objects"),
        ("metrics.json", '{"model": {"n_clusters": 4}, "warnings": "x"}', "'warnings'.*a list"),
        ("labels.csv", "", "not a labels file that can be read"),
        ("labels.csv", HEADER, "holds no rows"),
        ("labels.csv", "row,cluster\n0,0\n", "Column 'confidence'"),
        ("labels.csv", HEADER + "0,1,0.5\n", "Expected 4 columns"),
        ("labels.csv", HEADER + "0,1,,0.5\n", "'confidence' has missing values"),
        ("labels.csv", HEADER + "0,x,0.5,0.5\n", "invalid value 'x'"),
        ("labels.csv", HEADER + "0,1,0.9,0.5\n1,4,0.9,0.5\n", "cluster of row 1.*is 4"),
        ("labels.csv", HEADER + "0,1,1.9,0.5\n", "confidence of row 0.*is 1.9"),
        ("labels.csv", HEADER + "0,1,nan,0.5\n", "'confidence' has missing values"),
        ("labels.csv", HEADER + "0,1,0.9,1.5\n", "entropy of row 0.*is 1.5"),
        ("labels.parquet", "junk", "both labels.csv and labels.parquet"),
        ("projection.csv", "junk", "projection.csv is not a projection"),
        ("projection.csv", "row,x,y,cluster\n0,1,2,9\n", "projection.csv must hold"),
    ],
)
def test_damaged_files_are_named_in_one_sentence(run, name, content, words):
    before = (run / "report.html").read_bytes()
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        write_report(run)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_bytes() == before


def test_damaged_parquet_is_named(run):
    (run / "labels.csv").unlink()
    for content in (b"junk", b"PAR1" + bytes(100) + b"PAR1"):
        (run / "labels.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"labels\.parquet is not a labels file"):
            write_report(run)


@pytest.mark.parametrize("name", ["metrics.json", "labels.csv"])
def test_missing_files_are_named(run, name):
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        write_report(run)


def test_missing_folder_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run folder"):
        write_report(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []


# --- colors and words -----------------------------------------------------------------------

# Severe color vision deficiency in linear RGB: Machado, Oliveira & Fernandes (2009), Table 1.
VISIONS = {
    "normal": np.eye(3),
    "protanope": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranope": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanope": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear_rgb(*colors: str) -> np.ndarray:
    codes = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])
    return np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Return OKLab coordinates (Ottosson 2020) of linear RGB."""
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(rgb @ np.transpose(to_cones)) @ np.transpose(to_lab)


@pytest.mark.parametrize("vision", VISIONS)
def test_palette_stays_apart_for_every_eye(vision):
    seen = np.clip(linear_rgb(*figures.PALETTE) @ np.transpose(VISIONS[vision]), 0, 1)
    lab = oklab(seen)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    apart = distances[np.triu_indices(len(lab), 1)].min()
    # Matplotlib's default ten come as close as 0.02 to a deuteranope.
    assert apart > (0.12 if vision == "normal" else 0.075)


def test_palette_is_readable_on_light_and_dark():
    css = (Path(figures.__file__).parent / "report.css").read_text()
    grounds = re.findall(r"--surface: (#\w{6})", css)
    assert len(grounds) == 2
    weights = np.array([0.2126, 0.7152, 0.0722])
    colors = linear_rgb(*figures.PALETTE) @ weights
    for ground in linear_rgb(*grounds) @ weights:
        high, low = np.maximum(colors, ground), np.minimum(colors, ground)
        assert ((high + 0.05) / (low + 0.05)).min() > 2.4


def test_words():
    assert [seconds(value) for value in (0, 0.0341, 9.99, 59.9, 60, 3600, None)] == [
        "0 s",
        "0.034 s",
        "10 s",
        "1 min 0 s",
        "1 min 0 s",
        "1 h 0 min",
        "–",
    ]
    assert [compact(value) for value in (0, 999, 1000, 1_250_000, 2e9)] == [
        "0",
        "999",
        "1k",
        "1.25M",
        "2G",
    ]
    assert [decimal(value, 3) for value in (1, True, "x", math.inf, 1e-9)] == [
        "1",
        "–",
        "–",
        "–",
        "1e-09",
    ]
