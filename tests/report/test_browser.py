"""The page as a browser shows it: nothing fetched, nothing cut off, dark where it is dark.

Needs Chromium or Chrome on the machine (no browser is downloaded). Without one the tests are
skipped, except in CI, where they must run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from coincide.report import (
    matched_confusion,
    write_gallery,
    write_labels,
    write_metrics,
    write_projection,
    write_report,
)

if os.environ.get("CI"):
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONG = "a_name_that_does_not_break_" * 8


@dataclass
class View:
    """A page in a browser, with what it asked for and complained of."""

    page: playwright.Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("No browser to open the report in: install chromium.")
        pytest.skip("no chromium or google-chrome on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An ordinary run, one of many clusters with long names, bare labels, two runs of images."""
    return {
        "full": write_run(tmp_path_factory.mktemp("full"), K=10, name="digits"),
        "long": write_run(tmp_path_factory.mktemp("long"), K=200, name=LONG),
        "bare": write_bare(tmp_path_factory.mktemp("bare")),
        "images": write_images(tmp_path_factory.mktemp("images"), K=10, side=8, name="tiny"),
        "photos": write_images(tmp_path_factory.mktemp("photos"), K=30, side=40, name=LONG),
    }


def write_run(folder: Path, K: int, name: str) -> Path:
    generator = np.random.default_rng(0)
    M = 1_000
    clusters = np.concatenate([np.arange(K), generator.integers(K, size=M - K)])
    features = generator.normal(size=(K, 16))[clusters] * 3 + generator.normal(size=(M, 16))
    confidence = generator.uniform(1 / K, 1, M)
    write_labels(folder, clusters, confidence, (1 - confidence) * np.log(K))
    write_projection(folder, features, clusters, seed=0)
    write_metrics(
        folder,
        {
            "schema": 1,
            "command": ["coincide", "cluster", f"{name}.npy", "-k", str(K)],
            "source": {"name": name, "rows": M, "features": 16, "dtype": "float32"},
            "model": {"n_clusters": K, "parameters": {"a_parameter": name}},
            "objective": -1.23456789e-12,
            "gap": 1.5e-300,
            "converged": False,
            "n_epochs": 20,
            "restarts": [{"seed": seed, "objective": 1 + seed / 9} for seed in range(5)],
            "history": [{"restart": 0, "epoch": e, "loss": 1 + 1 / e} for e in range(1, 21)],
            "warnings": [f"Look at {name}."],
            "scores": {"accuracy": 0.8, "nmi": 0.7, "ari": 0.6, "calibration_error": 0.1},
            "kmeans": {"accuracy": 0.7, "nmi": 0.6, "ari": 0.5, "seconds": 0.2},
            "timings": {"fit": 5.0},
            "versions": {name: "1"},
        },
    )
    return write_report(folder)


def write_bare(folder: Path) -> Path:
    write_labels(folder, [0, 1], [0.9, 0.8], [0.33, 0.5])
    write_metrics(folder, {"model": {"n_clusters": 2}})
    return write_report(folder)


def write_images(folder: Path, K: int, side: int, name: str) -> Path:
    """Write a run on images with all that can be told of one; every word the user's is long."""
    generator = np.random.default_rng(0)
    M = 600
    truth = generator.integers(K, size=M)
    clusters = np.where(generator.random(M) < 0.7, truth, generator.integers(K, size=M))
    clusters[clusters == 1] = 0
    confidence = generator.uniform(1 / K, 1, M)
    images = generator.integers(256, size=(M, 3, side, side + 4), dtype=np.uint8)
    names = [f"{c}{name}" for c in range(K)]
    write_labels(folder, clusters, confidence, (1 - confidence) * np.log(K))
    write_gallery(folder, images, clusters, confidence, known=truth, names=names)
    shares = {"least_share": 0.0, "largest_share": 0.5}
    write_metrics(
        folder,
        {
            "source": {"name": f"{name} of {side} pixels"},
            "model": {"n_clusters": K},
            "confusion": matched_confusion(truth, clusters, K, names),
            "history": [
                {"epoch": e, "loss": 1 / (1 + e), "live_clusters": K - e, **shares}
                for e in range(4)
            ],
            "starts": [
                {"seed": 10**18 + seed, "round": n, "loss": seed / 9, "kept": seed < 4 >> n}
                for n in range(3)
                for seed in range(8 >> n)
            ],
            "signs": [name],
            "skipped": [[f"{name}{n}.jpg", name] for n in range(30)],
            "training": {name: name},
        },
    )
    return write_report(folder)


@pytest.fixture(params=["full", "long", "bare", "images", "photos"])
def report(reports: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return reports[request.param]


@pytest.fixture
def show(browser: playwright.Browser) -> Iterator[object]:
    contexts = []

    def open_page(path: Path, width: int, scheme: str) -> View:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        view = View(context.new_page())
        view.page.on("request", lambda request: view.requests.append(request.url))
        view.page.on("console", lambda message: view.complaints.append(message.text))
        view.page.on("pageerror", lambda error: view.complaints.append(str(error)))
        view.page.goto(path.as_uri())
        # What is folded away must fit too.
        view.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        return view

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_fetched_and_nothing_complains(show, report, width):
    view = show(report, width, "light")
    outside = [url for url in view.requests if not url.startswith("data:")]
    assert outside == [report.as_uri()]
    assert view.complaints == []


def test_the_check_above_would_notice(show, tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<img src="https://example.invalid/a.png"><script>nothing()</script>')
    view = show(path, 360, "light")
    assert "https://example.invalid/a.png" in view.requests
    assert any("nothing is not defined" in complaint for complaint in view.complaints)


@pytest.mark.parametrize("width", [360, 761, 1200])
def test_page_never_scrolls_sideways(show, report, width):
    page = show(report, width, "light").page
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Nor is anything but the scrolling boxes' content beyond the edge, where it would be cut off.
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll, pre') && e.getBoundingClientRect().right > innerWidth)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


def luminance(color: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)``."""
    codes = np.array([float(part) / 255 for part in color[4:-1].split(",")])
    linear = np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


STYLES = """() => ['body', '.lede', 'figcaption', 'dt', 'figure svg text'].map(
    s => getComputedStyle(document.querySelector(s))).map(s => [s.backgroundColor, s.color, s.fill])
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(show, report, scheme):
    view = show(report, 1200, scheme)
    styles = view.page.evaluate(STYLES)
    ground = luminance(styles[0][0])
    assert ground < 0.02 if scheme == "dark" else ground > 0.9
    inks = [luminance(color) for _, color, _ in styles[:-1]] + [luminance(styles[-1][2])]
    for ink in inks:
        high, low = max(ink, ground), min(ink, ground)
        assert (high + 0.05) / (low + 0.05) > 4.5  # WCAG AA


@pytest.mark.parametrize("width", [360, 1200])
def test_figures_are_drawn(show, report, width):
    page = show(report, width, "light").page
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('figure svg')].map(svg => {
            const box = svg.getBoundingClientRect();
            const marks = [...svg.querySelectorAll('path, use, image')]
                .filter(mark => mark.getBoundingClientRect().width);
            return [box.width, box.height, marks.length, !!svg.querySelector('image')];
        })"""
    )
    expected = {"full": 6, "long": 6, "bare": 3, "images": 7, "photos": 7}
    assert len(boxes) == expected[report.parent.name.rstrip("0123456789")]
    for drawn_width, height, marks, is_scatter in boxes:
        assert drawn_width > 0.7 * min(width, 500)
        assert height > 100
        assert marks >= (1 if is_scatter else 4)


def test_figure_words_stay_large_on_a_phone(show, report):
    page = show(report, 360, "light").page
    heights = page.evaluate(
        """() => [...document.querySelectorAll('figure svg text')].map(t =>
            parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"""
    )
    assert min(heights) > 10.5


def test_scatter_is_a_picture_with_content(show, reports):
    page = show(reports["full"], 1200, "light").page
    opaque = page.evaluate(
        """async () => {
            const href = document.querySelector('figure svg image').getAttribute('href');
            const image = new Image();
            image.src = href;
            await image.decode();
            const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
            canvas.drawImage(image, 0, 0);
            const data = canvas.getImageData(0, 0, image.width, image.height).data;
            return data.filter((value, index) => index % 4 === 3 && value > 0).length
                / (image.width * image.height);
        }"""
    )
    assert 0.005 < opaque < 0.5


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["images", "photos"])
def test_gallery_images_are_seen(show, reports, name, width):
    page = show(reports[name], width, "dark").page
    images = page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll('.tiles img')];
            await Promise.all(images.map(image => image.decode()));
            return images.map(image => {
                const box = image.getBoundingClientRect();
                return [image.naturalWidth, box.width, box.width / box.height,
                    getComputedStyle(image).imageRendering];
            });
        }"""
    )
    side = {"images": 8, "photos": 40}[name]
    assert len(images) > 100
    for natural, shown, aspect, rendering in images:
        assert natural == side + 4
        assert shown > 38
        assert aspect == pytest.approx((side + 4) / side, rel=0.02)
        assert rendering == ("pixelated" if side == 8 else "auto")


@pytest.mark.parametrize("name", ["images", "photos"])
def test_confusion_cells_tell_their_counts(show, reports, name):
    page = show(reports[name], 1200, "light").page
    svg = page.locator("svg[aria-label^=Confusion]")
    cells = svg.locator("g:has(> title)")
    assert cells.count() > 30
    # The first cell is that of the first class, which its words name with the count.
    assert " in cluster " in str(cells.first.locator("title").text_content())
    diagonal = cells.first.bounding_box()
    assert diagonal is not None
    assert diagonal["width"] > 10
    assert diagonal["height"] > 10
