"""What a path holds: a store or a saved adapter, finished or not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import compress, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.adapters.saving import CONFIG, file_of, markdown_cell, modules_outside, read_configuration
from onceclip.pipeline.files import is_url, local_path
from onceclip.pipeline.words import counts, version
from onceclip.stores import NotAStore, Store, open_store
from onceclip.stores.location import local_copy
from onceclip.stores.schema import BAD, REMOVED, SCHEMA, SPLITS, STORED, TODO

_PIECE = 1 << 20  # rows that are counted at once
_SAMPLE = 4096


def info(path: str, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a store or an adapter folder as JSON values.

    modules: as for `load_classifier`.
    Raises NotAStore if the path is neither.
    """
    if not is_url(path):
        folder = Path(local_path(path))
        return _adapter(path, folder, modules) if file_of(folder, CONFIG).is_file() else _store(open_store(path))
    try:
        return _store(open_store(path))
    except NotAStore:
        with local_copy(path) as folder:
            if not file_of(folder, CONFIG).is_file():
                raise
            return _adapter(path, folder, modules)


def _adapter(path: str, folder: Path, modules: Sequence[str]) -> dict[str, Any]:
    config = read_configuration(folder)
    if modules or modules_outside(config):
        from onceclip.adapters import load_classifier  # says which module it needs

        load_classifier(folder, modules)
    return {"kind": "adapter", "path": path, "method": config["method"], "dim": config["dim"],
            "inputs": config["inputs"], "hyperparameters": config["hyperparameters"], "classes": config["class_names"],
            "provenance": config["provenance"]}


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
        "version": version(), "complete": store.complete, "fingerprint": store.fingerprint,
        "encoder": store.encoder,
        "images": {"stored": states[STORED], "bad": states[BAD], "removed": states[REMOVED], "to do": states[TODO]},
        "bad_images": bad,
        "splits": {name: int(counts[:, number].sum()) for number, name in enumerate(SPLITS)},
        "split_source": store.attributes.get("split_source"),
        "classes": {name: {split: number for split, number in zip((*SPLITS, "none"), here, strict=True) if number}
                    for name, here in zip(store.classes, counts.tolist(), strict=False)},
        "embedding": {"dim": store.dim, "dtype": str(dtype), "unit_rows": store.attributes["unit_rows"],
                      "bytes": int(height * store.dim * dtype.itemsize), "views": store.has("view"),
                      "chunk_rows": store.attributes.get("chunk_rows"),
                      "outputs": {name: list(output.shape) for name, output in store.outputs.items()},
                      "norm": _norms(store)},
        "texts": {name: _text(store, name) for name in store.texts},
    }


def _norms(store: Store) -> dict[str, float] | None:
    """Lengths of the raw embeddings, from the first rows of the store: 1 means that they were normalised before."""
    stored = np.fromiter(islice(compress(count(), store.column("state") == STORED), _SAMPLE), np.int64)
    if not len(stored):
        return None
    norm = np.linalg.norm(store.embeddings(stored).astype(np.float32), axis=1)
    return {"minimum": float(norm.min()), "median": float(np.median(norm)), "maximum": float(norm.max())}


def _text(store: Store, name: str) -> dict[str, Any]:
    text = store.text(name)
    return {"prompts": len(text.prompts), "classes": len(text.classes), "fingerprint": text.fingerprint,
            "first": next((prompt for prompt in text.prompts if prompt), None), "source": text.source}


_LISTED_CLASSES = 1000  # classes


def card(values: dict[str, Any]) -> str:
    """Markdown for a store that `info` described, with the metadata that the Hugging Face Hub reads.

    The licence is left to the owner of the images. No path of the machine is in it.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    encoder, images, source = values["encoder"], values["images"], values["split_source"] or {}
    name = os.path.basename(values["path"].rstrip("/")) or "store.zarr"
    place = values["path"] if is_url(values["path"]) else name
    embedding = values["embedding"]
    norm = embedding["norm"]
    facts = {
        "images": ", ".join(f"{number:,} {state}" for state, number in images.items() if number) or "none",
        "splits": f"{counts(values['splits'])} ({source.get('how', 'not yet drawn')})",
        "classes": f"{len(values['classes']):,}",
        "embeddings": f"{embedding['dim']} x {embedding['dtype']}, "
                      + ("normalised" if encoder.get("normalized") else "raw, not normalised")
                      + (f", median length {norm['median']:.3g}" if norm else ""),
        **{f"output `{output}`": " x ".join(map(str, shape)) for output, shape in embedding["outputs"].items()},
        "encoder": " / ".join(str(encoder[part]) for part in ("name", "pretrained") if encoder.get(part)),
        "encoder fingerprint": f"`{encoder['fingerprint']}`",
        "store fingerprint": f"`{values['fingerprint']}`" if values["complete"] else "unfinished",
        **{f"text `{text}`": (f"{made['prompts']:,} captions of {made['classes']:,} items" if
                              made["source"].get("kind") == "caption" else
                              f"{made['prompts']:,} prompts of {made['classes']:,} classes")
           + (f", such as \"{made['first']}\"" if made["first"] else "") for text, made in values["texts"].items()},
    }
    templates = Environment(loader=PackageLoader("onceclip.pipeline.reporting"), trim_blocks=True,
                            autoescape=select_autoescape(["html"]))
    templates.filters["cell"] = markdown_cell
    return templates.get_template("card.md").render(
        name=name, place=place, in_python=repr(place), facts=facts, splits=SPLITS,
        classes=list(values["classes"].items()), most=_LISTED_CLASSES)
