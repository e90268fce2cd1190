"""Base-to-new: fitted on one half of the classes, scored on each half by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onceclip.adapters import Classifier, method_class
from onceclip.pipeline.classes import BASE, NEW, names_of
from onceclip.pipeline.evaluate import evaluate_together
from onceclip.pipeline.transfer import for_text
from onceclip.stores import Store

NEW_SCORES = ("class_set", "accuracy_new", "harmonic_mean", "n_test_new", "classes_new")


def base_to_new(classifiers: Sequence[Classifier], store: Store, text: str = "default") -> list[dict[str, Any]]:
    """Score classifiers of one method, fitted on the base classes of a store, on its test split.

    Rows of base classes are scored among the base classes, those of new ones among the new ones. To the scores of
    `evaluate_together` on the base come NEW_SCORES, which are None for a method that does not serve other classes.

    Source: CoCoOp (Zhou et al., CVPR 2022), section 4.1.
    """
    known, new = names_of(store, BASE), names_of(store, NEW)
    scores = evaluate_together(classifiers, store, classes=known)
    nothing: dict[str, Any] = {**dict.fromkeys(NEW_SCORES), "class_set": BASE, "classes_new": len(new)}
    if not method_class(classifiers[0].method).transfers:
        return [{**each, **nothing} for each in scores]
    others = evaluate_together([for_text(each, store, text, new) for each in classifiers], store, classes=new)
    return [{**each, **nothing, "accuracy_new": other["accuracy"], "n_test_new": other["n"],
             "harmonic_mean": harmonic_mean(each["accuracy"], other["accuracy"])}
            for each, other in zip(scores, others, strict=True)]


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """`2ab / (a + b)`, 0 where both are; None where one is missing."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0
