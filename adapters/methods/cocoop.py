"""CoCoOp: prompts that a small network moves for every image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import ConditionalPrompts, Head
from onceclip.adapters.heads.prompts import conditional
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp, tower_of
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_bias, linear_start

CONDITIONAL = {
    **CONTEXT,
    "reduction": Hyperparameter(16, "width of the embedding over width of the network's layer", low=1, high=4096),
    "network": Hyperparameter("zero", "how U and u start: at zero, so that the words are what they are, or at random "
                              "as published", choices=("zero", "random")),
    **{**TRAINING, "epochs": Hyperparameter(10, TRAINING["epochs"].meaning, high=1e6)},
}
# Of every image all prompts are encoded: larger steps cost as much as more of them.
BATCHES = {"batch_size": Hyperparameter(32, TRAINING["batch_size"].meaning, high=2**31)}
CONDITIONAL_PAPER = {**PAPER, "words": "a photo of a", "network": "random", "batch_size": 1, "epochs": 10}


class CoCoOp(CoOp):
    """CoOp whose tokens `v_m + U relu(D x + d) + u` depend on the image x, so that they serve unseen classes better.

    Every image, in training and in prediction, takes a pass of the text tower over all classes: hundreds of times
    slower than CoOp. A saved adapter holds the tower.

    Source: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022), equation 3.
    """

    name = "cocoop"
    summary = "learned words that every image moves; one text pass per image"
    equation = "logits = s x.unit(tower(v + U relu(D x + d) + u, name))'"
    hyperparameters = CONDITIONAL
    presets = {"paper": CONDITIONAL_PAPER}

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = self.start(prepared, generator)
        return {"context": context, **self.start_of_network(context, prepared.dim, prepared.dim, context.shape[1],
                                                            generator)}

    def start_of_network(self, like: Tensor, dim: int, inputs: int, outputs: int,
                         generator: torch.Generator) -> dict[str, Tensor]:
        """Start values of what moves the context. dim: of the embedding. inputs, outputs: widths of the network."""
        hidden = max(1, dim // self.reduction)
        start = {"down": linear_start((hidden, inputs), generator, like),
                 "down_bias": linear_bias(hidden, inputs, generator, like),
                 "up": linear_start((outputs, hidden), generator, like),
                 "up_bias": linear_bias(outputs, hidden, generator, like)}
        return start if self.network == "random" else {
            name: torch.zeros_like(value) if name.startswith("up") else value for name, value in start.items()}

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        return cross_entropy(self.logits(prepared, rows, self.vectors_of(prepared, parameters, rows)), label)

    def vectors_of(self, prepared: Task, parameters: dict[str, Tensor], features: Tensor) -> Tensor:
        """Unit class vectors (n, classes, dim) of the prompts of every row of features (n, width)."""
        return tower_of(prepared).encode_several(conditional(**parameters, features=features), self.position)

    @staticmethod
    def logits(prepared: Task, images: Tensor, vectors: Tensor) -> Tensor:
        """Logits (n, classes) of unit images (n, dim) with class vectors of their own (n, classes, dim)."""
        return prepared.logit_scale * (vectors @ images.unsqueeze(-1)).squeeze(-1) + prepared.logit_bias

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return ConditionalPrompts.of(tower_of(prepared), self.position, parameters, prepared.logit_scale,
                                     prepared.logit_bias)
