"""Features made elsewhere, in an .npz file, in .npy files of the same names or as clip-retrieval's, into a store."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import Features, make_store, summary
from onceclip.pipeline.extraction.import_clip_retrieval import import_folder, is_clip_retrieval
from onceclip.pipeline.words import alike, counted
from onceclip.stores import Output, TextSet
from onceclip.stores.identity import digest, fingerprint
from onceclip.stores.schema import NO_LABEL, NO_SPLIT, SPLITS, UNIT_ROWS

KNOWN = ("embedding", "label", "split", "key", "view", "text", "class_names", "logit_scale", "logit_bias")
_LAYOUT = "embedding (n, d), label (n,), split (n,), and optionally key, view, text, class_names, logit_scale"


def import_arrays(source: str | Path, store: str | Path, encoder: str | None = None,
                  unit_rows: int = UNIT_ROWS) -> dict[str, Any]:
    """Make a store from arrays.

    source: holds `embedding` (n, d); `label` (n,) int, -1 for none; `split` (n,) text; optionally `key` (n,),
        `view` (n, v, d), `text` (c, d) or (c, p, d), `class_names` (c,), `logit_scale`; or a folder that clip-retrieval
        wrote.
    encoder: name of what made them. Without one, only arrays of equal content count as the same encoder's.
    Raises ArrayError if the arrays do not fit together.
    """
    if is_clip_retrieval(Path(source)):
        return import_folder(Path(source), str(store), encoder, unit_rows)
    begun = time.perf_counter()
    arrays = _load(Path(source))
    embedding, label, names = _checked(arrays, Path(source))
    n, dim = embedding.shape
    texts = arrays.get("text")
    identity = {"imported": encoder, "dim": dim}
    if encoder is None:
        identity["content"] = digest(np.ascontiguousarray(embedding).tobytes()).hex()
    info = {"name": encoder or "unknown", "fingerprint": fingerprint(identity), "imported": True, "dim": dim,
            "output": "projected", "logit_scale": _number(arrays, "logit_scale", source) or 100.0,
            "logit_bias": _number(arrays, "logit_bias", source)}

    finite = np.isfinite(embedding).all(axis=1)
    if not finite.all():
        raise ArrayError(f"{source}: {counted(int((~finite).sum()), 'row')} of embedding with NaN or infinity, the "
                         f"first is row {int(np.argmin(finite))}: leave them out")
    key = np.array(_texts(arrays["key"]) if "key" in arrays else
                   [f"{row:0{len(str(n))}d}" for row in range(n)], dtype=object)
    if len(set(key)) != n:
        raise ArrayError(f"{source}: key has {n - len(set(key))} repeated entries: give every row its own")
    split = _splits(arrays, n, source)
    for name, used in (("view", arrays.get("view", embedding)[split == 0]), ("text", arrays.get("text", embedding))):
        with np.errstate(over="ignore"):
            held = used.astype(embedding.dtype if name == "view" else used.dtype)
        if used.dtype.kind != "f" or not np.isfinite(held).all():
            raise ArrayError(f"{source}: {name} must hold finite floating-point numbers"
                             f"{' for every train row' if name == 'view' else ''}")
    outputs = {name: Output(arrays[name].shape[1:], ("view", "dim"), {"imported": True})
               for name in ("view",) if name in arrays}
    features = Features(
        info, str(embedding.dtype), key, label, split, names,
        lambda rows: {"embedding": embedding[rows], **{name: arrays[name][rows] for name in outputs}},
        drawn="split" not in arrays, outputs=outputs,
        text=None if texts is None else _text(texts, names, info["fingerprint"]))
    return summary(make_store(str(store), features, unit_rows), texts is not None, time.perf_counter() - begun,
                   alike(names))


def _load(source: Path) -> dict[str, np.ndarray]:
    try:
        if source.is_dir():
            arrays = {path.stem: np.load(path, allow_pickle=False) for path in sorted(source.glob("*.npy"))}
        else:
            with source.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ArrayError(f"{source} cannot be read as .npz or a folder of .npy files ({error}): it needs "
                         f"{_LAYOUT}") from error
    unknown = sorted(set(arrays) - set(KNOWN))
    if "embedding" not in arrays:
        raise ArrayError(f"{source} has no array `embedding` (it has: {', '.join(arrays) or 'nothing'}): it needs "
                         f"{_LAYOUT}")
    if unknown:
        raise ArrayError(f"{source} has arrays that mean nothing here: {', '.join(unknown)}; known are "
                         f"{', '.join(KNOWN)}: remove or rename them")
    return arrays


def _checked(arrays: dict[str, np.ndarray], source: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings in a type that stores hold, labels, and class names; whatever does not fit is an ArrayError."""
    embedding = arrays["embedding"]
    if embedding.ndim != 2 or embedding.dtype.kind != "f" or not len(embedding):
        raise ArrayError(f"{source}: embedding has shape {embedding.shape} and type {embedding.dtype}: give (n, d) "
                         "floating-point numbers")
    n, dim = embedding.shape
    embedding = embedding if embedding.dtype == np.float16 else embedding.astype(np.float32)
    label = arrays.get("label", np.full(n, NO_LABEL))
    lengths: list[tuple[str, Callable[[tuple[int, ...]], bool]]] = [
        ("label", lambda shape: shape == (n,)), ("split", lambda shape: shape == (n,)),
        ("key", lambda shape: shape == (n,)),
        ("view", lambda shape: len(shape) == 3 and (shape[0], shape[2]) == (n, dim)),
        ("text", lambda shape: len(shape) in (2, 3) and shape[-1] == dim)]
    for name, fits in lengths:
        if name in arrays and not fits(arrays[name].shape):
            raise ArrayError(f"{source}: {name} has shape {arrays[name].shape}, which does not fit embedding "
                             f"{embedding.shape}: {_LAYOUT}")
    if label.dtype.kind not in "iu" or label.min() < NO_LABEL:
        raise ArrayError(f"{source}: label must hold whole numbers from 0 up, or -1 for none")
    classes = max(int(label.max()) + 1, len(arrays.get("text", ())), len(arrays.get("class_names", ())))
    names = _texts(arrays["class_names"]) if "class_names" in arrays else [str(number) for number in range(classes)]
    if len(names) != classes or len(arrays.get("text", names)) != classes:
        raise ArrayError(f"{source}: labels go up to {int(label.max())}, text has {len(arrays.get('text', ()))} and "
                         f"class_names {len(names)} entries: they must name the same classes")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArrayError(f"{source}: class_names holds {twice!r} twice: classes are joined by name, give each its own")
    return embedding, label, names


def _texts(values: np.ndarray) -> list[str]:
    """Texts of an array of str, bytes or numbers."""
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _number(arrays: dict[str, np.ndarray], name: str, source: str | Path) -> float | None:
    values = arrays.get(name)
    if values is None:
        return None
    if values.size != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ArrayError(f"{source}: {name} has shape {values.shape} and is not one finite number: give a scalar")
    return float(values.reshape(()))


def _splits(arrays: dict[str, np.ndarray], n: int, source: str | Path) -> np.ndarray:
    split = np.full(n, NO_SPLIT, np.int8)
    given = np.array(_texts(arrays["split"])) if "split" in arrays else None
    for number, name in enumerate(SPLITS):
        if given is not None:
            split[given == name] = number
    if given is not None and (split == NO_SPLIT).any():
        odd = sorted(set(given.tolist()) - set(SPLITS))
        raise ArrayError(f"{source}: split holds {', '.join(map(repr, odd[:4]))}: the splits are {', '.join(SPLITS)}")
    return split


def _text(text: np.ndarray, names: list[str], encoder: str) -> TextSet:
    per_class = 1 if text.ndim == 2 else text.shape[1]
    pointer = np.arange(len(names) + 1, dtype=np.int64) * per_class
    template = np.tile(np.arange(per_class, dtype=np.int32), len(names))
    return TextSet(text.reshape(-1, text.shape[-1]).astype(np.float32), tuple(names), pointer, template,
                   ("",) * (len(names) * per_class), encoder, {"imported": True})
