"""What one run may look at: text, support rows, validation rows. Test rows have no place in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from onceclip.adapters.errors import MethodError
from onceclip.adapters.ops import mover, unit, whole_precision
from onceclip.adapters.text import Text, require_tensors
from onceclip.adapters.tower import TextTower

EMBEDDING = "embedding"
OPTIONS = {"token": "tokens", "view": "views N", "statistics": "layer-statistics"}  # an output to `extract`


@dataclass(frozen=True)
class Rows:
    """Labelled image embeddings.

    embedding: (rows, dim), raw.
    label: (rows,) int64, positions in the task's class names.
    views: (rows, views, dim), raw augmented versions of the same images, or None.
    others: further outputs of the encoder by name, such as "preproj" (rows, width) or "token" (rows, tokens, dim).
    weight: (rows,), how much each row counts, not negative; None for one. Methods that cannot weigh rows refuse them.
    group: (rows,) int64, the same for images that know of each other, such as frames of a video; -1 or None for none.

    Example:
        >>> rows = onceclip.adapters.Rows(torch.randn(6, 64), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> len(rows), rows.unit.shape
        (6, torch.Size([6, 64]))
    """

    embedding: Tensor
    label: Tensor
    views: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    group: Tensor | None = None

    def __post_init__(self) -> None:
        require_tensors("rows", self.embedding, self.label)
        if not self.label.is_floating_point():
            object.__setattr__(self, "label", self.label.long())  # whatever whole numbers a user's array has

    def __len__(self) -> int:
        return len(self.label)

    def check(self, name: str, dim: int, classes: int) -> None:
        """Raise MethodError, which names the rows, unless they fit together and a text of this width and number."""
        shape, rows = tuple(self.embedding.shape), len(self.embedding)
        if shape != (rows, dim):
            raise MethodError(f"{name} rows of shape {shape} have {shape[-1]} dimensions and the text has {dim}: give "
                              "(rows, dim), both from one encoder")
        if self.label.shape != (rows,) or self.label.is_floating_point():
            raise MethodError(f"{name} rows have {rows} embeddings and a label of shape {tuple(self.label.shape)}: "
                              "give a whole number per row")
        if ((self.label < 0) | (self.label >= classes)).any():
            raise MethodError(f"{name} labels go from {int(self.label.min())} to {int(self.label.max())}, the text has "
                              f"{classes} classes: label rows by their position in class_names")
        if self.views is not None and (self.views.ndim != 3 or self.views.shape[::2] != (rows, dim)):
            raise MethodError(f"{name} views have shape {tuple(self.views.shape)}: give ({rows}, views, {dim})")
        for output, values in (*self.others.items(), *([] if self.group is None else [("group", self.group)])):
            if len(values) != rows:
                raise MethodError(f"{name} rows are {rows} and have {len(values)} of {output}: give one of every row")
        if self.weight is not None and (self.weight.shape != (rows,) or not (self.weight >= 0).all()):
            raise MethodError(f"{name} rows are {rows} and have weights of shape {tuple(self.weight.shape)}, or "
                              "negative ones: give a number from 0 up for every row")
        if not all(torch.isfinite(each).all()
                   for each in (self.embedding, self.views, self.weight, *self.others.values()) if each is not None):
            raise MethodError(f"{name} rows hold NaN or infinity: leave bad images out of the task")

    def input(self, names: Sequence[str] = (EMBEDDING,)) -> Tensor:
        """What a classifier with these inputs takes: the named outputs side by side, raw (rows, width).

        Raises MethodError if an output is missing.
        """
        if tuple(names) == (EMBEDDING,):
            return self.embedding
        known = {EMBEDDING: self.embedding, **self.others}
        missing = [name for name in names if name not in known]
        if missing:
            how = (f"join a store that has it for every image, with --join {missing[0].partition('/')[0]}=STORE"
                   if "/" in missing[0] else f"extract again with --{OPTIONS.get(missing[0], missing[0])}")
            raise MethodError(f"the method needs the output {missing[0]!r} of every image, and the store has none: "
                              f"{how}")
        return torch.cat([known[name].flatten(1) for name in names], dim=1)

    def to(self, move: Callable[[Any], Any]) -> Rows:
        """Copy with all tensors moved by a function."""
        return replace(self, embedding=move(self.embedding), label=move(self.label), views=move(self.views),
                       others={name: move(each) for name, each in self.others.items()}, weight=move(self.weight),
                       group=move(self.group))

    def at(self, which: Tensor | slice) -> Rows:
        """Some of the rows: those of a slice, a mask (rows,) or positions (n,)."""
        return self.to(lambda value: value[which] if isinstance(value, Tensor) else value)

    def joined(self, other: Rows) -> Rows:
        """These rows and others behind them: what one of the two lacks is left out, but a missing weight counts one."""
        def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            return None if first is None or second is None else torch.cat([first, second])

        weights = [each.embedding.new_ones(len(each)) if each.weight is None else each.weight for each in (self, other)]
        return Rows(torch.cat([self.embedding, other.embedding]), torch.cat([self.label, other.label]),
                    both(self.views, other.views),
                    {name: torch.cat([self.others[name], other.others[name]]) for name in self.others
                     if name in other.others},
                    None if self.weight is None and other.weight is None else torch.cat(weights),
                    both(self.group, other.group))

    @cached_property
    def unit(self) -> Tensor:
        """Unit embeddings (rows, dim) of the plain images."""
        return unit(self.embedding)

    @cached_property
    def centre(self) -> Tensor:
        """Mean of the unit embeddings (dim,)."""
        return self.unit.mean(dim=0)

    @cached_property
    def shots(self) -> float:
        """Rows per class, the mean of the classes that have any."""
        return len(self.label) / max(len(self.label.unique()), 1)

    @cached_property
    def keys(self) -> Tensor:
        """One unit key per image (rows, dim): the mean of its raw views, then unit length.

        Source: Tip-Adapter (Zhang et al., 2022), construction of the cache model.
        """
        return self.unit if self.views is None else unit(self.views.mean(dim=1))

    @cached_property
    def stacked(self) -> tuple[Tensor, Tensor]:
        """Every view as a unit row of its own: (rows x views, dim) and their labels."""
        if self.views is None:
            return self.unit, self.label
        return unit(self.views).flatten(0, 1), self.label.repeat_interleave(self.views.shape[1])

    @property
    def stacked_weight(self) -> Tensor:
        """How much each row of `stacked` counts, every view as its image: (rows x views,), in float64."""
        if self.weight is None:
            return self.unit.new_ones(len(self.stacked[1]), dtype=torch.float64)
        return self.weight.double().repeat_interleave(len(self.stacked[1]) // max(len(self), 1))

    def epoch(self, number: int) -> Tensor:
        """Unit rows (rows, dim) that training sees in one epoch: the views take turns."""
        return self.unit if self.views is None else unit(self.views[:, number % self.views.shape[1]])


@dataclass(frozen=True)
class Pool:
    """Rows without labels that support is chosen from: of this store, or a bank, another store of the same encoder.

    image: (rows, dim), raw, of any floating type. caption: (rows, dim), the mean of the unit embeddings of each image's
    captions, or None where it has none. logit_scale: the encoder's multiplier of cosines.

    Example:
        >>> len(onceclip.adapters.Pool(torch.randn(6, 64)))
        6
    """

    image: Tensor
    caption: Tensor | None = None
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or not (self.caption is None or self.caption.shape == self.image.shape):
            raise MethodError(f"a pool has images of shape {tuple(self.image.shape)}: give (rows, dim), and captions "
                              "of the same shape or None")

    def __len__(self) -> int:
        return len(self.image)

    def pieces(self, classes: int, of: str = "image") -> Iterator[tuple[slice, Tensor]]:
        """Unit rows (n, dim) in pieces whose logits take little memory, and where they are.

        of: "image" or "caption".
        """
        values, step = self.image if of == "image" else self.caption, max(1, _PAIRS // max(classes, 1))
        for start in range(0, len(self), step):
            place = slice(start, start + step)
            yield place, unit(whole_precision(values[place]))  # type: ignore[index] # who asks has seen to it

    def to(self, move: Callable[[Any], Any]) -> Pool:
        """Copy with all tensors moved by a function."""
        return replace(self, image=move(self.image), caption=move(self.caption))


_PAIRS = 2**24  # of pool rows and classes that are scored at a time


@dataclass(frozen=True)
class Task:
    """Everything that one run may look at.

    text: prompt embeddings of all classes.
    support: the labelled training rows (the shots), or a stream of them where they do not fit into memory.
    val: labelled rows for choosing hyperparameters, or None.
    unlabelled: (rows, dim) raw embeddings without labels, or None.
    logit_scale: the encoder's multiplier of cosines (100 for OpenAI CLIP).
    logit_bias: the encoder's additive term (SigLIP), or 0.
    projection: (width, dim), what the encoder multiplies its output "preproj" with to give the embedding, or None.
    projection_bias: (dim,), what it adds to that, or None.
    tower: the encoder's text model, for methods that learn prompts, or None.
    bank: a pool that a method keeps to look things up in, or None.

    Example:
        >>> text = onceclip.adapters.Text(torch.randn(3, 64), torch.arange(3), ("cat", "dog", "fox"))
        >>> support = onceclip.adapters.Rows(torch.randn(6, 64), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> own_task = onceclip.adapters.Task(text, support, logit_scale=100.0)
        >>> onceclip.adapters.TipAdapter().fit(own_task).logits(embeddings).shape
        torch.Size([5, 3])
    """

    text: Text
    support: Rows
    val: Rows | None = None
    unlabelled: Tensor | None = None
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    projection: Tensor | None = None
    projection_bias: Tensor | None = None
    tower: TextTower | None = None
    bank: Pool | None = None

    def __post_init__(self) -> None:
        if self.bank is not None and self.bank.image.shape[1] != self.dim:
            raise MethodError(f"the bank has {self.bank.image.shape[1]} dimensions and the text has {self.dim}: take "
                              "both from one encoder")
        for name, rows in (("support", self.support), ("val", self.val)):
            if rows is not None:
                rows.check(name, self.dim, self.classes)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.text.embedding.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.text.embedding.device

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.text.class_names)

    def width(self, names: Sequence[str]) -> int:
        """Width of the rows that a classifier with these inputs takes."""
        return self.dim if tuple(names) == (EMBEDDING,) else self.support.input(names).shape[1]

    @cached_property
    def zero_shot_weights(self) -> Tensor:
        """Class vectors times the logit scale: (classes, dim)."""
        return self.logit_scale * self.text.class_weights

    @property
    def work(self) -> int:
        """Multiply-adds of one pass of the support over the classes."""
        return len(self.support) * self.dim * self.classes

    def to(self, where: torch.device | torch.dtype | str) -> Task:
        """Copy with all floating tensors on another device or in another precision."""
        move = mover(where)
        val = None if self.val is None else self.val.to(move)
        return replace(self, text=self.text.to(where), support=self.support.to(move), val=val,
                       unlabelled=move(self.unlabelled), projection=move(self.projection),
                       projection_bias=move(self.projection_bias), tower=self.tower and self.tower.to(where),
                       bank=None if self.bank is None else self.bank.to(move))


BLOCK = 16384  # rows that are read in one go


class Stream(Rows):
    """Labelled rows behind a reader; at most a few blocks of them are in memory.

    label: (rows,) int64, positions in the task's class names.
    reader: gives the raw embeddings (n, dim) of positions (n,), of one block; the stream reads ahead by itself.
    like: an empty tensor of the type and on the device that the rows are to have.
    """

    def __init__(self, label: Tensor, reader: Callable[[np.ndarray], np.ndarray], like: Tensor) -> None:
        for name, value in {"label": label, "reader": reader, "like": like, "views": None, "others": {},
                            "weight": None, "group": None}.items():
            object.__setattr__(self, name, value)

    reader: Callable[[np.ndarray], np.ndarray]
    like: Tensor

    @property
    def embedding(self) -> NoReturn:
        """Not to be had.

        Raises MethodError.
        """
        raise MethodError("the method needs all support rows in memory: leave out --stream, take fewer shots, or use a "
                          "method that is trained in batches, such as zs-lp or clip-adapter")

    def at(self, which: Tensor | slice) -> Rows:
        """Not to be had, as all rows.

        Raises MethodError.
        """
        return self.embedding

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
        ready = ((self._unit(self.reader(places.numpy())), self.label[places].to(self.like.device))
                 for places in positions)
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(next, ready, None)
            while (block := upcoming.result()) is not None:
                upcoming = ahead.submit(next, ready, None)
                yield block

    def _unit(self, values: np.ndarray) -> Tensor:
        """Unit rows (n, dim) of raw ones, in one copy: memory that is new takes longer than the arithmetic."""
        rows = torch.from_numpy(values).to(self.like, copy=True)
        return normalize(rows, dim=-1, out=rows)

    def to(self, move: Callable[[Any], Any]) -> Stream:
        """Copy whose rows come in the type and on the device that `move` gives a tensor."""
        return Stream(self.label, self.reader, move(self.like))
