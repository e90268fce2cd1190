"""Where the tokens of a prompt stand: learned ones, those of the class name, and those that begin and end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onceclip.adapters.errors import MethodError

POSITIONS = ("front", "middle", "end")  # of the learned tokens, relative to the class name


@dataclass(frozen=True)
class Layout:
    """Prompts of some classes as table rows: of tokens from 0 up, of learned tokens from -1 down.

    index: (classes, length). place: (classes,), what the pooling reads. shared: leading columns that all prompts have.
    """

    index: np.ndarray
    place: np.ndarray
    shared: int

    def of(self, chosen: np.ndarray, cut: bool) -> Layout:
        """The prompts of some classes. cut: leave out what follows the longest one's end."""
        place = self.place[chosen]
        length = int(place.max()) + 1 if cut else self.index.shape[1]
        return Layout(self.index[chosen, :length], place, self.shared)


def lay_out(spec: Mapping[str, Any], classes: Sequence[str], length: int, position: str, positions: int,
            rows: Mapping[int, int]) -> Layout:
    """Where every token of the classes' prompts stands.

    spec: of the tower. length: number of learned tokens. positions: number that the tower has. rows: of token ids in
        its table.
    Raises MethodError if a prompt does not fit.
    """
    if position not in POSITIONS:
        raise MethodError(f"position={position}: there are {', '.join(POSITIONS)}")
    fill = rows[spec["fill"]]
    index = np.full((len(classes), positions), fill, np.int64)
    place = np.zeros(len(classes), np.int64)
    learned = [-1 - number for number in range(length)]
    front = {"front": length, "middle": length // 2, "end": 0}[position]
    for row, name in enumerate(classes):
        tail, stem = ([rows[each] for each in spec["names"][name]], spec["stems"][name])
        stem = len(tail) if position == "front" else stem
        prompt = [*(rows[each] for each in spec["start"]), *learned[:front], *tail[:stem], *learned[front:],
                  *tail[stem:], *(rows[each] for each in spec["end"])]
        if len(prompt) > positions:
            raise MethodError(f"{length} learned tokens and the {len(tail)} of {name!r} are more than the text tower's "
                              f"{positions} positions hold: learn fewer tokens")
        index[row, :len(prompt)] = prompt
        place[row] = {"end": len(prompt) - 1, "first": 0, "last": positions - 1}[spec["pool"]]
    shared = len(spec["start"]) + front if spec["causal"] and front and spec["pool"] == "end" else 0
    return Layout(index, place, shared)
