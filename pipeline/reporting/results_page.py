"""The page of results folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onceclip.pipeline.reporting.class_changes import class_view
from onceclip.pipeline.reporting.curves import curves_of, ranked
from onceclip.pipeline.reporting.hyperparameters import chosen_of
from onceclip.pipeline.reporting.page import write_page
from onceclip.pipeline.reporting.provenance import draws_of, facts_of, replays
from onceclip.pipeline.reporting.reliability import reliability_panels, score_lines, used_scores
from onceclip.pipeline.reporting.settings import (
    POLICIES,
    Results,
    Setting,
    best_of,
    costs_of,
    failures,
    is_tie,
    mean_over_stores,
    measures,
    policies,
    read_results,
    settings_of,
    sign_of,
    titles,
)
from onceclip.pipeline.runs.summary import BASELINE, Table, short_words, unserved_words


def write_results_report(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write one self-contained HTML file of results folders, and tell what is in it.

    Raises ResultError if they hold no result rows.
    """
    results = read_results(folders)
    settings = settings_of(results)
    names = titles(settings)
    overall = [_tables(title, table) for title, table in mean_over_stores(settings)]
    write_page(out, "results.html", title="Results", overview=_overview(results, settings), overall=overall,
               failures=failures(results.rows), baseline=BASELINE,
               settings=[_setting(name, setting, results) for name, setting in zip(names, settings, strict=True)])
    return {"report": str(out), "rows": len(results.rows), "settings": names, "bytes": out.stat().st_size}


def _overview(results: Results, settings: Sequence[Setting]) -> dict[str, Any]:
    rows = results.rows
    shots = sorted({row["shots"] for row in rows}, key=lambda number: (isinstance(number, str), number))
    seeds = sorted({row["seed"] for row in rows})
    return {
        "folders": [str(folder) for folder in results.folders], "runs": len(rows),
        "failed": sum(row["accuracy"] is None for row in rows),
        "stores": list(dict.fromkeys(str(row["store"]) for row in rows)),
        "encoders": list(dict.fromkeys(str(row["encoder"]) for row in rows if row.get("encoder"))),
        "texts": list(dict.fromkeys(str(row["text"]) for row in rows if row.get("text"))),
        "methods": list(dict.fromkeys(str(row["method"]) for row in rows)), "shots": shots, "seeds": _ranges(seeds),
        "policies": [(name, POLICIES.get(name, ""), methods) for name, methods in policies(rows).items()],
    }


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in ascending order, those that follow each other as a range."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in ends)


def _tables(title: str, table: Table) -> dict[str, Any]:
    """A table in the order of merit, with its curves and what is best in it."""
    return {"title": title, "table": table, "names": ranked(table, table.names), "best": best_of(table),
            "runs": max((mean.runs for mean in table.accuracy.values()), default=0),
            "notes": [words(table) for words, about in ((short_words, table.short), (unserved_words, table.unserved))
                      if about],
            "uneven": len({mean.runs for mean in table.accuracy.values()}) > 1, "curves": curves_of(table),
            "ties": {key for key, mean in table.to_best.items() if is_tie(mean)},
            "signs": {key: sign_of(mean) for key, mean in table.to_baseline.items()}}


def _setting(title: str, setting: Setting, results: Results) -> dict[str, Any]:
    made = [_tables(name, table) for name, table in measures(setting)]
    lines = score_lines(setting)
    return {
        "title": title, "measures": made, "rows": len(setting.rows),
        "hyperparameters": chosen_of(setting), "classes": class_view(setting),
        "lines": lines, "scores": used_scores(lines), "panels": reliability_panels(setting),
        "costs": costs_of(setting),
        "facts": facts_of(setting), "draws": draws_of(setting), "replays": replays(setting, made[0]["best"], results),
    }
