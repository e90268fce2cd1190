"""Which images, which classes and which text an evaluation looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onceclip.adapters import Classifier
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.classes import ALL, names_of
from onceclip.pipeline.evaluate import Judge, Scoring, score
from onceclip.pipeline.evaluation import Evaluation
from onceclip.pipeline.transfer import for_text
from onceclip.stores import Store


@dataclass(frozen=True)
class Protocol:
    """What is asked of every classifier and store alike.

    split: of the store. classes: "all", "base", "new", or names of classes whose rows are scored. text: name of a text
    set whose classes compete, for a method that transfers to them. only_its_classes: the scored classes alone compete,
    and not all that the classifier knows.
    """

    split: str = "test"
    classes: str | Sequence[str] = ALL
    text: str | None = None
    only_its_classes: bool = False

    def score(self, classifier: Classifier, store: Store, progress: Callable[[float], None] = no_progress,
              judge: Judge = Scoring.judged) -> Evaluation:
        """Score a classifier on a store. A classifier that lacks some of the classes asked for is carried over to them.

        progress, judge: as of `evaluate.score`.
        Raises MethodError if its method does not transfer, and what `evaluate.score` raises.
        """
        return score(*self._applied(classifier, store), progress, judge)

    def scoring(self, classifier: Classifier, store: Store) -> Scoring:
        """What `score` scores. Raises the same."""
        return Scoring.of(*self._applied(classifier, store))

    def _applied(self, classifier: Classifier, store: Store) -> tuple[Classifier, Store, str, Sequence[str] | None,
                                                                      Sequence[str] | None]:
        """The classifier, store, split, classes and candidates that are meant."""
        names = None if self.classes == ALL else names_of(store, self.classes)
        if self.text or set(names or ()) - set(classifier.class_names):
            classifier = for_text(classifier, store, self.text or "default", names)
        return classifier, store, self.split, names, (names or store.classes) if self.only_its_classes else None
