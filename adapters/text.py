"""The text of a task: prompt embeddings, and the class vectors that are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.ops import mover, unit

RULES = ("unit-mean", "raw-mean", "score-mean")


def require_tensors(what: str, *values: Any) -> None:
    """Raise MethodError for a value that is no tensor, such as an array of NumPy. what: they are of."""
    for value in values:
        if not isinstance(value, Tensor):
            raise MethodError(f"{what} with a {type(value).__name__} in the place of a torch tensor: give "
                              "torch.from_numpy(array) of an array")


@dataclass(frozen=True)
class Text:
    """Raw embeddings of every prompt of every class; classes may have different numbers of prompts.

    Without any prompt it is class names alone, (0, dim), for methods that never look at the text.

    embedding: (prompts, dim), raw.
    class_index: (prompts,) int64, the position of each prompt's class in `class_names`.
    class_names: one name per class.
    template_id: (prompts,) int64, which template made each prompt, -1 for none; or None where nobody knows.
    rule: how a class vector is made of prompts, one of RULES.
    prompt_weight: (prompts,) weights of the prompts in the means, of any scale; or None for equal ones.

    Example:
        >>> text = onceclip.adapters.Text(torch.randn(4, 64), torch.tensor([0, 0, 1, 1]), ("cat", "dog"))
        >>> text.class_weights.shape
        torch.Size([2, 64])
    """

    embedding: Tensor
    class_index: Tensor
    class_names: tuple[str, ...]
    template_id: Tensor | None = None
    rule: str = RULES[0]
    prompt_weight: Tensor | None = None

    def __post_init__(self) -> None:
        require_tensors("text", self.embedding, self.class_index)
        index, classes = self.class_index.long(), len(self.class_names)
        inside = index.ndim == 1 and bool(((index == self.class_index) & (index >= 0) & (index < classes)).all())
        if not inside or self.embedding.ndim != 2 or len(index) != len(self.embedding):
            raise MethodError(f"text has {len(self.embedding)} prompts that do not match its {classes} classes: give "
                              "every prompt the index of its class")
        if not torch.isfinite(self.embedding).all():
            raise MethodError("text holds NaN or infinity: embed the prompts again")
        if classes < 2:
            raise MethodError(f"a classifier needs at least two classes, the text has {classes}: "
                              "add images and prompts of another class")
        object.__setattr__(self, "class_index", index)  # whatever whole numbers a user's array has
        missing = torch.nonzero(torch.bincount(index, minlength=classes) == 0)
        if len(missing) and len(index):
            raise MethodError(f"class {self.class_names[int(missing[0])]!r} has no prompt: add one to the text set")
        if self.rule not in RULES:
            raise MethodError(f"no rule {self.rule!r} for class weights: there are: {', '.join(RULES)}")
        for name, values in (("template_id", self.template_id), ("prompt_weight", self.prompt_weight)):
            if values is not None and values.shape != index.shape:
                raise MethodError(f"text has {len(index)} prompts and {name} of shape {tuple(values.shape)}: give one "
                                  "of every prompt")
        if self.prompt_weight is not None and not self._weighs_every_class(self.prompt_weight):
            raise MethodError("prompt_weight must be finite, not negative, and more than zero for some prompt of "
                              "every class")

    def _weighs_every_class(self, weight: Tensor) -> bool:
        total = weight.new_zeros(len(self.class_names)).index_add(0, self.class_index, weight)
        return bool(torch.isfinite(weight).all() and (weight >= 0).all() and (total > 0).all())

    @cached_property
    def unit(self) -> Tensor:
        """Unit prompt vectors (prompts, dim)."""
        return unit(self.embedding)

    def mean_of(self, vectors: Tensor, weight: Tensor | None = None) -> Tensor:
        """Average prompt vectors (prompts, dim) within each class: (classes, dim).

        weight: (prompts,), of any scale; None for equal ones.
        """
        weight = vectors.new_ones(len(vectors)) if weight is None else weight.to(vectors.dtype)
        total = vectors.new_zeros(len(self.class_names), vectors.shape[1])
        total = total.index_add(0, self.class_index, weight.unsqueeze(1) * vectors)
        return total / weight.new_zeros(len(total)).index_add(0, self.class_index, weight).unsqueeze(1)

    def vectors(self, weight: Tensor | None) -> Tensor:
        """Class vectors (classes, dim) by the text's rule; differentiable in the weights.

        weight: (prompts,), of any scale; None for equal ones.
        """
        if self.rule == "raw-mean":
            return unit(self.mean_of(self.embedding, weight))
        mean = self.mean_of(self.unit, weight)
        return mean if self.rule == "score-mean" else unit(mean)

    @cached_property
    def raw_mean(self) -> Tensor:
        """Mean of the raw prompt vectors (classes, dim), of whatever length; TaskRes and CLAP start from it."""
        return self.mean_of(self.embedding, self.prompt_weight)

    @cached_property
    def class_weights(self) -> Tensor:
        """Class vectors (classes, dim): what a cosine becomes a zero-shot score with.

        "unit-mean": mean of the unit prompt vectors, scaled to unit length. "raw-mean": mean of the raw ones, scaled
        to unit length, so that long prompt vectors count more. "score-mean": mean of the unit ones as it is, so that
        the score is the mean of the prompts' cosines and classes of diverse prompts score lower.

        Source: CLIP (Radford et al., 2021), prompt ensembling in embedding space; TaskRes (Yu et al., CVPR 2023);
        Visual Classification via Description (Menon and Vondrick, ICLR 2023).
        """
        return self.vectors(self.prompt_weight)

    @cached_property
    def groups(self) -> Tensor:
        """Which group each prompt belongs to (prompts,) int64; every group has prompts of all classes.

        A template that all classes have is a group, in the order of templates; what is left, such as the sentences of
        a language model, is the last one. One group alone where the rest leaves out a class.
        """
        everything = torch.zeros_like(self.class_index)
        if self.template_id is None:
            return everything
        group, number = torch.full_like(self.class_index, -1), 0
        for template in self.template_id.unique().tolist():
            members = self.template_id == template
            if template >= 0 and self._covers_all(members):
                group[members] = number
                number += 1
        rest = group < 0
        if rest.any() and not self._covers_all(rest):
            return everything
        return group.masked_fill(rest, number)

    def _covers_all(self, members: Tensor) -> bool:
        return len(self.class_index[members].unique()) == len(self.class_names)

    @cached_property
    def bank(self) -> Tensor:
        """Mean of the unit prompt vectors of every group and class, as it is: (groups, classes, dim)."""
        classes, groups = len(self.class_names), int(self.groups.max()) + 1
        cell = self.groups * classes + self.class_index
        total = self.unit.new_zeros(groups * classes, self.unit.shape[1]).index_add(0, cell, self.unit)
        count = torch.bincount(cell, minlength=groups * classes).unsqueeze(1)
        return (total / count).view(groups, classes, -1)

    def to(self, where: torch.device | torch.dtype | str) -> Text:
        """Copy with all floating tensors on another device or in another precision."""
        move = mover(where)
        return replace(self, embedding=move(self.embedding), class_index=move(self.class_index),
                       template_id=move(self.template_id), prompt_weight=move(self.prompt_weight))
