"""A run folder: its labels, metrics, projection, gallery, and one offline HTML page about them.

The command line writes all but the page while a run is in memory; the page is a pure function of
the folder, so it can be rebuilt at any time.
"""

from coincide.report.confusion import matched_confusion
from coincide.report.gallery import write_gallery
from coincide.report.labels import RowNames, write_labels
from coincide.report.page import write_report
from coincide.report.projection import write_projection
from coincide.report.run_folder import write_metrics

__all__ = [
    "RowNames",
    "matched_confusion",
    "write_gallery",
    "write_labels",
    "write_metrics",
    "write_projection",
    "write_report",
]
