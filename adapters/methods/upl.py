"""UPL: prompts learned from images without labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.method import class_head, require_images, zero_shot_head
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TOWER_NEEDED, TRAINING, tower_of
from onceclip.adapters.methods.eco import CONTEXTS, ECO
from onceclip.adapters.ops import best_of_classes, unit
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.training.trainable import Hyperparameter


class UPL(ECO):
    """Contexts learned on the labels that zero-shot is surest of, and the mean of their logits.

    For every class the `top` images that zero-shot predicts to be it with the highest probability are its training
    images. Each context is trained on them by itself, all at once in the same batches. Images are those without labels
    and those of the support, whose labels are not read.

    Source: Unsupervised Prompt Learning for Vision-Language Models (Huang et al., 2022), sections 3.2 and 3.3; the
    paper averages the probabilities of several encoders to choose images, here there is one.
    """

    name = "upl"
    summary = "contexts learned on images that zero-shot is sure of, without labels"
    equation = "logits = s x.mean_k unit(tower(v_k, name))', v_k trained on zero-shot's surest labels"
    needs = f"{TOWER_NEEDED}, images without labels"
    hyperparameters = {
        **CONTEXT,
        **CONTEXTS,
        "top": Hyperparameter(16, "images of every predicted class that are trained on", low=1, high=1e6),
        **TRAINING,
    }
    presets = {"paper": {**PAPER, "words": "", "length": 16, "contexts": 4, "top": 16}}
    needs_support = False
    needs_text = True
    wants_unlabelled = True

    def check(self, task: Task) -> None:
        super().check(task)
        require_images(self, task)

    def prepare(self, task: Task) -> Task:
        given = [task.support.embedding] if task.unlabelled is None else [task.support.embedding, task.unlabelled]
        rows = torch.cat(given)
        probability, label = zero_shot_head(task)(unit(rows)).softmax(dim=1).max(dim=1)
        chosen = best_of_classes(label, probability, task.classes, self.top)
        return replace(task, support=Rows(rows[chosen], label[chosen]), tower=tower_of(task))

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        return prepared.support.unit, prepared.support.label

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        """The sum over contexts, none of which sees another."""
        return torch.stack([cross_entropy(class_head(prepared, each)(rows), label)
                            for each in self.each(prepared, parameters)]).sum()

    def vectors(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        """Their mean, not of unit length: the mean of the logits."""
        return self.each(prepared, parameters).mean(dim=0)
