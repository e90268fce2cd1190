"""What imported features say of their rows and of what made them, in the form that stores have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.sources.record import natural_order
from onceclip.pipeline.words import counted
from onceclip.stores.identity import fingerprint
from onceclip.stores.schema import NO_LABEL

CLIP_LOGIT_SCALE = 100.0


def imported_encoder(name: str | None, dim: int, content: str, logit_scale: float = CLIP_LOGIT_SCALE,
                     logit_bias: float | None = None) -> dict[str, Any]:
    """The encoder of embeddings that somebody else made.

    name: what they call it; None for one that only equal embeddings share. content: digest of all of them.
    """
    identity = {"imported": name, "dim": dim, **({"content": content} if name is None else {})}
    return {"name": name or "unknown", "fingerprint": fingerprint(identity), "imported": True, "dim": dim,
            "output": "projected", "logit_scale": logit_scale, "logit_bias": logit_bias}


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


def labels_of(arrays: dict[str, np.ndarray], n: int, source: str | Path, remarks: list[str]
              ) -> tuple[np.ndarray, list[str]]:
    """The class number of every row, and the names of the classes."""
    label = arrays.get("label", np.full(n, NO_LABEL))
    given = texts_of(arrays["class_names"]) if "class_names" in arrays else None
    names = given or [str(number) for number in range(len(arrays.get("text", ())))]
    if label.dtype.kind in "USO":
        words = texts_of(label)
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


