"""The losses of trainings by epoch, where a sweep kept them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.reporting.curves import PANELS, ranked
from onceclip.pipeline.reporting.drawing import Scale, element, figure, line, path, text
from onceclip.pipeline.reporting.settings import Setting
from onceclip.pipeline.words import counted, shots_of

_WIDTH, _HEIGHT = 260, 176
_KINDS = {"train_loss": "s0", "val_loss": "s1"}


def training_panels(setting: Setting, curves: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """A drawing for each of the best lines that was trained in epochs, at its most shots, as a mean over seeds."""
    found = []
    for name in ranked(setting.table, setting.table.names):
        for shots in reversed(setting.table.shots):
            runs = [curves[row["run"]] for row in setting.chosen.get((name, shots), {}).values()
                    if curves.get(str(row.get("run")), {}).get("kept")]
            if runs:
                found.append((f"{name}, {shots_of(shots)}", _drawing(name, runs)))
                break
    return found[:PANELS]


def _drawing(name: str, runs: Sequence[Mapping[str, Any]]) -> Markup:
    series = {kind: mean for kind in _KINDS if len(mean := _mean([run.get(kind, []) for run in runs])) > 0}
    values = [value for mean in series.values() for value in mean] or [0.0]
    epochs, kept = max(map(len, series.values()), default=1), median(run["kept"] for run in runs)
    x, y = Scale(1, max(epochs, 2), 44, _WIDTH - 8), Scale(min(values), max(values), _HEIGHT - 26, 24)
    ticks = y.ticks(4)
    parts = [
        element("g", [line(x.start, y(value), x.end, y(value)) for value in ticks], class_="grid"),
        *(text(39, y(value) + 4, f"{value:.3g}", class_="tick", text_anchor="end") for value in ticks),
        *(text(x(value), _HEIGHT - 8, f"{value:g}", class_="tick", text_anchor="middle") for value in {1, epochs}),
        line(x(kept), y.start, x(kept), y.end, class_="baseline"),
        *(element("g", [path([(x(number), y(value)) for number, value in enumerate(mean, 1)], class_="curve")],
                  class_=f"series {_KINDS[kind]}") for kind, mean in series.items()),
        *(text(x.end, 12 + 13 * place, kind.replace("_", " "), class_=f"label {_KINDS[kind]}", text_anchor="end")
          for place, kind in enumerate(series))]
    ends = "; ".join(f"{kind.replace('_', ' ')} from {mean[0]:.3g} to {mean[-1]:.3g}" for kind, mean in series.items())
    return figure(_WIDTH, _HEIGHT, f"Losses of {name}",
                  f"{counted(epochs, 'epoch')} of {counted(len(runs), 'run')}: {ends}; epoch {kept:g} was kept.", parts,
                  "single")


def _mean(series: Sequence[Sequence[float | None]]) -> list[float]:
    """Mean over runs, epoch by epoch, as far as any of them went; epochs without a finite number are left out."""
    found = []
    for epoch in range(max(map(len, series), default=0)):
        numbers = [each[epoch] for each in series if epoch < len(each)]
        finite = [number for number in numbers if number is not None]
        found += [fmean(finite)] if finite else []
    return found
