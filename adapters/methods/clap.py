"""CLAP: ZS-LP held near its start, class by class, as far as zero-shot knows the support images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import share_setting
from onceclip.adapters.methods.zs_lp import ZeroShotLinearProbe, base_vectors, cosine_head
from onceclip.adapters.ops import class_sums
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


@dataclass(frozen=True)
class Constraint:
    """A task and how strongly each class is held at its start: weight (classes,), between 0 and 1."""

    task: Task
    weight: Tensor


class CLAP(ZeroShotLinearProbe):
    """ZS-LP with the penalty `mean_c lambda_c |p_c - t_c|^2`, which needs no validation rows.

    `lambda_c` is the mean probability that zero-shot gives to the true class of the support rows of class c; it stays
    as it is. A class without a support row has 1: nothing is known against its text. The penalty is that of class
    vectors of the given `length`; with `base=raw` it depends on the encoder's scale, as the paper's does.

    With `constraint=adaptive` the weights follow an augmented Lagrangian: after every epoch `lambda <- max(lambda + rho
    h, 0)`, `rho <- h`, where `h_c = |p_c - t_c|^2` and rho starts at 0, so that classes that moved far are held more.

    Source: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models (Silva-Rodriguez et al., CVPR
    2024); the penalty is a mean over classes in the authors' code.
    """

    name = "clap"
    summary = "zs-lp held near its start as far as zero-shot is right"
    equation = "as zs-lp, with the penalty mean_c lambda_c |p_c - t_c|^2,  lambda_c: mean zero-shot p(c) of class c"
    hyperparameters = {
        "strength": Hyperparameter(1.0, "factor of the penalty", high=1e6),
        "constraint": Hyperparameter("constant", "whether the weights of the penalty stay or follow an augmented "
                                     "Lagrangian", choices=("constant", "adaptive")),
        **ZeroShotLinearProbe.hyperparameters,
        **share_setting(0.33, by_images=True),
        "learning_rate": Hyperparameter(0.1, "step size at the start of the schedule", high=1000.0),
    }
    state = ("held", "moved")
    weighs = False

    def prepare(self, task: Task) -> Constraint:
        rows, label = task.support.stacked
        head = cosine_head(task, base_vectors(task, self.base, 1.0))
        true = head(rows).softmax(dim=1).gather(1, label.unsqueeze(1)).squeeze(1)
        count = torch.bincount(label, minlength=task.classes)
        mean = class_sums(true, label, task.classes) / count.clamp(min=1)
        return Constraint(task, torch.where(count > 0, mean, 1.0))

    def initial(self, prepared: Constraint, generator: torch.Generator) -> dict[str, Tensor]:  # type: ignore[override]
        start = super().initial(prepared.task, generator)
        if self.constraint == "adaptive":
            start |= {"held": prepared.weight, "moved": torch.zeros_like(prepared.weight)}
        return start

    def training_head(self, prepared: Constraint,  # type: ignore[override]
                      parameters: dict[str, Tensor]) -> Head:
        return super().training_head(prepared.task, parameters)

    def penalty(self, prepared: Constraint, parameters: dict[str, Tensor]) -> Tensor:
        weight = parameters.get("held", prepared.weight)
        return self.strength * (weight * self._distance(prepared, parameters)).mean()

    def after_epoch(self, prepared: Constraint, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        distance = self._distance(prepared, parameters)
        return {"held": (parameters["held"] + parameters["moved"] * distance).clamp(min=0), "moved": distance}

    def _distance(self, prepared: Constraint, parameters: dict[str, Tensor]) -> Tensor:
        """Squared distances (classes,) of the class vectors from their start."""
        return (parameters["prototype"] - base_vectors(prepared.task, self.base, self.length)).square().sum(dim=1)
