"""Features made elsewhere, in an .npz file, in .npy files of the same names, a table or as clip-retrieval's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import (
    CLIP_LOGIT_SCALE,
    Features,
    imported_encoder,
    keys_of,
    labels_of,
    make_store,
    names_of,
    recorded_encoder_of,
    single,
    splits_of,
    texts_of,
)
from onceclip.pipeline.extraction.import_clip_retrieval import folder_features, is_clip_retrieval
from onceclip.pipeline.extraction.import_tables import table_features
from onceclip.pipeline.extraction.text_arrays import UNREADABLE, read_npz, text_set_of, text_sets_of
from onceclip.pipeline.files import is_url, local_path, read_json
from onceclip.pipeline.prompts.embedding import NAME
from onceclip.pipeline.sources.arrow_files import is_table
from onceclip.pipeline.words import class_remarks, counted
from onceclip.stores import Output
from onceclip.stores.identity import DIGEST_BYTES, digest
from onceclip.stores.rows import unusable_rows
from onceclip.stores.schema import NO_SPLIT, SPLITS, UNIT_ROWS

KNOWN = ("embedding", "label", "split", "key", "group", "digest", "view", "text", "class_names", "logit_scale",
         "logit_bias", "encoder")
_LAYOUT = "embedding (n, d), label (n,), split (n,), and optionally key, view, text, class_names, logit_scale"
_MOST_SCALE = 1e6  # far above any encoder's, and far below what overflows float32
_LOGARITHM = 10.0  # below that a scale is rather the logarithm of one


def import_arrays(source: str | Path, store: str | Path, encoder: str | None = None,
                  unit_rows: int = UNIT_ROWS,
                  text_sets: Mapping[str, str | Path] = MappingProxyType({}),
                  columns: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Make a store from arrays or a table.

    source: holds `embedding` (n, d); `label` (n,) int, -1 for none, or names; `split` (n,) text; optionally `key` (n,),
        `view` (n, v, d), `text` (c, d) or (c, p, d), `class_names` (c,), `logit_scale`, what cosines are multiplied
        with; or a folder that clip-retrieval wrote; or a table, see `table_features`. Rows of zeros are recorded as bad
        images.
    encoder: name of what made them. Without one, only arrays of equal content count as the same encoder's. text_sets:
        files of further text sets by name: .npy of (c, d) or (c, p, d) in the order of the classes, or .npz of that as
        `text` with `class_names`. columns: of a table, by role.
    Raises ArrayError if the arrays do not fit together.
    """
    source = local_path(str(source))
    begun, theirs, table = time.perf_counter(), is_clip_retrieval(Path(source)), is_table(source)
    if is_url(source) and not table:
        raise ArrayError(f"{source} is a URL, and arrays are read from this machine: copy it here first")
    if columns and (theirs or not table):
        raise ArrayError(f"{source} is no table, whose columns could be named: leave --column out")
    if theirs and text_sets:
        raise ArrayError(f"{source} was written by clip-retrieval and names no text: leave --text-set out, and "
                         "embed prompts with `onceclip text`")
    features = (folder_features(Path(source), encoder) if theirs else
                table_features(source, encoder, text_sets, columns) if table else
                _features(Path(source), encoder, text_sets))
    return make_store(str(store), features, unit_rows, begun)


def _features(source: Path, encoder: str | None, text_sets: Mapping[str, str | Path]) -> Features:
    """What an .npz file or a folder of .npy files holds."""
    arrays, remarks = _load(source), list[str]()
    embedding = _checked(arrays, source)
    n, dim = embedding.shape
    label, names = labels_of(arrays, n, source, remarks)
    told = _said(arrays, source)
    content = digest(np.ascontiguousarray(embedding).tobytes()).hex()
    info = (recorded_encoder_of(told, dim, source) if encoder is None else None) or imported_encoder(
        encoder, dim, content, _scale(arrays, source, remarks), _number(arrays, "logit_bias", source))
    split = (splits_of(texts_of(arrays["split"]), f"{source}: split") if "split" in arrays else
             np.full(n, NO_SPLIT, np.int8))
    trained = (split == SPLITS.index("train")) & embedding.any(axis=1)
    for name in ("view", "text"):
        used = arrays.get(name, embedding)[trained if name == "view" else ...]
        if name in arrays and (used.dtype.kind != "f" or (
                used.size and (unusable_rows(single(used).reshape(-1, dim)) != "").any())):
            raise ArrayError(f"{source}: {name} must hold floating-point numbers that are finite as float32, and no "
                             f"row of zeros{', for every train row' if name == 'view' else ''}")
    texts = text_sets_of(source, text_sets, names, info, told)
    said: list[bytes | None] = [None] * len(names)
    if "text" in arrays:
        texts = {NAME: text_set_of(single(arrays["text"]), names, info["fingerprint"]), **texts}
        said = [each.tobytes() for each in arrays["text"]]
    outputs = {name: Output(arrays[name].shape[1:], ("view", "dim"), {"imported": True})
               for name in ("view",) if name in arrays}
    return Features(
        info, str(embedding.dtype), keys_of(names_of(arrays["key"]) if "key" in arrays else [], n, source), label,
        split, names, lambda rows: {"embedding": embedding[rows], **{name: arrays[name][rows] for name in outputs}},
        outputs=outputs, texts=texts,
        group=np.array(names_of(arrays["group"]), object) if "group" in arrays else None,
        digest=arrays["digest"].astype(np.uint8) if "digest" in arrays else None,
        remarks=[*remarks, *class_remarks(dict(zip(names, said, strict=True)))])


def _load(source: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, Any]
    try:
        if source.is_dir():
            # Mapped, so that a header that claims more than its file holds takes no memory.
            arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
                      for path in sorted(source.glob("*.npy"))}
        else:
            arrays = read_npz(source)
    except UNREADABLE as error:
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


def _checked(arrays: dict[str, np.ndarray], source: Path) -> np.ndarray:
    """Embeddings in a type that stores hold; whatever does not fit them is an ArrayError."""
    embedding = arrays["embedding"]
    if embedding.ndim != 2 or embedding.dtype.kind != "f" or not embedding.size:
        raise ArrayError(f"{source}: embedding has shape {embedding.shape} and type {embedding.dtype}: give (n, d) "
                         "floating-point numbers")
    n, dim = embedding.shape
    lengths: list[tuple[str, Callable[[tuple[int, ...]], bool]]] = [
        ("label", lambda shape: shape == (n,)), ("split", lambda shape: shape == (n,)),
        ("key", lambda shape: shape == (n,)), ("group", lambda shape: shape == (n,)),
        ("digest", lambda shape: shape == (n, DIGEST_BYTES)),
        ("view", lambda shape: len(shape) == 3 and (shape[0], shape[2]) == (n, dim) and shape[1] > 0),
        ("text", lambda shape: len(shape) in (2, 3) and shape[-1] == dim and 0 not in shape)]
    for name, fits in lengths:
        if name in arrays and not fits(arrays[name].shape):
            raise ArrayError(f"{source}: {name} has shape {arrays[name].shape}, which does not fit embedding "
                             f"{embedding.shape}: {_LAYOUT}")
    embedding = single(embedding)
    why = unusable_rows(embedding)
    infinite = np.flatnonzero(why == "not finite")
    if len(infinite):
        raise ArrayError(f"{source}: {counted(len(infinite), 'row')} of embedding with NaN, infinity or numbers beyond "
                         f"float32, the first is row {infinite[0]}: leave them out")
    if why.all():
        raise ArrayError(f"{source}: all rows of embedding are zeros: no image has an embedding")
    return embedding


def _said(arrays: dict[str, np.ndarray], source: Path) -> dict[str, Any]:
    """What `onceclip export` wrote of the encoder."""
    try:
        return {"encoder": read_json(str(arrays["encoder"]))} if "encoder" in arrays else {}
    except ValueError as error:
        raise ArrayError(f"{source}: encoder is not JSON ({error}): leave it out, and give --encoder") from error


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
