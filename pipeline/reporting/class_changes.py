"""Where a method gains and loses against zero-shot, and what it takes for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def class_view(setting: Setting) -> dict[str, Any]:
    """The classes as the best line sees them at the most shots: changes of recall and confusions, for the page.

    `missing` is a sentence where there is nothing to show.
    """
    table, names, counts = setting.table, setting.store.get("classes"), setting.store.get("test_counts", [])
    others = ranked(table, [name for name in table.names if name != BASELINE])
    known = {number: lines for number in table.shots
             if (lines := [name for name in others if setting.details(name, number)])}
    if not known:
        return {"line": "", "missing": NO_DETAILS if others else NO_METHOD}
    shots = next(reversed(known))
    line = max(known[shots], key=lambda name: table.accuracy[name, shots].value)
    details = [each for name in (line, BASELINE) for each in setting.details(name, shots)]
    shown = {"line": line, "shots": shots, "missing": ""}
    if not names:
        return {**shown, "missing": NO_NAMES}
    if len(counts) != len(names) or not all(_fits(each, len(names)) for each in details):
        return {**shown, "missing": OTHER_CLASSES}
    changes = sorted(_changes(setting, line, shots, names, counts), key=lambda each: (-each["change"], each["name"]))
    listed = changes if len(changes) <= 2 * LISTED else [*changes[:LISTED], *changes[-LISTED:]]
    confusions = _confusions(setting, line, shots, names, counts)
    return {**shown, "changes": listed, "left_out": len(changes) - len(listed),
            "reach": max((abs(each["change"]) for each in listed), default=0.0), "confusions": confusions,
            "compared": any(each["before"] is not None for each in confusions)}


def _fits(details: Mapping[str, Any], classes: int) -> bool:
    """Whether the details of a row are of so many classes."""
    return (len(details.get("right", ())) == classes
            and all(max(pair[:2]) < classes for pair in details.get("confusions", ())))


def _changes(setting: Setting, line: str, shots: Any, names: Sequence[str],
             counts: Sequence[int]) -> list[dict[str, Any]]:
    """Recall of each class with zero-shot (`before`) and with a line (`after`): fractions, means over seeds."""
    mine, base = (setting.chosen.get((name, shots), {}) for name in (line, BASELINE))
    pairs = [(row["details"]["right"], base[seed]["details"]["right"]) for seed, row in mine.items()
             if row.get("details") and base.get(seed, {}).get("details")]
    found = []
    for index, (name, images) in enumerate(zip(names, counts, strict=True)):
        if images and pairs:
            after, before = (fmean(right[index] for right in side) / images for side in zip(*pairs, strict=True))
            found.append({"name": name, "images": images, "before": before, "after": after, "change": after - before})
    return found


def _confusions(setting: Setting, line: str, shots: Any, names: Sequence[str],
                counts: Sequence[int]) -> list[dict[str, Any]]:
    """The most frequent pairs of classes: images per run, their share of the class, and images of zero-shot."""
    runs, base_runs = (len(setting.details(name, shots)) for name in (line, BASELINE))
    after, before = (_pairs(setting.details(name, shots)) for name in (line, BASELINE))
    return [{"true": names[true], "predicted": names[predicted], "images": number / runs,
             "share": number / runs / counts[true] if counts[true] else None,
             "before": before[true, predicted] / base_runs if (true, predicted) in before else None}
            for (true, predicted), number in after.most_common(PAIRS)]


def _pairs(details: Iterable[Mapping[str, Any]]) -> Counter[tuple[int, int]]:
    """Images of one class taken for another, of all runs."""
    found: Counter[tuple[int, int]] = Counter()
    for each in details:
        found.update({(true, predicted): number for true, predicted, number in each.get("confusions", ())})
    return found
