"""The learning-curve picture: accuracy against shots, a line per method with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from onceclip.pipeline.results import Mean

# Okabe and Ito's colours: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def learning_curve(summary: Mapping[str, Mapping[int, Mean]], shots: Sequence[int], baseline: str, title: str,
                   path: Path) -> None:
    """Draw mean accuracies (per cent) with 95 % intervals against shots, and the baseline as a dashed line."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    level = summary[baseline][shots[0]].value * 100
    axes.axhline(level, color="0.35", linestyle="--", linewidth=1.5, label=f"{baseline} ({level:.1f} %)")
    methods = [name for name in summary if name != baseline]
    for number, name in enumerate(methods):
        colour, cells = COLOURS[number % len(COLOURS)], [summary[name][each] for each in shots]
        middle = [100 * cell.value for cell in cells]
        half = [100 * (cell.half_width or 0.0) for cell in cells]
        # Side by side, so that no interval hides another.
        place = [each * 2 ** (0.07 * (number - (len(methods) - 1) / 2)) for each in shots]
        axes.errorbar(place, middle, half, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=5,
                      linewidth=1.4, elinewidth=1, capsize=2.5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(shots), [str(number) for number in shots])
    axes.set_xlabel("labelled images per class (shots)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=(len(methods) + 2) // 2, frameon=False, fontsize=9)
    figure.savefig(path)
