"""MoCoOp: several learned prompts, of which a router gives each image two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head, RoutedPrompts
from onceclip.adapters.heads.prompts import gates
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING
from onceclip.adapters.methods.eco import CONTEXTS, ECO
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_start

_SMALLEST = 1e-8  # share of a gate, whose logarithm is taken


class MoCoOp(ECO):
    """Contexts as experts: `logits = sum_k g_k(x) s x . w_kc`, with g the softmax over the two largest of `r_k . x`.

    `loss = CE + guide KL(hard gates || gates) + text CE_text`. Expert k belongs to group k of the text set's templates,
    in turn. Hard gates are those of the same form that the mean vectors of the groups give; the last term has every
    prompt of a group named by its expert. No code of it was published: how gates of written prompts are made, the
    number of experts and all weights are chosen here.

    Source: Mixture of Prompt Learning for Vision-Language Models (Du et al., 2024), sections 3.2 to 3.4.
    """

    name = "mocoop"
    summary = "several contexts, of which a router gives each image two"
    equation = "logits = s sum_k g_k(x) x.unit(tower(v_k, name))', g = softmax of the two largest r_k.x"
    hyperparameters = {
        **CONTEXT,
        **CONTEXTS,
        "top": Hyperparameter(2, "experts that an image is given to", low=1, high=1024),
        "guide": Hyperparameter(1.0, "weight of the distance from the gates of written prompts", high=1e6),
        "text": Hyperparameter(1.0, "weight of the loss on the prompts of each expert's group", high=1e6),
        **TRAINING,
    }
    presets = {"coop": {**PAPER, "words": "", "length": 16}}
    needs_text = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        start = super().initial(prepared, generator)
        return {**start, "router": linear_start((self.contexts, prepared.dim), generator, start["context"])}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return RoutedPrompts(parameters["router"], prepared.logit_scale * self.each(prepared, parameters), self.top,
                             prepared.logit_bias)

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        vectors, router, text = self.each(prepared, parameters), parameters["router"], prepared.text
        head = RoutedPrompts(router, prepared.logit_scale * vectors, self.top, prepared.logit_bias)
        group = torch.arange(self.contexts, device=rows.device) % len(text.bank)
        hard = gates(prepared.logit_scale * rows @ unit(text.bank.mean(dim=1))[group].T, self.top)
        soft = (rows @ router.T).log_softmax(dim=1)
        guide = (hard * (hard.clamp_min(_SMALLEST).log() - soft)).sum(dim=1).mean()
        named = [cross_entropy(prepared.logit_scale * text.unit[text.groups == number] @ own.T,
                               text.class_index[text.groups == number])
                 for number, own in zip(group.tolist(), vectors, strict=True)]
        return cross_entropy(head(rows), label) + self.guide * guide + self.text * torch.stack(named).mean()
