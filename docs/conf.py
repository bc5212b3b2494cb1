"""How the documentation is built: ``python -m sphinx -W --keep-going -n docs docs/_build/html``.

Nothing is fetched while building or reading: formulas become MathML, fonts are the reader's own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import coincide

project = "coincide"
author = "The coincide developers"
copyright = "The coincide developers"
release = version = coincide.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "input_rules",
    "mathml",
    "public_names",
]
exclude_patterns = ["_build", "figures"]
nitpicky = True

# -- pages
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# -- reference
public_modules = [
    "coincide",
    "coincide.losses",
    "coincide.pseudolabels",
    "coincide.methods",
    "coincide.networks",
    "coincide.cluster",
    "coincide.metrics",
]
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types and shapes in words
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
# Other projects' pages are not asked for their inventories, so their names cannot be links.
# The last two are heads that their methods build for themselves.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|sklearn|scipy|pyarrow)\..+"),
    (r"py:class", r"SubHeads|ProjectionHead"),
]

# -- looks
html_theme = "furo"
html_title = "coincide"
html_static_path = ["_static"]
html_css_files = ["coincide.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
pygments_style = "tango"
pygments_dark_style = "monokai"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#9a3412", "color-brand-content": "#9a3412"},
    "dark_css_variables": {"color-brand-primary": "#fdba74", "color-brand-content": "#fdba74"},
}
