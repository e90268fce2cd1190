"""What a path holds: a store or a saved adapter, finished or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import compress, count, islice
from pathlib import Path
from typing import Any

import numpy as np

import onceclip
from onceclip.adapters import load_classifier
from onceclip.adapters.classifier import CONFIG
from onceclip.stores import Store, open_store
from onceclip.stores.schema import BAD, REMOVED, SCHEMA, SPLITS, STORED, TODO

_PIECE = 1 << 20  # rows that are counted at once
_SAMPLE = 4096


def info(path: str, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a store or an adapter folder as JSON values.

    modules: as for `load_classifier`.
    Raises NotAStore if the path is neither.
    """
    if (Path(path) / CONFIG).is_file():
        classifier = load_classifier(path, modules)
        return {"kind": "adapter", "path": path, "method": classifier.method, "dim": classifier.dim,
                "hyperparameters": classifier.hyperparameters, "classes": list(classifier.class_names),
                "provenance": classifier.provenance}
    return _store(open_store(path))


def _store(store: Store) -> dict[str, Any]:
    dtype, height = np.dtype(store.attributes["dtype"]), len(store.column("state"))
    states: Counter[int] = Counter()
    # Stored rows by class and split; the last of each are those without one, where -1 finds them.
    counts = np.zeros((len(store.classes) + 1, len(SPLITS) + 1), np.int64)
    bad: dict[str, str] = {}
    for start in range(0, height, _PIECE):
        state, label, split = (store.part(name, slice(start, start + _PIECE)) for name in ("state", "label", "split"))
        states.update({number: int((state == number).sum()) for number in (STORED, BAD, REMOVED, TODO)})
        np.add.at(counts, (label[state == STORED], split[state == STORED]), 1)
        if (state == BAD).any():
            key, reason = (store.part(name, slice(start, start + _PIECE))[state == BAD] for name in ("key", "reason"))
            bad |= dict(zip(key.tolist(), reason.tolist(), strict=True))
    return {
        "kind": "store", "path": store.path, "schema": store.attributes.get("schema", SCHEMA),
        "version": onceclip.__version__, "complete": store.complete, "fingerprint": store.fingerprint,
        "encoder": store.encoder,
        "images": {"stored": states[STORED], "bad": states[BAD], "removed": states[REMOVED], "to do": states[TODO]},
        "bad_images": bad,
        "splits": {name: int(counts[:, number].sum()) for number, name in enumerate(SPLITS)},
        "split_source": store.attributes.get("split_source"),
        "classes": {name: {split: number for split, number in zip((*SPLITS, "none"), here, strict=True) if number}
                    for name, here in zip(store.classes, counts.tolist(), strict=False)},
        "embedding": {"dim": store.dim, "dtype": str(dtype), "unit_rows": store.attributes["unit_rows"],
                      "bytes": int(height * store.dim * dtype.itemsize), "views": store.has_views,
                      "chunk_rows": store.attributes.get("chunk_rows"),
                      "outputs": {name: list(output.shape) for name, output in store.outputs.items()},
                      "norm": _norms(store)},
        "texts": {name: _text(store, name) for name in store.texts},
    }


def _norms(store: Store) -> dict[str, float] | None:
    """Lengths of the raw embeddings, from the first rows of the store: 1 means that they were normalised before."""
    stored = _first(store.column("state") == STORED)
    if not len(stored):
        return None
    norm = np.linalg.norm(store.embeddings(stored).astype(np.float32), axis=1)
    return {"minimum": float(norm.min()), "median": float(np.median(norm)), "maximum": float(norm.max())}


def _first(mask: np.ndarray) -> np.ndarray:
    """Places of the first rows of a mask, `_SAMPLE` at most."""
    return np.fromiter(islice(compress(count(), mask), _SAMPLE), np.int64)


def _text(store: Store, name: str) -> dict[str, Any]:
    text = store.text(name)
    return {"prompts": len(text.prompts), "classes": len(text.classes), "fingerprint": text.fingerprint,
            "first": next((prompt for prompt in text.prompts if prompt), None), "source": text.source}
