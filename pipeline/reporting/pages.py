"""Pages of results folders, of classes that arrive, of one saved adapter and of suggestions, each one HTML file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from onceclip.adapters import load_classifier
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.evaluate import evaluate, temperature_of
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.class_changes import class_view
from onceclip.pipeline.reporting.curves import (
    SCORES,
    curves_of,
    incremental_curves,
    ranked,
    reliability,
    reliability_panels,
    score_lines,
    training_panels,
)
from onceclip.pipeline.reporting.hyperparameters import ablations_of, chosen_of
from onceclip.pipeline.reporting.mistakes import MOST, surest_mistakes, with_pictures
from onceclip.pipeline.reporting.provenance import draws_of, facts_of, facts_of_adapter, replays
from onceclip.pipeline.reporting.settings import (
    Results,
    Row,
    Setting,
    best_of,
    failures,
    in_order,
    is_tie,
    mean_over_stores,
    policies,
    read_results,
    settings_of,
    sign_of,
    titles,
)
from onceclip.pipeline.runs.incremental import NAME, PAGE
from onceclip.pipeline.runs.results import read_lines
from onceclip.pipeline.runs.summary import BASELINE, Table, remarks_on
from onceclip.pipeline.tasks.encoders import joined_store
from onceclip.pipeline.words import counted, few_words, shots_of, version
from onceclip.stores import open_store
from onceclip.stores.location import whole_file

POLICIES = {
    "fixed": "at their defaults or as set",
    "val": "chosen on min(shots, 4) validation images per class",
    "val-full": "chosen on all validation images",
    "loo": "chosen on the support, each image left out in turn",
}
WHOLE_MATRIX = 30  # classes up to which the confusion matrix is drawn whole
WORST = 20  # classes shown at once
PAIRS = 15


def write_results_report(folders: Sequence[Path], out: Path, places: Sequence[str] = ()) -> dict[str, Any]:
    """Write one self-contained HTML file of results folders, and tell what is in it.

    places: what the page calls the folders, such as the URLs that they are copies of; by default their paths.
    Raises ResultError if they hold no result rows.
    """
    results = read_results(folders).called(places or list(map(str, folders)))
    settings = settings_of(results)
    names = titles(settings)
    overall = [_tables(title, table) for title, table in mean_over_stores(settings)]
    write_page(out, "results.html", title="Results", overview=_overview(results), overall=overall,
               failures=failures(results.rows), baseline=BASELINE,
               settings=[_setting(name, setting, results) for name, setting in zip(names, settings, strict=True)])
    return {"report": str(out), "rows": len(results.rows), "settings": names, "bytes": out.stat().st_size}


def _overview(results: Results) -> dict[str, Any]:
    rows = results.rows
    named = {f"{name}s": list(dict.fromkeys(str(row[name]) for row in rows if row.get(name) is not None))
             for name in ("store", "encoder", "text", "method")}
    return {**named, "folders": results.folders, "runs": len(rows),
            "failed": sum(row["accuracy"] is None for row in rows), "shots": in_order(row["shots"] for row in rows),
            "seeds": _ranges(in_order(row["seed"] for row in rows)),
            "policies": [(name, POLICIES.get(name, ""), methods) for name, methods in policies(rows).items()]}


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
            "notes": remarks_on(table),
            "uneven": len({mean.runs for mean in table.accuracy.values()}) > 1, "curves": curves_of(table),
            "ties": {key for key, mean in table.to_best.items() if is_tie(mean)},
            "signs": {key: sign_of(mean) for key, mean in table.to_baseline.items()}}


def _setting(title: str, setting: Setting, results: Results) -> dict[str, Any]:
    base, lines = setting.experiment.base, score_lines(setting)
    used = {score: title for score, title in SCORES.items() if any(line["scores"][score] is not None for line in lines)}
    measures = [_tables(table.title.rpartition(", ")[2] if base else "", table) for table in setting.tables]
    return {
        "title": title, "measures": measures, "hyperparameters": chosen_of(setting), "classes": class_view(setting),
        "lines": lines, "scores": used, "panels": reliability_panels(setting),
        "ablations": ablations_of(setting), "training": training_panels(setting, results.curves),
        "facts": facts_of(setting), "draws": draws_of(setting),
        "replays": replays(setting, measures[0]["best"], results)}


def write_adapter_report(adapter: Path, store: str, out: Path, split: str = "test",
                         images: str | None = None, modules: Sequence[str] = (),
                         join: Sequence[str] = ()) -> dict[str, Any]:
    """Write one self-contained HTML file on what a saved adapter does on a split of a store.

    images: the source of the store's images, for pictures of mistakes. modules: as for `load_classifier`.
    join: NAME=STORE of other encoders' stores of the same images.
    Raises AdapterFileError, StoreError or TaskError if there is nothing to score.
    """
    classifier = load_classifier(adapter, modules)
    opened = joined_store(open_store(store), join, classifier)
    scores = evaluate(classifier, opened, split)
    mistakes, remark = with_pictures(surest_mistakes(classifier, opened, split), opened, images)
    classes = sorted(scores["per_class"], key=lambda each: (each["recall"] is None, each["recall"], each["class"]))
    wrong = scores["n"] - sum(each["right"] for each in classes)
    suffix = "_calibrated" if temperature_of(classifier) else ""
    write_page(out, "adapter.html", title=adapter.resolve().name, scores=scores, split=split,
                classes=[each for each in classes if each["n"]], worst=WORST, matrix=_matrix(scores),
                confusions=scores["confusions"][:PAIRS], counts={each["class"]: each["n"] for each in classes},
                reliability=reliability(classifier.method, scores["details"]["reliability"], scores["ece"]),
                calibrated={name: scores[f"{name}{suffix}"] for name in ("ece", "nll")}, few=few_words(scores["n"]),
                mistakes=mistakes, remark=remark, wrong=wrong, most=MOST, hyperparameters=classifier.hyperparameters,
                temperature=temperature_of(classifier), facts=facts_of_adapter(classifier.provenance, opened))
    return {"report": str(out), "accuracy": scores["accuracy"], "mistakes": [each.key for each in mistakes],
            "pictures": sum(bool(each.picture) for each in mistakes), "bytes": out.stat().st_size}


def _matrix(scores: dict[str, Any]) -> list[tuple[str, list[int]]] | None:
    """Rows of the confusion matrix by class, or None where there are too many classes."""
    names = [each["class"] for each in scores["per_class"]]
    if len(names) > WHOLE_MATRIX:
        return None
    cells = {(true, predicted): number for true, predicted, number in scores["confusions"]}
    cells |= {(each["class"], each["class"]): each["right"] for each in scores["per_class"]}
    return [(true, [cells.get((true, predicted), 0) for predicted in names]) for true in names]


def write_suggestions_page(path: Path, found: Sequence[Any], remark: str, method: str, where: str,
                           errors: bool) -> None:
    """Write one self-contained HTML file. errors: whether labels are to be checked, or else images to be labelled."""
    title = "Labels to check" if errors else "Images to label next"
    write_page(path, "suggestions.html", title=title, found=found, remark=remark, method=method, where=where,
               errors=errors)


def write_incremental_report(folder: Path) -> Path:
    """Draw the rows of a folder's `incremental.jsonl`, one drawing for every store and division into sessions.

    Raises ResultError if it has none.
    """
    settings: dict[Any, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row, name in _incremental_names(read_lines(folder / NAME)):
        content = str(row.get("fingerprints", {}).get("store"))[:8]
        settings[str(row["store"]), content, len(row["sessions"]), row["shots"], row["text"],
                 row.get("seed")][name].append(row)
    if not settings:
        raise ResultError(f"{folder} has no {NAME}: `onceclip incremental STORE --out {folder}` writes it")
    write_page(folder / PAGE, "incremental.html", title="Classes that arrive", settings=[
        {"title": f"{store}, content {content}, {sessions} sessions, {shots_of(shots)}, text {text}, seed {seed}",
         "curves": incremental_curves(lines),
         "lines": [_incremental_line(name, rows) for name, rows in lines.items()]}
        for (store, content, sessions, shots, text, seed), lines in settings.items()])
    return folder / PAGE


def _incremental_names(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Each row and the name of its line: the method, with the hyperparameters in which rows of it differ."""
    values: dict[Any, set[str]] = defaultdict(set)
    for row in rows:
        for name, value in row.get("hyperparameters", {}).items():
            values[row["method"], name].add(str(value))
    for row in rows:
        varied = [f"{name}={value}" for name, value in row.get("hyperparameters", {}).items()
                  if len(values[row["method"], name]) > 1]
        yield row, " ".join([row["method"], *varied, *["(joint)"] * row["joint"]])


def _incremental_line(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """A method in the table: means over orders."""
    lost = [row["forgetting"] for row in rows if row["forgetting"] is not None]
    return {"name": name, "orders": len(rows), "bytes": max(row["bytes_kept"] for row in rows),
            "old": rows[0]["reads_old_rows"],
            "average": mean_interval([row["average_incremental_accuracy"] for row in rows]),
            "last": mean_interval([row["accuracy"] for row in rows]),
            "forgetting": mean_interval(lost) if lost else None}


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template and write the page; a file of that name is replaced when the new one is whole."""
    environment = Environment(loader=PackageLoader("onceclip.pipeline.reporting"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, signed=_signed, mean=mean, duration=_duration, count=_count,
                               number=_number, plural=counted, shots_of=shots_of)
    html = environment.get_template(template).render(version=version(), **values)
    with whole_file(path) as file:
        # Names of files may hold bytes that are no text.
        file.write(html.encode("utf-8", errors="replace"))


def _percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _signed(value: float | None, digits: int = 1) -> str:
    """A difference of fractions in per cent points, with its sign."""
    return "–" if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


def mean(value: Mean | None, sign: bool = False) -> str:
    """A mean with its interval, in per cent."""
    if value is None:
        return "–"
    half = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{_signed(value.value) if sign else _percent(value.value)}{half}"


def _number(value: float | None, digits: int = 3) -> str:
    """A plain number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def _count(value: float) -> str:
    """A count, which may be a mean of counts."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    """A duration in a unit that suits it."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
