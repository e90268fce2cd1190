"""Meta-Adapter: one attention over each class's support, learnt once and applied to other classes without training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.ops import class_sums, product, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, recipe, xavier_uniform

_LEFT = 1e-6  # of a class's attention, at least, where an image is left out of it


@dataclass(frozen=True)
class Tokens:
    """The text vector and the keys of every class.

    vectors: (classes + rows, dim), the class vectors, then the keys. owner: (classes + rows,) int64, their classes.
    """

    task: Task
    vectors: Tensor
    owner: Tensor


class MetaAdapter(Method):
    """Class vectors move towards what an attention finds in the class's support, by a gate of their own.

    With z the text vector w_c and the keys of class c, `a = softmax((Wq w_c) . (Wk z) / sqrt(dim))`,
    `w'_c = unit(w_c + sigmoid(u . w_c + b) sum a z)` and `logits = s x W'^T`. Nothing here belongs to a class, so the
    trained parameters serve other classes, with the images of these where there are any: `transfer(fitted, task)`.

    In training an image would find itself among its keys, which it never does later. So its own class is taken without
    it (`own_key=left-out`); the published script keeps it (preset `reference`), and pushes the last batches into the
    keys, which without stored views are the same images. It also takes the epoch that is best on the test set. With its
    gate of 1 and five short epochs an image counts nearly as much as the text, and one shot falls below zero-shot; the
    defaults start nearer to zero-shot and train for longer.

    Source: Meta-Adapter: An Online Few-shot Learner for Vision-Language Model (Cheng et al., NeurIPS 2023), equations 3
    to 5; recipe and start values from the authors' code.
    """

    name = "meta-adapter"
    summary = "attention over each class's support, which serves new classes too"
    family = "adapter"
    equation = "logits = s x.W'',  w'_c = unit(w_c + sigmoid(u.w_c + b) attention(w_c; w_c, keys of c))"
    hyperparameters = {
        "gate": Hyperparameter(-1.0, "start of b, the bias of the gate; lower is nearer to zero-shot",
                               search=(-3.0, -1.0), low=-100.0, high=100.0),
        "own_key": Hyperparameter("left-out", "an image's own key in training", choices=("left-out", "kept")),
        **recipe(learning_rate=1e-3, epochs=30, batch_size=256, epsilon=1e-4),
        **keeping(),
    }
    presets = {"reference": {"gate": 1.0, "own_key": "kept", "learning_rate": 1e-4, "epochs": 5, "batch_size": 64,
                             "keep": "best"}}
    transfers = True

    def prepare(self, task: Task) -> Tokens:
        weights = task.text.class_weights
        owner = torch.cat([torch.arange(task.classes, device=weights.device), task.support.label])
        return Tokens(task, torch.cat([weights, task.support.keys]), owner)

    def initial(self, prepared: Tokens, generator: torch.Generator) -> dict[str, Tensor]:
        like, dim = prepared.vectors, prepared.task.dim
        shapes = {"query": (dim, dim), "key": (dim, dim), "gate": (1, dim)}
        start = {name: xavier_uniform(shape, generator, like) for name, shape in shapes.items()}
        return {**start, "gate_bias": like.new_full((1,), self.gate)}

    def head(self, prepared: Tokens, parameters: dict[str, Tensor]) -> Head:
        return self._linear(prepared, parameters, _attended(prepared, _shares(prepared, parameters)))

    def training_rows(self, task: Task, prepared: Tokens, epoch: int) -> tuple[Tensor, Tensor]:
        """Every row has its place among the keys beside it, so that its own can be left out."""
        rows = task.support.epoch(epoch)
        place = torch.arange(len(rows), device=rows.device).to(rows).unsqueeze(1)
        return torch.cat([rows, place], dim=1), task.support.label

    def recorded_rows(self, task: Task, prepared: Tokens, epoch: int) -> tuple[Tensor, Tensor]:
        return super().training_rows(task, prepared, epoch)

    def loss(self, prepared: Tokens, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        task, (rows, place) = prepared.task, rows.split([prepared.task.dim, 1], dim=1)
        shares = _shares(prepared, parameters)
        attended = _attended(prepared, shares)
        logits = self._linear(prepared, parameters, attended)(rows)
        if self.own_key == "left-out":
            token = task.classes + place.squeeze(1).long()
            share = shares[token].unsqueeze(1)
            rest = (attended[label] - share * prepared.vectors[token]) / (1 - share).clamp_min(_LEFT)
            vector = _moved(prepared, parameters, rest, label)
            own = task.logit_scale * (rows * vector).sum(dim=1, keepdim=True) + task.logit_bias
            logits = logits.scatter(1, label.unsqueeze(1), own)
        return cross_entropy(logits, label)

    def _linear(self, prepared: Tokens, parameters: dict[str, Tensor], attended: Tensor) -> Linear:
        vectors = _moved(prepared, parameters, attended, slice(None))
        return class_head(prepared.task, vectors)


def _moved(prepared: Tokens, parameters: dict[str, Tensor], attended: Tensor, which: Tensor | slice) -> Tensor:
    """Vectors of some classes after their gates have let in what they attended to."""
    text = prepared.task.text.class_weights
    gate = (product(text, parameters["gate"]) + parameters["gate_bias"]).sigmoid()
    return unit(text[which] + gate[which] * attended)


def _attended(prepared: Tokens, shares: Tensor) -> Tensor:
    """What every class attends to (classes, dim), of the shares of the tokens (classes + rows,)."""
    return class_sums(shares.unsqueeze(1) * prepared.vectors, prepared.owner, prepared.task.classes)


def _shares(prepared: Tokens, parameters: dict[str, Tensor]) -> Tensor:
    """Attention of every class to its tokens, which sums to one within a class: (classes + rows,)."""
    vectors, owner = prepared.vectors, prepared.owner
    query = product(prepared.task.text.class_weights, parameters["query"])
    # (Wq w) . (Wk z) = (Wk^T Wq w) . z, which maps the few classes and not their many tokens.
    query = product(query, parameters["key"].T)
    score = (query[owner] * vectors).sum(dim=1) / math.sqrt(vectors.shape[1])
    highest = score.new_zeros(prepared.task.classes).scatter_reduce(0, owner, score.detach(), "amax",
                                                                    include_self=False)
    exponential = (score - highest[owner]).exp()
    return exponential / class_sums(exponential, owner, prepared.task.classes)[owner]
