"""What one run may look at: text, support rows, validation rows. Test rows have no place in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onceclip.adapters.errors import MethodError

EMBEDDING = "embedding"
OPTIONS = {"token": "tokens"}  # what `extract` calls an output where it is not its name


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors (..., dim) to length one."""
    return normalize(vectors, dim=-1)


@dataclass(frozen=True)
class Text:
    """Raw embeddings of every prompt of every class; classes may have different numbers of prompts.

    embedding: (prompts, dim), raw.
    class_index: (prompts,) int64, the position of each prompt's class in `class_names`.
    class_names: one name per class.
    """

    embedding: Tensor
    class_index: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        index, classes = self.class_index, len(self.class_names)
        inside = index.ndim == 1 and bool(((index >= 0) & (index < classes)).all())
        if not inside or self.embedding.ndim != 2 or len(index) != len(self.embedding):
            raise MethodError(f"text has {len(self.embedding)} prompts that do not match its {classes} classes: give "
                              "every prompt the index of its class")
        if not torch.isfinite(self.embedding).all():
            raise MethodError("text holds NaN or infinity: embed the prompts again")
        counts = torch.bincount(index, minlength=classes)
        if len(self.class_names) < 2:
            raise MethodError(f"a classifier needs at least two classes, the text has {len(self.class_names)}: "
                              "add images and prompts of another class")
        if (counts == 0).any():
            missing = self.class_names[int(torch.nonzero(counts == 0)[0])]
            raise MethodError(f"class {missing!r} has no prompt: add one to the text set")

    def mean_of(self, vectors: Tensor) -> Tensor:
        """Average prompt vectors (prompts, dim) within each class: (classes, dim)."""
        total = vectors.new_zeros(len(self.class_names), vectors.shape[1])
        total.index_add_(0, self.class_index, vectors)
        return total / torch.bincount(self.class_index, minlength=len(total)).unsqueeze(1)

    @cached_property
    def class_weights(self) -> Tensor:
        """Unit class vectors (classes, dim): mean of the unit prompt vectors, scaled to unit length.

        Source: CLIP (Radford et al., 2021), prompt ensembling in embedding space.
        """
        return unit(self.mean_of(unit(self.embedding)))


@dataclass(frozen=True)
class Rows:
    """Labelled image embeddings.

    embedding: (rows, dim), raw.
    label: (rows,) int64, positions in the task's class names.
    views: (rows, views, dim), raw augmented versions of the same images, or None.
    others: further outputs of the encoder by name, such as "preproj" (rows, width) or "token" (rows, tokens, dim).
    """

    embedding: Tensor
    label: Tensor
    views: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

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
        for output, values in self.others.items():
            if len(values) != rows:
                raise MethodError(f"{name} rows are {rows} and have {len(values)} of {output}: give one of every row")
        if not all(torch.isfinite(each).all() for each in (self.embedding, self.views, *self.others.values())
                   if each is not None):
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
            raise MethodError(f"the method needs the output {missing[0]!r} of every image, and the store has none: "
                              f"extract again with --{OPTIONS.get(missing[0], missing[0])}")
        return torch.cat([known[name].flatten(1) for name in names], dim=1)

    @cached_property
    def unit(self) -> Tensor:
        """Unit embeddings (rows, dim) of the plain images."""
        return unit(self.embedding)

    @cached_property
    def centre(self) -> Tensor:
        """Mean of the unit embeddings (dim,)."""
        return self.unit.mean(dim=0)

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

    def epoch(self, number: int) -> Tensor:
        """Unit rows (rows, dim) that training sees in one epoch: the views take turns."""
        return self.unit if self.views is None else unit(self.views[:, number % self.views.shape[1]])


@dataclass(frozen=True)
class Task:
    """Everything that one run may look at.

    text: prompt embeddings of all classes.
    support: the labelled training rows (the shots).
    val: labelled rows for choosing hyperparameters, or None.
    unlabelled: (rows, dim) raw embeddings without labels, or None.
    logit_scale: the encoder's multiplier of cosines (100 for OpenAI CLIP).
    logit_bias: the encoder's additive term (SigLIP), or 0.
    """

    text: Text
    support: Rows
    val: Rows | None = None
    unlabelled: Tensor | None = None
    logit_scale: float = 100.0
    logit_bias: float = 0.0

    def __post_init__(self) -> None:
        for name, rows in (("support", self.support), ("val", self.val)):
            if rows is not None:
                rows.check(name, self.dim, self.classes)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.text.embedding.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.text.class_names)

    def width(self, names: Sequence[str]) -> int:
        """Width of the rows that a classifier with these inputs takes."""
        return self.dim if tuple(names) == (EMBEDDING,) else self.support.input(names).shape[1]

    @cached_property
    def zero_shot_weights(self) -> Tensor:
        """Unit class vectors times the logit scale: (classes, dim)."""
        return self.logit_scale * self.text.class_weights

    @property
    def work(self) -> int:
        """Multiply-adds of one pass of the support over the classes."""
        return len(self.support) * self.dim * self.classes

    def to(self, where: torch.device | torch.dtype | str) -> Task:
        """Copy with all floating tensors on another device or in another precision."""

        def move(value: Tensor) -> Tensor:
            return value if isinstance(where, torch.dtype) and not value.is_floating_point() else value.to(where)

        def rows(value: Rows) -> Rows:
            views = None if value.views is None else move(value.views)
            others = {name: move(each) for name, each in value.others.items()}
            return replace(value, embedding=move(value.embedding), label=move(value.label), views=views, others=others)

        text = replace(self.text, embedding=move(self.text.embedding), class_index=move(self.text.class_index))
        return replace(self, text=text, support=rows(self.support), val=None if self.val is None else rows(self.val),
                       unlabelled=None if self.unlabelled is None else move(self.unlabelled))
