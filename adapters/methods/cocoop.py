"""CoCoOp: prompts that a small network moves for every image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import ConditionalPrompts, Head
from onceclip.adapters.heads.conditional_prompts import conditional
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp, tower_of
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_bias, linear_start


class CoCoOp(CoOp):
    """CoOp whose tokens `v_m + U relu(D x + d) + u` depend on the image x, so that they serve unseen classes better.

    Every image, in training and in prediction, takes a pass of the text tower over all classes: hundreds of times
    slower than CoOp. A saved adapter holds the tower.

    Source: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022), equation 3.

    Example:
        >>> onceclip.adapters.CoCoOp(epochs=1).fit(tower_task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "cocoop"
    summary = "learned words that every image moves; one text pass per image"
    source = "Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022"
    equation = "logits = s x.unit(tower(v + U relu(D x + d) + u, name))'"
    hyperparameters = {
        **CONTEXT,
        "reduction": Hyperparameter(16, "width of the embedding over width of the network's layer", low=1, high=4096,
                                    retrain=True),
        "network": Hyperparameter("zero", "how U and u start: at zero, so that the words are what they are, or at "
                                  "random as published", choices=("zero", "random"), retrain=True),
        **{**TRAINING, "epochs": Hyperparameter(10, TRAINING["epochs"].meaning, high=1e6, retrain=True)},
    }
    presets = {"paper": {**PAPER, "words": "a photo of a", "network": "random", "batch_size": 1,
                         "epochs": 10}}

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = self.start(prepared, generator)
        hidden, width, dim = max(1, prepared.dim // self.reduction), context.shape[1], prepared.dim
        start = {"context": context,
                 "down": linear_start((hidden, dim), generator, context),
                 "down_bias": linear_bias(hidden, dim, generator, context),
                 "up": linear_start((width, hidden), generator, context),
                 "up_bias": linear_bias(width, hidden, generator, context)}
        return start if self.network == "random" else {
            name: torch.zeros_like(value) if name.startswith("up") else value for name, value in start.items()}

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        contexts = conditional(**parameters, rows=rows)
        vectors = tower_of(prepared).encode_several(contexts, self.position)
        logits = prepared.logit_scale * (vectors @ rows.unsqueeze(-1)).squeeze(-1) + prepared.logit_bias
        return cross_entropy(logits, label)

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return ConditionalPrompts.of(tower_of(prepared), self.position, parameters, prepared.logit_scale,
                                     prepared.logit_bias)
