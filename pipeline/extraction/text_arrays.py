"""Text sets of embeddings that were made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.prompts.embedding import NAME, check_name
from onceclip.pipeline.words import counted, listing
from onceclip.stores import TextSet
from onceclip.stores.rows import unusable_rows

_LARGEST = 8 << 30  # bytes of a text set: 50,000 classes of 80 prompts have less


def read_text_set(name: str, file: Path, classes: Sequence[str], dim: int, encoder: str) -> TextSet:
    """A text set from a file; see `import_arrays`. name: of the set. encoder: fingerprint of the store's.

    Raises ArrayError if the file has something else or lacks a class, PromptError for a name that no set can have.
    """
    check_name(name)
    if name == NAME:
        raise ArrayError(f"--text-set {name}: the set of this name is the array `text` of the import: choose another")
    text, names = _load(file)
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
        single = text.astype(np.float32)
    if (unusable_rows(single.reshape(-1, dim)) != "").any():
        raise ArrayError(f"{file} has rows that are zeros, or not finite as float32: leave such prompts out")
    return text_set_of(single, list(classes), encoder)


def _load(file: Path) -> tuple[np.ndarray, list[str] | None]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"{file.stat().st_size:,} bytes are more than a text set has")
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False), None
        with np.load(file, allow_pickle=False) as arrays:
            if any(member.file_size > _LARGEST for member in arrays.zip.infolist()):
                raise ValueError("a member unpacks to more bytes than a text set has")
            names = np.ravel(arrays["class_names"]).tolist() if "class_names" in arrays.files else None
            return arrays["text"], None if names is None else [
                each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in names]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError, AttributeError, MemoryError) as error:
        raise ArrayError(f"{file} cannot be read as a text set ({' '.join(str(error).split())}): give an .npy file of "
                         "(classes, dim) or (classes, prompts, dim), or an .npz file with text and "
                         "class_names") from error


def text_set_of(text: np.ndarray, classes: list[str], encoder: str) -> TextSet:
    """A text set of embeddings (c, d) or (c, p, d) whose sentences are not known."""
    per_class = 1 if text.ndim == 2 else text.shape[1]
    pointer = np.arange(len(classes) + 1, dtype=np.int64) * per_class
    template = np.tile(np.arange(per_class, dtype=np.int32), len(classes))
    return TextSet(text.reshape(-1, text.shape[-1]).astype(np.float32), tuple(classes), pointer, template,
                   ("",) * (len(classes) * per_class), encoder, {"imported": True})
