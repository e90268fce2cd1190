"""One classifier on several stores: what it keeps of its scores on the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from onceclip.pipeline.metrics import SCORES


def shift(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the scores of one classifier on several stores, as JSON values.

    scores: as `evaluate` gives them, the first of the store that the others are compared with.
    Gives `stores`, each but the first with the `difference` of its accuracy to the first's, and `mean_of_others`: the
    mean of each score over them, every store counted once; None where a store lacks the score.
    """
    first, others = scores[0], scores[1:]
    return {
        "stores": [dict(first),
                   *({**each, "difference": each["accuracy"] - first["accuracy"]} for each in others)],
        "mean_of_others": {
            **{name: _mean([each[name] for each in others]) for name in SCORES},
            "difference": fmean(each["accuracy"] - first["accuracy"] for each in others)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if len(numbers) == len(values) else None
