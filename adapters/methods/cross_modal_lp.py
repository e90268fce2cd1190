"""Cross-modal linear probe: prompts are labelled samples beside the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Shared, class_head, share_setting
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, linear_start, recipe

_STEPS = 100  # of an epoch of half batches: after so many the authors look at validation rows


class CrossModalLinearProbe(Shared):
    """A linear layer trained on images and on prompts, each prompt of a class a sample of it.

    `logits = s x H^T`, H from the unit mean prompts and never scaled back to unit length. The loss is the mean
    cross-entropy of the images plus that of the prompts: what the published batches, half images and half prompts, have
    as their mean, but for a factor of two. All prompts take part in every step.

    With `mixed_batches` a step takes half a batch of images and half a batch of prompts, drawn without replacement
    until they are used up, and lowers the mean over both; an epoch is 100 steps. The preset `reference` makes 12,800
    steps of 8 rows, and keeps the best of the 128 states that validation rows see.

    Source: Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models (Lin et al., CVPR
    2023); start, decay and the numbers of `reference` from the authors' code.
    """

    name = "cross-modal-lp"
    summary = "linear layer trained on images and prompts"
    family = "linear"
    equation = "logits = s x.H',  min mean CE(images) + mean CE(prompts)"
    hyperparameters = {
        **share_setting(0.75),
        "start": Hyperparameter("zero-shot", "start values of the layer", choices=("zero-shot", "random")),
        "mixed_batches": Hyperparameter(False, "take half a batch of images and half of prompts per step, 100 times "
                                        "per epoch, instead of a batch of images and all prompts"),
        **recipe(learning_rate=3e-5, epochs=100),
        **keeping(),
    }
    presets = {"reference": {"share": 1.0, "mixed_batches": True, "batch_size": 8, "learning_rate": 1e-4, "epochs": 128,
                             "schedule": "warmup", "warmup": 50, "keep": "best"}}

    def check(self, task: Task) -> None:
        super().check(task)
        if self.mixed_batches:
            task.support.input()  # a stream complains

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        if not self.mixed_batches:
            return super().training_rows(task, prepared, epoch)
        both = (task.support.epoch(epoch), task.support.label), (task.text.unit, task.text.class_index)
        most = max(len(label) for _, label in both)
        place = torch.arange(epoch * most, (epoch + 1) * most, device=both[0][0].device)
        rows, labels = zip(*((rows[place % len(rows)], label[place % len(label)]) for rows, label in both), strict=True)
        return torch.cat(rows), torch.cat(labels)

    def batches(self, count: int, order: torch.Generator) -> Sequence[Tensor | slice]:
        if not self.mixed_batches:
            return super().batches(count, order)
        each = count // 2
        half = min(max(1, self.batch_size // 2), each) if self.batch_size else each
        passes = -(-_STEPS * half // each)
        images, prompts = (torch.cat([torch.randperm(each, generator=order) for _ in range(passes)])[:_STEPS * half]
                           for _ in range(2))
        pairs = zip(images.split(half), prompts.split(half), strict=True)
        return [torch.cat([image, each + prompt]) for image, prompt in pairs]

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        mean = prepared.text.raw_mean
        random = self.start == "random"
        return {"weight": linear_start((prepared.classes, prepared.dim), generator, mean) if random else unit(mean)}

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return class_head(prepared, parameters["weight"])

    def penalty(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        if self.mixed_batches:
            return parameters["weight"].new_zeros(())
        return cross_entropy(self.training_head(prepared, parameters)(prepared.text.unit), prepared.text.class_index)
