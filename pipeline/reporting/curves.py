"""The drawings of a setting: learning curves with intervals, reliability diagrams with further scores, and losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import sqrt
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.evaluation.statistics import mean_interval
from onceclip.pipeline.reporting.drawing import (
    SERIES,
    Plot,
    Scale,
    dot_plot,
    element,
    figure,
    grid,
    line,
    path,
    text,
)
from onceclip.pipeline.reporting.settings import Row, Setting
from onceclip.pipeline.runs.summary import BASELINE, Table
from onceclip.pipeline.words import counted, shots_of

_WIDTH, _HEIGHT = 960, 480
_SMALL = 260, 176
_LOSSES = {"train_loss": "s0", "val_loss": "s1"}
_DEPTH = 4
PANELS = 8
SCORES = {"accuracy": "top-1, %", "top5": "top-5, %", "macro_recall": "macro recall, %", "nll": "NLL",
          "nll_calibrated": "NLL, calibrated", "brier": "Brier", "ece": "ECE, %",
          "ece_calibrated": "ECE, calibrated, %"}


@dataclass(frozen=True)
class Curves:
    """The learning curves of a table. strong: lines drawn in colour, best first. faint: those in grey."""

    table: Table
    strong: tuple[str, ...]
    faint: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether there is anything to connect by lines."""
        return len(self.table.shots) > 1

    def draw(self) -> Markup:
        """All lines with their names beside them; of a single number of shots a row for each."""
        if not self.several:
            names = ranked(self.table, [name for name in self.table.names if name not in self.faint])
            return dot_plot(self.table, names, _WIDTH)
        words = " ".join(map(self._words, self.strong))
        return line_plot(self.table, self.limits, self.strong, self.faint, _HEIGHT, "Learning curves",
                         f"Mean test accuracy in per cent against shots with 95 % intervals. {words} The table below "
                         "has all numbers.", "labelled images per class (shots)")

    def one_by_one(self) -> list[tuple[str, Markup]]:
        """A small drawing for each strong line: its interval, and the other lines behind it."""
        plot, found = Plot(self.table, self.limits, 36, 8, 252, 150), []
        for number, name in enumerate(self.strong):
            others = [plot.faint(each) for each in (*self.strong, *self.faint) if each != name]
            lines = plot.clipped([*others, plot.baseline(), plot.interval(number, name), plot.strong(number, name)])
            found.append((name, figure(*_SMALL, f"Learning curve of {name}", self._words(name),
                                       [plot.grid("", 4), lines], "single")))
        return found

    @property
    def cut(self) -> float | None:
        """The per cent below which lines are not drawn, if there is anything."""
        low, _ = self.limits
        return low if any(100 * mean.value < low for (name, _), mean in self.table.accuracy.items()
                          if name in (*self.strong, BASELINE)) else None

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest per cent of the drawing.

        A method that starts far below all others, as a linear probe on one image per class does, would press them into
        one line; so what lies lower than four times the distance from the top to the middle is cut off, but never the
        best of a line.
        """
        lines = [[mean for (each, _), mean in self.table.accuracy.items() if each == name]
                 for name in (*self.strong, BASELINE)]
        means = [mean for each in lines for mean in each]
        ends = [100 * (mean.value + sign * (mean.half_width or 0.0)) for mean in means for sign in (-1, 1)]
        high = max(100 * mean.value for mean in means)
        lowest = high - max(_DEPTH * (high - 100 * median(mean.value for mean in means)), 1.0)
        lowest = min(lowest, *(100 * max(mean.value for mean in each) for each in lines if each))
        low = min(ends)
        if any(100 * mean.value < lowest for mean in means):
            low = max(low, lowest)
        room = 0.05 * (max(ends) - low) or 1.0
        return max(low - room, 0.0), min(max(ends) + room, 100.0)

    def _words(self, name: str) -> str:
        """A line in words."""
        cells = [(number, self.table.accuracy[name, number].value) for number in self.table.shots
                 if (name, number) in self.table.accuracy]
        return f"{name}: " + ", ".join(f"{100 * value:.1f} at {shots_of(number)}" for number, value in cells) + "."


def line_plot(table: Table, limits: tuple[float, float], strong: Sequence[str], faint: Sequence[str], height: int,
              title: str, words: str, caption: str) -> Markup:
    """A drawing of lines with their names beside them. words: what it shows. caption: of the axis across."""
    right = 66 + 7 * max(len(each) for each in (*strong, BASELINE))
    plot = Plot(table, limits, 54, 12, _WIDTH - right, height - 44)
    lines = plot.clipped([
        *map(plot.faint, faint), *(plot.interval(number, name) for number, name in enumerate(strong)),
        plot.baseline(), *(plot.strong(number, name) for number, name in enumerate(strong))])
    return figure(_WIDTH, height, title, words, [plot.grid(caption), lines, *plot.labels(strong)], "curves")


def incremental_curves(lines: Mapping[str, Sequence[Row]]) -> Markup:
    """Accuracy on the classes seen, session by session, the mean over orders with its interval.

    lines: rows of `onceclip incremental` by the name of the line.
    """
    found: dict[tuple[str, Any], list[float]] = defaultdict(list)
    for name, rows in lines.items():
        for row in rows:
            for seen, accuracy in zip(row["classes_seen"], row["accuracies"], strict=True):
                found[name, seen].append(accuracy)
    means = {key: mean_interval(values) for key, values in found.items()}
    seen = tuple(sorted({number for _, number in means}))
    ends = [100 * (mean.value + sign * (mean.half_width or 0.0)) for mean in means.values() for sign in (-1, 1)]
    words = "; ".join(f"{name} {100 * means[name, seen[-1]].value:.1f} % at the end" for name in lines
                      if (name, seen[-1]) in means)
    return line_plot(Table("", tuple(lines), seen, means, {}, {}), (max(min(ends) - 2, 0.0), min(max(ends) + 2, 100.0)),
                     [name for name in lines if name != BASELINE][:SERIES], (), 440, "Accuracy on all classes seen",
                     f"{words}.", "classes seen")


def curves_of(table: Table) -> Curves:
    """The curves of a table: the best lines strong, at most as many as there are colours."""
    names = ranked(table, [name for name in table.names if name != BASELINE])
    return Curves(table, tuple(names[:SERIES]), tuple(names[SERIES:]))


def ranked(table: Table, names: Sequence[str]) -> list[str]:
    """Names, best first: by their mean place over all numbers of shots, last where one has none."""
    def place(name: str) -> tuple[float, float]:
        places, values = [], []
        for number in table.shots:
            mine = table.accuracy.get((name, number))
            places.append(len(table.names) if mine is None else sum(
                table.accuracy[other, number].value > mine.value for other in table.names
                if (other, number) in table.accuracy))
            values += [] if mine is None else [mine.value]
        return sum(places), -sum(values) / len(values)

    return sorted(names, key=place)


def score_lines(setting: Setting) -> list[dict[str, Any]]:
    """Every line at the most shots that it has, best first: means over seeds of all scores, medians of seconds."""
    found = []
    for name in ranked(setting.table, setting.table.names):
        shots, rows = setting.last(name)
        seconds, total = ([row[key] for row in rows if row.get(key)] for key in ("seconds", "seconds_total"))
        found.append({"name": name, "shots": shots, "scores": {score: _mean(rows, score) for score in SCORES},
                      "runs": len(rows), "seconds": median(seconds) if seconds else None,
                      "total": median(total) if total else None})
    return found


def _mean(rows: Sequence[Row], score: str) -> float | None:
    values = [row[score] for row in rows if row.get(score) is not None]
    return fmean(values) if values else None


def reliability_panels(setting: Setting) -> list[tuple[str, Markup]]:
    """Reliability diagrams of zero-shot and of the best lines at the most shots, over all seeds together."""
    names = [BASELINE, *ranked(setting.table, [name for name in setting.table.names if name != BASELINE])]
    found = []
    for name in names:
        shots = [number for number in setting.table.shots if setting.details(name, number)]
        if shots:
            bins = [each["reliability"] for each in setting.details(name, shots[-1])]
            merged = [tuple(map(sum, zip(*same, strict=True))) for same in zip(*bins, strict=True)]
            error = _mean(list(setting.chosen[name, shots[-1]].values()), "ece")
            found.append((f"{name}, {shots_of(shots[-1])}", reliability(name, merged, error)))
    return found[:PANELS]


def reliability(name: str, bins: Sequence[Sequence[float]], error: float | None) -> Markup:
    """A reliability diagram. bins: (rows, sum of confidence, rows right) each. error: expected calibration error."""
    x, y = Scale(0, 1, 34, 190), Scale(0, 1, 178, 24)
    total = sum(count for count, _, _ in bins) or 1
    said = "" if error is None else f"ECE {100 * error:.1f} %"
    means = [(confidence / count, right / count, count) for count, confidence, right in bins if count]
    parts = [
        element("g", [line(x(0), y(value), x(1), y(value)) for value in (0, 0.5, 1)], class_="grid"),
        line(x(0), y(0), x(1), y(1), class_="baseline"),
        *(line(x(confidence), y(confidence), x(confidence), y(right), class_="gap") for confidence, right, _ in means),
        *(element("circle", cx=x(confidence), cy=y(right), r=2.5 + 7 * sqrt(count / total), class_="bin")
          for confidence, right, count in means),
        *(text(29, y(value) + 4, f"{100 * value:g}", class_="tick", text_anchor="end") for value in (0, 0.5, 1)),
        *(text(x(value), 193, f"{100 * value:g}", class_="tick", text_anchor="middle") for value in (0, 0.5, 1)),
        text(x(1), 12, said, class_="label", text_anchor="end"),
    ]
    words = "; ".join(f"confidence {100 * confidence:.0f} %: right {100 * right:.0f} % of {count:g}"
                      for confidence, right, count in means)
    return figure(198, 200, f"Reliability of {name}", f"{said}. {words}.", parts,
                  "reliability s0")


def training_panels(setting: Setting, curves: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """A drawing for each of the best lines that was trained in epochs, at its most shots, as a mean over seeds."""
    found = []
    for name in ranked(setting.table, setting.table.names):
        for shots in reversed(setting.table.shots):
            runs = [curves[row["run"]] for row in setting.chosen.get((name, shots), {}).values()
                    if curves.get(str(row.get("run")), {}).get("kept")]
            if runs:
                found.append((f"{name}, {shots_of(shots)}", _losses(name, runs)))
                break
    return found[:PANELS]


def _losses(name: str, runs: Sequence[Mapping[str, Any]]) -> Markup:
    series = {kind: mean for kind in _LOSSES if (mean := _mean_by_epoch([run.get(kind, []) for run in runs]))}
    values = [value for mean in series.values() for value in mean] or [0.0]
    epochs, kept = max(map(len, series.values()), default=1), median(run["kept"] for run in runs)
    x, y = Scale(1, max(epochs, 2), 44, _SMALL[0] - 8), Scale(min(values), max(values), _SMALL[1] - 26, 24)
    parts = [
        *grid(y, y.ticks(4), x.start, x.end, 39, "{:.3g}"),
        *(text(x(value), _SMALL[1] - 8, f"{value:g}", class_="tick", text_anchor="middle") for value in {1, epochs}),
        line(x(kept), y.start, x(kept), y.end, class_="baseline"),
        *(element("g", [path([(x(number), y(value)) for number, value in enumerate(mean, 1)], class_="curve")],
                  class_=f"series {_LOSSES[kind]}") for kind, mean in series.items()),
        *(text(x.end, 12 + 13 * place, kind.replace("_", " "), class_=f"label {_LOSSES[kind]}", text_anchor="end")
          for place, kind in enumerate(series))]
    ends = "; ".join(f"{kind.replace('_', ' ')} from {mean[0]:.3g} to {mean[-1]:.3g}" for kind, mean in series.items())
    return figure(*_SMALL, f"Losses of {name}",
                  f"{counted(epochs, 'epoch')} of {counted(len(runs), 'run')}: {ends}; epoch {kept:g} was kept.", parts,
                  "single")


def _mean_by_epoch(series: Sequence[Sequence[float | None]]) -> list[float]:
    """Mean over runs, epoch by epoch, as far as any of them went; epochs without a finite number are left out."""
    epochs = ([number for number in epoch if number is not None] for epoch in zip_longest(*series))
    return [fmean(epoch) for epoch in epochs if epoch]
