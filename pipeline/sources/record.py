"""One record per image, whatever the source."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onceclip.pipeline.errors import BadImage


class Content(Protocol):
    """Where the bytes of one image come from; a small value that can be sent to another process."""

    def read(self) -> bytes:
        """The bytes of an image file.

        Raises BadImage if there are none.
        """


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine's disks."""

    path: Path

    def read(self) -> bytes:
        """The bytes of the file.

        Raises BadImage if it cannot be read, is not a regular file, or is empty.
        """
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise BadImage("not a regular file")
            content = self.path.read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
        if not content:
            raise BadImage("empty file")
        return content


@dataclass(frozen=True)
class Record:
    """One image of a source.

    key: as stored, mostly the path relative to the root. content: its bytes. label: class name, or None.
    split: "train", "val" or "test" where the source says so. group: what it belongs to (a video, a patient): images
    of one group never stand in two splits; empty for none.
    """

    key: str
    content: Content
    label: str | None = None
    split: str | None = None
    group: str = ""


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that puts folder 2 before folder 10."""
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [(0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts) if part]


def class_names(records: Iterable[Record]) -> list[str]:
    """Names of all classes, in natural order: folder 2 comes before folder 10."""
    return sorted({record.label for record in records if record.label is not None}, key=natural_order)
