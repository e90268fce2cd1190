"""SgVA-CLIP's visual adapter: prototypes of adapted features from before the projection, beside frozen prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Columns, Head, Linear, Projected
from onceclip.adapters.heads.layers import Rectified, rectify
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.ops import class_sums, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, linear_start, recipe


@dataclass(frozen=True)
class Features:
    """The support before the projection.

    rows: (rows, width), unit. count: (classes,), rows of each class. behind: zero-shot behind the projection.
    """

    task: Task
    rows: Tensor
    count: Tensor
    behind: Projected


class SgVA(Method):
    """Cosines to class prototypes of adapted features, added to zero-shot.

    With v the unit features before the projection: `v~ = unit(relu(a W2 relu(W1 v) + (1 - a) v))`, a trained from 0.5;
    prototypes p_c are class means of v~; `logits = s x W^T + weight s v~ p_c`. Training lowers the cross-entropy of
    the prototypes' logits plus that between `softmax(s x W^T / T)` and the same of v~ behind the projection. The last
    relu loses the negative part of v: with a = 0 the adapter is the identity only where v has none.

    An image is compared with prototypes without itself, where its class has another image; a class without images has
    the mean prototype. The published method also learns the prompts, which needs the text encoder, recovers v from the
    embedding by a pseudo-inverse, and chooses the weight of the prototypes on the test set. One validation image per
    class hardly tells weights apart: what is then chosen is the middle of a wide tie, and may fall below zero-shot.

    Source: SgVA-CLIP: Semantic-guided Visual Adapting of Vision-Language Models (Peng et al., IEEE Transactions on
    Multimedia 2023), equations 2 to 9; recipe from the authors' code, whose momentum is Nesterov's (preset
    `reference`).

    Example:
        >>> with_outputs = onceclip.make_task(store, shots=4, outputs=["preproj", "embedding"])
        >>> classifier = onceclip.adapters.SgVA(epochs=20).fit(with_outputs)
        >>> classifier.logits(with_outputs.support.input(classifier.inputs)).shape
        torch.Size([16, 4])
    """

    name = "sgva"
    summary = "prototypes of adapted features from before the projection, beside zero-shot"
    family = "adapter"
    equation = "logits = s x.W' + weight s v~.P',  v~ = unit(relu(a W2 relu(W1 v) + (1-a) v)),  P = class means of v~"
    hyperparameters = {
        "weight": Hyperparameter(1.0, "weight of the prototypes against the text; 1 is half and half, as published",
                                 high=9.0, retrain=False),
        "expansion": Hyperparameter(2, "hidden width over the width of the features; the authors'", low=1, high=64),
        "distillation": Hyperparameter(1.0, "weight of staying near zero-shot in training", high=1000.0),
        "temperature": Hyperparameter(5.0, "what divides the logits there; the authors'", low=0.01, high=1000.0),
        **recipe(learning_rate=1e-2, epochs=100, weight_decay=5e-4, optimizer="sgd", schedule="dassl"),
        **keeping(),
    }
    presets = {"reference": {"optimizer": "nesterov"}}
    mixing = "weight"
    inputs = ("preproj", "embedding")
    needs = "features before the projection (extract --preproj)"

    def check(self, task: Task) -> None:
        super().check(task)
        if task.projection is None:
            raise MethodError("sgva needs the encoder's projection and the store has none: extract again with "
                              "--preproj, or use another method")

    def prepare(self, task: Task) -> Features:
        rows = unit(task.support.input(self.inputs[:1]))
        matrix = None if task.projection is None else task.projection.T
        return Features(task, rows, torch.bincount(task.support.label, minlength=task.classes).to(rows),
                        Projected(zero_shot_head(task), matrix, task.projection_bias))

    def initial(self, prepared: Features, generator: torch.Generator) -> dict[str, Tensor]:
        width, like = prepared.rows.shape[1], prepared.rows
        hidden = self.expansion * width
        return {"down": linear_start((hidden, width), generator, like),
                "up": linear_start((width, hidden), generator, like), "ratio": like.new_tensor(0.5)}

    def terms(self, prepared: Features, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        width, task = prepared.rows.shape[1], prepared.task
        column = torch.arange(width + task.dim, device=prepared.rows.device)
        prototypes = Linear(task.logit_scale * self._prototypes(prepared, parameters))
        adapted = Rectified(parameters["down"], parameters["up"], parameters["ratio"], prototypes)
        return Columns(column[width:], zero_shot_head(task)), Columns(column[:width], adapted)

    def loss(self, prepared: Features, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        task = prepared.task
        features, images = (unit(each) for each in rows.split([prepared.rows.shape[1], task.dim], dim=1))
        adapted = rectify(features, **parameters)
        logits = adapted @ self._prototypes(prepared, parameters).T
        # Without itself: a mean without one of its members, where there are others.
        count, own = prepared.count[label].unsqueeze(1), logits.gather(1, label.unsqueeze(1))
        alone = (count * own - adapted.square().sum(dim=1, keepdim=True)) / (count - 1).clamp_min(1)
        logits = logits.scatter(1, label.unsqueeze(1), torch.where(count > 1, alone, own))
        teacher, student = zero_shot_head(task)(images) / self.temperature, prepared.behind(adapted) / self.temperature
        return (cross_entropy(task.logit_scale * logits, label)
                + self.distillation * cross_entropy(student, teacher.softmax(dim=1)))

    def _prototypes(self, prepared: Features, parameters: dict[str, Tensor]) -> Tensor:
        """Class means (classes, width) of the adapted support; the mean of all of them for a class without images."""
        adapted = rectify(prepared.rows, **parameters)
        total = class_sums(adapted, prepared.task.support.label, len(prepared.count))
        mean = total / prepared.count.clamp_min(1).unsqueeze(1)
        present = (prepared.count > 0).unsqueeze(1)
        return torch.where(present, mean, mean.sum(dim=0) / present.sum())
