"""ECO: several learned prompts whose class vectors are averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.methods.coop import CONTEXT, DEVIATION, PAPER, TRAINING, CoOp, tower_of
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

CONTEXTS = {"contexts": Hyperparameter(4, "number of contexts that are learned", low=1, high=1024)}


class ECO(CoOp):
    """CoOp with several contexts, learned together: `w_c = unit(mean_k unit(tower(v_k, name_c)))`.

    Contexts that start as words differ by random vectors of deviation 0.02, the first by none. No code of it was
    published: number of contexts and recipe are chosen here.

    Source: ECO: Ensembling Context Optimization for Vision-Language Models (Agnolucci et al., ICCV workshops 2023).
    """

    name = "eco"
    summary = "several contexts learned together, class vectors averaged"
    equation = "logits = s x.unit(mean_k unit(tower(v_k, name)))'"
    hyperparameters = {**CONTEXT, **CONTEXTS, **TRAINING}
    presets = {"coop": {**PAPER, "words": "", "length": 16}}

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        contexts = torch.stack([self.start(prepared, generator) for _ in range(self.contexts)])
        if self.words.strip():
            noise = DEVIATION * torch.randn(contexts.shape, generator=generator, dtype=torch.float64)
            contexts[1:] += noise[1:].to(contexts)
        return {"context": contexts}

    def vectors(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        return unit(self.each(prepared, parameters).mean(dim=0))

    def each(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        """Unit class vectors of every context (contexts, classes, dim)."""
        return tower_of(prepared).encode_several(parameters["context"], self.position)
