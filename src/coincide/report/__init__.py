"""A run folder: its labels, metrics, projection, and one offline HTML page about them.

The command line writes the first three while a run is in memory; the page is a pure function of
the folder, so it can be rebuilt at any time.
"""

from coincide.report.labels import write_labels
from coincide.report.page import write_report
from coincide.report.projection import write_projection
from coincide.report.run_folder import write_metrics

__all__ = ["write_labels", "write_metrics", "write_projection", "write_report"]
