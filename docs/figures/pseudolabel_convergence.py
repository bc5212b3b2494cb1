"""Draw the figures of ``docs/solvers.md`` and write its tables, from the experiment's JSON.

Run from the root of the repository: ``python docs/figures/pseudolabel_convergence.py``.
The tables replace what stands between ``% begin NAME`` and ``% end NAME`` on the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "experiments" / "results" / "pseudolabel_convergence.json"
PAGE = DOCS / "solvers.md"
COLORS = {1.0: "#15803d", 10.0: "#1d4ed8", 100.0: "#b91c1c"}
STYLES: dict[float, Any] = {1.0: (0, (1, 1.5)), 2.0: "-", 5.0: (0, (5, 2))}
TABLED = 2.0  # of the scales; the figure has them all
OBJECTIVE_STYLES = {"cce+": ("#b91c1c", "-", "(11)"), "cce": ("#1d4ed8", (0, (5, 2)), "(10)")}

Run = dict[str, Any]


def sweeps_to(run: Run, gap: float) -> float | None:
    """Return the sweep at which the gap falls through a level, between two marks of the trace."""
    before: Run | None = None
    for at in run["trace"]:
        if at["gap"] <= gap:
            if before is None:
                return float(at["sweep"])
            ends = np.log([before["gap"], at["gap"]])
            share = (ends[0] - np.log(gap)) / (ends[0] - ends[1])
            return float(before["sweep"] * (at["sweep"] / before["sweep"]) ** share)
        before = at
    return None


def exponent(run: Run, high: float, low: float) -> float | None:
    """Return ``p`` of ``gap ~ n^-p`` between two levels of the gap."""
    first, last = sweeps_to(run, high), sweeps_to(run, low)
    if first is None or last is None or last <= first:
        return None
    return float(np.log(high / low) / np.log(last / first))


def final_stretch(run: Run) -> tuple[float, float, float]:
    """Fit the last factor 4 of the sweeps: ``p``, and the residuals of both laws.

    The residuals are the root mean squares, in the natural logarithm of the gap, about
    ``ln gap = a - p ln n`` and about ``ln gap = a - b n``.
    """
    sweeps = np.array([at["sweep"] for at in run["trace"]])
    gaps = np.log([at["gap"] for at in run["trace"]])
    late = sweeps >= sweeps[-1] / 4
    power = np.polynomial.Polynomial.fit(np.log(sweeps[late]), gaps[late], 1)
    linear = np.polynomial.Polynomial.fit(sweeps[late], gaps[late], 1)
    off_power = float(np.sqrt(np.mean((gaps[late] - power(np.log(sweeps[late]))) ** 2)))
    off_linear = float(np.sqrt(np.mean((gaps[late] - linear(sweeps[late])) ** 2)))
    return -float(power.convert().coef[1]), off_power, off_linear


def em_table(results: Run) -> list[str]:
    """Return the rows of EM's table."""
    lines = [
        "| $K$ | λ | sweeps to $10^{-2}$ | to $10^{-3}$ | $p$, between | $p$, last |",
        "|---|---|---|---|---|---|",
    ]
    for run in results["em"]:
        if run["scale"] != TABLED:
            continue
        lines.append(
            f"| {run['classes']} | {run['fairness']:g}"
            f" | {count(sweeps_to(run, 1e-2), run)} | {count(sweeps_to(run, 1e-3), run)}"
            f" | {number(exponent(run, 1e-2, 1e-3))} | {final_stretch(run)[0]:.1f} |"
        )
    return lines


def local_table(results: Run) -> list[str]:
    """Return the predicted and measured local rates."""
    decay = results["degenerate"]
    columns = [key for key in decay["label_times_sweeps"] if key != "predicted"]
    lines = [
        "| | predicted | " + " | ".join(f"$n$ = {int(n):,}" for n in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for title, key in (
        ("$n\\, y^n$", "label_times_sweeps"),
        ("$n^2$ × excess", "excess_times_sweeps_squared"),
    ):
        values = " | ".join(f"{decay[key][n]:.4f}" for n in columns)
        lines.append(f"| {title} | {decay[key]['predicted']:.4f} | {values} |")
    return lines


def facts(results: Run) -> list[str]:
    """Return the sentences whose figures come from the experiment."""
    inactive = results["inactive"]
    certified = max(run["exact"]["gap"] for run in results["em"])
    share = max(run["largest_share_of_guarantee"] for run in results["em"])
    rows = sorted({(run["classes"], run["rows"]) for run in results["em"]})
    sizes = ", ".join(f"$M$ = {m:,} for $K$ = {k}" for k, m in rows)
    return [
        f"Over all {len(results['em'])} traces below ({sizes}; optima by the interior point,"
        f" certified to {certified:.0e}), the largest"
        f" $n\\,(L^n - L^*)$ seen is {share:.0%} of the guarantee's constant: it holds, with room.",
        f"The factor of a vanishing label holds too: in the sweep after {inactive['sweep']:,}"
        f" at λ = {inactive['fairness']:g}, {inactive['labels']:,} labels that vanish at the"
        f" optimum shrink by factors from {inactive['smallest_factor']:.3f} to"
        f" {inactive['largest_factor']:.4f}, and none differs from $w_k/(w_k + \\zeta_{{ik}})$"
        f" by more than {inactive['largest_difference']:.1e}.",
    ]


def reading(results: Run) -> list[str]:
    """Return what the traces say about the law, in words with their figures."""
    traces = {f: [run for run in results["em"] if run["fairness"] == f] for f in COLORS}
    between = sorted(p for run in results["em"] if (p := exponent(run, 1e-2, 1e-3)) is not None)
    last = {f: sorted(final_stretch(run)[0] for run in runs) for f, runs in traces.items()}
    powers = sum(off[1] < off[2] for off in map(final_stretch, results["em"]))
    spans = ", ".join(
        f"{values[0]:.1f} to {values[-1]:.1f} at λ = {f:g}" for f, values in last.items()
    )
    return [
        f"Between $10^{{-2}}$ and $10^{{-3}}$ the exponent is {between[0]:.1f} to {between[-1]:.1f}"
        f" (median {np.median(between):.1f}, over {len(between)} traces that get there); at the"
        f" end it is {spans}. A power law describes the last stretch better than a linear"
        f" rate in {powers} of {len(results['em'])} traces."
    ]


def cost(results: Run) -> list[str]:
    """Return how the solvers' work grows with the fairness, in words with its figures."""
    rows = [row for row in results["sweep"]["cce+"] if row["em"] is not None]
    steps = [row["interior_point"] for row in results["sweep"]["cce+"]]
    late = [row for row in rows if row["fairness"] >= 1]
    slope = np.polynomial.Polynomial.fit(
        np.log([row["fairness"] for row in late]), np.log([row["em"] for row in late]), 1
    )
    return [
        f"From λ = {late[0]['fairness']:g} to {late[-1]['fairness']:g} the sweeps of EM grow like"
        f" $\\lambda^{{{slope.convert().coef[1]:.2f}}}$, to {late[-1]['em']:,}; the interior point"
        f" takes {min(steps)} to {max(steps)} iterations throughout. (EM was given"
        f" {results['most_sweeps']:,} sweeps at most.)"
    ]


def count(sweeps: float | None, run: Run) -> str:
    """Return a number of sweeps, or that the trace ended before."""
    return f"> {run['trace'][-1]['sweep']:,}" if sweeps is None else f"{sweeps:,.0f}"


def number(value: float | None) -> str:
    """Return an exponent, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def write_blocks(blocks: dict[str, list[str]]) -> None:
    """Put every block between its marks on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        begin, end = f"% begin {name}\n", f"% end {name}\n"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE.name} must have one block {name!r}.")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = before + begin + "\n".join(["", *lines, "", ""]) + end + after
    PAGE.write_text(page, encoding="utf-8")


def draw_em(results: Run) -> Figure:
    """Draw the certified gap of EM against sweeps, one panel for every number of classes."""
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    classes = sorted({run["classes"] for run in results["em"]})
    panels = figure.subplots(1, len(classes), sharey=True)
    for axes, k in zip(panels, classes, strict=True):
        runs = [run for run in results["em"] if run["classes"] == k]
        for run in runs:
            axes.loglog(
                [at["sweep"] for at in run["trace"]],
                [at["gap"] for at in run["trace"]],
                color=COLORS[run["fairness"]],
                ls=STYLES[run["scale"]],
                lw=1.4,
            )
        for power in (1, 2):
            axes.plot([300, 4000], [60, 60 * (300 / 4000) ** power], color="0.55", lw=1)
            axes.text(4200, 60 * (300 / 4000) ** power, f"$n^{{-{power}}}$", va="center", size=8)
        axes.set(title=f"K = {k}, M = {runs[0]['rows']:,}", xlabel="sweeps n", ylim=(1e-8, 2e2))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("certified gap of EM")
    for fairness, color in COLORS.items():
        panels[0].plot([], [], color=color, label=f"λ = {fairness:g}")
    for scale, style in STYLES.items():
        panels[0].plot([], [], color="0.3", ls=style, lw=1.4, label=f"scale {scale:g}")
    panels[0].legend(frameon=False, loc="lower left", fontsize=8)
    return figure


def draw_sweep(results: Run) -> Figure:
    """Draw balance, split rows and iterations against the fairness."""
    figure = Figure(figsize=(9.6, 3.3), layout="constrained")
    balance, split, iterations = figure.subplots(1, 3)
    for name, rows in results["sweep"].items():
        color, style, title = OBJECTIVE_STYLES[name]
        x = [row["fairness"] for row in rows]
        look: dict[str, Any] = {"color": color, "ls": style, "marker": "o", "ms": 3}
        balance.loglog(x, [row["imbalance"] for row in rows], label=title, **look)
        split.semilogx(x, [100 * row["split"] for row in rows], label=title, **look)
        steps = [row["interior_point"] or np.nan for row in rows]
        iterations.loglog(x, steps, label=f"interior point, {title}", **look)
        if name == "cce+":
            sweeps = [row["em"] or np.nan for row in rows]
            iterations.loglog(x, sweeps, color="0.25", marker="s", ms=3, label="EM, (11)")
    balance.set_title(r"imbalance  $\max_k\,|\bar y_k/u_k - 1|$", size=10)
    split.set_title("rows split between classes, %", size=10)
    split.set_ylim(0)
    iterations.set_title("iterations to a gap of 0.001", size=10)
    for axes in (balance, split, iterations):
        axes.set_xlabel("fairness λ")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Draw both figures and write the page's blocks."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    # The same drawing gives the same file: no date, no random ids.
    mpl.rcParams["svg.hashsalt"] = "coincide"
    metadata = {"Date": None}
    draw_em(results).savefig(DOCS / "_static" / "em_convergence.svg", metadata=metadata)
    draw_sweep(results).savefig(DOCS / "_static" / "fairness_sweep.svg", metadata=metadata)
    write_blocks(
        {
            "facts": facts(results),
            "reading": reading(results),
            "cost": cost(results),
            "local": local_table(results),
            "em": em_table(results),
        }
    )


if __name__ == "__main__":
    main()
