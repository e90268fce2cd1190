"""Which hyperparameters a selection tries: a grid, random draws, or many short trainings of which the best go on."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from onceclip.adapters.errors import MethodError
from onceclip.adapters.method import Value

KINDS = ("grid", "random", "halving")
SURVIVORS = 3  # one of so many goes on to a training of so many times the epochs


@dataclass(frozen=True)
class Search:
    """How settings are found.

    kind: "grid" tries all combinations of the methods' search values; "random" draws from their ranges; "halving"
        trains all for a few epochs, the better third for three times as many, and so on (Jamieson and Talwalkar,
        Non-stochastic Best Arm Identification, AISTATS 2016; every training has its whole schedule).
    count: number of random draws; 0 takes the grid.
    narrow: multiply matrices in bfloat16 while searching; the winner is trained again as usual.
    """

    kind: str = "grid"
    count: int = 0
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MethodError(f"no search {self.kind!r}: there are: grid, random:N, halving, halving:N")
        if self.kind == "random" and self.count < 1:
            raise MethodError("--search random needs the number of draws: random:30")

    @classmethod
    def parse(cls, text: str, narrow: bool = False) -> Search:
        """Read "grid", "random:30", "halving" or "halving:30".

        Raises MethodError for anything else.
        """
        kind, _, count = text.partition(":")
        if count and not count.isdecimal():
            raise MethodError(f"--search {text}: {count!r} is not a number of draws; write random:30")
        return cls(kind, int(count or 0), narrow)

    def settings(self, free: Mapping[str, tuple[Value, ...]], seed: int) -> list[dict[str, Value]]:
        """The settings to try. free: search values of every hyperparameter that may be chosen."""
        if not self.count:
            return [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]
        generator = random.Random(seed)
        return [{name: _draw(values, generator) for name, values in free.items()} for _ in range(self.count)]

    def rungs(self, settings: int, epochs: int) -> list[int]:
        """Epochs of the trainings that follow each other, the last of them whole."""
        if self.kind != "halving":
            return [epochs]
        number = int(math.log(max(min(settings, epochs), 1), SURVIVORS)) + 1
        return [max(1, round(epochs / SURVIVORS**(number - 1 - rung))) for rung in range(number)]


def _draw(values: tuple[Value, ...], generator: random.Random) -> Value:
    """A value of the range that search values span; of texts and whole numbers one of them."""
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values) or len(numbers) < 2:
        return generator.choice(values)
    low, high = min(numbers), max(numbers)
    if low <= 0:
        return generator.uniform(low, high)
    return math.exp(generator.uniform(math.log(low), math.log(high)))


GRID = Search()
