"""The gallery as the page shows it: a card for every cluster, its images within the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coincide.report.figures import MAX_NAMED_CLUSTERS, cluster_color
from coincide.report.gallery import ClusterImages, Entry, Gallery, encode_png
from coincide.report.labels import Array, LabelSummary
from coincide.report.words import counted, share, whole

TINY_SIDE = 16  # pixels; up to here enlarging should show them, not blur them
MAX_LISTED = 20
ABREAST = 3  # images; rows of at most so many stand side by side


@dataclass(frozen=True)
class Tile:
    """One image: its data URI, what it is in words, and whether it is of a minority class."""

    source: str
    words: str
    is_odd: bool


@dataclass(frozen=True)
class Strip:
    """A row of images and what they are."""

    heading: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Card:
    """One cluster."""

    cluster: int
    color: str
    facts: list[str]
    strips: list[Strip]


@dataclass(frozen=True)
class GalleryCards:
    """The gallery of the page; the note says what is shown, and what is not.

    ``is_tiny`` images are to be enlarged pixel by pixel; where rows are short, ``is_short``, two of
    them fit beside each other.
    """

    note: str
    cards: list[Card]
    is_tiny: bool
    is_short: bool


def gallery_cards(gallery: Gallery, labels: LabelSummary) -> GalleryCards:
    """Return the cards by cluster, or of many clusters those of the largest 60."""
    order = list(range(len(gallery.clusters)))
    if labels.n_clusters > MAX_NAMED_CLUSTERS:
        order.sort(key=lambda line: -gallery.clusters[line].size)
    shown = order[:MAX_NAMED_CLUSTERS]
    clusters = [gallery.clusters[line] for line in shown]
    longest = max((len(cluster.most) for cluster in clusters if cluster.least), default=0)
    return GalleryCards(
        note=_note(clusters, labels.sizes),
        cards=[_card(gallery.clusters[line], gallery.tiles[line]) for line in shown],
        is_tiny=max(gallery.tiles.shape[2:4]) <= TINY_SIDE,
        is_short=longest <= ABREAST,
    )


def _note(clusters: list[ClusterImages], sizes: NDArray[np.int64]) -> str:
    """Say which clusters and images are shown, and how to read them."""
    sentences = ["The images of each cluster at both ends of the scale of confidence."]
    if len(sizes) > MAX_NAMED_CLUSTERS:
        sentences = [
            f"The largest {len(clusters)} of {whole(len(sizes))} clusters, by size: their images at"
            " both ends of the scale of confidence."
        ]
    if any(cluster.majority for cluster in clusters):
        sentences.append(
            "Purity is the share of the most frequent class among the images whose class is known;"
            " images of another class have a frame."
        )
    empty = np.flatnonzero(sizes == 0).tolist()
    if empty:
        listed = ", ".join(map(str, empty[:MAX_LISTED]))
        more = f" and {whole(len(empty) - MAX_LISTED)} more" if len(empty) > MAX_LISTED else ""
        are = "Cluster {} is" if len(empty) == 1 else "Clusters {} are"
        sentences.append(f"{are.format(listed + more)} empty.")
    return " ".join(sentences)


def _card(cluster: ClusterImages, tiles: Array) -> Card:
    facts = [
        counted(cluster.size, "image"),
        f"mean confidence {share(cluster.mean_confidence)}",
    ]
    if cluster.majority is not None:
        known = cluster.majority.known
        of = f" of {whole(known)} known" if known < cluster.size else ""
        facts.append(
            f"mostly {cluster.majority.name}, purity\u00a0{share(cluster.majority.purity)}{of}"
        )
    n_most = len(cluster.most)
    headings = ("Most certain", "Least certain") if cluster.least else ("All of them", "")
    strips = [
        _strip(heading, cluster, entries, images)
        for heading, entries, images in zip(
            headings, (cluster.most, cluster.least), (tiles[:n_most], tiles[n_most:]), strict=True
        )
        if entries
    ]
    return Card(cluster.cluster, cluster_color(cluster.cluster), facts, strips)


def _strip(
    heading: str, cluster: ClusterImages, entries: tuple[Entry, ...], images: Array
) -> Strip:
    first, last = entries[0].confidence, entries[-1].confidence
    usual = cluster.majority.name if cluster.majority else None
    return Strip(
        f"{heading}, {share(first)}" + (f" to {share(last)}" if len(entries) > 1 else ""),
        [
            Tile(_data_uri(image), _words(entry), entry.name not in (None, usual))
            for entry, image in zip(entries, images, strict=False)
        ],
    )


def _words(entry: Entry) -> str:
    named = "" if entry.name is None else f", class {entry.name}"
    return f"row {entry.row}, confidence {share(entry.confidence)}{named}"


def _data_uri(pixels: Array) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")
