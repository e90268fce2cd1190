"""What a results folder's stores held: kept beside the rows, for reports made where the stores are not."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.stores import Store
from onceclip.stores.schema import BAD, SPLITS, STORED

NAME = "stores.json"


def record_stores(folder: Path, stores: Sequence[Store]) -> Path:
    """Describe stores in the folder's `stores.json`, by fingerprint, beside those that it has already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    part = folder / f"{NAME}.{platform.node()}-{os.getpid()}.part"
    try:
        part.write_text(json.dumps(read_stores(folder) | {store.fingerprint: described(store) for store in stores},
                                   indent=1, allow_nan=False), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_stores(folder: Path) -> dict[str, dict[str, Any]]:
    """The stores of a results folder by fingerprint; none where nothing readable says so."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(store: Store) -> dict[str, Any]:
    """Classes, counts, encoder, text sets and extraction of a store, as JSON values."""
    state, attributes = store.column("state"), store.attributes
    labels = {split: store.column("label")[store.rows(split)] for split in SPLITS}
    return {
        "path": store.path, "classes": list(store.classes),
        "test_counts": np.bincount(labels["test"], minlength=len(store.classes)).tolist(),
        "splits": {split: len(label) for split, label in labels.items()},
        "encoder": store.encoder,
        "texts": {name: {"fingerprint": attributes["texts"][name]["fingerprint"], **attributes["texts"][name]["source"]}
                  for name in store.texts},
        "extraction": {
            "images": int((state == STORED).sum()), "bad": int((state == BAD).sum()),
            "reasons": dict(Counter(map(str, store.column("reason")[state == BAD])).most_common()),
            "split_source": attributes.get("split_source"), "dtype": attributes["dtype"], "dim": store.dim,
            "outputs": {name: list(output.shape) for name, output in store.outputs.items()},
        },
    }
