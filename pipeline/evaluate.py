"""Scoring fitted classifiers on a split of a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.threads import threads_for
from onceclip.adapters.together import logits_together
from onceclip.pipeline.metrics import Tally
from onceclip.stores import Store, StoreMismatch


def evaluate(classifier: Classifier, store: Store, split: str = "test") -> dict[str, Any]:
    """Score a classifier on the labelled rows of one split: accuracy, macro recall, NLL, ECE and counts.

    Classes are joined by name; the store may have fewer than the classifier.
    Raises StoreMismatch if another encoder made the store, or it has classes that the classifier does not know.
    """
    return evaluate_together([classifier], store, split)[0]


def evaluate_together(classifiers: Sequence[Classifier], store: Store, split: str = "test") -> list[dict[str, Any]]:
    """Score classifiers of the same classes and inputs in one pass over the rows; what they share is computed once."""
    begun = time.perf_counter()
    first = classifiers[0]
    for classifier in classifiers:
        check_encoder(classifier, store)
    rows = store.rows(split)
    labels = store.column("label")[rows]
    used = np.unique(labels)
    label = torch.from_numpy(_join(first, store, used)[labels])
    tallies = [Tally(len(first.class_names)) for _ in classifiers]
    done = 0
    heads = [classifier.head for classifier in classifiers]
    for values in inputs_of(first, store, rows):
        queries = first.prepared(values)
        with threads_for(len(queries) * queries.shape[1] * max(head.width for head in heads) * len(heads)):
            for tally, logits in zip(tallies, logits_together(heads, queries), strict=True):
                tally.add(logits, label[done:done + len(queries)])
        done += len(queries)
    seconds = (time.perf_counter() - begun) / len(classifiers)
    return [{**tally.scores(), "split": split, "n": len(rows), "classes": len(used), "method": classifier.method,
             "store": store.path, "store_fingerprint": store.fingerprint, "encoder": store.encoder["name"],
             "seconds": seconds} for classifier, tally in zip(classifiers, tallies, strict=True)]


def inputs_of(classifier: Classifier, store: Store, rows: np.ndarray) -> Iterator[Tensor | np.ndarray]:
    """What a classifier takes of some rows of a store, raw, piece by piece."""
    for piece, embeddings in store.pieces(rows):
        yield embeddings if len(classifier.inputs) == 1 and classifier.inputs[0] == "embedding" else np.concatenate(
            [(embeddings if name == "embedding" else store.embeddings(piece, name)).reshape(len(piece), -1)
             for name in classifier.inputs], axis=1)


def _join(classifier: Classifier, store: Store, used: np.ndarray) -> np.ndarray:
    """The classifier's number of every class of the store, by name."""
    place = {name: index for index, name in enumerate(classifier.class_names)}
    unknown = [store.classes[number] for number in used if store.classes[number] not in place]
    if unknown:
        raise StoreMismatch(f"{store.path} has classes that the adapter does not know: {', '.join(unknown[:8])}; it "
                            f"knows {', '.join(classifier.class_names[:8])}{' ...' if len(place) > 8 else ''}: "
                            "evaluate on a store with the adapter's class names")
    return np.array([place.get(name, -1) for name in store.classes], dtype=np.int64)


def check_encoder(classifier: Classifier, store: Store) -> None:
    """Raise StoreMismatch unless classifier and store belong to one encoder."""
    encoder = classifier.provenance.get("encoder")
    if encoder is not None:
        store.require_encoder(encoder["fingerprint"], f"the adapter ({encoder['name']})")
    elif classifier.inputs == ("embedding",) and classifier.dim != store.dim:
        raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {store.path} has {store.dim}: "
                            "use a store of the adapter's encoder")
