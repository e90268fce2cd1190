"""What clip-retrieval wrote: numbered files of normalised embeddings, and Parquet files that name their images."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import Features, imported_encoder
from onceclip.pipeline.extraction.text_arrays import UNREADABLE
from onceclip.pipeline.sources.arrow_files import table_at
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS
from onceclip.pipeline.sources.record import natural_order
from onceclip.pipeline.words import class_remarks
from onceclip.stores.identity import digest, encode_key
from onceclip.stores.schema import NO_LABEL, NO_SPLIT, SPLITS

EMBEDDINGS, METADATA, PATH = "img_emb", "metadata", "image_path"
_UNIT_LENGTH = 1e-2  # by which the length of a normalised vector in half precision may differ from 1


@dataclass(frozen=True)
class Part:
    """One numbered pair of files: embeddings (rows, dim), mapped, and the paths of their images."""

    file: Path
    embedding: np.ndarray
    paths: list[str]


def is_clip_retrieval(folder: Path) -> bool:
    """Whether a folder holds what clip-retrieval writes."""
    return (folder / EMBEDDINGS).is_dir() and (folder / METADATA).is_dir()


def folder_features(folder: Path, encoder: str | None) -> Features:
    """What a folder with `img_emb/*.npy` and `metadata/*.parquet` holds.

    Files are taken in the order of their numbers. A row's key is its `image_path`, from the folder that all share;
    its class is the folder around it; its split a folder `train`, `val` or `test` above that.
    encoder: name of what made them. Without one, only equal files count as the same encoder's.
    Raises ArrayError if files are missing or do not fit together, SourceError for a table that cannot be read.
    """
    parts = _parts(folder)
    paths = _relative([path for part in parts for path in part.paths])
    keys = [encode_key(path) for path in paths]
    twice = [key for key, number in Counter(keys).items() if number > 1]
    if twice:
        raise ArrayError(f"{folder}: {len(twice)} images are named by more than one row, the first is {twice[0]}: make "
                         "the folder anew, or leave all but one out")
    label, classes, split = _places(paths)
    starts = np.cumsum([0, *(len(part.paths) for part in parts)])
    halves = all(part.embedding.dtype == np.float16 for part in parts)
    dim = parts[0].embedding.shape[1]
    length = np.linalg.norm(parts[0].embedding.astype(np.float32), axis=1)
    normalized = bool((np.abs(length - 1) < _UNIT_LENGTH).all())
    info = imported_encoder(encoder, dim, [digest(np.ascontiguousarray(part.embedding).tobytes()).hex()
                                           for part in parts] if encoder is None else [], normalized=normalized)

    def values(rows: slice) -> dict[str, np.ndarray]:
        pieces = [part.embedding[max(rows.start - start, 0):max(rows.stop - start, 0)]
                  for part, start in zip(parts, starts.tolist(), strict=False)]
        return {"embedding": np.concatenate(pieces).astype(np.float16 if halves else np.float32)}

    remarks = class_remarks(dict.fromkeys(classes))
    if (folder / "text_emb").is_dir():
        remarks.append("text_emb holds captions of single images, not prompts of classes: it was left out")
    if not normalized:
        remarks.append("the embeddings are not of length 1, as clip-retrieval makes them: they are stored as they are")
    return Features(info, "float16" if halves else "float32", np.array(keys, object), label, split, classes, values,
                    remarks=remarks)


def _parts(folder: Path) -> list[Part]:
    """All pairs of files in the order of their numbers: 2 comes before 10."""
    embeddings, metadata = (_numbered(folder / name, suffix) for name, suffix in ((EMBEDDINGS, ".npy"),
                                                                                  (METADATA, ".parquet")))
    if not embeddings:
        raise ArrayError(f"{folder / EMBEDDINGS} holds no .npy file: give the folder that clip-retrieval wrote")
    every = range(max([*embeddings, *metadata]) + 1)
    absent = [f"{name}/{number}" for number in every
              for name, files in ((EMBEDDINGS, embeddings), (METADATA, metadata)) if number not in files]
    if absent:
        raise ArrayError(f"{folder} lacks {', '.join(absent[:4])}{' ...' if len(absent) > 4 else ''}: every number "
                         "from 0 up needs both of its files; make the folder anew")
    parts = [_part(embeddings[number], metadata[number]) for number in sorted(embeddings)]
    for part in parts:
        if part.embedding.shape[1] != parts[0].embedding.shape[1]:
            raise ArrayError(f"{part.file} has {part.embedding.shape[1]} columns, {parts[0].file.name} has "
                             f"{parts[0].embedding.shape[1]}: they are not of one encoder")
    return parts


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for file in sorted(folder.glob(f"*{suffix}")):
        number = re.search(r"(\d+)$", file.stem)
        if number is None:
            raise ArrayError(f"{file} has no number at the end of its name: leave only what clip-retrieval wrote")
        if int(number[1]) in found:
            raise ArrayError(f"{file} has the number of {found[int(number[1])].name}: leave only what one run wrote")
        found[int(number[1])] = file
    return found


def _part(file: Path, metadata: Path) -> Part:
    try:
        embedding = np.load(file, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise ArrayError(f"{file} cannot be read ({error}): make it anew") from error
    if embedding.ndim != 2 or embedding.dtype.kind != "f":
        raise ArrayError(f"{file} has shape {embedding.shape} and type {embedding.dtype}: it needs (rows, dim) "
                         "floating-point numbers")
    paths = _paths(metadata)
    if len(paths) != len(embedding):
        raise ArrayError(f"{file} has {len(embedding)} rows, {metadata.name} has {len(paths)}: make both anew")
    return Part(file, embedding, paths)


def _paths(file: Path) -> list[str]:
    table = table_at(str(file))
    if PATH not in table.schema.names:
        raise ArrayError(f"{file} has no column {PATH} (it has: {', '.join(table.schema.names)}): rows cannot be told "
                         "apart")
    paths = [path for batch in table.files[0].batches([PATH]) for path in batch.column(0).to_pylist()]
    if not all(isinstance(path, str) and path for path in paths):
        raise ArrayError(f"{file}: {PATH} is not a text in every row: rows cannot be told apart")
    return paths


def _relative(paths: list[str]) -> list[str]:
    """The paths from the folder that all of them share, but for the folders that are a class or a split."""
    if not any(path.startswith("/") for path in paths):
        return paths
    shared = PurePosixPath(os.path.commonpath([f"/{path.lstrip('/')}" for path in paths]))
    if str(shared) in paths or any(str(PurePosixPath(path).parent) == str(shared) for path in paths):
        shared = shared.parent if str(shared) not in paths else shared.parent.parent  # it is their class
    if shared.name.lower() in SPLIT_FOLDERS:
        shared = shared.parent
    return [os.path.relpath(f"/{path.lstrip('/')}", shared) for path in paths]


def _places(paths: list[str]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Label of every path, names of the classes, and split of every path."""
    folders = [PurePosixPath(path).parent.parts for path in paths]
    named = [encode_key(parts[-1]) if parts and parts[-1].lower() not in SPLIT_FOLDERS else None for parts in folders]
    classes = sorted({name for name in named if name is not None}, key=natural_order)
    number = {name: place for place, name in enumerate(classes)}
    split = [next((SPLITS.index(SPLIT_FOLDERS[part.lower()]) for part in parts if part.lower() in SPLIT_FOLDERS),
                  NO_SPLIT) for parts in folders]
    return (np.array([NO_LABEL if name is None else number[name] for name in named], np.int32), classes,
            np.array(split, np.int8))
