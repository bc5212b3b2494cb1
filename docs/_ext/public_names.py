"""No public name without its documentation, or the build fails.

The build fails, with one error for every name in ``__all__`` of a module in the
``public_modules`` setting, and every public method and property of a class among them, that
has no docstring of its own or stands on no page. An object that is public under several names
(``package.f`` and ``package.room.f``) needs a place under one of them; references by the others
lead there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

_MEMBERS = (property, cached_property, classmethod, staticmethod)


class NoPublicNamesError(Exception):
    """A module does not say what is public, or cannot deliver it."""


@dataclass
class PublicObject:
    """An object and all its public paths."""

    value: object
    paths: list[str]

    def place(self, inventory: Collection[str]) -> str | None:
        """Return the path under which it stands on a page, if there is one."""
        return next((path for path in self.paths if path in inventory), None)


def public_objects(modules: Iterable[str]) -> list[PublicObject]:
    """Collect what these modules name in ``__all__``, each object once; modules are left out.

    Raises
    ------
    NoPublicNamesError
        If a module has no ``__all__``, or it or a name in there cannot be loaded.
    """
    objects: dict[int, PublicObject] = {}
    for module_name in modules:
        try:
            module = importlib.import_module(module_name)
            values = {name: getattr(module, name) for name in module.__all__}
        except (ImportError, AttributeError) as error:
            raise NoPublicNamesError(f"{module_name}: {error}") from error
        for name, value in values.items():
            if not isinstance(value, ModuleType):
                known = objects.setdefault(id(value), PublicObject(value, []))
                known.paths.append(f"{module_name}.{name}")
    return list(objects.values())


def find_undocumented(modules: Iterable[str], inventory: Collection[str]) -> list[str]:
    """List what is missing, one line a name; empty when all is well.

    Parameters
    ----------
    modules : iterable of str
        The public modules.
    inventory : collection of str
        The full names of all Python objects that have a place on a page.
    """
    missing = []
    for public in public_objects(modules):
        place = public.place(inventory)
        path = place or public.paths[0]
        if place is None:
            missing.append(f"{path}: is on no page")
        # An instance (a constant) would show its class's docstring as if it were its own.
        if callable(public.value) and not _has_docstring(public.value):
            missing.append(f"{path}: has no docstring")
        if isinstance(public.value, type):
            for name, member in own_members(public.value):
                if not _has_docstring(member):
                    missing.append(f"{path}.{name}: has no docstring")
                elif place and f"{path}.{name}" not in inventory:
                    missing.append(f"{path}.{name}: is on no page")
    return missing


def own_members(cls: type) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties that ``cls`` itself defines.

    What a class inherits from another project is documented there.
    """
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, _MEMBERS)):
            yield name, value


def _has_docstring(value: object) -> bool:
    """Whether ``value`` has a docstring that it did not inherit and no decorator wrote."""
    if not isinstance(value, type):
        return bool((value.__doc__ or "").strip())
    doc = (vars(value).get("__doc__") or "").strip()
    # A dataclass without a docstring is given its signature for one.
    return bool(doc) and not doc.startswith(f"{value.__name__}(")


def check_build(app: Sphinx, exception: Exception | None) -> None:
    """Fail a build that was fine so far, if it leaves a public name out."""
    if exception is not None:
        return
    inventory = app.env.domains.python_domain.objects
    try:
        missing = find_undocumented(app.config.public_modules, inventory)
    except NoPublicNamesError as error:
        missing = [str(error)]
    for line in missing:
        logger.error("public name without documentation: %s", line)
    if missing:
        app.statuscode = 1


def resolve_other_path(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Lead a reference by one public path to the page that has the object under another."""
    target = node.get("reftarget", "")
    inventory = env.domains.python_domain.objects
    try:
        objects = public_objects(app.config.public_modules) if target else []
    except NoPublicNamesError:  # the end of the build says so
        return None
    for public in objects:
        place = public.place(inventory)
        for path in public.paths if place else []:
            moved = f"{place}{target.removeprefix(path)}"
            if f"{target}.".startswith(f"{path}.") and moved in inventory:
                entry = inventory[moved]
                return make_refnode(
                    app.builder, node["refdoc"], entry.docname, entry.node_id, content, moved
                )
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the ``public_modules`` setting, the check and the other paths."""
    app.add_config_value("public_modules", [], "env", [list])
    app.connect("missing-reference", resolve_other_path)
    app.connect("build-finished", check_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
