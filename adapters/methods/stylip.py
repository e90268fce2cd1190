"""StyLIP: prompts that the style of every image moves, seen in all blocks of the image model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import ConditionalPrompts, Head
from onceclip.adapters.heads.prompts import conditions
from onceclip.adapters.methods.cocoop import BATCHES, CONDITIONAL, CONDITIONAL_PAPER, CoCoOp
from onceclip.adapters.methods.coop import TOWER_NEEDED, tower_of
from onceclip.adapters.task import Task

STATISTICS = "statistics"


class StyLIP(CoCoOp):
    """CoCoOp whose tokens are moved by mean and deviation of the patches in every block of the image model.

    `v_m + U_m relu(D f + d) + u_m`, with f the statistics, those of every block scaled to unit length together. Every
    token has a projector of its own, which is what the method is named for: the style of an image, in words.

    No code of it was published: that all tokens read all blocks through one hidden layer, and the recipe, are this
    project's, and its branch for the content of an image is left out. Its relative AD-CLIP makes a token of each block
    and adapts to rows without labels. Published numbers of either are not to be compared.

    Source: StyLIP: Multi-Scale Style-Conditioned Prompt Learning for CLIP-based Domain Generalization (Bose et al.,
    WACV 2024), section 3; AD-CLIP (Singha et al., ICCV workshops 2023) for the statistics.

    Example:
        >>> with_outputs = onceclip.make_task(store, shots=2, outputs=["embedding", "statistics"], tower=True)
        >>> classifier = onceclip.adapters.StyLIP(epochs=1).fit(with_outputs)
        >>> classifier.logits(with_outputs.support.input(classifier.inputs)).shape
        torch.Size([8, 4])
    """

    name = "stylip"
    summary = "learned words that the style of every image moves"
    equation = "logits = s x.unit(tower(v + U relu(D f + d) + u, name))', f = mean and deviation of every block"
    needs = f"{TOWER_NEEDED}, statistics of the image model's blocks (extract --layer-statistics)"
    hyperparameters = {**CONDITIONAL, **BATCHES}
    presets = {"cocoop": CONDITIONAL_PAPER}
    inputs = ("embedding", STATISTICS)

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = self.start(prepared, generator)
        width = prepared.support.others[STATISTICS].shape[1:].numel()
        return {"context": context,
                **self.start_of_network(context, prepared.dim, width, context.numel(), generator)}

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        images, features = conditions(rows, prepared.dim, prepared.support.others[STATISTICS].shape[1])
        return cross_entropy(self.logits(prepared, images, self.vectors_of(prepared, parameters, features)), label)

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return ConditionalPrompts.of(tower_of(prepared), self.position, parameters, prepared.logit_scale,
                                     prepared.logit_bias, prepared.support.others[STATISTICS].shape[1])
