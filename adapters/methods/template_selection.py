"""The best templates, chosen on the support rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class TemplateSelection(Method):
    """Zero-shot with the templates that are best on the support rows, each judged alone.

    Templates are ranked by their zero-shot accuracy on the support, then by their cross-entropy there; the class
    vectors are made of the first `keep`. What the classes do not share, such as the sentences of a language model, is
    ranked as one template.

    Source: this project.

    Example:
        >>> ensemble = onceclip.make_task(store, shots=4, text="ensemble")
        >>> onceclip.adapters.TemplateSelection(keep=4).fit(ensemble).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "template-selection"
    summary = "zero-shot with the templates that are best on the shots"
    family = "text"
    equation = "w_c = unit(mean_p unit(t_cp)) over the `keep` templates with the best support accuracy"
    hyperparameters = {
        "keep": Hyperparameter(8, "number of templates", search=(1, 2, 4, 8, 16, 32, 64), low=1, high=1e6),
    }

    def prepare(self, task: Task) -> tuple[Task, Tensor]:
        """The task, and the rank (templates,) of every template, 0 for the best one."""
        rows, label = task.support.unit, task.support.label
        scores = []
        for vectors in unit(task.text.bank):
            logits = task.logit_scale * rows @ vectors.T
            wrong = (logits.argmax(dim=1) != label).double().mean()
            scores.append((float(wrong), float(cross_entropy(logits, label))))
        order = sorted(range(len(scores)), key=scores.__getitem__)
        return task, torch.tensor(order, device=label.device).argsort()

    def head(self, prepared: tuple[Task, Tensor], parameters: dict[str, Tensor]) -> Head:
        (task, rank), text = prepared, prepared[0].text
        weight = (rank[text.groups] < self.keep).to(text.embedding)
        weight = weight if text.prompt_weight is None else weight * text.prompt_weight
        return class_head(task, text.vectors(weight))
