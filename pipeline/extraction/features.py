"""Embeddings that exist already, and the store that is made of them: its encoder, labels and splits as they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.splits import draw_splits
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS
from onceclip.pipeline.sources.record import natural_order
from onceclip.pipeline.words import counted, listing
from onceclip.stores import NotAStore, Output, Store, StoreWriter, Table, TextSet, open_store, write_lock
from onceclip.stores.identity import DIGEST_BYTES, digest, fingerprint, line_of
from onceclip.stores.rows import unusable_rows
from onceclip.stores.schema import BAD, NO_LABEL, NO_SPLIT, SPLITS, STORED, TODO
from onceclip.stores.storage import occupied

CLIP_LOGIT_SCALE = 100.0

Values = Callable[[slice], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Features:
    """What a store is made of.

    encoder: what made them, with `name` and `fingerprint`. dtype: of the stored values. key, label, split: a row each.
    classes: names, in label order. values: gives, for some rows, "embedding" (rows, dim) and every output.
    Where no row has a split, they are drawn. texts: text sets by name. group, digest: of each row, where they are
    known; else rows are in no group, and their digests are those of the embeddings. remarks: what is odd.
    """

    encoder: dict[str, Any]
    dtype: str
    key: np.ndarray
    label: np.ndarray
    split: np.ndarray
    classes: list[str]
    values: Values
    outputs: Mapping[str, Output] = field(default_factory=dict)
    texts: Mapping[str, TextSet] = field(default_factory=dict)
    group: np.ndarray | None = None
    digest: np.ndarray | None = None
    remarks: Sequence[str] = ()


def make_store(path: str, features: Features, unit_rows: int, begun: float) -> dict[str, Any]:
    """Write a store, unit by unit; one that was cut short is written anew by the same call.

    Rows whose embedding is not finite, or zeros as other programs write them for what they could not read, are
    recorded as bad.
    begun: when that was, by `time.perf_counter`.
    Gives what was done, as JSON values.
    Raises StoreError if something else stands at the path.
    """
    n = len(features.key)
    empty = np.full(n, "", object)
    table = Table(features.key, features.label.astype(np.int32), features.split, np.full(n, TODO, np.int8),
                  np.zeros((n, DIGEST_BYTES), np.uint8), empty, empty if features.group is None else features.group)
    with write_lock(path):
        writer = _writer(path, features, unit_rows)
        writer.plan(table, features.classes)
        for number in range(-(-n // writer.unit_rows)):
            rows = slice(number * writer.unit_rows, min((number + 1) * writer.unit_rows, n))
            values = dict(features.values(rows))
            embedding = values.pop("embedding")
            why = unusable_rows(embedding)
            good = why == ""
            content = np.stack([np.frombuffer(digest(row.tobytes()), np.uint8) for row in embedding]) \
                if features.digest is None else features.digest[rows]
            writer.commit(number, np.where(good[:, None], embedding, np.nan), content,
                          np.where(good, "", "its embedding is " + why).astype(object),
                          np.where(good, STORED, BAD).astype(np.int8), values)
        for name, text in features.texts.items():
            writer.put_text(name, text)
        written, drawn = open_store(path).table, not (features.split != NO_SPLIT).any()
        split = draw_splits(written.label, written.split, written.state, written.digest, written.group) \
            if drawn else features.split
        store = writer.finish(split, split_source={"how": "drawn" if drawn else "imported"})
    return _summary(store, features, time.perf_counter() - begun)


def _writer(path: str, features: Features, unit_rows: int) -> StoreWriter:
    dim = int(features.encoder["dim"])
    try:
        present = open_store(path) if occupied(path) else None
    except NotAStore:
        present = None  # whatever else stands there, `create` refuses
    if present is None or present.complete:
        return StoreWriter.create(path, features.encoder, dim, features.dtype, unit_rows, features.outputs)
    attributes = present.attributes
    wanted = (features.encoder, dim, features.dtype, unit_rows, dict(features.outputs))
    if wanted != (present.encoder, dim, attributes["dtype"], attributes["unit_rows"], present.outputs):
        raise ArrayError(f"{path} is an unfinished store of something else: give another path, or delete it first")
    return StoreWriter.open(path, features.encoder)


def _summary(store: Store, features: Features, seconds: float) -> dict[str, Any]:
    """What was done, as JSON values."""
    table, remarks = store.table, list(features.remarks)
    bad = np.flatnonzero(table.state == BAD)
    if len(bad):
        remarks.append(f"{counted(len(bad), 'row')} stored as bad, the first is {table.key[bad[0]]} "
                       f"({table.reason[bad[0]]})")
    lost = int(((table.state == STORED) & (table.label != NO_LABEL) & (table.split == NO_SPLIT)).sum())
    if lost:
        remarks.append(f"{counted(lost, 'row')} of a class without a split, which nothing is fitted or tested on")
    empty = np.setdiff1d(np.arange(len(store.classes)), table.label[table.state == STORED]).tolist()
    if empty:
        remarks.append(f"{counted(len(empty), 'class', 'classes')} without a row: "
                       f"{listing([store.classes[number] for number in empty])}")
    return {"store": store.path, "images": len(table), "dim": store.dim, "classes": len(store.classes),
            "text": bool(features.texts), "bad": len(bad),
            "splits": {name: len(store.rows(name)) for name in SPLITS}, "encoder": store.encoder, "seconds": seconds,
            "remarks": remarks}


def imported_encoder(name: str | None, dim: int, content: str | list[str], logit_scale: float = CLIP_LOGIT_SCALE,
                     logit_bias: float | None = None, **further: Any) -> dict[str, Any]:
    """The encoder of embeddings that somebody else made.

    name: what they call it; None for one that only equal embeddings share. content: digests of all of them. further:
    values that belong to its identity.
    """
    identity = {"imported": name, "dim": dim, **further, **({"content": content} if name is None else {})}
    return {"name": name or "unknown", "fingerprint": fingerprint(identity), "imported": True, "dim": dim,
            "output": "projected", **further, "logit_scale": logit_scale, "logit_bias": logit_bias}


def recorded_encoder_of(said: Mapping[str, Any], dim: int, source: str | Path) -> dict[str, Any] | None:
    """The encoder that `onceclip export` wrote beside embeddings; None if nothing is said.

    Raises ArrayError if it is of another width, or not as a store describes one.
    """
    encoder = said.get("encoder")
    if encoder is None:
        return None
    number = (int, float, type(None))
    kinds: dict[str, Any] = {"name": str, "fingerprint": str, "dim": int, "logit_scale": number, "logit_bias": number}
    wrong = [name for name, kind in kinds.items() if not isinstance(encoder, dict)
             or not isinstance(encoder.get(name), kind)]
    if wrong or encoder["dim"] != dim:
        raise ArrayError(f"{source}: what it says of the encoder ({', '.join(wrong) or encoder['dim']}) does not fit "
                         f"embeddings of {dim} numbers: name it with --encoder")
    return encoder


def keys_of(keys: list[str], n: int, source: str | Path) -> np.ndarray:
    """The key of every row, or a number for each where none are given. Raises ArrayError if one is given twice."""
    key = np.array(keys or [f"{row:0{len(str(n))}d}" for row in range(n)], dtype=object)
    if len(set(key)) != n:
        raise ArrayError(f"{source}: key has {n - len(set(key))} repeated entries: give every row its own")
    return key


def single(values: np.ndarray) -> np.ndarray:
    """Values as float32, or as float16 where they are that; what is beyond becomes infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(values if values.dtype == np.float16 else values.astype(np.float32))


def splits_of(words: Sequence[str], what: str) -> np.ndarray:
    """The number of the split that each word names: (rows,) int8. what: where the words stand, for messages."""
    numbers = {word: SPLIT_FOLDERS.get(word.strip().lower()) for word in dict.fromkeys(words)}
    odd = [word for word, known in numbers.items() if word and known is None]
    if odd:
        raise ArrayError(f"{what} holds {', '.join(map(repr, odd[:4]))}: the splits are {', '.join(SPLITS)}")
    return np.array([NO_SPLIT if (known := numbers[word]) is None else SPLITS.index(known) for word in words], np.int8)


def labels_of(arrays: dict[str, np.ndarray], n: int, source: str | Path, remarks: list[str]
              ) -> tuple[np.ndarray, list[str]]:
    """The class number of every row, and the names of the classes."""
    label = arrays.get("label", np.full(n, NO_LABEL))
    given = names_of(arrays["class_names"]) if "class_names" in arrays else None
    names = given or [str(number) for number in range(len(arrays.get("text", ())))]
    if label.dtype.kind in "USO":
        words = names_of(label)
        names = names or sorted({word for word in words if word}, key=natural_order)
        number_of = {name: number for number, name in enumerate(names)} | {"": NO_LABEL}
        strange = next((word for word in words if word not in number_of), None)
        if strange is not None:
            raise ArrayError(f"{source}: {unknown('class', strange, names)}: label has a name that class_names and "
                             "text lack")
        label = np.array([number_of[word] for word in words])
    elif label.dtype.kind not in "iu" or label.min() < NO_LABEL:
        raise ArrayError(f"{source}: label must hold whole numbers from 0 up, or -1 for none, or names of classes")
    elif not names:  # only numbers that occur: they may be identifiers, far above the number of rows
        numbers, place = np.unique(label, return_inverse=True)
        first = int(numbers[0] == NO_LABEL)
        label, names = place.reshape(-1) - first, [str(number) for number in numbers[first:].tolist()]
        if names and int(numbers[-1]) != len(names) - 1:
            remarks.append(f"labels are {counted(len(names), 'number')} from {names[0]} to {names[-1]}: those between "
                           "without a row are no classes; class_names would say what they are")
    if label.max() >= len(names) or len(arrays.get("text", names)) != len(names):
        raise ArrayError(f"{source}: labels go up to {int(label.max())}, text has {len(arrays.get('text', ()))} and "
                         f"class_names {len(given or ())} entries: they must name the same classes")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArrayError(f"{source}: class_names holds {twice!r} twice: classes are joined by name, give each its own")
    if not all(name.strip() for name in names):
        raise ArrayError(f"{source}: class_names holds an empty name: give every class one")
    return label, names


def texts_of(values: np.ndarray) -> list[str]:
    """Texts of an array of str, bytes or numbers."""
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            for value in np.ravel(values).tolist()]


def names_of(values: np.ndarray) -> list[str]:
    """Keys, or names of classes or groups, of an array of str, bytes or numbers: one line each, as stores have them."""
    return list(map(line_of, texts_of(values)))
