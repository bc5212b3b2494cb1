"""Passes over rows: see ``_threads``."""

from coincide._threads import BlockedRows, compiled

__all__ = ["BlockedRows", "compiled"]
