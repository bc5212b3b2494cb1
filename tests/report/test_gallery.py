"""The gallery: the right images, their pixels unhurt, in little room, and on the page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coincide.report import write_gallery, write_labels, write_metrics, write_report
from coincide.report.gallery import Gallery, read_gallery
from report_runs import Page

K = 5


def noise(M: int, shape: tuple[int, int, int] = (1, 6, 8), seed: int = 0) -> np.ndarray:
    """Return M images of which no two are equal, and which PNG cannot make smaller."""
    return np.random.default_rng(seed).integers(0, 256, (M, *shape), dtype=np.uint8)


def drawn(M: int, n_clusters: int = K, levels: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters, of which the third is empty, and confidences of few levels: many ties."""
    generator = np.random.default_rng(1)
    clusters = generator.integers(n_clusters, size=M)
    clusters[clusters == 2] = 0
    return clusters, 0.25 + 0.75 * generator.integers(1, levels + 1, M) / levels


def read(folder: Path, n_clusters: int = K) -> Gallery:
    gallery = read_gallery(folder, n_clusters)
    assert gallery is not None
    return gallery


def rows(gallery: Gallery, end: str) -> dict[int, list[int]]:
    return {
        cluster.cluster: [entry.row for entry in getattr(cluster, end)]
        for cluster in gallery.clusters
    }


def write_run(folder: Path, images: np.ndarray, n_clusters: int, **options: object) -> Page:
    """Write a run folder with its gallery; return its page."""
    M = len(images)
    clusters, confidence = drawn(M, n_clusters)
    confidence = np.maximum(confidence, 1 / n_clusters)
    write_labels(folder, clusters, confidence, (1 - confidence) * np.log(n_clusters))
    write_metrics(folder, {"model": {"n_clusters": n_clusters}})
    write_gallery(folder, images, clusters, confidence, **options)
    return Page(write_report(folder))


# --- what is chosen -------------------------------------------------------------------------


@pytest.mark.parametrize("per_cluster", [1, 2, 7, 12])
def test_most_and_least_certain_are_those_of_a_sort(tmp_path, per_cluster):
    images, (clusters, confidence) = noise(300), drawn(300)
    write_gallery(tmp_path, images, clusters, confidence, per_cluster=per_cluster)
    gallery = read(tmp_path)
    for k in (0, 1, 3, 4):
        order = sorted(np.flatnonzero(clusters == k), key=lambda row: (-confidence[row], row))
        n_least = per_cluster // 2
        assert rows(gallery, "most")[k] == order[: per_cluster - n_least]
        assert rows(gallery, "least")[k] == order[::-1][:n_least]
    found = {cluster.cluster: cluster for cluster in gallery.clusters}
    assert sorted(found) == [0, 1, 3, 4]
    for k, cluster in found.items():
        assert cluster.size == (clusters == k).sum()
        assert cluster.mean_confidence == pytest.approx(confidence[clusters == k].mean())
        assert all(entry.confidence == confidence[entry.row] for entry in cluster.most)


def test_small_clusters_are_shown_whole_and_once(tmp_path):
    clusters = [0] * 12 + [1] * 13 + [3]
    confidence = np.linspace(0.3, 0.9, 26)
    write_gallery(tmp_path, noise(26), clusters, confidence)
    gallery = read(tmp_path)
    assert rows(gallery, "most") == {
        0: list(range(11, -1, -1)),
        1: list(range(24, 18, -1)),
        3: [25],
    }
    assert rows(gallery, "least") == {0: [], 1: list(range(12, 18)), 3: []}


def test_majority_is_counted_among_known_classes(tmp_path):
    clusters, confidence = drawn(200)
    known = np.random.default_rng(2).integers(-1, 3, 200)
    known[clusters == 4] = -1
    names = ["cat", "dog", "eel"]
    write_gallery(tmp_path, noise(200), clusters, confidence, known=known, names=names)
    for cluster in read(tmp_path).clusters:
        counts = Counter(known[(clusters == cluster.cluster) & (known >= 0)].tolist())
        if not counts:
            assert cluster.cluster == 4
            assert cluster.majority is None
            continue
        largest = max(counts.values())
        assert cluster.majority is not None
        assert counts[names.index(cluster.majority.name)] == cluster.majority.rows == largest
        assert cluster.majority.purity == pytest.approx(largest / sum(counts.values()))
        for entry in cluster.most + cluster.least:
            assert entry.name == ([*names, None][known[entry.row]])


def test_classes_without_names_go_by_number(tmp_path):
    write_gallery(tmp_path, noise(3), [0, 0, 0], [0.9, 0.8, 0.7], known=[7, -1, 7])
    assert [entry.name for entry in read(tmp_path).clusters[0].most] == ["7", None, "7"]


# --- pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 8, 6), (3, 64, 20), (1, 1, 1)])
def test_images_up_to_64_pixels_come_back_as_they_were(tmp_path, shape):
    images, (clusters, confidence) = noise(60, shape), drawn(60)
    np.save(tmp_path / "images.npy", images)
    write_gallery(tmp_path, np.load(tmp_path / "images.npy", mmap_mode="r"), clusters, confidence)
    gallery = read(tmp_path)
    for cluster, tiles in zip(gallery.clusters, gallery.tiles, strict=True):
        for entry, tile in zip(cluster.most + cluster.least, tiles, strict=False):
            np.testing.assert_array_equal(tile, np.moveaxis(images[entry.row], 0, -1))


def test_only_the_images_shown_are_read(tmp_path):
    seen = []

    class Watched(np.ndarray):
        def __getitem__(self, key):
            seen.append(key)
            return np.ndarray.__getitem__(self.view(np.ndarray), key)

    clusters, confidence = drawn(500)
    write_gallery(tmp_path, noise(500).view(Watched), clusters, confidence, per_cluster=4)
    gallery = read(tmp_path)
    shown = [row for end in ("most", "least") for k in rows(gallery, end).values() for row in k]
    assert sorted(seen) == sorted(shown)
    assert len(seen) == 16


def test_large_images_are_shrunk_with_their_aspect_kept(tmp_path):
    images = np.zeros((2, 3, 120, 240), np.uint8)
    images[0, 0, :, :120] = 200  # red on the left
    images[1, 2, 60:] = 100  # blue below
    write_gallery(tmp_path, images, [0, 0], [0.9, 0.8])
    left_red, low_blue = read(tmp_path).tiles[0]
    assert left_red.shape == (32, 64, 3)
    means = left_red.astype(float).reshape(32, 2, 32, 3).mean((0, 2))
    np.testing.assert_allclose(means, [[200, 0, 0], [0, 0, 0]], atol=2)
    means = low_blue.astype(float).reshape(2, 16, 64, 3).mean((1, 2))
    np.testing.assert_allclose(means, [[0, 0, 0], [0, 0, 100]], atol=2)


@pytest.mark.parametrize(
    ("n_clusters", "shape", "images", "size"),
    [
        (1000, (3, 64, 64), 2, (32, 32)),
        (300, (3, 40, 80), 4, (29, 58)),
        (60, (3, 40, 80), 12, (32, 64)),
        (60, (3, 64, 64), 8, (64, 64)),
        (10, (3, 500, 500), 12, (64, 64)),
        (2000, (3, 64, 64), 2, (22, 22)),
    ],
)
def test_many_clusters_stay_small(tmp_path, n_clusters, shape, images, size):
    ids = np.arange(12 * n_clusters + 12) % n_clusters
    few = noise(20, shape)

    class Repeated(np.ndarray):
        """As many images as there are rows, without the memory they would take."""

        def __getitem__(self, key):
            return few[key % len(few)]

    stretched = np.broadcast_to(few[:1], (len(ids), *shape)).view(Repeated)
    write_gallery(tmp_path, stretched, ids, np.linspace(0, 1, len(ids)))
    gallery = read(tmp_path, n_clusters)
    assert gallery.tiles.shape == (n_clusters, images, *size, 3)
    written = sum(file.stat().st_size for file in (tmp_path / "gallery").iterdir())
    assert written < 8_000_000


# --- refusals -------------------------------------------------------------------------------

IMAGES = noise(3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((IMAGES.astype(float), [0] * 3, [1] * 3), {}, TypeError, "'images'.*Got 'float64"),
        ((IMAGES.tolist(), [0] * 3, [1] * 3), {}, TypeError, "'images'.*Got 'list'"),
        ((IMAGES[:, 0], [0] * 3, [1] * 3), {}, ValueError, r"'images'.*\(3, 6, 8\)"),
        ((IMAGES[:0], [], []), {}, ValueError, "'images'.*not empty"),
        ((noise(3, (2, 4, 4)), [0] * 3, [1] * 3), {}, ValueError, "1 or 3 channels"),
        ((IMAGES, [0] * 2, [1] * 3), {}, ValueError, r"'clusters'.*\(3,\).*Got \(2,\)"),
        ((IMAGES, [0, -1, 0], [1] * 3), {}, ValueError, "'clusters'.*Row 1 is -1"),
        ((IMAGES, [0.0] * 3, [1] * 3), {}, TypeError, "'clusters'.*integers. Got float64"),
        ((IMAGES, [0] * 3, [1] * 2), {}, ValueError, r"'confidence'.*Got \(2,\)"),
        ((IMAGES, [0] * 3, [1, 1, np.nan]), {}, ValueError, "'confidence'.*Row 2 has NaN"),
        (
            (IMAGES, [0] * 3, [1, np.inf, 1]),
            {},
            ValueError,
            "'confidence'.*Row 1 has NaN",
        ),
        ((IMAGES, [0] * 3, ["a"] * 3), {}, TypeError, "'confidence'.*real numbers"),
        ((IMAGES, [0] * 3, [1] * 3), {"known": [0]}, ValueError, r"'known'.*Got \(1,\)"),
        ((IMAGES, [0] * 3, [1] * 3), {"known": [0.5] * 3}, TypeError, "'known'.*float64"),
        ((IMAGES, [0] * 3, [1] * 3), {"known": [0, -2, 0]}, ValueError, "Row 1 is -2"),
        (
            (IMAGES, [0] * 3, [1] * 3),
            {"known": [0, 1, 2], "names": ["a", "b"]},
            ValueError,
            "'known'.*from 0 to 1.*Row 2 is 2",
        ),
        ((IMAGES, [0] * 3, [1] * 3), {"per_cluster": 0}, ValueError, "'per_cluster'.*>= 1"),
    ],
)
def test_unfit_input_is_refused_and_the_old_gallery_stays(
    tmp_path, arguments, options, error, words
):
    path = write_gallery(tmp_path, IMAGES, [0, 1, 1], [0.9, 0.8, 0.7])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert sorted(before) == ["images.png", "index.json"]
    with pytest.raises(error, match=words):
        write_gallery(tmp_path, *arguments, **options)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def damage(index: dict[str, object], **changes: object) -> str:
    return json.dumps(index | changes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.json", lambda index: "{"),
        ("index.json", lambda index: "[]"),
        ("index.json", lambda index: "null"),
        ("index.json", lambda index: damage(index, clusters=[{}])),
        ("index.json", lambda index: damage(index, clusters=index["clusters"][:1])),
        ("index.json", lambda index: damage(index, size=[0, 0])),
        ("index.json", lambda index: damage(index, size=[5, 8])),
        ("index.json", lambda index: damage(index, size=[6, 16])),
        (
            "index.json",
            lambda index: damage(index, clusters=[c | {"cluster": 9} for c in index["clusters"]]),
        ),
        ("images.png", lambda index: "junk"),
    ],
)
def test_damaged_galleries_are_named_in_one_sentence(tmp_path, name, content):
    write_run(tmp_path, noise(100), K)
    page = (tmp_path / "report.html").read_bytes()
    file = tmp_path / "gallery" / name
    file.write_text(content(json.loads((tmp_path / "gallery" / "index.json").read_text())))
    with pytest.raises(ValueError, match=r"index\.json.*Remove the folder gallery") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_bytes() == page


def test_images_of_another_gallery_are_noticed(tmp_path):
    clusters, confidence = drawn(100)
    for name, seed in (("a", 0), ("b", 1)):
        write_gallery(tmp_path / name, noise(100, seed=seed), clusters, confidence)
    # As if a second run had been killed between the two files.
    (tmp_path / "b/gallery/images.png").replace(tmp_path / "a/gallery/images.png")
    with pytest.raises(ValueError, match=r"images\.png is not the one it describes"):
        read(tmp_path / "a")


def test_images_that_are_missing_are_named(tmp_path):
    write_run(tmp_path, noise(100), K)
    (tmp_path / "gallery/images.png").unlink()
    with pytest.raises(ValueError, match=r"images\.png"):
        write_report(tmp_path)


# --- the page -------------------------------------------------------------------------------


def shown_pixels(source: str | None) -> np.ndarray:
    assert source is not None
    start, data = source.split(",")
    assert start == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_shows_the_images_themselves(tmp_path):
    images = noise(120)
    page = write_run(tmp_path, images, K)
    gallery = read(tmp_path)
    shown = page.tags("img")
    expected = [entry for cluster in gallery.clusters for entry in cluster.most + cluster.least]
    assert len(shown) == len(expected) == 4 * 12
    for image, entry in zip(shown, expected, strict=True):
        words = f"row {entry.row}, confidence {entry.confidence:.3f}"
        assert image["alt"] == image["title"] == words
        np.testing.assert_array_equal(shown_pixels(image["src"]), images[entry.row, 0])
    for cluster in gallery.clusters:
        assert (
            f"Cluster {cluster.cluster} {cluster.size} images · mean confidence"
            f" {cluster.mean_confidence:.3f} Most certain, {cluster.most[0].confidence:.3f} to"
        ) in page.text
    assert "120 images, sorted into 5 clusters. Each image has" in page.text
    assert "Cluster 2 is empty." in page.text
    assert "purity" not in page.text.lower()
    assert page.tags("script") == []
    assert re.search(r"https?://", page.html) is None


def test_page_names_the_majority_and_frames_the_others(tmp_path):
    clusters, _ = drawn(200)
    known = np.random.default_rng(5).integers(-1, 2, 200)
    page = write_run(tmp_path, noise(200), K, known=known, names=["cat", "<b>dog</b>"])
    assert page.tags("b") == []
    expected = []
    for cluster in read(tmp_path).clusters:
        assert cluster.majority is not None
        of = (known[clusters == cluster.cluster] >= 0).sum()
        assert (
            f"mostly {cluster.majority.name}, purity {cluster.majority.purity:.3f} of {of} known"
        ) in page.text
        entries = cluster.most + cluster.least
        expected += [entry.name not in (None, cluster.majority.name) for entry in entries]
    framed = [image.get("class") == "odd" for image in page.tags("img")]
    assert framed == expected
    assert 0 < sum(framed) < len(framed)


def test_many_clusters_show_the_largest_sixty(tmp_path):
    page = write_run(tmp_path, noise(2000), 200)
    sizes = np.bincount(drawn(2000, 200)[0], minlength=200)
    shown = [int(k) for k in re.findall(r"</span>Cluster (\d+)</h3>", page.html)]
    assert shown == np.argsort(-sizes, kind="stable")[:60].tolist()
    assert "The largest 60 of 200 clusters, by size" in page.text
    assert "Cluster 2 is empty." in page.text


def test_empty_clusters_are_listed_up_to_twenty(tmp_path):
    write_labels(tmp_path, [0, 30], [0.9, 0.8], [0.2, 0.3])
    write_metrics(tmp_path, {"model": {"n_clusters": 31}})
    write_gallery(tmp_path, noise(2), [0, 30], [0.9, 0.8])
    listed = ", ".join(map(str, range(1, 21)))
    assert f"Clusters {listed} and 9 more are empty." in Page(write_report(tmp_path)).text


def test_the_page_of_the_largest_gallery_stays_below_ten_megabytes(tmp_path):
    page = write_run(tmp_path, noise(1200, (3, 64, 64)), 60)
    assert len(page.tags("img")) == 59 * 8
    assert 7_000_000 < len(page.html) < 10_000_000


@pytest.mark.parametrize(("side", "is_tiny"), [(8, True), (16, True), (28, False)])
def test_tiny_images_are_enlarged_pixel_by_pixel(tmp_path, side, is_tiny):
    page = write_run(tmp_path, noise(40, (1, side, side)), K)
    assert ("gallery tiny" in [tag.get("class") for tag in page.tags("div")]) == is_tiny


def test_a_gallery_of_other_labels_is_warned_of(tmp_path):
    write_run(tmp_path, noise(100), K)
    write_gallery(tmp_path, noise(3), [0, 1, 1], [0.9, 0.8, 0.7])
    text = Page(write_report(tmp_path)).text
    assert "The gallery and the labels file give different cluster sizes" in text


def test_same_folder_same_page(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name / "run", noise(100), K)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()}
        for name in ("a", "b")
    )
    assert first == second
    assert len(first) == 5


def test_runs_without_images_have_no_gallery(tmp_path):
    write_run(tmp_path, noise(100), K)
    for file in (tmp_path / "gallery").iterdir():
        file.unlink()
    page = Page(write_report(tmp_path))
    assert page.tags("img") == []
    assert "Their images" not in page.text
    assert "100 rows, sorted" in page.text
