"""Write the tables and the figure of ``docs/solver-benchmark.md`` from the benchmark's results.

Run from the root of the repository: ``python docs/figures/solver_benchmark.py``.

No figure of that page is typed: what stands between ``<!-- name -->`` and ``<!-- /name -->`` is
replaced by what the results say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "pseudolabels.json"
LOPSIDED = RESULTS.with_name("pseudolabels_lopsided.json")
LIGHT = RESULTS.with_name("pseudolabels_light.json")
PAGE = ROOT / "docs" / "solver-benchmark.md"
DRAWING = ROOT / "docs" / "_static" / "solver_benchmark.svg"

OURS = "active set, numba"
EXACT = {
    OURS: "#9a3412",
    "active set, torch": "#f0a98a",
    "interior point, numba": "#a16207",
    "interior point, torch": "#e3c184",
}
COLORS = {
    **EXACT,
    "EM": "#1d4ed8",
    "EM, accelerated": "#7da7f0",
    "paper EM": "#15803d",
    "paper EM, float32": "#86b894",
    "PGD, line search": "#6b21a8",
}
RIVALS = ("interior point, numba", "EM", "EM, accelerated", "paper EM")
# Table 1 of the paper: s per iteration, iterations, s to convergence, each for K = 2, 20, 200.
PAPER = {
    "PGD (η₁)": (7.8e-4, 2.9e-3, 6.7e-2, 326, 742, 540, 0.25, 2.20, 36.25),
    "PGD (η₂)": (9.3e-4, 3.3e-3, 6.8e-2, 101, 468, 344, 0.09, 1.55, 23.35),
    "PGD (η₃)": (9.9e-4, 3.2e-3, 7.0e-2, 24, 202, 180, 0.02, 0.65, 12.60),
    "EM": (1.8e-3, 1.6e-3, 5.1e-3, 25, 53, 71, 0.04, 0.09, 0.36),
}
CLASSES = (2, 20, 200)


def case(results: dict[str, Any], classes: int, fairness: float, rows: int = 5000) -> Any:
    """Return one problem of those that every solver got."""
    wanted = (rows, classes, fairness, 2.0)
    keys = ("rows", "classes", "fairness", "scale")
    return next(p for p in results["problems"] if tuple(p[key] for key in keys) == wanted)


def name_of(problem: dict[str, Any]) -> str:
    """Return what a problem is called in the tables."""
    size = f"{problem['rows']:,} × {problem['classes']:,}, λ = {problem['fairness']:g}"
    if problem["epochs"]:
        return f"{size}, digits after epoch {problem['epochs']}"
    return size if problem["scale"] == 2 else f"{size}, scale {problem['scale']:g}"


def number(value: float | None) -> str:
    """Return three digits, without an exponent where it reads better."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def gap_text(value: float | None) -> str:
    """Return a gap in two digits."""
    return "infinite" if value is None else f"{value:.1e}"


def two_digits(ratio: float) -> str:
    """Return a ratio in two digits, without an exponent."""
    return f"{float(f'{ratio:.2g}'):g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_1_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return our half of Table 1."""
    problems = {classes: case(results, classes, 100.0)["solvers"] for classes in CLASSES}

    def names(row: int) -> list[str]:
        return [[n for n in problems[k] if n.startswith("PGD, η")][row] for k in CLASSES]

    entries = [(f"PGD (η{'₁₂₃'[row]}), to gap 1e-2", names(row), "to_1e-2") for row in range(3)]
    entries += [
        ("PGD, line search, to gap 1e-2", ["PGD, line search"] * 3, "to_1e-2"),
        ("paper EM, to max\\|Δy\\| < 1e-3", ["paper EM"] * 3, "to_change"),
        ("paper EM, to gap 1e-2", ["paper EM"] * 3, "to_1e-2"),
        ("EM, to max\\|Δy\\| < 1e-3", ["EM"] * 3, "to_change"),
        ("EM, to gap 1e-2", ["EM"] * 3, "to_1e-2"),
        ("EM, accelerated, to gap 1e-2", ["EM, accelerated"] * 3, "to_1e-2"),
        ("interior point, to gap 1e-2", ["interior point, numba"] * 3, "to_1e-2"),
        ("interior point, to relative gap 1e-6", ["interior point, numba"] * 3, ""),
        ("**active set, to gap 1e-2**", [OURS] * 3, "to_1e-2"),
        ("**active set, to relative gap 1e-6**", [OURS] * 3, ""),
    ]
    return [
        _table_1_row(label, [problems[k][n] for k, n in zip(CLASSES, solvers, strict=True)], stop)
        for label, solvers, stop in entries
    ]


def _table_1_row(label: str, found: list[dict[str, Any]], stop: str) -> list[str]:
    """Return one solver's row: what it took to the stop, or the gap where it ended."""
    pace, counts, totals = [], [], []
    for solver in found:
        pace.append(number(solver["seconds_per_iteration"]))
        met = solver[stop] if stop else solver
        if met is None:
            counts.append(f"not met ({solver['iterations']:,})")
            gap = f"gap {gap_text(solver['gap'])}"
            totals.append(f"{gap} at {number(solver['seconds'])} s, {solver['reason']}")
            continue
        counts.append(f"{met.get('iteration', met.get('iterations')):,}")
        left = f" (gap {gap_text(met['gap'])})" if stop == "to_change" else ""
        totals.append(number(met["seconds"]) + left)
    return [label, *pace, *counts, *totals]


def table_1(results: dict[str, Any]) -> str:
    """Return the paper's Table 1 and ours in its form."""
    header = ["", *(f"{w}, K = {k}" for w in ("s/iteration", "iterations", "s") for k in CLASSES)]
    paper = [[f"paper: {name}", *map(number, row)] for name, row in PAPER.items()]
    return table(header, paper + table_1_rows(results))


def overview(results: dict[str, Any]) -> str:
    """Return the time of the active set to a gap of 1e-3 on every problem, and rivals' ratios."""
    order = ("rows", "classes", "fairness", "scale", "epochs")
    problems = sorted(results["problems"], key=lambda problem: [problem[key] for key in order])
    rows = []
    for problem in problems:
        found = problem["solvers"].items()
        solvers = {name: each | {"met": each.get("to_1e-3")} for name, each in found}
        ours = solvers[OURS]["met"]["seconds"]
        ratios = [_ratio([solvers[name]], ours) if name in solvers else "-" for name in RIVALS]
        gradients = [found for name, found in solvers.items() if name.startswith("PGD")]
        rows.append([name_of(problem), number(ours), *ratios, _ratio(gradients, ours)])
    return table(["M × K, λ", "active set, s", *(f"{name}, ×" for name in (*RIVALS, "PGD"))], rows)


def lopsided(results: dict[str, Any]) -> str:
    """Return the same of predictions that favor some classes, and where they were measured."""
    return f"{overview(results)}\n\n{setting(results)}"


def light(results: dict[str, Any]) -> str:
    """Return the time of the active set to a relative gap of 1e-6 at λ = 1, and rivals' ratios."""
    rows = []
    for problem in results["problems"]:
        solvers = problem["solvers"]
        ours = solvers[OURS]["seconds"]
        ends = {name: found if found["converged"] else None for name, found in solvers.items()}
        ratios = [_ratio([solvers[name] | {"met": ends[name]}], ours) for name in RIVALS]
        rows.append([name_of(problem), number(ours), *ratios])
    header = ["M × K, λ", "active set, s", *(f"{name}, ×" for name in RIVALS)]
    return f"{table(header, rows)}\n\n{circumstances(results)}."


def _ratio(rivals: list[dict[str, Any]], ours: float) -> str:
    """Return the ratio of the fastest rival's time to ours, a bound where the cap ended it."""
    met = [found["met"]["seconds"] for found in rivals if found["met"]]
    capped = [found["seconds"] for found in rivals if found.get("reason") == "cap"]
    if met:
        return two_digits(min(met) / ours)
    return f"> {two_digits(max(capped) / ours)}" if capped else "fails"


def to_gap(results: dict[str, Any]) -> str:
    """Return the times to certified gaps and their ratios to the active set's, for some."""
    rows = []
    for problem in results["problems"]:
        if problem["rows"] > 5000 or problem["scale"] > 2 or problem["fairness"] == 1:
            continue
        solvers = problem["solvers"]
        for name, found in solvers.items():
            if name.startswith("PGD, η"):
                continue
            cells = [_against(found, solvers[OURS], gap, name) for gap in ("to_1e-2", "to_1e-3")]
            ended = f"{gap_text(found['gap'])} after {found['iterations']:,} in"
            rows.append(
                [
                    name_of(problem),
                    name,
                    *cells,
                    f"{ended} {number(found['seconds'])} s",
                ]
            )
    header = ["M × K, λ", "solver", "s to gap 1e-2", "s to gap 1e-3", "where it ended"]
    return table(header, rows)


def _against(found: dict[str, Any], ours: dict[str, Any], gap: str, name: str) -> str:
    """Return a time and how many times that of the active set it is."""
    if gap not in found:
        return "-"
    if found[gap] is None:
        return "not met"
    seconds = found[gap]["seconds"]
    if name == OURS:
        return number(seconds)
    return f"{number(seconds)} (× {two_digits(seconds / ours[gap]['seconds'])})"


def sweeps(results: dict[str, Any]) -> str:
    """Return the time of one sweep of each EM."""
    names = list(results["sweeps"][0]["seconds"])
    rows = []
    for entry in results["sweeps"]:
        ms = [1000 * entry["seconds"][name] for name in names]
        ratios = [f"{ms[n] / ms[n + 2]:.2f}" for n in (0, 1)]
        rows.append([f"{entry['rows']:,} × {entry['classes']}", *map(number, ms), *ratios])
    header = ["M × K", *(f"{name} (ms)" for name in names)]
    return table([*header, "ours / paper, float64", "ours / paper, float32"], rows)


def linearity(results: dict[str, Any]) -> str:
    """Return iterations and time of the exact solvers against M."""
    rows = [
        [
            f"{entry['rows']:,}",
            name,
            str(entry["iterations"]),
            number(entry["seconds"]),
            f"{1e6 * entry['seconds'] / entry['rows']:.2f}",
        ]
        for name, entries in results["linearity"].items()
        for entry in entries
    ]
    return table(["M", "solver", "iterations", "s", "µs per row"], rows)


def iterations(results: dict[str, Any]) -> str:
    """Return iterations and time of the exact solvers on the grid of problems."""
    found: dict[tuple[int, int, str], dict[tuple[float, float], str]] = {}
    entries = [(name, entry) for name, grid in results["grid"].items() for entry in grid]
    for name, entry in sorted(entries, key=lambda item: (item[1]["rows"], item[1]["classes"])):
        cell = f"{entry['iterations']} ({number(entry['seconds'])} s)"
        if not entry["converged"]:
            cell += f", gap {gap_text(entry['gap'])}"
        key = (entry["fairness"], entry["scale"])
        found.setdefault((entry["rows"], entry["classes"], name), {})[key] = cell
    columns = [(1.0, 2.0), (1.0, 5.0), (100.0, 2.0), (100.0, 5.0)]
    rows = [
        [f"{m:,} × {k}", name, *(cells.get(column, "-") for column in columns)]
        for (m, k, name), cells in found.items()
    ]
    return table(["M × K", "solver", *(f"λ = {f:g}, scale {s:g}" for f, s in columns)], rows)


def in_short(results: dict[str, Any]) -> str:
    """Return the findings in sentences, gains and losses alike."""
    lines = []
    for name, grid in results["grid"].items():
        counts = [entry["iterations"] for entry in grid]
        missed = sum(not entry["converged"] for entry in grid)
        lines.append(
            f"- The {name} took {min(counts)} to {max(counts)} iterations to a certified relative"
            f" gap of 1e-6 on {len(grid)} problems; it missed it on {missed or 'none'}."
        )
    pairs = list(zip(*results["grid"].values(), strict=True))
    ratios = sorted(other["seconds"] / ours["seconds"] for ours, other in pairs)
    slower = sum(ratio < 1 for ratio in ratios)
    lines.append(
        f"- There the active set is {ratios[0]:.2g} to {ratios[-1]:.2g} times as fast as the"
        f" interior point (median {ratios[len(ratios) // 2]:.2g}); it is slower on {slower or 0}."
    )
    for classes, fairness in ((20, 100.0), (200, 100.0), (20, 1.0), (200, 1.0)):
        solvers = case(results, classes, fairness)["solvers"]
        parts = [_faster(solvers, gap) for gap in ("to_1e-2", "to_1e-3")]
        lines.append(
            f"- M = 5,000, K = {classes}, λ = {fairness:g}: beside the paper's EM in float64 the"
            f" active set is {parts[0]} to a gap of 1e-2 and {parts[1]} to 1e-3."
        )
    for entry in results["sweeps"]:
        ratio = entry["seconds"]["paper EM, float64"] / entry["seconds"]["EM, float64"]
        lines.append(
            f"- One sweep of the library's EM at K = {entry['classes']} is {ratio:.2g} times as"
            " fast as one of the paper's, float64."
        )
    return "\n".join([*lines, _lost(results)])


def _faster(solvers: dict[str, Any], gap: str) -> str:
    """Return in words how the active set compares with the paper's EM."""
    ours, paper = solvers[OURS][gap]["seconds"], solvers["paper EM"]
    if paper[gap] is None:
        return (
            f"more than {two_digits(paper['seconds'] / ours)} times as fast (EM stopped at its cap)"
        )
    ratio = paper[gap]["seconds"] / ours
    return (
        f"{two_digits(ratio)} times as fast"
        if ratio >= 1
        else f"{two_digits(1 / ratio)} times slower"
    )


def _lost(results: dict[str, Any]) -> str:
    """Return on how many side-by-side problems a rival was faster to 1e-3, and by how much."""
    lost = []
    for problem in results["problems"]:
        ours = problem["solvers"][OURS]["to_1e-3"]["seconds"]
        met = {
            name: found["to_1e-3"]["seconds"]
            for name, found in problem["solvers"].items()
            if found.get("to_1e-3") and name not in EXACT
        }
        first = min(met, key=met.__getitem__, default="")
        if first and met[first] < ours:
            lost.append((ours / met[first], first, problem))
    if not lost:
        return "- No rival was faster to a gap of 1e-3 on any problem."
    ratio, name, problem = max(lost, key=lambda entry: entry[0])
    fairness = sorted({entry[2]["fairness"] for entry in lost})
    return (
        f"- To a gap of 1e-3 a rival was faster than the active set on {len(lost)} of"
        f" {len(results['problems'])} problems, with λ = {' or '.join(f'{f:g}' for f in fairness)}:"
        f" at the most {two_digits(ratio)} times ({name} at {name_of(problem)})."
    )


def circumstances(results: dict[str, Any]) -> str:
    """Return where and with what it ran."""
    machine, versions = results["machine"], results["versions"]
    named = ", ".join(f"{name} {release}" for name, release in versions.items())
    return (
        f"Measured on {machine['system']} ({machine['capability']}), {machine['threads']} threads,"
        f" at commit `{results['commit'][:10]}` on {results['created'][:10]}, with {named};"
        f" `{' '.join(results['command'])}`"
    )


def setting(results: dict[str, Any]) -> str:
    """Return the same, with the caps and the precision of the paper's EM."""
    caps = results["problems"][0]
    return (
        f"{circumstances(results)}. Caps: {caps['cap']:g} s for each EM,"
        f" {caps['gradient_cap']:g} s for each projected gradient. Newton's ε of the paper's EM:"
        f" {results['epsilon']['torch.float64']:g} in float64,"
        f" {results['epsilon']['torch.float32']:g} in float32."
    )


def draw(results: dict[str, Any]) -> Figure:
    """Draw the certified gap against time for K = 20 and K = 200."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, classes in zip(panels, (20, 200), strict=True):
        for name, found in case(results, classes, 100.0)["solvers"].items():
            points = [p for p in found["points"] if p["gap"] is not None and p["gap"] > 0]
            fixed = name.startswith("PGD, η")
            axes.loglog(
                [p["seconds"] for p in points],
                [p["gap"] for p in points],
                color=COLORS.get(name, "0.7"),
                marker="o" if name in EXACT else None,
                ms=4,
                lw=1 if fixed else 1.8,
                label="PGD, fixed steps" if name == "PGD, η = 0.1" else ("" if fixed else name),
            )
        axes.set(title=f"K = {classes}", xlabel="seconds", ylim=(1e-8, 1e2))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("certified gap")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with another text between the marks of a name."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(opening)
    after = rest.split(closing)[1]
    return f"{before}{opening}\n\n{text}\n\n{closing}{after}"


def main() -> None:
    """Replace the generated parts of the page and draw the figure."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    parts = (in_short, table_1, overview, to_gap, sweeps, linearity, iterations, setting)
    for part in parts:
        text = part(results)
        print(f"{text}\n")
        page = replaced(page, part.__name__, text)
    page = replaced(page, "lopsided", lopsided(json.loads(LOPSIDED.read_text(encoding="utf-8"))))
    page = replaced(page, "light", light(json.loads(LIGHT.read_text(encoding="utf-8"))))
    PAGE.write_text(page, encoding="utf-8")
    # The same results give the same file: no date, no random ids.
    mpl.rcParams["svg.hashsalt"] = "coincide"
    draw(results).savefig(DRAWING, metadata={"Date": None})


if __name__ == "__main__":
    main()
