"""Tables on input, filled by the code that decides: ``{input-columns}`` and ``{input-files}``.

``{input-columns}`` takes the columns of tables, one table a line, and says by the names alone what
each is taken for. ``{input-files}`` lists the suffixes that are read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from coincide.data.columns import Asked, choose_roles
from coincide.data.errors import SourceError
from coincide.data.formats import COMPRESSED, FEATHER, JSON, PARQUET, TEXT
from coincide.data.vectors import ARRAYS

_CONTENT = {
    "arrays": ARRAYS,
    "tables as text": TEXT,
    "Parquet": PARQUET,
    "Feather, Arrow": FEATHER,
    "records of JSON": JSON,
    "text and JSON, compressed": COMPRESSED,
}


class _Table(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the table that :meth:`rows` gives, parsed as Markdown."""
        node = nodes.container()
        source = self.state.document.current_source or ""
        self.state.nested_parse(StringList(list(self.rows()), source), self.content_offset, node)
        return list(node.children)

    def rows(self) -> Iterator[str]:
        """Yield the lines of the table."""
        raise NotImplementedError


class Columns(_Table):
    """What columns are taken for, by their names alone."""

    def rows(self) -> Iterator[str]:
        """Yield a line a table."""
        yield "| columns | features | labels | left out: ids, other labels |"
        yield "|---|---|---|---|"
        for names in csv.reader(self.content):
            yield f"| {_code(names)} | {' | '.join(_roles(names))} |"


class Files(_Table):
    """The suffixes that are read."""

    def rows(self) -> Iterator[str]:
        """Yield a line a kind of file."""
        yield "| | suffixes |"
        yield "|---|---|"
        for what, suffixes in _CONTENT.items():
            yield f"| {what} | {_code(suffixes)} |"


def _roles(names: list[str]) -> tuple[str, str, str]:
    try:
        found = choose_roles(names, Asked(), "it", lambda name: None)
    except SourceError as error:
        return f"refused: {error}".replace("|", "\\|"), "", ""
    return _code(found.features), _code([found.label] if found.label else []), _code(found.left_out)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" if name else "(none)" for name in names)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives."""
    app.add_directive("input-columns", Columns)
    app.add_directive("input-files", Files)
    return {"parallel_read_safe": True}
