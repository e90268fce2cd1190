"""TaskRes: a trained residual on the class vectors, independent of the text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, Shared, share_setting
from onceclip.adapters.methods.zs_lp import DROP_LAST, base_settings, base_vectors, cosine_head
from onceclip.adapters.task import Task
from onceclip.adapters.text import Text
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run
from onceclip.adapters.training.trainable import Hyperparameter, recipe


class TextProjection(Method):
    """A linear map of the class vectors, trained from the identity: TaskRes's enhanced base.

    The authors train the encoder's text projection anew. An embedding is that projection of what the text tower gives,
    and as long as the tower is no wider than the embedding, every other projection of it is a linear map of this one.
    """

    name = "text-projection"
    hyperparameters = recipe(learning_rate=1e-4, epochs=50, weight_decay=0.0, optimizer="adam")

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        like = prepared.text.embedding
        return {"matrix": torch.eye(prepared.dim, dtype=like.dtype, device=like.device)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return cosine_head(prepared, prepared.text.raw_mean @ parameters["matrix"].T)


@dataclass(frozen=True)
class Bases:
    """A task, and the same one with the class vectors that the residual is added to."""

    task: Task
    enhanced: Task


class TaskRes(Shared):
    """Class vectors `t_c + alpha r_c` with a trained residual r, zero at the start, compared by cosine.

    Adam with coupled decay, so that classes without evidence stay at their text. The paper trains 100 epochs up to 4
    shots and 200 from 8 on, with a tenth of the step size on ImageNet. It also studies a trained alpha, one number
    (`learn_alpha`), and an enhanced base, the text projection trained first: for `enhanced` epochs, with a step size of
    our own, since the authors' code only downloads the result.

    Source: Task Residual for Tuning Vision-Language Models (Yu et al., CVPR 2023); optimizer and schedule from
    the authors' code.
    """

    name = "taskres"
    summary = "trained residual on the class vectors"
    family = "residual"
    equation = "logits_c = s x.unit(t_c + alpha r_c),  r from 0 by cross-entropy"
    hyperparameters = {
        **share_setting(0.33, by_images=True),
        "alpha": Hyperparameter(0.5, "weight of the residual", high=100.0),
        "learn_alpha": Hyperparameter(False, "train the weight too, from the value of `alpha`"),
        "enhanced": Hyperparameter(0, "epochs in which a linear map of the class vectors is trained first, the "
                                   "enhanced base; 0 for none", high=1e6),
        **base_settings(length=10.0),
        **recipe(learning_rate=2e-3, epochs=100, batch_size=256, weight_decay=5e-4, optimizer="adam",
                 schedule="dassl"),
        **DROP_LAST,
    }
    presets = {name: {"share": 1.0, "base": "raw", "drop_last": True, **values} for name, values in
               (("reference", {}), ("reference-8-shots", {"epochs": 200}),
                ("reference-imagenet", {"learning_rate": 2e-4}))}
    weighs = True
    by_images = True

    def prepare(self, task: Task) -> Bases:
        if not self.enhanced:
            return Bases(task, task)
        plain = task.text.raw_mean if self.base == "raw" else task.text.class_weights
        told = replace(task, text=Text(plain, torch.arange(task.classes, device=plain.device), task.text.class_names))
        matrix = train([Run(TextProjection(epochs=self.enhanced), told, told, 0)])[0]["matrix"]
        return Bases(task, replace(told, text=replace(told.text, embedding=plain @ matrix.T)))

    def initial(self, prepared: Bases, generator: torch.Generator) -> dict[str, Tensor]:
        residual = torch.zeros_like(prepared.task.text.class_weights)
        return {"residual": residual, **({"alpha": residual.new_tensor(self.alpha)} if self.learn_alpha else {})}

    def training_head(self, prepared: Bases, parameters: dict[str, Tensor]) -> Head:
        base = base_vectors(prepared.enhanced, self.base, self.length)
        return cosine_head(prepared.task, base + parameters.get("alpha", self.alpha) * parameters["residual"])
