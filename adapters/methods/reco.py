"""RECO: images and class vectors refined by what a bank of image-caption pairs has of the other modality."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head
from onceclip.adapters.heads.neighbors import Layer, Refined, nearest_rows, refined
from onceclip.adapters.method import Method
from onceclip.adapters.methods.x_more import captioned_bank
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_start, recipe

_PAIRS = 2**14  # of the bank that are trained on, where it has more
_COMPARED = 2**24  # of them with rows of the bank, at a time
_HEAD_WIDTH = 64
_LAYER = ("query", "key", "value", "out", "wide", "wide_bias", "narrow", "narrow_bias")


@dataclass(frozen=True)
class Pairs:
    """A task with its bank as unit vectors, and the pairs that are trained on.

    image, caption: (bank, dim). chosen: (pairs,) positions of those trained on. captions_near: (pairs, k) the images of
    the bank nearest to a pair's image, whose captions refine it; images_near: (pairs, k) the captions nearest to its
    caption, whose images refine that. A pair is none of its own neighbours.
    """

    task: Task
    image: Tensor
    caption: Tensor
    chosen: Tensor
    captions_near: Tensor
    images_near: Tensor


class RECO(Method):
    """Cosines of images and class vectors after each was refined by its neighbours' other modality in a bank.

    An image x becomes `unit(x + f(x; captions of the k bank images nearest to x))`, a class vector w in the same way
    `unit(w + g(w; images of the k captions nearest to w))`; f and g are one transformer layer each, whose output at x
    or w alone is taken. They start at zero, where the logits are those of zero-shot, and are trained on the pairs of
    the bank alone: the sum of the contrastive losses of refined images and refined captions, of refined images and
    captions, and of images and refined captions, with a learned scale. No label is read, and a pair is never its own
    neighbour. Of a larger bank 16,384 pairs are trained on, and all are looked up.

    The authors published no code; the layer's sizes and the recipe are ours. Instead of a layer norm the unit vectors
    are scaled to a mean square of one, which is what such a norm makes of vectors without a mean.

    Source: Retrieval-Enhanced Contrastive Vision-Text Models (Iscen et al., ICLR 2024), section 3.

    Example:
        >>> import dataclasses
        >>> bank = onceclip.adapters.Pool(torch.randn(30, 64), torch.randn(30, 64))
        >>> onceclip.adapters.RECO(epochs=2).fit(dataclasses.replace(task, bank=bank)).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "reco"
    summary = "images and class vectors refined by a bank's captions and images"
    family = "retrieval"
    equation = "logits = s unit(x + f(x; t_1..t_k)).unit(w + g(w; i_1..i_k))',  f, g trained on the bank's pairs"
    hyperparameters = {
        "neighbours": Hyperparameter(10, "pairs of the bank that an image or a class vector is refined by", low=1,
                                     high=1e5),
        "heads": Hyperparameter(8, "attention heads of a layer, of width 64", low=1, high=64),
        "hidden": Hyperparameter(512, "width of the hidden layer behind the attention", low=1, high=1e5),
        **recipe(learning_rate=1e-5, epochs=10, batch_size=512, weight_decay=0.01),
    }
    needs = "a bank of images with captions (--bank STORE)"
    needs_support = False
    needs_bank = "caption"
    from_bank = True
    shares_steps = False

    def work(self, task: Task) -> int:
        return 0 if task.bank is None else min(len(task.bank), _PAIRS) * task.dim * int(self.hidden)

    def prepare(self, task: Task) -> Pairs:
        image, caption = captioned_bank(task)
        chosen = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))[:_PAIRS].to(image.device)
        pieces = chosen.split(max(1, _COMPARED // len(image)))
        of_images, of_captions = (torch.cat([nearest_rows(each[own], each, int(self.neighbours), own)
                                             for own in pieces]) for each in (image, caption))
        return Pairs(task, image, caption, chosen, of_images, of_captions)

    def initial(self, prepared: Pairs, generator: torch.Generator) -> dict[str, Tensor]:
        dim, like, hidden = prepared.task.dim, prepared.image, int(self.hidden)
        inner, found = int(self.heads) * _HEAD_WIDTH, {}
        for side in ("image", "text"):
            for name in ("query", "key", "value"):
                found[f"{side}.{name}"] = linear_start((inner, dim), generator, like)
            found[f"{side}.out"] = like.new_zeros(dim, inner)
            found[f"{side}.wide"] = linear_start((hidden, dim), generator, like)
            found[f"{side}.wide_bias"] = like.new_zeros(hidden)
            found[f"{side}.narrow"] = like.new_zeros(dim, hidden)
            found[f"{side}.narrow_bias"] = like.new_zeros(dim)
        return {**found, "log_scale": like.new_tensor(math.log(prepared.task.logit_scale))}

    def training_rows(self, task: Task, prepared: Pairs, epoch: int) -> tuple[Tensor, Tensor]:
        return prepared.image[prepared.chosen], torch.arange(len(prepared.chosen), device=prepared.image.device)

    def recorded_rows(self, task: Task, prepared: Pairs, epoch: int) -> None:
        """Its labels are places of pairs, and no classes."""

    def loss(self, prepared: Pairs, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        text, heads = prepared.caption[prepared.chosen[label]], int(self.heads)
        seen = refined(rows, prepared.caption[prepared.captions_near[label]], _layer(parameters, "image"), heads)
        read = refined(text, prepared.image[prepared.images_near[label]], _layer(parameters, "text"), heads)
        scale = parameters["log_scale"].exp()
        return sum((contrastive(scale * first @ second.T) for first, second in
                    ((seen, read), (seen, text), (rows, read))), start=rows.new_zeros(()))

    def head(self, prepared: Pairs, parameters: dict[str, Tensor]) -> Head:
        task, heads = prepared.task, int(self.heads)
        words = unit(task.text.class_weights)
        near = nearest_rows(words, prepared.caption, int(self.neighbours))
        classes = refined(words, prepared.image[near], _layer(parameters, "text"), heads)
        return Refined(parameters["log_scale"].exp() * classes, prepared.image, prepared.caption,
                       _layer(parameters, "image"), heads, int(self.neighbours), task.logit_bias)


def contrastive(logits: Tensor) -> Tensor:
    """InfoNCE of pairs, images among texts and texts among images: logits (n, n), a pair's on the diagonal."""
    pair = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, pair) + cross_entropy(logits.T, pair)) / 2


def _layer(parameters: dict[str, Tensor], side: str) -> Layer:
    return tuple(parameters[f"{side}.{name}"] for name in _LAYER)
