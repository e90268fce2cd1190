"""Whether confidences can be believed: reliability diagrams, and the scores beside accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.reporting.curves import ranked
from onceclip.pipeline.reporting.drawing import Scale, element, figure, line, text
from onceclip.pipeline.reporting.settings import Row, Setting
from onceclip.pipeline.runs.summary import BASELINE
from onceclip.pipeline.words import shots_of

PANELS = 8
SCORES = {"accuracy": "top-1, %", "top5": "top-5, %", "macro_recall": "macro recall, %", "nll": "NLL",
          "nll_calibrated": "NLL, calibrated", "brier": "Brier", "ece": "ECE, %",
          "ece_calibrated": "ECE, calibrated, %"}


@dataclass(frozen=True)
class ScoreLine:
    """Means over seeds of all scores of a line at the most shots that it has."""

    name: str
    shots: Any
    scores: Mapping[str, float | None]
    runs: int


def score_lines(setting: Setting) -> list[ScoreLine]:
    """The scores of every line, best first."""
    found = []
    for name in ranked(setting.table, setting.table.names):
        shots = [number for number in setting.table.shots if (name, number) in setting.table.accuracy][-1]
        rows = list(setting.chosen[name, shots].values())
        found.append(ScoreLine(name, shots, {score: _mean(rows, score) for score in SCORES}, len(rows)))
    return found


def used_scores(lines: Sequence[ScoreLine]) -> dict[str, str]:
    """The scores that any line has, with their headings."""
    return {score: title for score, title in SCORES.items() if any(each.scores[score] is not None for each in lines)}


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
    x, y = Scale(0, 1, 34, 190), Scale(0, 1, 162, 8)
    total = sum(count for count, _, _ in bins) or 1
    said = "" if error is None else f"ECE {100 * error:.1f} %"
    places = [(x(confidence / count), y(right / count), count) for count, confidence, right in bins if count]
    parts = [
        element("g", [line(x(0), y(value), x(1), y(value)) for value in (0, 0.5, 1)], class_="grid"),
        line(x(0), y(0), x(1), y(1), class_="baseline"),
        *(line(place, y(x_value(place, x)), place, height, class_="gap") for place, height, _ in places),
        *(element("circle", cx=place, cy=height, r=2.5 + 7 * sqrt(count / total), class_="bin")
          for place, height, count in places),
        *(text(29, y(value) + 4, f"{100 * value:g}", class_="tick", text_anchor="end") for value in (0, 0.5, 1)),
        *(text(x(value), 177, f"{100 * value:g}", class_="tick", text_anchor="middle") for value in (0, 0.5, 1)),
        text(x(1) - 2, y(0) - 6, said, class_="label halo", text_anchor="end"),
    ]
    words = "; ".join(f"confidence {100 * confidence / count:.0f} %: right {100 * right / count:.0f} % of {count:g}"
                      for count, confidence, right in bins if count)
    return figure(198, 184, f"Reliability of {name}", f"{said}. {words}.", parts,
                  "reliability s0")


def x_value(place: float, scale: Scale) -> float:
    """The value that stands at a place of a scale."""
    return scale.low + (scale.high - scale.low) * (place - scale.start) / (scale.end - scale.start)
