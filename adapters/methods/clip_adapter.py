"""CLIP-Adapter: a small residual network behind the image encoder, the text encoder, or both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onceclip.adapters.heads import Bottleneck, Head, Linear, blend
from onceclip.adapters.method import Hyperparameter, Method, zero_shot_head
from onceclip.adapters.recipe import recipe
from onceclip.adapters.task import Task


class ClipAdapter(Method):
    """A two-layer bottleneck without biases, blended with its input and scaled to unit length.

    `A(x) = relu(W2 relu(W1 x))`, `x' = unit(r A(x) + (1 - r) x)`, `logits = s x' W^T`; the text branch treats
    the unit class weights in the same way. Because the map has no bias and the result is scaled to unit
    length, raw and unit inputs give equal logits. The learnable ratio is `sigmoid(theta)`, started at `ratio`.

    Source: CLIP-Adapter (Gao et al., IJCV 2024), equations 3 to 6; the last relu is the authors' code's.
    """

    name = "clip-adapter"
    summary = "residual bottleneck on image, text or both"
    family = "adapter"
    source = "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024"
    equation = "logits = s unit(r relu(W2 relu(W1 x)) + (1-r) x).W'"
    hyperparameters = {
        "branch": Hyperparameter("image", "what is adapted", choices=("image", "text", "both"), retrain=True),
        "ratio": Hyperparameter(0.2, "share of the adapted vector", search=(0.2, 0.4, 0.6, 0.8), high=1.0,
                                retrain=True),
        "learn_ratio": Hyperparameter(False, "train the ratio too, from the value of `ratio`", retrain=True),
        "reduction": Hyperparameter(4, "width of the embedding over width of the bottleneck", low=1, high=4096,
                                    retrain=True),
        **recipe(learning_rate=1e-3, epochs=300),
    }
    trained = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = max(1, prepared.dim // self.reduction)
        parameters = {}
        for branch in ("image", "text"):
            if self.branch in (branch, "both"):
                parameters[f"{branch}_down"] = _uniform((hidden, prepared.dim), generator, prepared)
                parameters[f"{branch}_up"] = _uniform((prepared.dim, hidden), generator, prepared)
                if self.learn_ratio:
                    inside = min(max(self.ratio, 1e-4), 1 - 1e-4)
                    theta = math.log(inside / (1 - inside))
                    parameters[f"{branch}_theta"] = prepared.text.embedding.new_tensor(theta)
        return parameters

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        head = zero_shot_head(prepared)
        if "text_down" in parameters:
            adapted = blend(prepared.text.class_weights, *self._branch("text", parameters))
            head = Linear(prepared.logit_scale * adapted, head.bias)
        if "image_down" in parameters:
            return Bottleneck(*self._branch("image", parameters), head)
        return head

    def _branch(self, branch: str, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor, float | Tensor]:
        ratio = parameters[f"{branch}_theta"].sigmoid() if self.learn_ratio else self.ratio
        return parameters[f"{branch}_down"], parameters[f"{branch}_up"], ratio


def _uniform(shape: tuple[int, int], generator: torch.Generator, task: Task) -> Tensor:
    """Start values of a torch Linear layer: uniform within 1 / sqrt(inputs)."""
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (values / math.sqrt(shape[1])).to(task.text.embedding)
