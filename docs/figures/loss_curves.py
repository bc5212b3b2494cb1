"""Draw the loss curves of the guide (Figure 1 of the paper) into ``docs/_static``.

Run from the root of the repository: ``python docs/figures/loss_curves.py``.
"""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from coincide.losses import collision_cross_entropy_of_probs, cross_entropy

TARGET = Path(__file__).parents[1] / "_static" / "loss_curves.svg"
FIRST_CLASS = {"#b91c1c": 0.95, "#15803d": 0.75, "#1d4ed8": 0.5}


def draw() -> Figure:
    """Draw both losses against the prediction, for three fixed labels of two classes."""
    x = torch.linspace(-9, 9, 361, dtype=torch.float64).sigmoid()  # dense where it is steep
    probs = torch.stack([x, 1 - x], dim=-1)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for color, first in FIRST_CLASS.items():
        label = torch.tensor([first, 1 - first], dtype=torch.float64).expand_as(probs)
        collision = collision_cross_entropy_of_probs(label, probs)
        shannon = cross_entropy(label, probs)
        axes.plot(x, collision, color=color, lw=2, label=f"y = ({first:g}, {1 - first:.2g})")
        axes.plot(x, shannon, color=color, lw=1.2, ls=(0, (4, 3)))
    axes.plot([], [], color="0.3", lw=2, label="collision, H₂(y, σ)")
    axes.plot([], [], color="0.3", lw=1.2, ls=(0, (4, 3)), label="Shannon, H(y, σ)")
    axes.set(xlim=(0, 1), ylim=(0, 4), xlabel="prediction σ = (x, 1 - x): x", ylabel="loss (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center")
    return figure


if __name__ == "__main__":
    # The same drawing gives the same file: no date, no random ids.
    mpl.rcParams["svg.hashsalt"] = "coincide"
    draw().savefig(TARGET, metadata={"Date": None})
