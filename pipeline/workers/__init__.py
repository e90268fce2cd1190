"""Extractions and sweeps by several processes: each with a part of its own, or workers that are handed tasks."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Each = TypeVar("Each")


@dataclass(frozen=True)
class Part:
    """The share of one process: part `number`, from 1, of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that is called `number/of`.

        Raises ValueError for anything else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{text!r} is not one of N parts, such as 2/8 (from 1/8 to 8/8)")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, everything: Sequence[Each]) -> Sequence[Each]:
        """Which of some things are this part's: every `of`-th."""
        return everything[self.number - 1::self.of]


def repeatable() -> bool:
    """Whether processes that this one starts do not repeat it: they run a script's file, but for what it guards."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return True
    try:
        return "__main__" in Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:  # as of a script that was piped in
        return False
