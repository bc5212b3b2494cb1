"""The command line: what it writes, what it prints, and one sentence for each kind of bad input."""

import csv
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import normalized_mutual_info_score

import coincide
from coincide.cli import main
from coincide.cli.options import MODEL
from coincide.cluster import CollisionClustering

RUN_FILES = {
    "labels.csv",
    "metrics.json",
    "model.json",
    "model.safetensors",
    "projection.csv",
    "report.html",
}
K = 3
X, Y = make_blobs(120, n_features=4, centers=K, cluster_std=0.5, random_state=0)
X = X.astype(np.float32)
QUICK = ("--epochs", "3", "--starts", "1")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def blobs(tmp_path):
    """Save the blobs, and return the name of the file."""
    np.save(tmp_path / "blobs.npy", X)
    np.save(tmp_path / "classes.npy", Y)
    return "blobs.npy"


@pytest.fixture
def run(blobs, tmp_path):
    """Cluster the blobs, and return the folder of the run."""
    assert main(["cluster", blobs, "-k", str(K), "--out", "run", "--quiet", *QUICK]) == 0
    return tmp_path / "run"


@pytest.fixture
def fails(capsys):
    """Return a function that runs a command in vain and returns its one line of complaint."""

    def complaint(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("coincide: error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return complaint


def names(folder):
    return {path.name for path in folder.iterdir()}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# What a run writes


def test_cluster_writes_the_run(run):
    assert names(run) == RUN_FILES
    model = CollisionClustering.load(run)
    probabilities = model.predict_proba(X)
    rows = rows_of(run / "labels.csv")
    assert [int(row["row"]) for row in rows] == list(range(len(X)))
    assert [int(row["cluster"]) for row in rows] == probabilities.argmax(1).tolist()
    confidence = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidence, probabilities.max(1), rtol=1e-5)
    p = probabilities.astype(float)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)
    np.testing.assert_allclose([float(row["entropy"]) for row in rows], entropy, atol=1e-5)


def test_metrics_say_what_was_done(run):
    metrics = metrics_of(run)
    assert metrics["schema"] == 1
    assert metrics["command"][:4] == ["coincide", "cluster", "blobs.npy", "-k"]
    assert metrics["source"] == {
        "name": "blobs",
        "rows": len(X),
        "features": 4,
        "dtype": "float32",
        "columns": None,
        "said": [],
    }
    assert metrics["model"]["n_clusters"] == K
    assert metrics["model"]["parameters"]["max_epochs"] == 3
    assert metrics["model"]["parameters"]["n_init"] == 1
    assert "callback" not in metrics["model"]["parameters"]
    assert sum(metrics["cluster_sizes"]) == len(X)
    assert metrics["seed"] == 0
    assert set(metrics["timings"]) == {"read", "fit", "predict", "write"}
    assert metrics["versions"]["coincide"] == coincide.__version__
    assert metrics["gap"] >= 0
    assert len(metrics["history"]) == metrics["n_epochs"]
    assert "scores" not in metrics


def test_the_estimator_fitted_by_hand_gives_the_same_labels(run):
    model = CollisionClustering(K, max_epochs=3, n_init=1, random_state=0).fit(X)
    assert [int(row["cluster"]) for row in rows_of(run / "labels.csv")] == model.labels_.tolist()
    assert metrics_of(run)["objective"] == pytest.approx(model.objective_)


def test_labels_give_the_number_of_clusters_and_the_scores(blobs, tmp_path, capsys):
    arguments = ["cluster", blobs, "--labels", "classes.npy", "--seed", "1", *QUICK]
    assert main(arguments) == 0
    folder = tmp_path / "coincide-blobs"
    metrics = metrics_of(folder)
    clusters = [int(row["cluster"]) for row in rows_of(folder / "labels.csv")]
    assert metrics["model"]["n_clusters"] == K
    assert metrics["scores"]["nmi"] == pytest.approx(normalized_mutual_info_score(Y, clusters))
    assert "calibration_error" in metrics["scores"]
    kmeans = KMeans(K, n_init=1, random_state=1).fit_predict(X)
    assert metrics["kmeans"]["nmi"] == pytest.approx(normalized_mutual_info_score(Y, kmeans))
    assert set(metrics["kmeans"]) == {"accuracy", "nmi", "ari", "seconds"}
    printed = capsys.readouterr().out
    assert "Labels found: they set the number of clusters, 3" in printed
    assert "K-means" in printed
    assert "ACC" in printed
    assert "coincide-blobs/labels.csv" in printed


def test_far_from_the_origin_kmeans_beside_us_is_that_of_scikit_learn(tmp_path):
    times = X.astype(np.float64) + 1.7e9  # as seconds since 1970, of which float32 knows 128
    np.savez(tmp_path / "times.npz", X=times, y=Y)
    assert main(["cluster", "times.npz", "--quiet", *QUICK]) == 0
    metrics = metrics_of(tmp_path / "coincide-times")
    kmeans = KMeans(K, n_init=1, random_state=0).fit_predict(times)
    assert metrics["kmeans"]["nmi"] == pytest.approx(normalized_mutual_info_score(Y, kmeans))
    assert metrics["kmeans"]["accuracy"] == metrics["scores"]["accuracy"] == 1


def test_unknown_labels_are_not_scored(blobs, tmp_path):
    known = np.arange(len(Y)) % 3 > 0
    np.save(tmp_path / "some.npy", np.where(known, Y, -1))
    assert main(["cluster", blobs, "--labels", "some.npy", "--quiet", *QUICK]) == 0
    metrics = metrics_of(tmp_path / "coincide-blobs")
    clusters = np.array(
        [int(row["cluster"]) for row in rows_of(tmp_path / "coincide-blobs" / "labels.csv")]
    )
    kmeans = KMeans(K, n_init=1, random_state=0).fit_predict(X)
    for name, found in (("scores", clusters), ("kmeans", kmeans)):
        expected = normalized_mutual_info_score(Y[known], found[known])
        assert metrics[name]["nmi"] == pytest.approx(expected)


def test_labels_do_not_change_the_result(blobs, run, tmp_path):
    arguments = ["cluster", blobs, "-k", str(K), "--labels", "classes.npy", "--quiet", *QUICK]
    assert main([*arguments, "--out", "labelled"]) == 0
    labelled = rows_of(tmp_path / "labelled" / "labels.csv")
    assert [row.pop("class") for row in labelled]  # the name matched with the cluster
    assert labelled == rows_of(run / "labels.csv")


def test_digits_have_ten_clusters(tmp_path):
    assert main(["cluster", "digits", "--quiet", "--epochs", "1", "--starts", "1"]) == 0
    metrics = metrics_of(tmp_path / "coincide-digits")
    assert metrics["model"]["n_clusters"] == 10
    assert metrics["source"]["rows"] == 1797


def test_probabilities_and_format(blobs, tmp_path):
    options = ["--probabilities", "--format", "parquet", "--no-report", "--quiet"]
    assert main(["cluster", blobs, "-k", str(K), *QUICK, *options]) == 0
    folder = tmp_path / "coincide-blobs"
    assert names(folder) == RUN_FILES - {"labels.csv", "report.html"} | {"labels.parquet"}
    table = pq.read_table(folder / "labels.parquet")
    kept = np.column_stack([table[f"p{k}"].to_numpy() for k in range(K)])
    np.testing.assert_allclose(kept.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(kept.argmax(1), table["cluster"].to_numpy())


def test_every_option_reaches_the_estimator(blobs, tmp_path):
    given = {
        "prior": "equal",
        "fairness": 50.0,
        "representation": "scaled",
        "n_neighbors": 4,
        "objective": "cce+",
        "solver": "em",
        "network": "mlp",
        "init": "random",
        "scaling": "standard",
        "n_init": 2,
        "max_epochs": 2,
        "batch_size": 60,
        "learning_rate": 0.05,
        "momentum": 0.5,
        "weight_decay": 0.002,
        "view_dropout": 0.1,
        "view_noise": 0.2,
        "device": "cpu",
    }
    assert given.keys() == {option.name for option in MODEL}
    options = [str(word) for option in MODEL for word in (option.flag, given[option.name])]
    assert main(["cluster", blobs, "-k", "3", "--seed", "7", "--quiet", *options]) == 0
    parameters = metrics_of(tmp_path / "coincide-blobs")["model"]["parameters"]
    assert {name: parameters[name] for name in given} == given
    assert parameters["random_state"] == 7


def test_an_earlier_run_is_replaced_as_a_whole(blobs, run, tmp_path, fails):
    again = ["cluster", blobs, "-k", "2", "--quiet", "--format", "parquet", *QUICK, "--out", "run"]
    assert "--overwrite" in fails(*again)
    assert metrics_of(run)["model"]["n_clusters"] == K
    (run / "notes.txt").write_text("mine")
    assert main([*again, "--overwrite"]) == 0
    assert names(run) == RUN_FILES - {"labels.csv"} | {"labels.parquet", "notes.txt"}
    assert metrics_of(run)["model"]["n_clusters"] == 2


def test_the_default_folder_can_be_written_again(blobs, tmp_path):
    for clusters in ("2", "3"):
        assert main(["cluster", blobs, "-k", clusters, "--quiet", *QUICK]) == 0
    assert metrics_of(tmp_path / "coincide-blobs")["model"]["n_clusters"] == 3


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_folders_of_others_are_left_alone(blobs, tmp_path, fails, options):
    for name, text in (("photos", "mine"), ("coincide-blobs", '{"schema": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
        out = ["--out", name] if name == "photos" else []
        assert "left as it is" in fails("cluster", blobs, "-k", K, *out, *options)
        assert names(tmp_path / name) == {"metrics.json"}


def test_a_failed_run_leaves_the_earlier_one_whole(run, blobs, monkeypatch, fails):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coincide.cli.run.write_projection", full)
    arguments = ("cluster", blobs, "-k", "2", "--out", "run", "--overwrite", *QUICK)
    assert "No space left on device" in fails(*arguments)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_control_c_leaves_nothing_behind(blobs, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("coincide.cli.run.write_projection", stop)
    assert main(["cluster", blobs, "-k", "2", "--out", "new", *QUICK]) == 130
    assert capsys.readouterr().err == "coincide: stopped.\n"
    assert names(tmp_path / "new") == set()


def test_warnings_are_printed_and_kept(blobs, tmp_path, monkeypatch, capsys):
    fit = CollisionClustering.fit

    def warn_twice(self, X, y=None):
        for _ in range(2):
            warnings.warn("Two clusters\nare one.", UserWarning, stacklevel=1)
        return fit(self, X, y)

    monkeypatch.setattr(CollisionClustering, "fit", warn_twice)
    assert main(["cluster", blobs, "-k", str(K), "--quiet", "--epochs", "20"]) == 0
    assert "coincide: warning: Two clusters are one.\n" in capsys.readouterr().err
    assert metrics_of(tmp_path / "coincide-blobs")["warnings"].count("Two clusters are one.") == 1


def test_quiet_prints_nothing(blobs, capsys):
    assert main(["cluster", blobs, "-k", str(K), "--quiet", "--epochs", "50"]) == 0
    assert capsys.readouterr().out == ""


# Predicting


def test_predict_labels_new_rows(run, tmp_path, capsys):
    np.save(tmp_path / "new.npy", X[::-1][:50])
    assert main(["predict", "run", "new.npy", "--labels", "classes.npy"]) == 2  # 120 labels
    np.save(tmp_path / "classes.npy", Y[::-1][:50])
    capsys.readouterr()
    assert main(["predict", "run", "new.npy", "--labels", "classes.npy"]) == 0
    expected = CollisionClustering.load(run).predict(X[::-1][:50].copy())
    found = [int(row["cluster"]) for row in rows_of(run / "predictions.csv")]
    assert found == expected.tolist()
    assert names(run) == RUN_FILES | {"predictions.csv"}
    printed = capsys.readouterr().out
    assert "ACC" in printed
    assert "run/predictions.csv" in printed


def test_predict_writes_the_file_asked_for(run, blobs, tmp_path, fails):
    arguments = ["predict", "run", blobs, "--out", "a/b.parquet", "--probabilities", "--quiet"]
    assert main(arguments) == 0
    table = pq.read_table(tmp_path / "a" / "b.parquet")
    expected = CollisionClustering.load(run).predict_proba(X)
    np.testing.assert_allclose(table["p1"].to_numpy(), expected[:, 1], atol=1e-6)
    assert names(tmp_path / "a") == {"b.parquet"}
    assert "replace it with --overwrite" in fails(*arguments)
    assert main([*arguments, "--overwrite"]) == 0
    for out in ("b.txt", ".", "a"):
        assert "must end in .csv or .parquet" in fails("predict", "run", blobs, "--out", out)
    assert "'' is no file: name one, or -" in fails("predict", "run", blobs, "--out", "")


def test_predict_finds_the_columns_by_name(tmp_path, fails):
    table = np.column_stack([X, Y])
    header = "a,b,c,d,class"
    np.savetxt(tmp_path / "old.csv", table, delimiter=",", header=header, comments="")
    fit = ["cluster", "old.csv", "--label-column", "class", "--out", "run", "--quiet", *QUICK]
    assert main(fit) == 0
    assert metrics_of(tmp_path / "run")["source"]["columns"] == list("abcd")
    shuffled = "class,d,b,extra,c,a"
    columns = [4, 3, 1, 0, 2, 0]
    np.savetxt(tmp_path / "new.csv", table[:, columns], delimiter=",", header=shuffled, comments="")
    assert main(["predict", "run", "new.csv", "--quiet"]) == 0
    predicted = [row["cluster"] for row in rows_of(tmp_path / "run" / "predictions.csv")]
    assert predicted == [row["cluster"] for row in rows_of(tmp_path / "run" / "labels.csv")]
    for name in ("metrics.json", "labels.csv"):  # the model knows its columns by itself
        (tmp_path / "run" / name).unlink()
    assert main(["predict", "run", "new.csv", "--quiet"]) == 0
    again = [row["cluster"] for row in rows_of(tmp_path / "run" / "predictions.csv")]
    assert again == predicted
    (tmp_path / "less.csv").write_text("a,b,c\n1,2,3\n")
    assert "no column 'd'" in fails("predict", "run", "less.csv")


def people(count=150):
    """Return a table of ids, classes, and columns of different units: three plain clusters."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 3, count)
    centers = np.array([[30, 30_000, 1.2], [50, 60_000, 1.7], [70, 35_000, 2.4]])
    values = centers[codes] + random.normal(size=(count, 3)) * [3, 3000, 0.1]
    frame = pd.DataFrame(values, columns=["age", "income", "height"])
    frame.insert(0, "Customer ID", [f"C{number}" for number in random.permutation(count)])
    return frame.assign(**{" Label": np.array(["10", "9", "b"])[codes]})


def test_a_table_as_people_have_it_is_clustered_right_and_keeps_its_ids(tmp_path, capsys):
    frame = people()
    frame.to_csv(tmp_path / "people.csv", index=False)
    assert main(["cluster", "people.csv", "--restarts", "1"]) == 0
    said = capsys.readouterr().err
    assert "took 'Customer ID' as the id of a row" in said
    assert "' Label' as the labels" in said
    assert "standardized" in said
    folder = tmp_path / "coincide-people"
    assert metrics_of(folder)["scores"]["accuracy"] == 1
    assert metrics_of(folder)["source"]["columns"] == ["age", "income", "height"]
    rows = rows_of(folder / "labels.csv")
    assert [row["Customer ID"] for row in rows] == frame["Customer ID"].tolist()
    assert [row["class"] for row in rows] == frame[" Label"].tolist()

    # New rows in another order of columns, some of their labels blank, then all.
    new = frame[["height", " Label", "income", "Customer ID", "age"]].sample(30, random_state=0)
    for blanks in (10, 30):
        new.iloc[:blanks, 1] = None
        new.to_csv(tmp_path / "new.csv", index=False)
        assert main(["predict", "coincide-people", "new.csv"]) == 0
        found = pd.read_csv(folder / "predictions.csv", dtype=str).set_index("Customer ID")
        expected = frame.set_index("Customer ID")[" Label"]
        assert found["class"].to_dict() == expected[found.index].to_dict()
        assert f"{blanks} of 30 rows have no label" in capsys.readouterr().err


def test_a_column_of_an_array_that_numbers_the_rows_is_known_to_the_model(tmp_path):
    np.save(tmp_path / "old.npy", np.column_stack([np.arange(len(X)), X]))
    assert main(["cluster", "old.npy", "-k", str(K), "--out", "run", *QUICK]) == 0
    few = np.column_stack([np.arange(len(X)), X])[[5, 7, 100]]  # too few rows to tell by themselves
    np.save(tmp_path / "new.npy", few)
    assert main(["predict", "run", "new.npy"]) == 0
    expected = rows_of(tmp_path / "run" / "labels.csv")
    found = rows_of(tmp_path / "run" / "predictions.csv")
    assert [row["cluster"] for row in found] == [expected[row]["cluster"] for row in (5, 7, 100)]
    assert [row["id"] for row in expected] == [str(row) for row in range(len(X))]


def test_predict_refuses_other_features(run, tmp_path, fails):
    np.save(tmp_path / "narrow.npy", X[:, :3])
    assert "3 features" in fails("predict", "run", "narrow.npy")


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_predict_refuses_a_damaged_model(run, blobs, fails, content):
    path = run / "model.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert "model.safetensors" in fails("predict", "run", blobs)


def test_commands_need_the_folder_of_a_run(blobs, tmp_path, fails):
    assert "nowhere" in fails("predict", "nowhere", blobs)
    assert "nowhere" in fails("report", "nowhere")


# The other commands


def test_report_writes_the_page_again(run, capsys):
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert main(["report", "run"]) == 0
    assert (run / "report.html").read_bytes() == page
    assert "run/report.html" in capsys.readouterr().out


def test_info_names_versions_and_solvers(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert coincide.__version__ in printed
    assert np.__version__ in printed
    assert "interior-point" in printed
    assert "cce+" in printed


# Bad input, each with its sentence


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nan.npy", np.where(np.eye(5) > 0, np.nan, 1.0), "5 of 5 rows have NaN or infinite"),
        ("inf.npy", np.array([[1.0, 2], [3, 4], [np.inf, 5]]), "row 2, column 0 (inf)"),
        ("flat.npy", np.ones(9), "a 1-D array of shape (9,)"),
        ("same.npy", np.ones((9, 2)), "constant"),
        ("text.csv", "a,name\n1,x\n2,y\n", "'name'"),
        ("empty.csv", "", "empty.csv is empty"),
        ("ragged.csv", "a,b\n1,2\n3\n", "Row 3 of ragged.csv has 1 cells"),
    ],
)
def test_bad_sources(tmp_path, fails, name, content, words):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        np.save(tmp_path / name, content)
    assert words in fails("cluster", name, "-k", "2")
    assert names(tmp_path) == {name}


def test_a_missing_file(fails):
    assert "'absent.npy' does not exist" in fails("cluster", "absent.npy", "-k", "2")


def test_the_number_of_clusters(blobs, fails):
    assert "give their number with -k" in fails("cluster", blobs)
    assert "n_clusters" in fails("cluster", blobs, "-k", "1")
    assert "n_clusters" in fails("cluster", blobs, "-k", len(X) + 1)
    assert "'many' is no number, no list" in fails("cluster", blobs, "-k", "many")


def test_an_unfit_pair_of_solver_and_objective(blobs, fails):
    sentence = fails("cluster", blobs, "-k", K, "--objective", "cce", "--solver", "em")
    assert "em" in sentence
    assert "cce" in sentence


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fairness", "-1"),
        ("solver", "newton"),
        ("network", "vgg"),
        ("init", "zeros"),
        ("scaling", "rows"),
        ("momentum", "1"),
        ("starts", "0"),
        ("epochs", "0"),
        ("batch-size", "0"),
        ("learning-rate", "0"),
        ("view-dropout", "2"),
        ("device", "abacus"),
        ("seed", "-1"),
    ],
)
def test_unfit_options(blobs, fails, option, value):
    assert value in fails("cluster", blobs, "-k", K, f"--{option}={value}")


@pytest.mark.parametrize("command", ["cluster", "train"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/run", "file is a file"),
        ("file", "file is a file"),
        ("-", "'-' is no folder, and a run is several files"),
        ("", "'' is no folder, and a run is several files"),
        (".", "holds files that are not of a run"),
    ],
)
def test_an_unfit_folder_is_found_before_anything_is_read(tmp_path, fails, command, out, words):
    (tmp_path / "file").write_text("")
    assert words in fails(command, "absent.npy", "--out", out)
    assert names(tmp_path) == {"file"}


def test_the_current_folder_may_be_that_of_the_run(blobs, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert main(["cluster", f"../{blobs}", "-k", "3", "--out", ".", "--quiet", *QUICK]) == 0
    assert names(tmp_path / "run") == RUN_FILES


def test_a_read_only_folder(tmp_path, fails):
    if os.geteuid() == 0:
        pytest.skip("permission bits do not bind root")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in fails("cluster", "absent.npy", "--out", "locked/run")


def test_a_refused_table_ends_the_process_in_order(tmp_path):
    """Threads of the CSV reader have aborted the interpreter on its way out (status 134)."""
    table = tmp_path / "text.csv"
    table.write_text("a,name\n1.5,x\n2.5,y\n", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "coincide", "cluster", str(table), "-k", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
