"""CLIP-A-self: self-attention over the sentences of each class, on the text side alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.ops import place_in_class, product, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, recipe, xavier_normal

_GAIN = 0.67  # of the start values behind the attention


@dataclass(frozen=True)
class Sentences:
    """Where the prompts of each class stand in a table of (classes, most) cells; classes may have different numbers.

    cell: (prompts,) int64. present: (classes, most), False where a class has fewer prompts.
    """

    task: Task
    cell: Tensor
    present: Tensor

    def table(self, values: Tensor) -> Tensor:
        """Spread values (prompts, n) over the table: (classes, most, n)."""
        cells = values.new_zeros(self.present.numel(), values.shape[1]).index_copy(0, self.cell, values)
        return cells.view(*self.present.shape, -1)


class ClipASelf(Method):
    """The sentences of a class look at each other, then make its vector; images stay as they are.

    For the raw sentences T of a class: `H = softmax(T Wq^T (T Wk^T)^T / sqrt(d)) T Wv^T`, one head of width d,
    `o = LayerNorm(2 (r (H Wo^T + b) + (1 - r) T))`, `w_c = unit(mean o)`, `logits = s x W^T`, with dropout on the
    attention and behind Wo. The LayerNorm takes away the length and the mean of a sentence, so r = 0 is close to
    zero-shot and not the same. The published code needs equally many sentences for every class; here cells without one
    are masked. Its variant without attention is `clip-adapter` with `branch=text`. The preset `reference` is the
    authors' recipe for ResNet-50, which takes some thirty times as many steps.

    Source: Enhancing CLIP with GPT-4: Harnessing Visual Descriptions as Prompts (Maniparambil et al., ICCV workshops
    2023), section 3.3; layers and start values from the authors' code (VDT-Adapter), which tunes r on the test set.
    """

    name = "clip-a-self"
    summary = "self-attention over each class's sentences"
    family = "adapter"
    equation = "logits = s x.W',  w_c = unit(mean_p LayerNorm(2 (r attention(t_cp; T_c) + (1-r) t_cp)))"
    needs = "several sentences per class, such as a language model writes, to be more than a residual map of the text"
    hyperparameters = {
        "ratio": Hyperparameter(0.2, "share of what a sentence sees; the authors' in most of their runs",
                                search=(0.1, 0.2, 0.4), high=1.0),
        "reduction": Hyperparameter(4, "width of the embedding over width of the attention", low=1, high=4096),
        "attention_dropout": Hyperparameter(0.1, "share of the attention that training drops", high=0.99),
        "dropout": Hyperparameter(0.5, "share of its result that training drops", high=0.99),
        **recipe(learning_rate=1e-3, epochs=50, batch_size=256),
        **keeping(),
    }
    presets = {"reference": {"learning_rate": 2e-3, "epochs": 200, "batch_size": 32, "weight_decay": 5e-4,
                             "optimizer": "sgd", "schedule": "dassl"}}
    transfers = True

    def prepare(self, task: Task) -> Sentences:
        owner = task.text.class_index
        count = torch.bincount(owner, minlength=task.classes)
        most = int(count.max())
        present = torch.arange(most, device=owner.device) < count.unsqueeze(1)
        return Sentences(task, owner * most + place_in_class(owner, task.classes), present)

    def initial(self, prepared: Sentences, generator: torch.Generator) -> dict[str, Tensor]:
        like, dim = prepared.task.text.embedding, prepared.task.dim
        inner = max(1, dim // self.reduction)
        return {"query": xavier_normal((inner, dim), generator, like),
                "key": xavier_normal((inner, dim), generator, like),
                "value": xavier_normal((inner, dim), generator, like, _GAIN),
                "out": xavier_normal((dim, inner), generator, like, _GAIN), "out_bias": like.new_zeros(dim),
                "norm": like.new_ones(dim), "norm_bias": like.new_zeros(dim)}

    def head(self, prepared: Sentences, parameters: dict[str, Tensor]) -> Head:
        return self._linear(prepared, parameters, None)

    def loss(self, prepared: Sentences, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        return cross_entropy(self._linear(prepared, parameters, generator)(rows), label)

    def _linear(self, prepared: Sentences, parameters: dict[str, Tensor], noise: torch.Generator | None) -> Linear:
        task, sentences = prepared.task, prepared.task.text.embedding
        query, key, value = (prepared.table(product(sentences, parameters[name])) for name in ("query", "key", "value"))
        score = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        attention = score.masked_fill(~prepared.present.unsqueeze(1), -math.inf).softmax(dim=-1)
        seen = (_dropped(attention, self.attention_dropout, noise) @ value).flatten(0, 1)[prepared.cell]
        seen = _dropped(product(seen, parameters["out"]) + parameters["out_bias"], self.dropout, noise)
        mixed = layer_norm(2 * (self.ratio * seen + (1 - self.ratio) * sentences), (task.dim,), parameters["norm"],
                           parameters["norm_bias"])
        return class_head(task, unit(task.text.mean_of(mixed)))


def _dropped(values: Tensor, share: float, noise: torch.Generator | None) -> Tensor:
    """Put a random share of values to zero and raise the others in return; none without noise."""
    if noise is None:
        return values
    return values * (torch.rand(values.shape, generator=noise) >= share).to(values) / (1 - share)
