"""Text sets of embeddings that were made elsewhere, and .npz files that may be a stranger's."""

from __future__ import annotations

import glob
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import names_of, single, texts_of
from onceclip.pipeline.files import read_json
from onceclip.pipeline.prompts.embedding import NAME, check_name
from onceclip.pipeline.words import counted, listing
from onceclip.stores import TextSet
from onceclip.stores.identity import canonical
from onceclip.stores.rows import unusable_rows
from onceclip.stores.text import TEXT_ENCODER

BESIDE = "text-"  # in the name of a file of a text set, beside that of the images
_FURTHER = ("class_names", "class_ptr", "template_id", "prompt", "encoder", "source")
# What numpy and zipfile raise of files that are not what they seem.
UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, BadZipFile, zlib.error, TokenError,
              SyntaxError, NotImplementedError, RuntimeError, MemoryError)
_SMALL, _RATIO = 256 << 20, 100  # bytes that any member may unpack to, and how many times the file's own


def read_text_set(name: str, file: Path, classes: Sequence[str], dim: int, encoder: str) -> TextSet:
    """A text set from a file; see `import_arrays`. name: of the set. encoder: fingerprint of the store's.

    Raises ArrayError if the file has something else or lacks a class, PromptError for a name that no set can have.
    """
    check_name(name)
    if name == NAME:
        raise ArrayError(f"--text-set {name}: the set of this name is the array `text` of the import: choose another")
    arrays = _load(file)
    if "class_ptr" in arrays:
        return _of_store(_exported(file, arrays, classes, dim), encoder)
    text, names = arrays["text"], names_of(arrays["class_names"]) if "class_names" in arrays else None
    if text.ndim not in (2, 3) or text.shape[-1] != dim or text.dtype.kind != "f" or 0 in text.shape:
        raise ArrayError(f"{file} has shape {text.shape} and type {text.dtype}: a text set is (classes, {dim}) or "
                         f"(classes, prompts, {dim}) floating-point numbers")
    if names is None:
        if len(text) != len(classes):
            raise ArrayError(f"{file} has {counted(len(text), 'class', 'classes')}, the store {len(classes)}: give an "
                             ".npz file with text and class_names, which are joined by name")
    else:
        if len(names) != len(text) or len(set(names)) != len(names):
            raise ArrayError(f"{file} has {len(text)} entries of text and {len(set(names))} class names: give every "
                             "entry its own")
        place = {each: number for number, each in enumerate(names)}
        missing = [each for each in classes if each not in place]
        if missing:
            raise ArrayError(f"{file} has no text for {counted(len(missing), 'class', 'classes')} of the store: "
                             f"{listing(missing)}; it has {listing(names)}: embed them, or correct class_names")
        text = text[[place[each] for each in classes]]
    with np.errstate(over="ignore"):
        values = text.astype(np.float32)
    if (unusable_rows(values.reshape(-1, dim)) != "").any():
        raise ArrayError(f"{file} has rows that are zeros, or not finite as float32: leave such prompts out")
    return text_set_of(values, list(classes), encoder)


def text_sets_of(source: str | Path, given: Mapping[str, str | Path], classes: Sequence[str],
                 encoder: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, TextSet]:
    """The text sets of an import: those that are given, and those that `onceclip export` wrote beside its file.

    encoder: of the store. said: what the file says, with the `encoder` that was exported.
    Raises ArrayError as `read_text_set`, and for a set beside the file that belongs to another encoder.
    """
    found = {name: read_text_set(name, Path(file), classes, encoder["dim"], encoder["fingerprint"])
             for name, file in given.items()}
    file = Path(source)
    for path in sorted(file.parent.glob(f"{glob.escape(file.stem)}.{BESIDE}*.npz")) if "encoder" in said else ():
        name = path.stem.removeprefix(f"{file.stem}.{BESIDE}")
        if name in found:
            continue
        check_name(name)
        text = _exported(path, _load(path), (), encoder["dim"])  # a store may have a class that a set lacks
        if text.encoder != said["encoder"]["fingerprint"]:
            raise ArrayError(f"{path} lies beside {file.name} but was made by another encoder: move it away, or export "
                             "both anew")
        found[name] = _of_store(text, encoder["fingerprint"])
    return found


def text_arrays(text: TextSet) -> dict[str, np.ndarray]:
    """A text set as the arrays of an .npz file, of which `read_text_set` makes the same set."""
    return {"text": text.embedding, "class_names": np.array(text.classes, np.str_), "class_ptr": text.class_ptr,
            "template_id": text.template_id, "prompt": np.array(text.prompts, np.str_),
            "encoder": np.array(text.encoder), "source": np.array(json.dumps(text.source))}


def _of_store(text: TextSet, encoder: str) -> TextSet:
    """A set as one of a store, whose encoder is perhaps the same by another name. encoder: fingerprint of that."""
    if text.encoder == encoder:
        return text
    return replace(text, encoder=encoder, source={**text.source, TEXT_ENCODER: {"fingerprint": text.encoder}})


def _exported(file: Path, arrays: Mapping[str, np.ndarray], classes: Sequence[str], dim: int) -> TextSet:
    """The set that `text_arrays` wrote."""
    try:
        pointer, embedding = arrays["class_ptr"].astype(np.int64), single(arrays["text"]).astype(np.float32)
        text = TextSet(embedding, tuple(names_of(arrays["class_names"])), pointer,
                       arrays["template_id"].astype(np.int32), tuple(texts_of(arrays["prompt"])),
                       str(arrays["encoder"]), read_json(str(arrays["source"])))
        canonical(text.source)  # no NaN, which stores do not have
        sizes = {len(embedding), int(pointer[-1]), len(text.prompts), len(text.template_id)}
        fits = (embedding.ndim == 2 and embedding.shape[1] == dim and len(sizes) == 1 and pointer[0] == 0
                and len(pointer) == len(text.classes) + 1 and (np.diff(pointer) >= 0).all()
                and isinstance(text.source, dict) and len(set(text.classes)) == len(text.classes))
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ArrayError(f"{file} is no text set of `onceclip export` ({' '.join(str(error).split())})") from error
    known = {*text.classes}
    missing = [] if not fits or text.is_captions else [each for each in classes if each not in known]
    if not fits or missing or (unusable_rows(embedding) != "").any():
        what = f"lacks {counted(len(missing), 'class', 'classes')}: {listing(missing)}" if missing else \
            f"has arrays that do not fit each other, or embeddings of {dim} numbers"
        raise ArrayError(f"{file} {what}: export it anew")
    return text


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        arrays = ({"text": np.load(file, mmap_mode="r", allow_pickle=False)} if file.suffix == ".npy" else
                  read_npz(file, ("text", *_FURTHER)))
        if "text" not in arrays:
            raise ValueError("it has no array text")
        return arrays
    except UNREADABLE as error:
        raise ArrayError(f"{file} cannot be read as a text set ({' '.join(str(error).split())}): give an .npy file of "
                         "(classes, dim) or (classes, prompts, dim), or an .npz file with text and "
                         "class_names") from error


def read_npz(file: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; of some names only, where they are given.

    Raises one of UNREADABLE for what is no such file, and for one that would take far more memory than it has bytes.
    """
    with file.open("rb") as handle:
        if not is_zipfile(handle):
            raise ValueError("it is no .npz file")
        handle.seek(0)
        with np.load(handle, allow_pickle=False) as arrays:
            _check_sizes(arrays.zip, file.stat().st_size)
            return {name: arrays[name] for name in arrays.files if not names or name in names}


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


def text_set_of(text: np.ndarray, classes: list[str], encoder: str) -> TextSet:
    """A text set of embeddings (c, d) or (c, p, d) whose sentences are not known."""
    per_class = 1 if text.ndim == 2 else text.shape[1]
    pointer = np.arange(len(classes) + 1, dtype=np.int64) * per_class
    template = np.tile(np.arange(per_class, dtype=np.int32), len(classes))
    return TextSet(text.reshape(-1, text.shape[-1]).astype(np.float32), tuple(classes), pointer, template,
                   ("",) * (len(classes) * per_class), encoder, {"imported": True})
