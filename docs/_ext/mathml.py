"""Formulas as MathML, made while building: the pages need no script and no network.

``latex2mathml`` does the translation. What it leaves to be wished for is mended here, in
LaTeX before it (environments it does not know) and in the MathML after it (spacing, limits and
alignment as browsers draw them). A formula that cannot be translated is a warning, so that a
build with ``-W`` fails instead of printing backslashes at the reader.
"""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

_FUNCTIONS = {"cos", "dim", "exp", "ln", "log", "max", "min", "sin"}
_TAKES_LIMITS = {"max", "min"}
_ENVIRONMENTS = {"aligned": "split", "gathered": "gather*"}
_THIN = "0.167em"


def to_mathml(latex: str, *, display: bool) -> str:
    """Translate one formula.

    Parameters
    ----------
    latex : str
        The formula without its dollars.
    display : bool
        Whether it stands on a line of its own.

    Returns
    -------
    str
        One ``<math>`` element.

    Raises
    ------
    ValueError
        If a command or an environment has no translation.
    """
    source = latex
    for unknown, known in _ENVIRONMENTS.items():
        source = source.replace(f"{{{unknown}}}", f"{{{known}}}")
    try:
        markup = convert(source, display="block" if display else "inline")
        math = ET.fromstring(markup.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    except Exception as error:  # latex2mathml has a dozen exceptions and no common ancestor
        raise ValueError(f"cannot translate {latex!r}: {error!r}") from error
    for infinity in (element for element in math.iter("mo") if element.text == "\u221e"):
        infinity.tag = "mi"  # a quantity, without an operator's spaces
    left_over = [text for text in math.itertext() if "\\" in text]
    if left_over:
        raise ValueError(f"cannot translate {left_over[0].strip()!r} in {latex!r}")
    for parent in list(math.iter()):
        _mark_signs(parent)
        _space_functions(parent)
        _set_limits(parent, display=display)
        _align(parent)
    return ET.tostring(math, encoding="unicode", short_empty_elements=False)


def _mark_signs(parent: ET.Element) -> None:
    """Set the minus of ``= -x`` close to its ``x``: it is a sign there, not a difference."""
    for before, child in pairwise([None, *parent]):
        opens = before is None or (before.tag == "mo" and before.text not in {")", "]", "!"})
        if child.tag == "mo" and child.text in {"+", "\u2212"} and opens:
            child.set("form", "prefix")


def _space_functions(parent: ET.Element) -> None:
    """Give ``x ln y`` its thin spaces: as an identifier it would read ``xlny``."""
    around = [None, *parent, None]
    for before, child, after in zip(around, parent, around[2:], strict=False):
        name = child.text or ""
        if not (name in _FUNCTIONS or (child.tag == "mo" and len(name) > 1 and name.isalpha())):
            continue
        follows_infix = before is not None and before.tag == "mo" and not before.get("form")
        opens = after is not None and next(after.itertext(), "") == "("
        child.tag = "mo"
        child.set("lspace", "0" if before is None or follows_infix else _THIN)
        child.set("rspace", "0" if after is None or opens else _THIN)


def _set_limits(parent: ET.Element, *, display: bool) -> None:
    """Put what ``min`` and ``max`` run over below them, as in print."""
    if display and parent.tag == "msub" and parent[0].text in _TAKES_LIMITS:
        parent.tag = "munder"


def _align(element: ET.Element) -> None:
    """Say a table's alignment in CSS; browsers that follow MathML Core ignore the attributes."""
    side = element.attrib.pop("columnalign", None)
    if element.tag == "mtd" and side:
        element.set("class", f"math-{side}")
    if element.tag == "mtable" and element.attrib.pop("columnspacing", "").startswith("0"):
        element.set("class", "math-aligned")


def _translate(node: nodes.Element, *, display: bool) -> str:
    latex = node.astext()
    try:
        return to_mathml(latex, display=display)
    except ValueError as error:
        logger.warning("%s", error, location=node, type="mathml")
        return f"<code>{nodes.unescape(latex)}</code>"


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(_translate(node, display=False))
    raise nodes.SkipNode


def visit_displaymath(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on its own line, with its number if it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node.get("number"):
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})</span>')
    translator.body.append(_translate(node, display=True) + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
