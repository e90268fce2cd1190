"""Support rows that are read again in every epoch, because they do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.task import Rows
from onceclip.adapters.unit import unit

BLOCK = 16384  # rows that are read in one go


class Stream(Rows):
    """Labelled rows behind a reader; at most a few blocks of them are in memory.

    label: (rows,) int64, positions in the task's class names.
    reader: gives raw embeddings (BLOCK, dim) for positions (n,), in the order asked for, reading ahead.
    like: an empty tensor of the type and on the device that the rows are to have.
    """

    def __init__(self, label: Tensor, reader: Callable[[np.ndarray], Iterator[np.ndarray]], like: Tensor) -> None:
        for name, value in {"label": label, "reader": reader, "like": like, "views": None, "others": {}}.items():
            object.__setattr__(self, name, value)

    reader: Callable[[np.ndarray], Iterator[np.ndarray]]
    like: Tensor

    @property
    def embedding(self) -> NoReturn:
        """Not to be had.

        Raises MethodError.
        """
        raise MethodError("the method needs all support rows in memory: leave out --stream, take fewer shots, or use a "
                          "method that is trained in batches, such as zs-lp or clip-adapter")

    def check(self, name: str, dim: int, classes: int) -> None:
        """Raise MethodError unless the labels are those of a text with so many classes."""
        if ((self.label < 0) | (self.label >= classes)).any():
            raise MethodError(f"{name} labels do not fit the text's {classes} classes: label rows by their position in "
                              "class_names")

    def blocks(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows once, as unit rows (n, dim) with their labels (n,): blocks in random order, a short one last.

        The next block is made ready while the present one is used.
        """
        whole, rest = divmod(len(self), BLOCK)
        numbers = [*torch.randperm(whole, generator=order).tolist(), *([whole] if rest else [])]
        positions = [torch.arange(number * BLOCK, min((number + 1) * BLOCK, len(self))) for number in numbers]
        ready = ((unit(torch.from_numpy(values).to(self.like)), self.label[places].to(self.like.device))
                 for places, values in zip(positions, self.reader(torch.cat(positions).numpy()), strict=True))
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(next, ready, None)
            while (block := upcoming.result()) is not None:
                upcoming = ahead.submit(next, ready, None)
                yield block

    def to(self, move: Callable[[Any], Any]) -> Stream:
        """Copy whose rows come in the type and on the device that `move` gives a tensor."""
        return Stream(self.label, self.reader, move(self.like))
