"""CPL: learned prompts that tell an image from the least change that would make it another class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from onceclip.adapters.method import class_head
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp, extended
from onceclip.adapters.ops import class_sums, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


@dataclass(frozen=True, kw_only=True)
class Counterfactuals(Task):
    """A task and the mean image of every class: (classes, dim), unit, or zero where it has none."""

    mean: Tensor


class CPL(CoOp):
    """CoOp with a contrastive loss against counterfactual images `x' = unit((1 - u) x + u n)`.

    `loss = CE + weight mean log(1 + exp(s w_y.x' - s w_y.x))`. n is the mean image of the class whose vector is
    nearest to that of y by the present prompts, among classes with images. The mask u in [0, 1], of every coordinate,
    is the one of the smallest sum under which the class of n scores as high as y; scores are linear in x, so it is
    found by sorting. A row that is taken for that class already is not changed.

    The authors published code of CoOp and CoCoOp alone: how the negative class and its image are chosen (they compare
    captions by BERT), how u is found, and the weight, are this project's. Its published numbers are not to be compared.

    Source: CPL: Counterfactual Prompt Learning for Vision and Language Models (He et al., EMNLP 2022), section 3.
    """

    name = "cpl"
    summary = "CoOp that tells images from counterfactual ones"
    equation = "logits = s x.unit(tower(v, name))'; loss = CE + weight softplus(s w_y.(x' - x)), x' = (1-u) x + u n"
    hyperparameters = {
        **CONTEXT, **TRAINING,
        "weight": Hyperparameter(1.0, "weight of the loss against counterfactual images", high=1e6),
    }
    presets = {"coop": {**PAPER, "words": "", "length": 16}}

    def prepare(self, task: Task) -> Counterfactuals:
        total = class_sums(task.support.unit, task.support.label, task.classes)
        return extended(Counterfactuals, task, mean=unit(total))

    def loss(self, prepared: Counterfactuals, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        vectors = self.vectors(prepared, parameters)
        own = vectors[label]
        with torch.no_grad():
            near = nearest(vectors, prepared.mean.any(dim=1))[label]
            other, target = vectors[near], prepared.mean[near]
            needed = ((own - other) * rows).sum(dim=1)
            changed = counterfactual(rows, target, smallest_mask((other - own) * (target - rows), needed))
        apart = prepared.logit_scale * ((changed - rows) * own).sum(dim=1)
        return cross_entropy(class_head(prepared, vectors)(rows), label) + self.weight * softplus(apart).mean()


def nearest(vectors: Tensor, allowed: Tensor) -> Tensor:
    """The other vector of highest cosine, among allowed ones (n,) bool, of each of some (n, dim): (n,) positions.

    A vector itself where no other is allowed.
    """
    cosine = unit(vectors) @ unit(vectors).T
    cosine = cosine.masked_fill(~allowed, -2).fill_diagonal_(-1.5)
    return cosine.argmax(dim=1)


def smallest_mask(gain: Tensor, needed: Tensor) -> Tensor:
    """The masks (n, dim) within [0, 1] of smallest sum under which `sum mask gain` reaches what is needed.

    Of the largest gains whole ones, and a part of the last. All positive ones where even those are too little.
    gain: (n, dim). needed: (n,); nothing is taken where it is not positive.
    """
    ordered, order = gain.clamp_min(0).sort(dim=1, descending=True)
    left = needed.unsqueeze(1) - (ordered.cumsum(dim=1) - ordered)
    share = (left / ordered.clamp_min(torch.finfo(gain.dtype).tiny)).clamp(0, 1)
    return torch.zeros_like(gain).scatter(1, order, torch.where(ordered > 0, share, 0.0))


def counterfactual(rows: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Unit rows (n, dim) with the share `mask` of every coordinate taken from a target (n, dim)."""
    return unit(rows + mask * (target - rows))
