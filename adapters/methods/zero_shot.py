"""Zero-shot classification with the class prompts alone."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, PromptMax, PromptWeighted
from onceclip.adapters.heads.prompts import WEIGHTINGS
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class ZeroShot(Method):
    """The baseline of everything: `s x . w_c`, with w_c the class vector, mostly the unit mean of its unit prompts.

    With `prompts=max` a class scores as its best prompt does. With "autoclip" and "softmax" every image gives the
    templates weights of its own, the same for all classes; what the classes do not share, such as the sentences of a
    language model, counts as one template.

    Source: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), section 3.1;
    AutoCLIP (Metzen et al., TMLR 2024).
    """

    name = "zero-shot"
    summary = "class prompts alone, no labelled image"
    family = "baseline"
    equation = "logits_c = s x.w_c,  w_c = unit(mean_p unit(t_cp))"
    hyperparameters = {
        "prompts": Hyperparameter("mean", "how the prompts of a class become one score: by their mean vector, by the "
                                  "best one, or with weights for each image", choices=("mean", "max", *WEIGHTINGS)),
        "entropy": Hyperparameter(0.85, "evenness of the weights of autoclip and softmax, 1 for equal ones", high=1.0),
    }
    needs_support = False
    transfers = True
    weighs = True

    def prepare(self, task: Task) -> Task:
        if self.prompts in WEIGHTINGS and len(task.text.bank) < 2:
            raise MethodError(f"prompts={self.prompts} weighs the templates that all classes share, and this text set "
                              "has fewer than two groups of prompts: use one with several templates, such as "
                              "`onceclip text STORE --name ensemble --templates imagenet-7` makes")
        return task

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        text, scale, bias = prepared.text, prepared.logit_scale, prepared.logit_bias
        if self.prompts == "max":
            return PromptMax(scale * text.unit, text.class_index, prepared.classes, bias)
        if self.prompts in WEIGHTINGS:
            return PromptWeighted(text.bank, scale, bias, self.prompts, self.entropy)
        return zero_shot_head(prepared)

    def check_left_out(self, task: Task) -> None:
        """No image is part of it."""

    def leave_one_out(self, prepared: Task) -> tuple[Tensor, Tensor]:
        logits = self.head(prepared, {})(prepared.support.unit)  # no image is part of them
        return logits, torch.zeros_like(logits)
