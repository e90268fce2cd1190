"""The one interface of sources of support rows: rows without labels in, rows with guessed labels out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.ops import whole_precision
from onceclip.adapters.plugin import full_name
from onceclip.adapters.task import Pool, Rows
from onceclip.adapters.text import Text
from onceclip.adapters.training.trainable import Configurable


@dataclass(frozen=True)
class Choice:
    """Rows that a source takes from a pool.

    index: (n,) positions in the pool; a row may stand in several classes. label: (n,) guessed positions of classes.
    weight: (n,), how much each counts, or None for one.
    """

    index: Tensor
    label: Tensor
    weight: Tensor | None = None


class SupportSource(Configurable, ABC):
    """Where support rows come from that nobody labelled. A source is one file with one subclass that writes `choose`.

    name, summary, source: what a user is told of it. hyperparameters: see `Configurable`; the first one is what
    `NAME:K` sets. needs: "image", or "caption" for a pool whose images have captions. from_bank: whether its pool is
    a bank that the user names, and not the training images themselves.

    Example:
        >>> pool = onceclip.adapters.Pool(torch.randn(40, 64))
        >>> rows = onceclip.adapters.support_source("upl:2").support(task.text, pool)
        >>> rows.label.bincount().max() <= 2
        tensor(True)
    """

    summary: ClassVar[str] = ""
    needs: ClassVar[str] = "image"
    from_bank: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    def __str__(self) -> str:
        """The text that names this source with these values; `support_source` reads it."""
        first, *others = self.hyperparameters or ("",)
        text = full_name(type(self)) + (f":{self.values[first]}" if first else "")
        changed = [f"{name}={self.values[name]}" for name in others
                   if self.values[name] != self.hyperparameters[name].default]
        return ",".join([text, *changed])

    @abstractmethod
    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        """Choose rows of a pool and guess their labels. seed: of whatever is random in it."""

    def support(self, text: Text, pool: Pool, seed: int = 0) -> Rows:
        """Support rows with guessed labels; `others` has their captions where the pool has them.

        Raises MethodError if the pool is empty, lacks captions that the source needs, or has another width.
        """
        return rows_of(pool, self.chosen(text, pool, seed))

    def chosen(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        """What `choose` gives, checked. Raises MethodError as `support`."""
        if not len(pool):
            raise MethodError(f"the support source {self.name} has no image to choose from: add images without labels, "
                              "or another bank")
        if pool.image.shape[1] != text.embedding.shape[1]:
            raise MethodError(f"the pool has {pool.image.shape[1]} dimensions and the text has "
                              f"{text.embedding.shape[1]}: take both from one encoder")
        if self.needs == "caption" and pool.caption is None:
            raise MethodError(f"the support source {self.name} needs a caption of every image and the bank has none: "
                              "`onceclip text BANK --captions FILE` embeds them")
        choice = self.choose(text, pool, seed)
        inside = len(choice.index) == len(choice.label) and not choice.index.is_floating_point() and bool(
            ((choice.index >= 0) & (choice.index < len(pool))).all())
        if not inside:
            raise MethodError(f"the support source {self.name} chose rows that the pool does not have, or not a label "
                              "for each: give positions in the pool")
        rows_of(pool, choice).check("chosen", pool.image.shape[1], len(text.class_names))
        return choice


def rows_of(pool: Pool, choice: Choice) -> Rows:
    """The chosen rows of a pool, of the type of its weights or float32; with the captions that it has."""
    def taken(values: Tensor) -> Tensor:
        return whole_precision(values[choice.index])

    others = {} if pool.caption is None else {"caption": taken(pool.caption)}
    return Rows(taken(pool.image), choice.label, others=others, weight=choice.weight)


def probabilities(text: Text, pool: Pool) -> Iterator[tuple[slice, Tensor]]:
    """Zero-shot probabilities (n, classes) of a pool's images, in pieces, and where they are."""
    weights = text.class_weights
    for place, rows in pool.pieces(len(weights)):
        yield place, (pool.logit_scale * rows.to(weights.dtype) @ weights.T).softmax(dim=1)


def most_alike(found: Iterator[tuple[slice, Tensor]], most: int) -> tuple[Tensor, Tensor]:
    """The highest scores of every class and their rows' positions, both (classes, most), best first.

    found: scores (classes, n) of the rows of a pool, in pieces, and where they are; of fewer rows than `most` all.
    """
    scores, index = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for place, each in found:
        here = torch.arange(place.start, place.start + each.shape[1], device=each.device).expand_as(each)
        if scores.numel():
            each, here = torch.cat([scores, each], dim=1), torch.cat([index, here], dim=1)
        scores, order = each.topk(min(most, each.shape[1]), dim=1)
        index = here.gather(1, order)
    return scores, index
