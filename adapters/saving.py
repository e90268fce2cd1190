"""Files of one folder that get their names together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from onceclip.adapters.errors import AdapterFileError


def write_together(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files beside those of these names, and put them in their place when all of them are whole.

    files: what writes each, by its name; the last one says that the others are there. What stops the writing leaves
        the folder as it was; what stops the renaming leaves it without the last one, never with files of both kinds.
    Raises AdapterFileError, which names the file, where one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f"{name}.part" for name in files}
    try:
        for name, write in files.items():
            try:
                write(parts[name])
            except (OSError, SafetensorError) as error:
                raise AdapterFileError(f"{folder / name} cannot be written ({error}): make room or give another "
                                       "folder; what was there is as it was") from error
        (folder / list(files)[-1]).unlink(missing_ok=True)
        for name, part in parts.items():
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
