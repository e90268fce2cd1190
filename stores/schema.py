"""What schema 1 of a store looks like. `docs/store-format.md` says the same in words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, VLenUTF8Codec
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import StorePath

from onceclip.stores.identity import fingerprint

SCHEMA = 1
ATTRIBUTE = "onceclip"
KIND = "features"
UNIT_ROWS = 4096
TABLE_ROWS = 65536  # rows per chunk of the columns that are always read whole
CHUNK_BYTES = 8 << 20  # of embeddings and outputs, at most
SHARD_BYTES = 512 << 20

TODO, STORED, BAD, REMOVED = -1, 0, 1, 2
SPLITS = ("train", "val", "test")
NO_SPLIT = NO_LABEL = -1


@dataclass(frozen=True)
class Column:
    """One array with a row per image: its type, its fill value ("not there") and its further dimensions.

    values: whether it is what the encoder gave, an embedding or another output. optional: older stores have none.
    """

    dtype: str
    fill: Any
    per_unit: bool
    shape: tuple[int, ...] = ()
    dimensions: tuple[str, ...] = ()
    values: bool = False
    optional: bool = False


COLUMNS = {
    "group": Column("str", "", per_unit=False, optional=True),
    "key": Column("str", "", per_unit=False),
    "label": Column("int32", NO_LABEL, per_unit=False),
    "split": Column("int8", NO_SPLIT, per_unit=False),
    "digest": Column("uint8", 0, per_unit=True, shape=(16,), dimensions=("byte",)),
    "reason": Column("str", "", per_unit=True),
    "checksum": Column("uint32", 0, per_unit=True),
    "state": Column("int8", TODO, per_unit=True),
}


@dataclass(frozen=True)
class Output:
    """One more array of the encoder's per image beside the embedding: augmented views, patch tokens, ...

    shape: of one row. dimensions: the names of its axes. spec: JSON values that say what it is.
    """

    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    spec: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The output that `as_json` described."""
        return cls(tuple(values["shape"]), tuple(values["dimensions"]), dict(values["spec"]))

    def as_json(self) -> dict[str, Any]:
        """JSON values, as the store's attributes keep them."""
        return {**asdict(self), "shape": list(self.shape), "dimensions": list(self.dimensions)}


def heights(described: Column, unit_rows: int, chunk_rows: int | None) -> tuple[int, int | None]:
    """Rows per chunk and per shard (None without shards) of an array that has a row per image.

    A unit is as many of them as it takes for chunks small enough to be read for a few rows.
    chunk_rows: at most in a chunk, of a store with shards.
    """
    if not described.per_unit:
        return TABLE_ROWS, None
    if not described.values:
        return unit_rows, None
    row_bytes = int(np.prod(described.shape)) * np.dtype(described.dtype).itemsize
    chunk, shard = chunk_rows or unit_rows, unit_rows
    while chunk % 2 == 0 and chunk * row_bytes > CHUNK_BYTES:
        chunk //= 2
    while shard % (2 * chunk) == 0 and shard * row_bytes > SHARD_BYTES:
        shard //= 2
    return chunk, shard if chunk_rows else None


def checksum_name(name: str) -> str:
    """Name of the column that holds the CRC-32C of every row of an array under `image/`."""
    return "checksum" if name == "embedding" else f"{name}_checksum"


def create_array(group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str,
                 fill: Any, dimensions: tuple[str, ...], attributes: dict[str, Any] | None = None,
                 shards: tuple[int, ...] | None = None) -> zarr.Array:
    """Create an array without compression, with a CRC-32C behind every chunk and named dimensions.

    Embeddings hardly compress, and plain chunks can be read like a flat file.
    """
    serializer = VLenUTF8Codec() if dtype == "str" else BytesCodec()
    return group.create_array(name, shape=shape, chunks=tuple(max(1, size) for size in chunks), shards=shards,
                              dtype=dtype, fill_value=fill, filters=None, serializer=serializer,
                              compressors=[Crc32cCodec()], dimension_names=dimensions, overwrite=True,
                              attributes=attributes,
                              # Chunks of nothing but the fill value are written too: a missing one is then damage.
                              config={"write_empty_chunks": True})


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """Attributes with a checksum of their own: Zarr protects chunks, but not its JSON."""
    plain = {name: value for name, value in values.items() if name != "checksum"}
    return {**plain, "checksum": fingerprint(plain)}


def unseal(values: Any) -> dict[str, Any]:
    """Attributes that `seal` made.

    Raises ValueError if they are not as they were written.
    """
    if not isinstance(values, dict) or seal(values) != values:
        raise ValueError("its attributes do not match their checksum")
    return values


def require_sound(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless the attributes of a store have the types and the names that its readers rely on."""
    encoder, classes, texts, outputs = (*(values[name] for name in ("encoder", "classes", "texts")),
                                        values.get("outputs", {}))
    sound = {
        "encoder": isinstance(encoder, dict) and _are_texts(encoder.get("name"), encoder.get("fingerprint")),
        "classes": isinstance(classes, list) and _are_texts(*classes) and len({*classes}) == len(classes),
        "complete": isinstance(values["complete"], bool),
        "fingerprint": not values["complete"] or _are_texts(values["fingerprint"]),
        "unit_rows": _is_count(values["unit_rows"]),
        "chunk_rows": _is_count(values.get("chunk_rows", 1)),
        "dim": _is_count(values["dim"]),
        "dtype": values["dtype"] in ("float16", "float32", "float64"),
        **{name: isinstance(values.get(name), dict | None) for name in ("columns", "split_source", "compaction")},
        "outputs": isinstance(outputs, dict) and all(map(_is_output, outputs.items())),
        "texts": isinstance(texts, dict) and all(map(_is_text_set, texts.items())),
    }
    wrong = [name for name, each in sound.items() if not each]
    if wrong:
        raise ValueError(f"its attribute {wrong[0]} is {str(values.get(wrong[0]))[:60]}")


def is_output_name(name: str) -> bool:
    """Whether an output can have a name, which is that of its folder."""
    return bool(re.fullmatch("[a-z][a-z0-9_]*", name)) and name not in {*COLUMNS, "embedding"} \
        and not name.endswith("_checksum")


def _are_texts(*values: Any) -> bool:
    return all(isinstance(each, str) for each in values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_output(item: tuple[str, Any]) -> bool:
    name, output = item
    return (is_output_name(name) and isinstance(output, dict) and isinstance(output.get("spec"), dict)
            and all(isinstance(output.get(each), list) for each in ("shape", "dimensions"))
            and len(output["shape"]) == len(output["dimensions"]) and all(map(_is_count, output["shape"]))
            and _are_texts(*output["dimensions"]))


def _is_text_set(item: tuple[str, Any]) -> bool:
    name, entry = item
    return ("/" not in name and name.strip(".") != "" and isinstance(entry, dict)
            and isinstance(entry.get("source"), dict) and isinstance(entry.get("fingerprint"), str | None)
            and "/" not in entry.get("place", name))


def fits(dtype: np.dtype, described: str) -> bool:
    """Whether an array's type is the one that it should have, in whatever order of bytes."""
    text = dtype.kind in "OTU"
    return text if described == "str" else not text and dtype.newbyteorder("=") == np.dtype(described)


def get_array(group: zarr.Group, name: str) -> zarr.Array:
    """The array of a group by its path.

    Raises KeyError if there is none.
    """
    try:
        with _quiet():
            node = group[name]
    except KeyError as error:
        if sync((group.store_path / name / "zarr.json").exists()):
            raise ValueError(f"its zarr.json lacks {error}") from None
        raise
    if not isinstance(node, zarr.Array):
        raise KeyError(f"{name} is not an array")
    return node.with_config({"write_empty_chunks": True})


def arrays_of(group: zarr.Group, max_depth: int | None = 0) -> dict[str, zarr.Array]:
    """The arrays of a group by their paths, in order; other programs' files are passed over without a word.

    max_depth: groups within groups that are looked into; None for all.
    """
    with _quiet():
        return {name: node for name, node in sorted(group.members(max_depth=max_depth)) if isinstance(node, zarr.Array)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Zarr's warnings of other programs' files, and of fill values, of which no chunk that is read is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        yield


def require_chunks(array: zarr.Array) -> None:
    """Raise ValueError if a chunk is missing, which Zarr itself would read as fill values.

    What a file says of shapes is a claim: it is held against the files before memory is taken for it.
    """
    grid = [-(-size // height) for size, height in zip(array.shape, array.shards or array.chunks, strict=True)]
    place, store = array.store_path, array.store_path.store
    names, missing = sync(names_below(place)), prod(grid)
    if missing <= len(names):
        keys = [f"{place.path}/{array.metadata.encode_chunk_key(each)}" for each in np.ndindex(*grid)]
        missing = len({*keys} - names)
    if missing:
        raise ValueError(f"{missing} of {prod(grid)} chunks of {array.path} are missing")
    itemsize = 4 if array.dtype.kind in "OTU" else array.dtype.itemsize  # of a text, at least its length
    plain = [type(codec) for codec in getattr(array.metadata, "codecs", ())][1:] == [Crc32cCodec]
    if plain and keys and sync(store.getsize(keys[0])) < itemsize * prod(array.chunks):
        raise ValueError(f"the first chunk of {array.path} is too small for {prod(array.chunks)} values")


async def names_below(place: StorePath) -> set[str]:
    """Names of all files of an array or a group."""
    return {name async for name in place.store.list_prefix(f"{place.path}/")}


def read_whole(array: zarr.Array) -> np.ndarray:
    """Read all of an array.

    Raises ValueError if a chunk is missing.
    """
    require_chunks(array)
    return np.asarray(array[...])


def put_array(group: zarr.Group, name: str, values: np.ndarray, fill: Any, dimensions: tuple[str, ...]) -> None:
    """Create an array and fill it with values, in chunks of `UNIT_ROWS` rows."""
    dtype = "str" if values.dtype.kind in "OTU" else str(values.dtype)
    chunks = (min(max(len(values), 1), UNIT_ROWS), *values.shape[1:]) if values.ndim else ()
    create_array(group, name, values.shape, chunks, dtype, fill, dimensions)[...] = values
