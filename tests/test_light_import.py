"""``import coincide`` and ``coincide --help`` load no more than they need.

What is loaded decides how long a start takes; times themselves depend on the machine.
"""

import subprocess
import sys

import pytest

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
