"""Features made elsewhere, in an .npz file, in .npy files of the same names or as clip-retrieval's, into a store."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import Features, make_store, summary
from onceclip.pipeline.extraction.import_clip_retrieval import import_folder, is_clip_retrieval
from onceclip.pipeline.extraction.text_arrays import read_text_set, text_set_of
from onceclip.pipeline.prompts.embedding import NAME
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS
from onceclip.pipeline.sources.record import natural_order
from onceclip.pipeline.words import class_remarks, counted
from onceclip.stores import Output
from onceclip.stores.identity import digest, fingerprint
from onceclip.stores.rows import unusable_rows
from onceclip.stores.schema import NO_LABEL, NO_SPLIT, SPLITS, UNIT_ROWS

KNOWN = ("embedding", "label", "split", "key", "view", "text", "class_names", "logit_scale", "logit_bias")
_LAYOUT = "embedding (n, d), label (n,), split (n,), and optionally key, view, text, class_names, logit_scale"
CLIP_LOGIT_SCALE = 100.0
_MOST_SCALE = 1e6  # far above any encoder's, and far below what overflows float32
_LOGARITHM = 10.0  # below that a scale is rather the logarithm of one
_SMALL, _RATIO = 256 << 20, 100  # bytes that any member may unpack to, and how many times the file's own


def import_arrays(source: str | Path, store: str | Path, encoder: str | None = None,
                  unit_rows: int = UNIT_ROWS,
                  text_sets: Mapping[str, str | Path] = MappingProxyType({})) -> dict[str, Any]:
    """Make a store from arrays.

    source: holds `embedding` (n, d); `label` (n,) int, -1 for none, or names; `split` (n,) text; optionally `key` (n,),
        `view` (n, v, d), `text` (c, d) or (c, p, d), `class_names` (c,), `logit_scale`, what cosines are multiplied
        with; or a folder that clip-retrieval wrote. Rows of zeros are recorded as bad images.
    encoder: name of what made them. Without one, only arrays of equal content count as the same encoder's. text_sets:
        files of further text sets by name: .npy of (c, d) or (c, p, d) in the order of the classes, or .npz of that as
        `text` with `class_names`.
    Raises ArrayError if the arrays do not fit together.
    """
    if is_clip_retrieval(Path(source)):
        if text_sets:
            raise ArrayError(f"{source} was written by clip-retrieval and names no text: leave --text-set out, and "
                             "embed prompts with `onceclip text`")
        return import_folder(Path(source), str(store), encoder, unit_rows)
    begun, source, remarks = time.perf_counter(), Path(source), list[str]()
    arrays = _load(source)
    embedding = _checked(arrays, source)
    n, dim = embedding.shape
    label, names = _labels(arrays, n, source, remarks)
    identity = {"imported": encoder, "dim": dim}
    if encoder is None:
        identity["content"] = digest(np.ascontiguousarray(embedding).tobytes()).hex()
    info = {"name": encoder or "unknown", "fingerprint": fingerprint(identity), "imported": True, "dim": dim,
            "output": "projected", "logit_scale": _scale(arrays, source, remarks),
            "logit_bias": _number(arrays, "logit_bias", source)}
    key = np.array(_texts(arrays["key"]) if "key" in arrays else
                   [f"{row:0{len(str(n))}d}" for row in range(n)], dtype=object)
    if len(set(key)) != n:
        raise ArrayError(f"{source}: key has {n - len(set(key))} repeated entries: give every row its own")
    split = _splits(arrays, n, source)
    trained = (split == SPLITS.index("train")) & embedding.any(axis=1)
    for name in ("view", "text"):
        used = arrays.get(name, embedding)[trained if name == "view" else ...]
        if name in arrays and (used.dtype.kind != "f" or (
                used.size and (unusable_rows(_single(used).reshape(-1, dim)) != "").any())):
            raise ArrayError(f"{source}: {name} must hold floating-point numbers that are finite as float32, and no "
                             f"row of zeros{', for every train row' if name == 'view' else ''}")
    text = None if "text" not in arrays else text_set_of(_single(arrays["text"]), names, info["fingerprint"])
    outputs = {name: Output(arrays[name].shape[1:], ("view", "dim"), {"imported": True})
               for name in ("view",) if name in arrays}
    features = Features(
        info, str(embedding.dtype), key, label, split, names,
        lambda rows: {"embedding": embedding[rows], **{name: arrays[name][rows] for name in outputs}},
        drawn="split" not in arrays, outputs=outputs, texts={
            **({} if text is None else {NAME: text}),
            **{name: read_text_set(name, Path(file), names, dim, info["fingerprint"])
               for name, file in text_sets.items()}})
    said = [None] * len(names) if text is None else [each.tobytes() for each in arrays["text"]]
    remarks += class_remarks(dict(zip(names, said, strict=True)))
    written = make_store(str(store), features, unit_rows)
    return summary(written, bool(features.texts), time.perf_counter() - begun, remarks)


def _load(source: Path) -> dict[str, np.ndarray]:
    try:
        if source.is_dir():
            # Mapped, so that a header that claims more than its file holds takes no memory.
            arrays: dict[str, np.ndarray] = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
                                             for path in sorted(source.glob("*.npy"))}
        else:
            with source.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                _check_sizes(file.zip, source.stat().st_size)
                arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError,
            RuntimeError, MemoryError) as error:
        raise ArrayError(f"{source} cannot be read as .npz or a folder of .npy files "
                         f"({' '.join(str(error).split()) or type(error).__name__}): it needs {_LAYOUT}") from error
    others = sorted(set(arrays) - set(KNOWN))
    if "embedding" not in arrays:
        raise ArrayError(f"{source} has no array `embedding` (it has: {', '.join(arrays) or 'nothing'}): it needs "
                         f"{_LAYOUT}")
    if others:
        raise ArrayError(f"{source} has arrays that mean nothing here: {', '.join(others)}; known are "
                         f"{', '.join(KNOWN)}: remove or rename them")
    return arrays


def _check_sizes(archive: ZipFile, size: int) -> None:
    """Raise ValueError for a member that unpacks to far more than the file, or whose header claims more than it holds.

    Both are said by the file, and memory is taken by what they say. size: of the file, in bytes.
    """
    for member in archive.infolist():
        if member.file_size > max(_SMALL, _RATIO * size):
            raise ValueError(f"{member.filename} unpacks to {member.file_size:,} bytes, the file has {size:,}; save it "
                             "with numpy.savez, uncompressed, if that is meant")
        with archive.open(member) as content:
            version = np.lib.format.read_magic(content)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(content)
            held = member.file_size - content.tell()
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > held:
            raise ValueError(f"{member.filename} claims shape {shape} and holds {held:,} bytes")


def _checked(arrays: dict[str, np.ndarray], source: Path) -> np.ndarray:
    """Embeddings in a type that stores hold; whatever does not fit them is an ArrayError."""
    embedding = arrays["embedding"]
    if embedding.ndim != 2 or embedding.dtype.kind != "f" or not embedding.size:
        raise ArrayError(f"{source}: embedding has shape {embedding.shape} and type {embedding.dtype}: give (n, d) "
                         "floating-point numbers")
    n, dim = embedding.shape
    lengths: list[tuple[str, Callable[[tuple[int, ...]], bool]]] = [
        ("label", lambda shape: shape == (n,)), ("split", lambda shape: shape == (n,)),
        ("key", lambda shape: shape == (n,)),
        ("view", lambda shape: len(shape) == 3 and (shape[0], shape[2]) == (n, dim) and shape[1] > 0),
        ("text", lambda shape: len(shape) in (2, 3) and shape[-1] == dim and 0 not in shape)]
    for name, fits in lengths:
        if name in arrays and not fits(arrays[name].shape):
            raise ArrayError(f"{source}: {name} has shape {arrays[name].shape}, which does not fit embedding "
                             f"{embedding.shape}: {_LAYOUT}")
    embedding = _single(embedding)
    why = unusable_rows(embedding)
    infinite = np.flatnonzero(why == "not finite")
    if len(infinite):
        raise ArrayError(f"{source}: {counted(len(infinite), 'row')} of embedding with NaN, infinity or numbers beyond "
                         f"float32, the first is row {infinite[0]}: leave them out")
    if why.all():
        raise ArrayError(f"{source}: all rows of embedding are zeros: no image has an embedding")
    return embedding


def _single(values: np.ndarray) -> np.ndarray:
    """Values as float32, or float16 where they are that; what is beyond becomes infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(values if values.dtype == np.float16 else values.astype(np.float32))


def _labels(arrays: dict[str, np.ndarray], n: int, source: Path, remarks: list[str]) -> tuple[np.ndarray, list[str]]:
    """The class number of every row, and the names of the classes."""
    label = arrays.get("label", np.full(n, NO_LABEL))
    given = _texts(arrays["class_names"]) if "class_names" in arrays else None
    names = given or [str(number) for number in range(len(arrays.get("text", ())))]
    if label.dtype.kind in "US":
        words = _texts(label)
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


def _texts(values: np.ndarray) -> list[str]:
    """Texts of an array of str, bytes or numbers."""
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            for value in np.ravel(values).tolist()]


def _number(arrays: dict[str, np.ndarray], name: str, source: str | Path) -> float | None:
    values = arrays.get(name)
    if values is None:
        return None
    if values.size != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ArrayError(f"{source}: {name} has shape {values.shape} and is not one finite number: give a scalar")
    return float(values.reshape(()))


def _scale(arrays: dict[str, np.ndarray], source: Path, remarks: list[str]) -> float:
    scale = _number(arrays, "logit_scale", source)
    if scale is None:
        return CLIP_LOGIT_SCALE
    if not 0 < scale <= _MOST_SCALE:
        raise ArrayError(f"{source}: logit_scale is {scale:g}: give what cosines are multiplied with, above 0 and at "
                         f"most {_MOST_SCALE:g}, such as 100 of CLIP")
    if scale < _LOGARITHM:
        remarks.append(f"logit_scale is {scale:g}, and cosines are multiplied with it: CLIP's parameter of that name "
                       "is a logarithm (4.6052), give its exponential (100) if this is one")
    return scale


def _splits(arrays: dict[str, np.ndarray], n: int, source: str | Path) -> np.ndarray:
    if "split" not in arrays:
        return np.full(n, NO_SPLIT, np.int8)
    names, place = np.unique(np.array(_texts(arrays["split"])), return_inverse=True)
    split = [SPLIT_FOLDERS.get(name.strip().lower()) for name in names.tolist()]
    odd = [name for name, known in zip(names.tolist(), split, strict=True) if known is None]
    if odd:
        raise ArrayError(f"{source}: split holds {', '.join(map(repr, odd[:4]))}: the splits are {', '.join(SPLITS)}")
    return np.array([SPLITS.index(str(known)) for known in split], np.int8)[place.reshape(-1)]
