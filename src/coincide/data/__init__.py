"""Where features come from."""

from coincide.data.vectors import Source, SourceError, load_source

__all__ = ["Source", "SourceError", "load_source"]
