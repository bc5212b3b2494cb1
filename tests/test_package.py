"""The package as a whole: what its documentation promises, and what an import of it loads.

Examples run, formulas translate, and no name is left out. What is loaded decides how long a start
takes; times themselves depend on the machine.
"""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coincide

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(coincide.__path__, "coincide.")
    if not module.name.endswith("__main__")
)
EXAMPLE = re.compile(r"^```(?:python|pycon)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_examples(test: doctest.DocTest) -> str:
    """Run one test and return what went wrong, as doctest words it."""
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    return "".join(report)


def page_examples(text: str, name: str) -> doctest.DocTest:
    """Return the fenced examples of a page as one session."""
    session = "\n".join(EXAMPLE.findall(text))
    return doctest.DocTestParser().get_doctest(session, {}, name, name, 0)


def test_a_wrong_example_is_seen():
    page = "Text.\n```pycon\n>>> x = 1\n```\n\n```pycon\n>>> x + 1\n3\n```\n"
    assert "Got:\n    2" in run_examples(page_examples(page, "page"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_of_the_pages(path):
    failures = run_examples(page_examples(path.read_text(encoding="utf-8"), path.name))
    assert not failures, failures


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name):
    if name.rpartition(".")[2].startswith("triton_"):
        pytest.importorskip("triton", reason="it is not made for this machine")
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        failures = run_examples(test)
        assert not failures, failures


# -- The build's own checks, on a stand-in project of one module and one page.

MODULE = '''
"""A stand-in."""
__all__ = ["Shape", "area"]

def area(side):
    """Return the area."""
    return side**2

class Shape:
    """A shape."""

    def grow(self):
        """Grow."""

    @property
    def size(self):
        """The size."""
        return 1
'''
PAGE = "# Stand-in\n\n```{eval-rst}\n.. automodule:: standin\n   :members:\n```\n"


@pytest.fixture
def build(tmp_path):
    """Return a function that builds the stand-in's documentation as the project's own is built."""

    def build_docs(
        module: str, page: str, *public_modules: str
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "standin.py").write_text(module, encoding="utf-8")
        (tmp_path / "index.md").write_text(page, encoding="utf-8")
        (tmp_path / "conf.py").write_text(
            f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'docs' / '_ext')!r}]\n"
            "extensions = ['myst_parser', 'sphinx.ext.autodoc', 'mathml', 'public_names']\n"
            "myst_enable_extensions = ['dollarmath']\n"
            "html_math_renderer = 'mathml'\n"
            f"public_modules = {list(public_modules) or ['standin']}\n",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ".", "html"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return build_docs


def test_a_documented_module_builds(build):
    result = build(MODULE, PAGE)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("module", "page", "complaint"),
    [
        (MODULE.replace('"""Return the area."""', ""), PAGE, "standin.area: has no docstring"),
        (MODULE.replace('"""A shape."""', ""), PAGE, "standin.Shape: has no docstring"),
        (MODULE.replace('"""Grow."""', "pass"), PAGE, "standin.Shape.grow: has no docstring"),
        (MODULE.replace('"""The size."""', ""), PAGE, "standin.Shape.size: has no docstring"),
        (MODULE, PAGE.replace(":members:", ":members: Shape"), "standin.area: is on no page"),
        (MODULE.replace("__all__", "names"), PAGE, "has no attribute '__all__'"),
    ],
)
def test_an_undocumented_name_fails_the_build(build, module, page, complaint):
    result = build(module, page)
    assert result.returncode != 0
    assert complaint in result.stderr


def test_one_place_serves_every_path_to_an_object(build, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from standin import Shape, area\n__all__ = ['Shape', 'area']", encoding="utf-8"
    )
    page = PAGE + "\nSee {func}`package.area` and {meth}`package.Shape.grow`.\n"
    result = build(MODULE, page, "standin", "package")
    assert (result.returncode, result.stderr) == (0, "")
    html = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="#standin.area"' in html.partition("See ")[2]
    assert 'href="#standin.Shape.grow"' in html.partition("See ")[2]


def test_formulas_become_mathml(build, tmp_path):
    formula = r"\begin{aligned} \bar y &= \tfrac{1}{M} \sum_i y_i \\ &> 0 \end{aligned}"
    assert build(MODULE, f"{PAGE}\n$$\n{formula}\n$$\n").returncode == 0
    html = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    math = html[html.index("<math") : html.index("</math>")]
    assert math.count("<mtr>") == 2
    assert "<mfrac>" in math
    assert "&amp;" not in math
    assert '<script src="http' not in html


def test_an_untranslatable_formula_fails_the_build(build):
    result = build(MODULE, f"{PAGE}\nHere $\\nosuchcommand{{y}}$ is meant.\n")
    assert result.returncode != 0
    assert r"cannot translate '\\nosuchcommand'" in result.stderr


# -- What an import loads.

HEAVY = {"sklearn", "scipy", "pyarrow", "matplotlib", "jinja2", "rich", "safetensors", "numba"}


def loaded_by(code: str) -> set[str]:
    """Run ``code`` in a new interpreter and return the top-level modules it has loaded."""
    script = f"import sys\n{code}\nprint('LOADED', *{{m.partition('.')[0] for m in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    return set(run.stdout.rpartition("LOADED")[2].split())


@pytest.fixture(scope="module")
def loaded_by_torch() -> set[str]:
    return loaded_by("import torch")


def test_the_probe_sees_what_is_loaded():
    assert "jinja2" in loaded_by("import jinja2")


def test_import_loads_nothing_heavy(loaded_by_torch):
    assert not (loaded_by("import coincide") - loaded_by_torch) & HEAVY


@pytest.mark.parametrize("name", ["collision_cross_entropy", "CollisionCrossEntropyLoss", "losses"])
def test_the_loss_needs_torch_alone(name, loaded_by_torch):
    loaded = loaded_by(f"import coincide; coincide.{name}")
    assert "torch" in loaded
    assert not (loaded - loaded_by_torch) & HEAVY


def test_solving_needs_neither_scikit_learn_nor_a_compiler(loaded_by_torch):
    code = "import coincide, torch; coincide.solve_pseudo_labels(torch.full((2, 2), 0.5))"
    assert not (loaded_by(code) - loaded_by_torch) & (HEAVY - {"scipy"})


@pytest.mark.parametrize("arguments", [["--help"], ["cluster", "--help"]])
def test_help_computes_nothing(arguments):
    code = (
        "from coincide.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code"
    )
    assert not loaded_by(code) & (HEAVY - {"rich"} | {"torch", "numpy"})
