"""Result rows compared with each other: which differences are more than the luck of draws, images or stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.statistics import compare as compare_answers
from onceclip.pipeline.evaluation.statistics import friedman, holm, mean_interval, paired_t, two_way_interval, wilcoxon
from onceclip.pipeline.reporting.settings import in_order
from onceclip.pipeline.reporting.tables import LOWER, results_frame
from onceclip.pipeline.runs.keep import Predictions, read_predictions
from onceclip.pipeline.runs.summary import BASELINE
from onceclip.pipeline.words import counted, listing

Block = dict[str, Any]
_OF_ANSWERS = ("mcnemar", "bootstrap")
_FEW_STORES = {"wilcoxon": 6, "friedman": 3}  # of fewer, no difference can be told from luck


def compare_results(folders: Sequence[Path], test: str, baseline: str | None = None, score: str = "accuracy",
                    shots: Sequence[Any] | None = None, methods: Sequence[str] | None = None,
                    by_encoder: bool = False) -> dict[str, Any]:
    """Test lines of results folders against one of them, or by `friedman` against each other.

    test: one of TESTS. baseline: a line; zero-shot by default, else the first. methods: the lines beside it, all by
        default. by_encoder: a line per method and encoder, on draws that are equal by their keys, so that stores of the
        same images count as one.
    Raises ResultError if nothing can be compared.
    """
    if test in _OF_ANSWERS and score != "accuracy":
        raise ResultError(f"{test} counts right and wrong answers, and says nothing of {score}: leave --score out, or "
                          "compare by --test draws")
    frame = results_frame(folders, contents="store" if test in _IN_A_STORE else "method")
    if shots is not None:
        frame = frame[frame["shots"].isin(list(shots))]
    if score not in frame or frame[score].isna().all():
        raise ResultError(f"no run has a {score} at these shots: give other results folders or --shots")
    frame = frame[frame[score].notna()]
    if by_encoder:
        frame = _by_encoder(frame)
    lines = list(dict.fromkeys(frame["method"]))
    base = baseline or (BASELINE if BASELINE in lines else lines[0])
    if base not in lines:
        raise ResultError(f"no line {base!r} in the results with a {score}: there are: {listing(lines, 12)}")
    if methods is not None:
        if missing := [name for name in methods if name not in lines]:
            raise ResultError(f"no line {missing[0]!r} in the results: there are: {listing(lines, 12)}")
        frame = frame[frame["method"].isin([base, *methods])]
        lines = list(dict.fromkeys(frame["method"]))
    if len(lines) < 2:
        raise ResultError(f"one line alone has the score {score}, {lines[0]}, and a comparison takes two: sweep "
                          "another method, or give other --methods")
    blocks = []
    for number in in_order(frame["shots"]):
        part = frame[frame["shots"] == number]
        if test in _OVER_STORES:
            blocks += [{"shots": number, **block} for block in _OVER_STORES[test](part, base, score)]
        else:
            blocks += [{"shots": number, "store": store, **block} for store, own in part.groupby("store", sort=False)
                       for block in _IN_A_STORE[test](own, base, score)]
    if not blocks:
        raise ResultError(f"no line has runs on the same draws as {base}: sweep all methods with the same shots and "
                          "seeds")
    return {"test": test, "score": score, "baseline": None if test == "friedman" else base, "blocks": blocks}


def _by_encoder(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines of a method and an encoder; stores that have a draw in common are one."""
    if "support" not in frame or "encoder" not in frame:
        raise ResultError("the rows do not say their draws and encoders: sweep again")
    names: dict[Any, str] = {}
    same: dict[str, str] = {}
    for store, *draw in frame[["store", "shots", "seed", "support"]].itertuples(index=False):
        names.setdefault(tuple(draw), store)
        same.setdefault(store, same.get(names[tuple(draw)], names[tuple(draw)]))
    if len(set(same.values())) == len(same):
        raise ResultError("no two stores have the same draws: stores of the same images with other encoders have, if "
                          "their keys and splits are equal")
    return frame.assign(method=frame["method"] + " @ " + frame["encoder"].astype(str), store=frame["store"].map(same))


def _pairs(part: pd.DataFrame, base: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every other line, with its runs and those of the baseline on the same seed and draw side by side."""
    keys = ["seed", *["support"] * ("support" in part)]
    mine = part[part["method"] == base]
    for name in dict.fromkeys(part["method"]):
        if name != base:
            both = part[part["method"] == name].merge(mine, on=keys, suffixes=("", "_base"))
            if len(both):
                yield name, both


def _block(found: list[Block]) -> Iterator[Block]:
    """The block of some comparisons, if there are any, with p-values that are corrected for their number."""
    tested = [each for each in found if each["p"] is not None]
    for each, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
        each["p_holm"] = p
    if found:
        yield {"comparisons": found}


def _draws(part: pd.DataFrame, base: str, score: str) -> Iterator[Block]:
    found = []
    for name, both in _pairs(part, base):
        differences = (both[score] - both[f"{score}_base"]).dropna().tolist()
        if differences:
            drawn = "support" not in both or both["support"].nunique() > 1
            mean = mean_interval(differences, drawn)
            half = mean.half_width
            found.append({"method": name, "n": len(differences), "difference": mean.value,
                          "interval": None if half is None else [mean.value - half, mean.value + half],
                          "p": paired_t(differences) if drawn else None})
    yield from _block(found)


def _answers(both: pd.DataFrame) -> Iterator[tuple[int, Predictions, Predictions]]:
    """Seed by seed, what both runs of a pair took the test rows for."""
    for row in both.to_dict("records"):
        mine, other = (read_predictions(Path(str(row[f"folder{end}"])), {
            "run": row[f"run{end}"], "method": row[f"method{end}"], "shots": row["shots"], "seed": row["seed"]})
            for end in ("", "_base"))
        if mine.keys != other.keys:
            raise ResultError(f"{row['method']} and {row['method_base']} were scored on other test images: compare "
                              "runs on stores with the same test split")
        yield int(row["seed"]), mine, other


def _mcnemar(part: pd.DataFrame, base: str, score: str) -> Iterator[Block]:
    by_seed: dict[int, list[Block]] = {}
    for name, both in _pairs(part, base):
        for seed, mine, other in _answers(both):
            found = compare_answers(mine.right, other.right, mine.unit)
            by_seed.setdefault(seed, []).append({
                "method": name, "n": len(mine.label), "difference": found["difference"],
                "interval": found["difference_interval"], "p": found["p"], "only_this": found["only_this"],
                "only_other": found["only_other"]})
    for seed, several in sorted(by_seed.items()):
        yield from ({"seed": seed, **block} for block in _block(several))


def _bootstrap(part: pd.DataFrame, base: str, score: str) -> Iterator[Block]:
    found = []
    for name, both in _pairs(part, base):
        answers = [(mine, other) for _, mine, other in _answers(both)]
        if len({mine.keys for mine, _ in answers}) > 1:
            raise ResultError(f"runs of {name} were scored on other test images in other seeds: sweep them again")
        values = np.stack([mine.right.astype(np.int8) - other.right for mine, other in answers])
        found.append({"method": name, "n": len(answers), "difference": float(values.mean()),
                      "interval": list(two_way_interval(values, answers[0][0].unit)), "p": None})
    yield from _block(found)


def _store_means(part: pd.DataFrame, names: Sequence[str], score: str, test: str) -> pd.DataFrame:
    """Means over seeds, a line per store that has all of some methods, a column for each.

    Raises ResultError for fewer stores than a test takes.
    """
    some, least = part[part["method"].isin(list(names))], _FEW_STORES[test]
    means = some.pivot_table(index="store", columns="method", values=score).reindex(columns=list(names)).dropna()
    if len(means) < least:
        raise ResultError(f"{test} compares over stores, and {counted(len(means), 'store')} of {least} that it takes "
                          "to tell anything have all lines: sweep more stores, or compare by --test draws")
    return means


def _wilcoxon(part: pd.DataFrame, base: str, score: str) -> Iterator[Block]:
    found = []
    for name in dict.fromkeys(part["method"]):
        if name != base:
            means = _store_means(part, [name, base], score, "wilcoxon")
            differences = (means[name] - means[base]).tolist()
            found.append({"method": name, "n": len(differences), "difference": fmean(differences), "interval": None,
                          "p": wilcoxon(differences)})
    yield from _block(found)


def _friedman(part: pd.DataFrame, base: str, score: str) -> Iterator[Block]:
    names = list(dict.fromkeys(part["method"]))
    means = _store_means(part, names, score, "friedman")
    ranks = friedman(means.to_numpy(), score in LOWER)
    yield {"n": len(means), "ranks": dict(zip(names, ranks.mean.tolist(), strict=True)), "statistic": ranks.statistic,
           "p": ranks.p, "critical_difference": ranks.distance,
           "pairs": [{"methods": [names[one], names[other]], "p": float(ranks.pairs[one, other])}
                     for one in range(len(names)) for other in range(one)]}


Test = Callable[[pd.DataFrame, str, str], Iterator[Block]]
_IN_A_STORE: dict[str, Test] = {"draws": _draws, "mcnemar": _mcnemar, "bootstrap": _bootstrap}
_OVER_STORES: dict[str, Test] = {"wilcoxon": _wilcoxon, "friedman": _friedman}
TESTS = (*_IN_A_STORE, *_OVER_STORES)
