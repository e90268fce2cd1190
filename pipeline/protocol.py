"""Which images, which classes and which text an evaluation looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onceclip.adapters import Classifier
from onceclip.adapters.engine import no_progress
from onceclip.pipeline.classes import ALL, names_of
from onceclip.pipeline.evaluate import score
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
        return score(classifier, store, self.split, names, among, progress)
