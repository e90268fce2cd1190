"""One file of a table, read by pyarrow or Lance a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onceclip.errors import one_line
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import as_source_error, is_url, remote_folder

if TYPE_CHECKING:
    import pyarrow

PARQUET, ARROW, LANCE = ".parquet", ".arrow", ".lance"
WIDEST = 1 << 16  # numbers of an embedding
_ROWS = 1024  # of a piece
_LARGEST_GROUP = 4 << 30  # bytes of images that are in memory at once


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a table. split: what its name or its folder says, as it says it; empty for nothing."""

    place: str
    kind: str
    split: str = ""

    def schema(self) -> pyarrow.Schema:
        """Names and types of its columns."""
        with _reading(self.place):
            if self.kind == PARQUET:
                with opened(self) as file:
                    return file.schema_arrow
            return _lance(self.place).schema if self.kind == LANCE else _records(self.place).schema

    def groups(self, column: str) -> list[int]:
        """The numbers of rows that `group` reads together, in their order.

        Raises SourceError if a column takes more memory for such rows than there should be.
        """
        with _reading(self.place):
            if self.kind != PARQUET:
                return [len(batch) for batch in _records(self.place)]
            with opened(self) as file:
                found = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
                sizes = [sum(part.total_uncompressed_size for part in map(group.column, range(group.num_columns))
                             if part.path_in_schema.partition(".")[0] == column) for group in found]
                if max(sizes, default=0) > _LARGEST_GROUP:
                    raise SourceError(f"{self.place} has {max(sizes):,} bytes of {column!r} in one row group: write it "
                                      "anew with row groups of at most 1,000 rows")
                return [group.num_rows for group in found]

    def group(self, number: int, column: str) -> pyarrow.ChunkedArray | pyarrow.Array:
        """One column of rows that are read together."""
        with _reading(self.place):
            if self.kind == PARQUET:
                with opened(self) as file:
                    return file.read_row_group(number, columns=[column]).column(0)
            batch = _batches(self.place)[number].select([column])
            batch.validate(full=True)
            return batch.column(0)

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """Some columns, by their names, a piece of the rows at a time; one that is named twice comes once."""
        columns = list(dict.fromkeys(columns))
        with _reading(self.place):
            if self.kind == PARQUET:
                with opened(self) as file:
                    self._check_widths(file.metadata, columns)
                    yield from file.iter_batches(_ROWS, columns=columns)
            elif self.kind == LANCE:
                yield from _lance(self.place).to_batches(columns=columns, batch_size=_ROWS)
            else:
                for batch in _records(self.place):
                    chosen = batch.select(list(dict.fromkeys(name.partition(".")[0] for name in columns)))
                    chosen.validate(full=True)  # offsets in such a file are used as they are
                    yield from (chosen.slice(start, _ROWS) for start in range(0, len(chosen), _ROWS))

    def _check_widths(self, metadata: Any, columns: Sequence[str]) -> None:
        """Raise SourceError for lists so long that a batch of them would fill the memory: a few bytes may stand for it.
        """
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for part in map(group.column, range(group.num_columns)):
                if part.path_in_schema.partition(".")[0] in columns and part.num_values > WIDEST * group.num_rows:
                    raise SourceError(f"{self.place}: {part.path_in_schema} has {part.num_values:,} values in "
                                      f"{group.num_rows:,} rows: more than {WIDEST:,} a row are no embedding")


@contextmanager
def opened(file: TableFile) -> Iterator[Any]:
    """A Parquet file, opened."""
    from pyarrow import parquet

    if not is_url(file.place):
        with parquet.ParquetFile(file.place) as found:
            yield found
        return
    files, path = remote_folder(file.place)
    with files.open(path, "rb") as content, parquet.ParquetFile(content) as found:
        yield found


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn what pyarrow and storage raise into a SourceError."""
    import pyarrow

    with as_source_error(place):
        try:
            yield
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError, MemoryError, KeyError, ValueError) as error:
            raise SourceError(f"{place} cannot be read ({one_line(error)}): correct its name, or write it anew"
                              ) from error


def _records(place: str) -> Any:
    """The batches of an Arrow file, mapped into memory."""
    import pyarrow

    content = pyarrow.memory_map(place)
    try:
        return pyarrow.ipc.open_stream(content)
    except pyarrow.ArrowInvalid:
        content.seek(0)
        file = pyarrow.ipc.open_file(content)
        return pyarrow.RecordBatchReader.from_batches(file.schema, map(file.get_batch, range(file.num_record_batches)))


@lru_cache(maxsize=2)
def _batches(place: str) -> list[Any]:
    """All batches of an Arrow file, of which nothing is in memory before it is looked at."""
    return list(_records(place))


def _lance(place: str) -> Any:
    try:
        import lance
    except ImportError as error:
        raise SourceError(f"{place} cannot be read without Lance: pip install 'onceclip[lance]'") from error
    return lance.dataset(place)
