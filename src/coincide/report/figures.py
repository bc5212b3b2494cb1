"""The figures of the page, each an SVG element that stands inside the HTML.

Matplotlib draws with colors that stand for roles (text, rule, accent); they are replaced with CSS
variables, so a figure follows the page into dark mode. Text stays text, in the page's font, at a
size that CSS can raise on a phone. Nothing touches pyplot or any global setting for longer than
one drawing.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from coincide.report.confusion import Confusion
from coincide.report.projection import Projection
from coincide.report.words import compact, counted, whole

# Ten hues of which any two stay apart (OKLab) under normal, deuteranope, protanope and tritanope
# vision, each with a contrast of at least 2.4 on white and on the page's dark ground.
PALETTE = (
    "#4b78e1",
    "#f07887",
    "#1e7869",
    "#b4a500",
    "#694bb4",
    "#00b4b4",
    "#785a0f",
    "#a596ff",
    "#78870f",
    "#b45aa5",
)
MAX_NAMED_RESTARTS = 12
MAX_NAMED_CLUSTERS = 60  # beyond, ids in the figures would hide what they name

# Colors that occur nowhere else, and the CSS they become.
INK, MUTED, RULE, ACCENT = "#010203", "#010204", "#010205", "#010206"
ROLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
}

WIDTH = 400  # user units; the page scales the figure to its column
WIDE = 820  # of a figure across both columns, which CSS lets scroll where they are narrow
MAX_NUMBERED_CLASSES = 12  # of a confusion matrix with numbers in its cells
RASTER_DPI = 200
FONT_SIZE = 11


@dataclass(frozen=True)
class Plate:
    """One figure of the page with its heading and caption."""

    heading: str
    drawing: Markup
    caption: str
    is_wide: bool = False


def cluster_color(cluster: int) -> str:
    """Return the color of a cluster; the palette repeats after ten."""
    return PALETTE[cluster % len(PALETTE)]


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw by Matplotlib's defaults, whatever style the user has set; theirs comes back after."""
    with mpl.rc_context():
        mpl.rcdefaults()
        # Text stays text, and the same figure gets the same ids every time.
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "coincide"})
        yield


@_own_style()
def cluster_sizes(sizes: NDArray[np.int64]) -> Markup:
    """Draw how many rows each cluster has: bars by id, or beyond 60 a curve from largest down."""
    K = len(sizes)
    figure, axes = _canvas(340)
    if K <= MAX_NAMED_CLUSTERS:
        axes.bar(range(K), sizes, width=0.72, color=[cluster_color(k) for k in range(K)])
        axes.set_xlim(-0.7, K - 0.3)
        axes.set_xlabel("cluster")
        step = 1 if K <= 12 else 5 if K <= 30 else 10
        axes.set_xticks(range(0, K, step))
    else:
        ordered = np.sort(sizes)[::-1]
        axes.stairs(ordered, np.arange(K + 1), fill=True, color=ACCENT, alpha=0.25)
        axes.stairs(ordered, np.arange(K + 1), baseline=None, color=ACCENT, linewidth=1.5)
        axes.set_xlim(0, K)
        axes.set_xlabel("clusters, largest first")
    axes.axhline(sizes.mean(), color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    _count_axis(axes, "rows", int(sizes.max()))
    return _svg(
        figure,
        "sizes",
        f"Sizes of {K} clusters, from {counted(sizes.min(), 'row')} to"
        f" {counted(sizes.max(), 'row')}; an even share would be {compact(sizes.mean())}.",
    )


@_own_style()
def histogram(
    counts: NDArray[np.int64],
    limits: tuple[float, float],
    name: str,
    ends: tuple[str, str],
) -> Markup:
    """Draw rows by ``name``, a quantity between ``limits``; ``ends`` names the two ends."""
    low, high = limits
    figure, axes = _canvas(226)
    edges = np.linspace(low, high, len(counts) + 1)
    axes.bar(edges[:-1], counts, np.diff(edges) * 0.88, align="edge", color=ACCENT)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(name)
    _count_axis(axes, "rows", int(counts.max()))
    fullest = int(counts.argmax())
    return _svg(
        figure,
        name,
        f"Histogram of {name}, from {low:.2f} ({ends[0]}) to {high:.2f} ({ends[1]}). The fullest"
        f" of {len(counts)} bins, {edges[fullest]:.2f} to {edges[fullest + 1]:.2f}, holds"
        f" {counted(counts[fullest], 'row')}.",
    )


@_own_style()
def projection(view: Projection, n_clusters: int) -> Markup:
    """Draw the sampled rows in two dimensions, with each cluster's id at its median."""
    figure, axes = _canvas(340, margins=(2, 2, 2, 2))
    n = len(view.clusters)
    # Small clusters would vanish under large ones if they were drawn one after the other.
    order = np.random.default_rng(0).permutation(n)
    axes.scatter(
        view.positions[order, 0],
        view.positions[order, 1],
        s=16 if n <= 1_000 else 7,
        c=[cluster_color(int(k)) for k in view.clusters[order]],
        alpha=0.75,
        linewidths=0,
        rasterized=True,
    )
    axes.margins(0.04)
    axes.set_axis_off()
    shown = np.unique(view.clusters)
    if n_clusters <= MAX_NAMED_CLUSTERS:
        for k in shown:
            x, y = np.median(view.positions[view.clusters == k], axis=0)
            label = axes.text(x, y, str(k), color=INK, ha="center", va="center_baseline")
            label.set_gid(f"mark-{k}")
    return _svg(
        figure,
        "projection",
        f"Scatter plot of {counted(n, 'row')} from {counted(len(shown), 'cluster')} on the two"
        " directions of largest variance.",
    )


@_own_style()
def loss_curve(curves: Sequence[tuple[Sequence[float], Sequence[float]]], kept: int) -> Markup:
    """Draw loss by epoch for each restart, a pair (epochs, losses); ``kept`` is the chosen one."""
    figure, axes = _canvas(226)
    others = [curve for index, curve in enumerate(curves) if index != kept]
    for epochs, losses in others:
        axes.plot(epochs, losses, color=MUTED, linewidth=1, alpha=0.7, marker=_dot(losses))
    epochs, losses = curves[kept]
    axes.plot(epochs, losses, color=ACCENT, linewidth=2, marker=_dot(losses), markersize=6)
    _name_heights(axes, "loss")
    _epoch_axis(axes)
    _plain_numbers(axes.yaxis)
    axes.margins(y=0.08)
    return _svg(
        figure,
        "loss",
        f"Loss over {counted(len(losses), 'epoch')}, from {losses[0]:.4g} to {losses[-1]:.4g}"
        + (f"; {counted(len(others), 'other restart')} in gray." if others else "."),
    )


@_own_style()
def restarts(
    names: Sequence[str], values: Sequence[float], kept: int, quantity: str, told: str
) -> Markup:
    """Draw a quantity of each restart as a dot on its own line, the kept one filled."""
    n = len(values)
    named = n <= MAX_NAMED_RESTARTS
    figure, axes = _canvas(226, margins=(72 if named else 10, 14, 10, 48))
    lines = range(n)
    if named:
        axes.set_yticks(lines, names)
        axes.grid(axis="y", color=RULE, linewidth=1)
    else:
        axes.set_yticks([])
    axes.scatter(values, lines, s=40, facecolors="none", edgecolors=MUTED, linewidths=1.5)
    axes.scatter(values[kept], kept, s=70, color=ACCENT, zorder=3)
    axes.set_ylim(n - 0.5, -0.5)  # the first on top
    axes.set_xlabel(quantity)
    _plain_numbers(axes.xaxis)
    axes.margins(x=0.06)
    return _svg(
        figure,
        "restarts",
        told.format(f"{counted(n, 'restart')}, from {min(values):.6g} to {max(values):.6g}"),
    )


@_own_style()
def candidates(
    numbers: Sequence[int], agreement: Sequence[float], error: Sequence[float], chosen: int
) -> Markup:
    """Draw how starts agreed at each number of clusters, the chosen one filled."""
    figure, axes = _canvas(226)
    axes.errorbar(numbers, agreement, error, color=MUTED, linewidth=1.5, marker="o", ms=5, mfc="w")
    place = list(numbers).index(chosen)
    axes.scatter(chosen, agreement[place], s=70, color=ACCENT, zorder=3)
    axes.set_xlabel("clusters")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _name_heights(axes, "agreement of starts")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return _svg(
        figure,
        "candidates",
        f"Agreement of starts at {counted(len(numbers), 'number')} of clusters; at the chosen"
        f" {chosen} it is {agreement[place]:.3f}.",
    )


@_own_style()
def share_range(
    epochs: Sequence[float], least: Sequence[float], largest: Sequence[float], n_clusters: int
) -> Markup:
    """Draw the shares of the smallest and of the largest cluster by epoch."""
    figure, axes = _canvas(226)
    axes.fill_between(epochs, least, largest, color=ACCENT, alpha=0.18, linewidth=0)
    for shares in (least, largest):
        axes.plot(epochs, shares, color=ACCENT, linewidth=1.5, marker=_dot(shares))
    axes.axhline(1 / n_clusters, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    _name_heights(axes, "share of rows")
    _epoch_axis(axes)
    axes.set_ylim(0, 1.08 * max(*largest, 1 / n_clusters))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    return _svg(
        figure,
        "shares",
        f"Shares of the smallest and the largest of {n_clusters} clusters over"
        f" {counted(len(epochs), 'epoch')}; in the last, {least[-1]:.1%} and {largest[-1]:.1%}.",
    )


@_own_style()
def live_clusters(epochs: Sequence[float], live: Sequence[float], n_clusters: int) -> Markup:
    """Draw how many clusters had rows in each epoch."""
    figure, axes = _canvas(226)
    axes.plot(epochs, live, color=ACCENT, linewidth=2, drawstyle="steps-mid")
    _epoch_axis(axes)
    _count_axis(axes, "clusters", n_clusters)
    return _svg(
        figure,
        "live",
        f"Clusters in use over {counted(len(epochs), 'epoch')}, from {whole(live[0])} to"
        f" {whole(live[-1])} of {whole(n_clusters)}.",
    )


@_own_style()
def confusion(table: Confusion) -> Markup:
    """Draw classes by clusters, each cell as deep as its share of the class.

    Small tables have the shares in their cells; every cell tells its count to a resting pointer.
    """
    C, K = table.counts.shape
    numbered = is_small(table)
    names = [_tick_name(name, 10 if numbered else 18) for name in table.classes]
    letter = 8.6 if numbered else 5.2  # user units, on a phone
    width = WIDTH if numbered else WIDE
    left = 12 + letter * max(len(name) for name in names)
    cell = min((width - left - 10) / K, 34 if numbered else 16)
    height = round(max(cell, 12) * C) + 76
    figure, axes = _canvas(height, margins=(left, 10, 28, 48), width=width)
    shares = table.counts / np.maximum(table.counts.sum(axis=1, keepdims=True), 1)
    axes.add_patch(Rectangle((0, 0), K, C, facecolor=RULE, alpha=0.35))
    for row, column in np.argwhere(table.counts).tolist():
        share = float(shares[row, column])
        # Words in the cells stay readable on the deepest color.
        alpha = share * (0.55 if numbered else 1)
        patch = Rectangle((column, row), 1, 1, facecolor=ACCENT, alpha=alpha, clip_on=False)
        patch.set_gid(f"cell-{row}-{column}")
        axes.add_patch(patch)
        if numbered and (percent := f"{100 * share:.0f}") != "0":
            axes.text(
                column + 0.5,
                row + 0.5,
                percent,
                color=INK,
                size=FONT_SIZE,
                ha="center",
                va="center_baseline",
            )
    for place in range(min(C, K)):
        axes.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor=MUTED, clip_on=False))
    axes.set(xlim=(0, K), ylim=(C, 0), xlabel="cluster")
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(np.arange(K) + 0.5, [str(cluster) for cluster in table.clusters])
    axes.set_yticks(np.arange(C) + 0.5, names, parse_math=False)
    _name_heights(axes, "class")
    drawing = _svg(
        figure,
        "confusion",
        f"Confusion matrix: how many rows of each class ({C}) went to each cluster ({K}).",
    )
    return _with_counts(drawing, table)


def is_small(table: Confusion) -> bool:
    """Whether a confusion matrix has room for numbers in its cells."""
    return max(len(table.classes), len(table.clusters)) <= MAX_NUMBERED_CLASSES


def _with_counts(drawing: Markup, table: Confusion) -> Markup:
    """Give each cell of a drawn confusion matrix its count, as the title browsers show."""
    totals = table.counts.sum(axis=1)

    def titled(cell: re.Match[str]) -> str:
        row, column = int(cell[1]), int(cell[2])
        words = (
            f"{table.classes[row]} in cluster {table.clusters[column]}:"
            f" {whole(table.counts[row, column])} of {whole(totals[row])}"
        )
        return f"<g><title>{html.escape(words)}</title>"

    return Markup(re.sub(r'<g id="confusion-cell-(\d+)-(\d+)">', titled, drawing))


def _tick_name(name: str, length: int) -> str:
    """Return a name of the user's as one short line that Matplotlib can set."""
    line = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.02)
    axes.grid(axis="y", color=RULE, linewidth=1)


def _dot(losses: Sequence[float]) -> str:
    """Return the marker of a curve: a dot if one point is all there is, and no line shows."""
    return "o" if len(losses) == 1 else ""


def _plain_numbers(axis: Axis) -> None:
    """Write whole numbers on an axis: an offset ("+1.27e-3" in a corner) is easily overlooked."""
    axis.set_major_locator(MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _canvas(
    height: int,
    margins: tuple[float, float, float, float] = (46, 10, 28, 48),
    width: int = WIDTH,
) -> tuple[Figure, Axes]:
    """Return a figure with one axes, its margins left, right, top, bottom."""
    left, right, top, bottom = margins
    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            1 - (left + right) / width,
            1 - (top + bottom) / height,
        )
    )
    axes.patch.set_visible(False)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=MUTED, labelsize=FONT_SIZE, length=0, pad=6)
    axes.xaxis.label.set(color=MUTED, size=FONT_SIZE)
    axes.xaxis.labelpad = 8  # room for the larger words of a phone
    axes.set_axisbelow(True)
    return figure, axes


def _name_heights(axes: Axes, name: str) -> None:
    """Name the y axis above it, to be read without turning one's head."""
    axes.annotate(
        name,
        xy=(0, 1),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(0, 12),
        textcoords="offset points",
        color=MUTED,
        size=FONT_SIZE,
    )


def _count_axis(axes: Axes, name: str, largest: int) -> None:
    """Name and mark the y axis of a count, which begins at 0."""
    _name_heights(axes, name)
    axes.set_ylim(0, 1.08 * max(largest, 1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.grid(axis="y", color=RULE, linewidth=1)


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as one ``<svg>`` element, named in every id and described in words."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The words are set in the reader's fonts, which may well have what Matplotlib's lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, format="svg", dpi=RASTER_DPI, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would rule the whole page
    # The page's font, in the page's size.
    svg = re.sub(r"font(-\w+)?: [^;\"]*;?\s*", "", svg)
    # Inside HTML there are no namespaces, and ids are shared by all figures.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for color, role in ROLES.items():
        svg = svg.replace(color, role)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib wrote an SVG without a viewBox"
    opening = f'<svg {view_box[0]} role="img" aria-label="{html.escape(description)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1))
