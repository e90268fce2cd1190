"""What strategies share that read a stream: its rows in their order, and a memory of the surest of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onceclip.adapters.training.loop import Progress
from onceclip.adapters.training.trainable import Hyperparameter

ORDERS = {"enters": Hyperparameter("before", "whether an image enters the memory before it is predicted, as in the "
                                   "published code, or after", choices=("before", "after"))}
_FIRST = 64  # rows that there is memory for at first
_TOLD = 64  # rows between two reports of progress


def in_order(rows: Tensor, logits: Tensor, progress: Progress) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, row (dim,) and logits (classes,) of every row of a stream; progress is told now and then."""
    for number, (row, scores) in enumerate(zip(rows, logits, strict=True)):
        yield number, row, scores
        if number % _TOLD == 0:
            progress(number / len(rows))


class Memory:
    """At most `capacity` rows per class; a surer one takes the place of the least sure.

    keys: (rows, dim). label: (rows,) int64, the class of each. mask: (rows, classes), a value per row and class, of a
    memory that was made with one.
    """

    def __init__(self, classes: int, capacity: int, like: Tensor, masked: bool = False) -> None:
        """like: (dim,), a row."""
        self.capacity, self._used = capacity, 0
        self._places: list[list[int]] = [[] for _ in range(classes)]
        self._entropy: list[float] = []
        self._keys = like.new_empty(_FIRST, len(like))
        self._label = torch.empty(_FIRST, dtype=torch.int64, device=like.device)
        self._mask = like.new_empty(_FIRST, classes if masked else 0)

    @property
    def keys(self) -> Tensor:
        """What is remembered."""
        return self._keys[:self._used]

    @property
    def label(self) -> Tensor:
        """Classes of the keys."""
        return self._label[:self._used]

    @property
    def mask(self) -> Tensor:
        """Values per key and class."""
        return self._mask[:self._used]

    def add(self, label: int, entropy: float, key: Tensor, mask: Tensor | None = None) -> None:
        """Remember a row (dim,) unless all rows of its class are surer. mask: (classes,)."""
        places = self._places[label]
        if len(places) < self.capacity:
            place = self._used
            places.append(place)
            self._entropy.append(entropy)
            self._used += 1
            if place == len(self._keys):
                self._keys, self._label, self._mask = (torch.cat([each, torch.empty_like(each)])
                                                       for each in (self._keys, self._label, self._mask))
        else:
            place = max(places, key=self._entropy.__getitem__, default=-1)
            if place < 0 or entropy >= self._entropy[place]:
                return
            self._entropy[place] = entropy
        self._keys[place], self._label[place] = key, label
        if mask is not None:
            self._mask[place] = mask
