"""A list of files on standard input, one a line or each ended by a NUL: `find pets -name '*.jpg' -print0`."""

from __future__ import annotations

import posixpath
import sys

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import text_of
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS
from onceclip.pipeline.sources.manifest import Row, records_of
from onceclip.pipeline.sources.record import Listing, SourceOptions

USES = frozenset({"root", "every", "frames"})
_NAME = "standard input"


def recognises(text: str) -> bool:
    """Whether a source is standard input."""
    return text == "-"


def list_source(text: str, options: SourceOptions) -> Listing:
    """List the files that standard input names, in its order; the class is the folder that a file lies in.

    Where the folders of all classes lie in `train`, `val` and `test`, these are the splits.
    Raises SourceError if nothing is named, or a file twice.
    """
    if sys.stdin.isatty():
        raise SourceError("the source - is a list of files on standard input: give one, as in find pets -name '*.jpg' "
                          "| onceclip extract - pets.zarr ...")
    content = text_of(sys.stdin.buffer.read())
    separator = "\0" if "\0" in content else "\n"
    lines = [(f"line {number}", name.removesuffix("\r") if separator == "\n" else name)
             for number, name in enumerate(content.split(separator), 1)]
    lines = [(where, name) for where, name in lines if name]
    if not lines:
        raise SourceError("standard input names no files: write one a line, as find new-photos -name '*.jpg' does")
    folders = [posixpath.dirname(posixpath.normpath(name)).split("/") for _, name in lines]
    splits = [SPLIT_FOLDERS.get(folder[-2].lower()) if len(folder) > 1 else None for folder in folders]
    known = all(splits)
    return Listing(records_of(_NAME, [Row(where, name, folder[-1] or None, split if known else None)
                                      for (where, name), folder, split in zip(lines, folders, splits, strict=True)],
                              options.root or "."))
