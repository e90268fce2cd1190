"""A store as one file of another format, written in bounded memory: Parquet or .npz."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np

from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.extraction.text_arrays import BESIDE, text_arrays
from onceclip.pipeline.sources.arrow_files import OURS
from onceclip.stores import Store
from onceclip.stores.location import whole_file
from onceclip.stores.schema import SPLITS, STORED

_COLUMNS = ("key", "label", "split", "digest", "group")
_ROWS = 8192  # at a time

Pieces = Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]


@dataclass(frozen=True)
class StoreFile:
    """A written file. texts: the text sets beside it, by name. left_out: outputs of the store that are not in it."""

    file: Path
    format: str
    rows: int
    dim: int
    size: int
    texts: dict[str, Path]
    left_out: tuple[str, ...]


def export_store(store: Store, format: str, file: Path, progress: Callable[[float], None] = lambda fraction: None
                 ) -> StoreFile:
    """Write key, label, split, digest and embedding of every stored row, and every text set in a file beside that.

    format: "parquet" or "npz". `onceclip import` makes an equal store of it. Files appear when they are whole, that of
    the embeddings last.
    Raises ExportError for another ending of the name, a store without rows, text sets of an earlier file of this name
    that the store lacks, or if pyarrow is missing.
    """
    if file.suffix != f".{format}":
        raise ExportError(f"{file}: give a name that ends in .{format}, which readers of this format go by")
    store.require_complete()
    total = int((store.column("state") == STORED).sum())
    if not total:
        raise ExportError(f"{store.path} holds no images: there is nothing to export")
    texts = {name: file.with_name(f"{file.stem}.{BESIDE}{name}.npz") for name in store.texts}
    if others := sorted({*file.parent.glob(f"{escape(file.stem)}.{BESIDE}*.npz")} - {*texts.values()}):
        raise ExportError(f"{others[0]} is beside {file.name}, where `onceclip import` would take it for a text set of "
                          f"{store.path}: move it away, or give another name")
    for name, path in texts.items():
        with whole_file(path) as content:
            np.savez(content, allow_pickle=False, **text_arrays(store.text(name)))
    with whole_file(file) as content:
        FORMATS[format](store, content, total, progress)
    return StoreFile(file, format, total, store.dim, file.stat().st_size, texts, tuple(sorted(store.outputs)))


def _pieces(store: Store, total: int, progress: Callable[[float], None]) -> Pieces:
    """Rows and columns of some stored rows at a time."""
    done = start = 0
    for state, *columns in store.parts("state", *_COLUMNS, size=_ROWS):
        kept = np.flatnonzero(state == STORED)
        if len(kept):
            yield start + kept, {name: values[kept] for name, values in zip(_COLUMNS, columns, strict=True)}
        start, done = start + len(state), done + len(kept)
        progress(done / total)


def _write_parquet(store: Store, content: BinaryIO, total: int, progress: Callable[[float], None]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExportError("Parquet files need pyarrow: pip install 'onceclip[parquet]'") from error
    embedding = pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(store.attributes["dtype"])), store.dim)
    text = pyarrow.string()
    grouped, about = _grouped(store), {"encoder": store.encoder, "class_names": list(store.classes)}
    schema = pyarrow.schema(
        [("key", text), ("label", text), ("split", text), ("embedding", embedding), ("digest", text),
         *([("group", text)] if grouped else [])], {OURS: json.dumps(about).encode()})
    names, splits = np.array([*store.classes, None], object), np.array([*SPLITS, None], object)
    # Embeddings hardly compress, and their dictionaries would only be thrown away.
    with parquet.ParquetWriter(content, schema, compression="zstd", use_dictionary=["label", "split"]) as writer:
        for rows, columns in _pieces(store, total, progress):
            values = np.ascontiguousarray(store.embeddings(rows)).reshape(-1)
            made = {"key": pyarrow.array(columns["key"], text), "label": pyarrow.array(names[columns["label"]], text),
                    "split": pyarrow.array(splits[columns["split"]], text),
                    "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), type=embedding),
                    "digest": pyarrow.array([each.tobytes().hex() for each in columns["digest"]], text),
                    **({"group": pyarrow.array(columns["group"], text)} if grouped else {})}
            writer.write_table(pyarrow.table(made, schema))


def _grouped(store: Store) -> bool:
    return any((group != "").any() for group, in store.parts("group"))


def _write_npz(store: Store, content: BinaryIO, total: int, progress: Callable[[float], None]) -> None:
    longest = {name: max((len(each) for part, in store.parts(name) for each in part), default=0)
               for name in ("key", *(["group"] if _grouped(store) else []))}
    splits = np.array([*SPLITS, ""])
    arrays: dict[str, tuple[tuple[int, ...], Any]] = {
        **{name: ((), f"<U{max(size, 1)}") for name, size in longest.items()}, "label": ((), "<i8"),
        "split": ((), splits.dtype), "digest": ((16,), "|u1"), "embedding": ((store.dim,), store.attributes["dtype"])}
    with ZipFile(content, "w") as archive:  # as numpy.savez makes it, but a piece of an array at a time
        for number, (name, (shape, dtype)) in enumerate(arrays.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False,
                    "shape": (total, *shape)})
                for rows, columns in _pieces(store, total, lambda part, number=number: progress(  # type: ignore[misc]
                        (number + part) / len(arrays))):
                    values = store.embeddings(rows) if name == "embedding" else columns[name]
                    values = splits[values] if name == "split" else values
                    member.write(np.ascontiguousarray(values.astype(dtype, copy=False)).tobytes())
        for name, value in {"class_names": np.array(store.classes, np.str_),
                            "encoder": np.array(json.dumps(store.encoder))}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, value, allow_pickle=False)


FORMATS: dict[str, Callable[[Store, BinaryIO, int, Callable[[float], None]], None]] = {
    "parquet": _write_parquet, "npz": _write_npz}
