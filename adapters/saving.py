"""Files of one folder that are replaced together: at any moment all of them are the old ones, or all the new."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from onceclip.adapters.errors import AdapterFileError

UNFINISHED, WHOLE = ".saving", ".saved"  # folders within, which are gone when a save is through


def write_together(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files under these names. Whatever stops it, `file_of` finds all of them as they were, or all new.

    They are written into a folder of their own, which gets another name when it has all of them; then they are moved
    out of it.
    files: what writes each, by its name; the same names as at other times.
    Raises AdapterFileError, which names the file, where one cannot be written.
    """
    unfinished = folder / UNFINISHED
    try:
        for name, write in files.items():
            try:
                unfinished.mkdir(parents=True, exist_ok=True)
                write(unfinished / name)
            except (OSError, SafetensorError) as error:
                raise AdapterFileError(f"{folder / name} cannot be written ({error}): make room or give another "
                                       "folder; what was there is as it was") from error
        _move_out(folder)
        unfinished.rename(folder / WHOLE)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _move_out(folder)


def file_of(folder: Path, name: str) -> Path:
    """Where a file is that was written together with others: a save that was killed may have left it to be moved."""
    waiting = folder / WHOLE / name
    return waiting if waiting.exists() else folder / name


def _move_out(folder: Path) -> None:
    whole = folder / WHOLE
    if whole.is_dir():
        for path in sorted(whole.iterdir()):
            path.replace(folder / path.name)
        whole.rmdir()
