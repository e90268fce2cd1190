"""Scoring a fitted classifier on a split of a store."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Classifier
from onceclip.pipeline.metrics import metrics
from onceclip.stores import Store, StoreMismatch


def evaluate(classifier: Classifier, store: Store, split: str = "test") -> dict[str, Any]:
    """Score a classifier on the labelled rows of one split: accuracy, macro recall, NLL, ECE and counts.

    Classes are joined by name; the store may have fewer than the classifier.
    Raises StoreMismatch if another encoder made the store, or it has classes that the classifier does not know.
    """
    check_encoder(classifier, store)
    begun = time.perf_counter()
    rows = store.rows(split)
    place = {name: index for index, name in enumerate(classifier.class_names)}
    labels = store.column("label")[rows]
    used = np.unique(labels)
    unknown = [store.classes[number] for number in used if store.classes[number] not in place]
    if unknown:
        raise StoreMismatch(f"{store.path} has classes that the adapter does not know: {', '.join(unknown[:8])}; it "
                            f"knows {', '.join(classifier.class_names[:8])}{' ...' if len(place) > 8 else ''}: "
                            "evaluate on a store with the adapter's class names")
    join = np.array([place.get(name, -1) for name in store.classes], dtype=np.int64)
    label = torch.from_numpy(join[labels])
    logits = [classifier.logits(embeddings) for _, embeddings in store.pieces(rows)]
    scores = metrics(torch.cat(logits) if logits else torch.empty(0, len(place)), label)
    return {**scores, "split": split, "n": len(rows), "classes": len(used), "method": classifier.method,
            "store": store.path, "store_fingerprint": store.fingerprint, "encoder": store.encoder["name"],
            "seconds": time.perf_counter() - begun}


def check_encoder(classifier: Classifier, store: Store) -> None:
    """Raise StoreMismatch unless classifier and store belong to one encoder."""
    encoder = classifier.provenance.get("encoder")
    if encoder is not None:
        store.require_encoder(encoder["fingerprint"], f"the adapter ({encoder['name']})")
    elif classifier.dim != store.dim:
        raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {store.path} has {store.dim}: "
                            "use a store of the adapter's encoder")
