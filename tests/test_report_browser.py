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

from coincide.report import write_labels, write_metrics, write_projection, write_report

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
    """Three pages: an ordinary run, one of many clusters with long names, one of bare labels."""
    return {
        "full": write_run(tmp_path_factory.mktemp("full"), K=10, name="digits"),
        "long": write_run(tmp_path_factory.mktemp("long"), K=200, name=LONG),
        "bare": write_bare(tmp_path_factory.mktemp("bare")),
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


@pytest.fixture(params=["full", "long", "bare"])
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
    assert len(boxes) == {"digits": 6, LONG: 6}.get(page.inner_text("h1"), 3)
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
