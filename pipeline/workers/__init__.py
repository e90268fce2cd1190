"""Extractions and sweeps by several processes: each with a part of its own, or workers that are handed tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
