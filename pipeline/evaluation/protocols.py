"""What an evaluation looks at: which images, classes and text; base and new classes; several stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from onceclip.adapters import Classifier, method_class, set_rule
from onceclip.adapters.selection.automatic import AVERAGES
from onceclip.adapters.selection.calibration import KINDS
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.evaluate import Evaluation, evaluate_together, score
from onceclip.pipeline.evaluation.metrics import SCORES
from onceclip.pipeline.tasks.classes import ALL, BASE, NEW, names_of
from onceclip.pipeline.tasks.tasks import for_text
from onceclip.stores import Store

NEW_SCORES = ("class_set", "accuracy_new", "harmonic_mean", "n_test_new", "classes_new")


@dataclass(frozen=True)
class Protocol:
    """What is asked of every classifier and store alike.

    split: of the store. classes: "all", "base", "new", or names of classes whose rows are scored. text: name of a text
    set whose classes compete, for a method that transfers to them. only_its_classes: the scored classes alone compete,
    and not all that the classifier knows. coverage: of prediction sets that are counted; None for none.
    """

    split: str = "test"
    classes: str | Sequence[str] = ALL
    text: str | None = None
    only_its_classes: bool = False
    coverage: float | None = None

    def score(self, classifier: Classifier, store: Store,
              progress: Callable[[float], None] = no_progress) -> Evaluation:
        """Score a classifier on a store. A classifier that lacks some of the classes asked for is carried over to them.

        progress: as of `evaluate.score`.
        Raises MethodError if its method does not transfer, and what `evaluate.score` raises.
        """
        names = None if self.classes == ALL else names_of(store, self.classes)
        if self.text or set(names or ()) - set(classifier.class_names):
            classifier = for_text(classifier, store, self.text or "default", names)
        among = (names or store.classes) if self.only_its_classes else None
        if self.coverage is not None and among is not None:
            raise TaskError("prediction sets are of all classes that the adapter knows: leave --only-its-classes or "
                            "--coverage out")
        rules = [] if self.coverage is None else [set_rule(classifier, self.coverage, kind) for kind in KINDS]
        return score(classifier, store, self.split, names, among, progress, rules)


def base_to_new(classifiers: Sequence[Classifier], store: Store, text: str = "default",
                keep: bool = False, coverage: float | None = None) -> list[dict[str, Any]]:
    """Score classifiers of one method, fitted on the base classes of a store, on its test split.

    Rows of base classes are scored among the base classes, those of new ones among the new ones. To the scores of
    `evaluate_together` on the base come NEW_SCORES, which are None for a method that does not serve other classes.
    keep, coverage: as there, of rows of base classes.

    Source: CoCoOp (Zhou et al., CVPR 2022), section 4.1.
    """
    known, new = names_of(store, BASE), names_of(store, NEW)
    scores = evaluate_together(classifiers, store, classes=known, keep=keep, coverage=coverage)
    nothing: dict[str, Any] = {**dict.fromkeys(NEW_SCORES), "class_set": BASE, "classes_new": len(new)}
    name = classifiers[0].method
    if name in AVERAGES or not method_class(name).transfers or not all(map(serves_others, classifiers)):
        return [{**each, **nothing} for each in scores]
    others = evaluate_together([for_text(each, store, text, new) for each in classifiers], store, classes=new)
    return [{**each, **nothing, "accuracy_new": other["accuracy"], "n_test_new": other["n"],
             "harmonic_mean": harmonic_mean(each["accuracy"], other["accuracy"])}
            for each, other in zip(scores, others, strict=True)]


def serves_others(classifier: Classifier) -> bool:
    """Whether a classifier keeps what its method needs for other classes; all do whose method trains nothing."""
    return bool(classifier.parameters) or not method_class(classifier.method).trained


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """`2ab / (a + b)`, 0 where both are; None where one is missing."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


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
            **{name: _mean_of([each[name] for each in others]) for name in SCORES},
            "difference": fmean(each["accuracy"] - first["accuracy"] for each in others)},
    }


def _mean_of(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if len(numbers) == len(values) else None
