"""From a fitted classifier to one of other classes, by a text set of a store of the same encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onceclip.adapters import Classifier, transfer
from onceclip.adapters.text import RULES
from onceclip.pipeline.tasks.classes import names_of
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import check_encoder, task_of
from onceclip.stores import Store


def for_text(classifier: Classifier, store: Store, text: str = "default",
             classes: str | Sequence[str] | None = None) -> Classifier:
    """Make the classifier of the classes of a text set out of one that was fitted on others; nothing is trained.

    store: of the same encoder; its logit scale and projections count, its images are not looked at. classes: "all",
        "base", "new" or names, of the store; None for all that the text set has.
    Raises MethodError if the method does not serve other classes, StoreMismatch if another encoder made the store or
    the text set lacks a class, StoreIncomplete if there is no such text set.
    """
    check_encoder(classifier, store)
    words = store.text(text)
    if classes is not None:
        words = words.of_classes(names_of(store, classes) if isinstance(classes, str) else classes)
    made = classifier.provenance.get("text") or {}
    rule = made.get("class_weights", RULES[0])
    nothing = Draw(np.zeros(0, dtype=np.int64), ())
    other = transfer(classifier, task_of(store, words, rule, nothing, outputs=classifier.inputs))
    source = {"name": text, "fingerprint": words.fingerprint, "class_weights": rule, **words.source}
    provenance = {**classifier.provenance, "text": source, "transferred_from": len(classifier.class_names)}
    return replace(other, provenance=provenance)
