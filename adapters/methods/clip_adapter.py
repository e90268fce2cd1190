"""CLIP-Adapter: a small residual network behind the image encoder, the text encoder, or both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onceclip.adapters.heads import Bottleneck, Head, blend
from onceclip.adapters.method import Shared, class_head, share_setting, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, linear_start, recipe


class ClipAdapter(Shared):
    """A two-layer bottleneck without biases, blended with its input and scaled to unit length.

    `A(x) = relu(W2 relu(W1 x))`, `x' = unit(r A(x) + (1 - r) x)`, `logits = s x' W^T`; the text branch treats
    the unit class weights in the same way. Because the map has no bias and the result is scaled to unit
    length, raw and unit inputs give equal logits. The learnable ratio is `sigmoid(theta)`, started at `ratio`.
    Neither branch belongs to a class, so that both serve other classes.

    Published recipes contradict each other, so each is a preset; what its source leaves open stays at the default:
    `paper` (its tables take the best ratio of each test set), `vdt` (VDT-Adapter's configurations), `lp++` (that
    repository's baseline, which leaves the blend unscaled), `clap` (the baseline of that paper), `prolip` (likewise).

    Source: CLIP-Adapter: Better Vision-Language Models with Feature Adapters (Gao et al., IJCV 2024), equations 3 to 6;
    the last relu is the authors' code's.
    """

    name = "clip-adapter"
    summary = "residual bottleneck on image, text or both"
    family = "adapter"
    equation = "logits = s unit(r relu(W2 relu(W1 x)) + (1-r) x).W'"
    hyperparameters = {
        **share_setting(0.5),
        "branch": Hyperparameter("image", "what is adapted", choices=("image", "text", "both")),
        "ratio": Hyperparameter(0.2, "share of the adapted vector", high=1.0),
        "learn_ratio": Hyperparameter(False, "train the ratio too, from the value of `ratio`"),
        "reduction": Hyperparameter(4, "width of the embedding over width of the bottleneck", low=1, high=4096),
        "renormalize": Hyperparameter(True, "scale the blend to unit length"),
        **recipe(learning_rate=1e-4, epochs=300, rates=(1e-5, 1e-4, 1e-3)),
        **keeping(),
    }
    presets = {
        "paper": {"share": 1.0, "batch_size": 32, "learning_rate": 1e-5},
        "vdt": {"share": 1.0, "optimizer": "sgd", "learning_rate": 2e-3, "weight_decay": 5e-4, "schedule": "dassl",
                "epochs": 200, "batch_size": 32},
        "lp++": {"share": 1.0, "ratio": 0.5, "renormalize": False, "optimizer": "sgd", "momentum": 0.0,
                 "learning_rate": 1e-2, "weight_decay": 0.0, "schedule": "dassl", "epochs": 300, "batch_size": 32,
                 "keep": "best"},
        "clap": {"share": 1.0, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "schedule": "dassl",
                 "epochs": 300, "batch_size": 256},
        "prolip": {"share": 1.0, "optimizer": "adam", "learning_rate": 1e-3, "epsilon": 1e-4, "weight_decay": 0.0,
                   "epochs": 300, "batch_size": 0},
    }
    transfers = True
    weighs = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = max(1, prepared.dim // self.reduction)
        parameters = {}
        for branch in ("image", "text"):
            if self.branch in (branch, "both"):
                like = prepared.text.embedding
                parameters[f"{branch}_down"] = linear_start((hidden, prepared.dim), generator, like)
                parameters[f"{branch}_up"] = linear_start((prepared.dim, hidden), generator, like)
                if self.learn_ratio:
                    inside = min(max(self.ratio, 1e-4), 1 - 1e-4)
                    theta = math.log(inside / (1 - inside))
                    parameters[f"{branch}_theta"] = like.new_tensor(theta)
        return parameters

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        head = zero_shot_head(prepared)
        if "text_down" in parameters:
            adapted = blend(prepared.text.class_weights, *self._branch("text", parameters), self.renormalize)
            head = class_head(prepared, adapted)
        if "image_down" in parameters:
            return Bottleneck(*self._branch("image", parameters), head, self.renormalize)
        return head

    def _branch(self, branch: str, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor, float | Tensor]:
        ratio = parameters[f"{branch}_theta"].sigmoid() if self.learn_ratio else self.ratio
        return parameters[f"{branch}_down"], parameters[f"{branch}_up"], ratio
