"""Where a method gains and loses against zero-shot, and what it takes for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from onceclip.pipeline.reporting.curves import ranked
from onceclip.pipeline.reporting.settings import Setting
from onceclip.pipeline.runs.summary import BASELINE

LISTED = 15  # classes at each end where there are more than twice as many
PAIRS = 12
NO_DETAILS = "The rows have no details per class: sweep again into a new folder for them."
NO_METHOD = f"No method but {BASELINE} has a result, so that there is nothing to compare it with."
OTHER_CLASSES = ("The rows and stores.json of the results folder speak of different numbers of classes, so that none "
                 "can be named: sweep again into a new folder.")
NO_NAMES = ("The results folder has no stores.json, so that the names of the classes and their numbers of test images "
            "are unknown: sweep again into a new folder for them.")


@dataclass(frozen=True)
class ClassChange:
    """Recall of a class with zero-shot and with a method: fractions, means over seeds. images: its test images."""

    name: str
    images: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """The difference."""
        return self.after - self.before


@dataclass(frozen=True)
class Confusion:
    """Test images of one class taken for another: per run. share: of the class's images, None where unknown."""

    true: str
    predicted: str
    images: float
    share: float | None
    before: float | None


@dataclass(frozen=True)
class ClassView:
    """The classes as the best line sees them at the most shots. left_out: classes between the listed ones.

    missing: one sentence where there is nothing to show.
    """

    line: str
    shots: Any
    changes: tuple[ClassChange, ...] = ()
    left_out: int = 0
    reach: float = 0.0
    confusions: tuple[Confusion, ...] = ()
    missing: str = ""

    @property
    def compared(self) -> bool:
        """Whether anything is known of zero-shot's confusions."""
        return any(each.before is not None for each in self.confusions)


def class_view(setting: Setting) -> ClassView:
    """Per-class changes and confusions of a setting."""
    table, names, counts = setting.table, setting.store.get("classes"), setting.store.get("test_counts", [])
    others = ranked(table, [name for name in table.names if name != BASELINE])
    known = {number: lines for number in table.shots
             if (lines := [name for name in others if setting.details(name, number)])}
    if not known:
        return ClassView("", None, missing=NO_DETAILS if others else NO_METHOD)
    shots = next(reversed(known))
    line = max(known[shots], key=lambda name: table.accuracy[name, shots].value)
    if not names:
        return ClassView(line, shots, missing=NO_NAMES)
    if not all(_fits(details, len(names)) for name in (line, BASELINE) for details in setting.details(name, shots)) \
            or len(counts) != len(names):
        return ClassView(line, shots, missing=OTHER_CLASSES)
    changes = sorted(_changes(setting, line, shots, names, counts), key=lambda each: (-each.change, each.name))
    left_out = max(len(changes) - 2 * LISTED, 0)
    shown = changes if not left_out else [*changes[:LISTED], *changes[-LISTED:]]
    return ClassView(line, shots, tuple(shown), left_out, max((abs(each.change) for each in shown), default=0.0),
                     tuple(_confusions(setting, line, shots, names, counts)))


def _fits(details: Mapping[str, Any], classes: int) -> bool:
    """Whether the details of a row are of so many classes."""
    return (len(details.get("right", ())) == classes
            and all(max(pair[:2]) < classes for pair in details.get("confusions", ())))


def _changes(setting: Setting, line: str, shots: Any, names: list[str], counts: list[int]) -> list[ClassChange]:
    mine, base = (setting.chosen.get((name, shots), {}) for name in (line, BASELINE))
    pairs = [(row["details"]["right"], base[seed]["details"]["right"]) for seed, row in mine.items()
             if row.get("details") and base.get(seed, {}).get("details")]
    return [ClassChange(name, images, fmean(before[index] for _, before in pairs) / images,
                        fmean(after[index] for after, _ in pairs) / images)
            for index, (name, images) in enumerate(zip(names, counts, strict=True)) if images and pairs]


def _confusions(setting: Setting, line: str, shots: Any, names: list[str], counts: list[int]) -> list[Confusion]:
    runs, base_runs = (len(setting.details(name, shots)) for name in (line, BASELINE))
    after, before = (_pairs(setting.details(name, shots)) for name in (line, BASELINE))
    return [Confusion(names[true], names[predicted], number / runs,
                      number / runs / counts[true] if counts[true] else None,
                      before[true, predicted] / base_runs if (true, predicted) in before else None)
            for (true, predicted), number in after.most_common(PAIRS)]


def _pairs(details: Iterable[Mapping[str, Any]]) -> Counter[tuple[int, int]]:
    """Images of one class taken for another, of all runs."""
    found: Counter[tuple[int, int]] = Counter()
    for each in details:
        found.update({(true, predicted): number for true, predicted, number in each.get("confusions", ())})
    return found
