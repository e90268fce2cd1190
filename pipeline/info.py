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
from onceclip.pipeline.counting import counted, shots_of
from onceclip.pipeline.prompts.class_names import class_phrases
from onceclip.stores import Store, open_store
from onceclip.stores.schema import BAD, REMOVED, SCHEMA, SPLITS, STORED, TODO

_PIECE = 1 << 20  # rows that are counted at once
_SAMPLE = 4096
_LISTED = 20
_TEMPLATES = 3


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


def _made_of(source: dict[str, Any]) -> list[str]:
    """What made a text set, a line each."""
    templates, file, waffle = source.get("templates", []), source.get("file"), source.get("waffle")
    found = [f"templates: {', '.join(map(repr, templates[:_TEMPLATES]))}"
             + (f" and {len(templates) - _TEMPLATES} more" if len(templates) > _TEMPLATES else "")] if templates else []
    if waffle:
        found.append(f"of these {waffle['pairs']} pairs of random words and characters, seed {waffle['seed']}")
    if file:
        found.append(f"file: {file['name']}, {file['form']}, digest {file['digest']}"
                     + (f", {file['repeated']} repeated sentences left out" if file["repeated"] else ""))
    renamed = {name: phrase for name, phrase in source.get("phrases", {}).items()
               if phrase != class_phrases([name])[name]}
    if renamed:
        shown = ", ".join(f"{name!r} as {phrase!r}" for name, phrase in list(renamed.items())[:_TEMPLATES])
        more = " ..." if len(renamed) > _TEMPLATES else ""
        found.append(f"{counted(len(renamed), 'class', 'classes')} by other names: {shown}{more}")
    if source.get("truncated"):
        found.append(f"{source['truncated']} prompts were cut to the encoder's context")
    return found


def lines(values: dict[str, Any]) -> list[str]:
    """The same for people to read."""
    if values["kind"] == "adapter":
        source = values["provenance"]
        return [
            f"{values['path']}: adapter {values['method']}, {len(values['classes'])} classes, {values['dim']} "
            "dimensions",
            f"  hyperparameters  {', '.join(f'{name}={value}' for name, value in values['hyperparameters'].items())}",
            f"  fitted with      {shots_of(source.get('shots', '?'))}, seed {source.get('seed')}, "
            f"{source.get('select')}",
            f"  encoder          {_encoder(source.get('encoder', {}))}",
            *_adapter_text(source.get("text")),
        ]
    images, embedding, source = values["images"], values["embedding"], values["split_source"] or {}
    result = [
        f"{values['path']}: {'complete' if values['complete'] else 'UNFINISHED'} store, schema {values['schema']}",
        f"  images           {', '.join(f'{number:,} {name}' for name, number in images.items() if number) or 'none'}",
        f"  splits           {', '.join(f'{name} {number:,}' for name, number in values['splits'].items())} "
        f"({source.get('how', 'not yet drawn')})",
        f"  embeddings       {embedding['dim']} x {embedding['dtype']}, {embedding['bytes'] / 1e6:.1f} MB, units of "
        f"{embedding['unit_rows']} rows" + _beside(embedding),
        f"  encoder          {_encoder(values['encoder'])}",
        f"  fingerprint      {values['fingerprint']}",
    ]
    if embedding["norm"]:
        norm = "{minimum:.3g} to {maximum:.3g}, median {median:.3g}".format(**embedding["norm"])
        result.append(f"  length           {norm}")
    for name, text in values["texts"].items():
        example = f", e.g. {text['first']!r}" if text["first"] else ""
        result.append(f"  text {name!r}   {counted(text['prompts'], 'prompt')}{example}")
        result += [f"    {line}" for line in _made_of(text["source"])]
    result.append(f"  classes          {len(values['classes'])}")
    result += [f"    {name}: {', '.join(f'{split} {number}' for split, number in counts.items()) or 'no image'}"
               for name, counts in list(values["classes"].items())[:_LISTED]]
    if len(values["classes"]) > _LISTED:
        result.append(f"    and {len(values['classes']) - _LISTED} more (--json lists all)")
    return result + [f"  bad: {key}: {reason}" for key, reason in values["bad_images"].items()]


def _adapter_text(text: dict[str, Any] | None) -> list[str]:
    if not text:
        return []
    rule = f", class weights {text['class_weights']}" if "class_weights" in text else ""
    return [f"  text             {text['name']!r}{rule}", *(f"    {line}" for line in _made_of(text))]


def _beside(embedding: dict[str, Any]) -> str:
    """How the embeddings lie on disk if not plainly, and what there is beside them."""
    outputs = [f"{name} ({' x '.join(map(str, shape))})" for name, shape in embedding["outputs"].items()]
    if embedding["views"] and "view" not in embedding["outputs"]:
        outputs.append("view")
    shards = f", in shards of chunks of {embedding['chunk_rows']} rows" if embedding["chunk_rows"] else ""
    return shards + (f", with {', '.join(outputs)}" if outputs else "")


def _encoder(encoder: dict[str, Any]) -> str:
    weights = f" / {encoder['pretrained']}" if encoder.get("pretrained") else ""
    length = ", normalised" if encoder.get("normalized") else ""
    return f"{encoder.get('name', 'unknown')}{weights}{length}, fingerprint {encoder.get('fingerprint', 'unknown')}"
