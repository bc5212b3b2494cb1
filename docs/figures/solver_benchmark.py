"""Write the tables of ``docs/solver-benchmark.md`` from the benchmarks' results.

Run from the root of the repository: ``python docs/figures/solver_benchmark.py``.

No figure of that page is typed: what stands between ``<!-- name -->`` and ``<!-- /name -->`` is
replaced by what the results say, and a part whose results are not there yet is left as it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "solver-benchmark.md"


def mean(values: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def number(value: float) -> str:
    """Return three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size(case: dict[str, Any]) -> str:
    """Return rows and classes."""
    return f"{case['rows']:,}×{case['classes']}"


def predictions(case: dict[str, Any]) -> str:
    """Return how predictions and prior were drawn."""
    parts = [f"t({case['tails']:g})"] if case["tails"] else []
    parts += [f"scale {case['scale']:g}"] if not parts and case["scale"] != 2 else []
    parts += [f"favored {case['favor']:g}"] if case["favor"] else []
    parts += [f"Dirichlet {case['concentration']:g}"] if case["concentration"] else []
    return ", ".join(parts)


def gate(results: dict[str, Any]) -> str:
    """Return the 24 problems before and after, and the means."""
    times = {
        mode: [
            [mean([found["seconds"] for found in row[version]]) for version in ("before", "now")]
            for row in results["rows"]
            if row["mode"] == mode
        ]
        for mode in ("default", "compiled")
    }
    ratios = {mode: [now / before for before, now in pairs] for mode, pairs in times.items()}
    rows = []
    measured = [row for row in results["rows"] if row["mode"] == "default"]
    for row, pair, *both in zip(measured, times["default"], *ratios.values(), strict=True):
        case = row["case"]
        cells = [size(case), f"{case['fairness']:g}", f"{case['tol']:.0e}", predictions(case)]
        cells += [number(1000 * seconds) for seconds in pair]
        cells += [f"{ratio:.2f}" for ratio in both]
        rows.append([*cells, str(max(found["steps"] for found in row["now"]))])
    for name, kind in (("geometric mean", mean), ("largest", max)):
        rows.append(
            [f"**{name}**", *[""] * 5, *(f"{kind(ratios[mode]):.2f}" for mode in ratios), ""]
        )
    header = ["M×K", "λ", "gap", "drawn", "before, ms", "now, ms", "ratio", "compiled", "steps"]
    failed = sum(not found["converged"] for row in results["rows"] for found in row["now"])
    left = f"{failed} solves missed their gap." if failed else "Every solve reached its gap."
    against = results["circumstances"]["against"]
    return (
        f"{table(header, rows)}\n\n{left} Before: `{against}`. {setting(results['circumstances'])}"
    )


def paper_em(results: dict[str, Any]) -> str:
    """Return the default beside the paper's EM and the library's."""
    rows = []
    for problem in results["problems"]:
        paper, ours, exact = (problem[name] for name in ("paper EM", "EM", "default"))
        cells = [str(problem["classes"]), f"{problem['fairness']:g}"]
        for goal in ("to 0.01", "to 0.001"):
            cells.append(number(1000 * exact[goal]["seconds"]))
            met = paper.get(goal)
            seconds = (met or paper["last"])["seconds"]
            cells.append(("" if met else "> ") + number(seconds / exact[goal]["seconds"]))
        cells.append(number(1000 * paper["seconds_per_sweep"]))
        cells.append(number(1000 * ours["seconds_per_sweep"]))
        rows.append(cells)
    header = ["K", "λ", "1e-2, ms", "paper's EM, ×", "1e-3, ms", "paper's EM, ×"]
    header += ["its sweep, ms", "ours, ms"]
    return f"{table(header, rows)}\n\n{setting(results)}"


def memory(results: dict[str, Any]) -> str:
    """Return the peak memory of the largest problem."""
    most = max(case["rows"] for case in results["cases"])
    cases = [case for case in results["cases"] if case["rows"] == most]
    parts = [
        f"{case['solver']} {case['float64_arrays']:.1f} ({case['peak_bytes'] / 1e9:.1f} GB)"
        for case in cases
    ]
    shape = f"{most:,} × {cases[0]['classes']}"
    return (
        f"At {shape}, counted in float64 arrays of that shape, predictions in float32 and labels"
        f" included, the peak is: {', '.join(parts)} (`benchmarks/memory.py`)."
    )


def setting(results: dict[str, Any]) -> str:
    """Return where and with what it ran."""
    machine, versions = results["machine"], results["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "numba"))
    return (
        f"`{' '.join(results['command'])}` at `{results['commit'][:10]}` on"
        f" {results['created'][:10]}, {machine['system']} ({machine['capability']}), {named}."
    )


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with another text between the marks of a name."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(opening)
    after = rest.split(closing)[1]
    return f"{before}{opening}\n\n{text}\n\n{closing}{after}"


def main() -> None:
    """Replace the generated parts of the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, stem, part in (
        ("gate table", "solvers", gate),
        ("paper's EM", "paper_em", paper_em),
        ("memory", "memory", memory),
    ):
        results = json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))
        if part is gate and not results["circumstances"]["against"]:
            print(f"{stem}.json has no other version beside this one: {name!r} is left as it is")
            continue
        page = replaced(page, name, part(results))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
