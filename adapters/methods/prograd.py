"""ProGrad: prompts learned by the part of the gradient that does not oppose zero-shot knowledge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from onceclip.adapters.method import class_head, zero_shot_head
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_SHORTEST = 1e-12  # length of a gradient, below which it has no direction


class ProGrad(CoOp):
    """CoOp whose steps lose what would undo the encoder's own probabilities.

    With `g` the gradient of the cross-entropy and `h` that of the divergence from the zero-shot probabilities, of every
    parameter: where `g . h < 0`, `g` becomes `g - strength (g . h) h / |h|^2`. Zero-shot is the run's text set.

    Source: Prompt-aligned Gradient for Prompt Tuning (Zhu et al., ICCV 2023), equation 4.
    """

    name = "prograd"
    summary = "CoOp whose gradients do not oppose zero-shot"
    equation = "logits = s x.unit(tower(v, name))'; g -= (g.h) h / |h|^2 where g.h < 0"
    hyperparameters = {
        **CONTEXT, **TRAINING,
        "strength": Hyperparameter(1.0, "share of the opposing part that is taken away", high=1.0),
        "temperature": Hyperparameter(1.0, "of both distributions of the divergence", low=1e-3, high=1e3),
    }
    presets = {"paper": {**PAPER, "words": "", "length": 16, "strength": 1.0, "temperature": 1.0, "epochs": 100}}
    needs_text = True

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        """A number whose gradient is the one that a step takes; both gradients go through the tower once forward."""
        logits = class_head(prepared, self.vectors(prepared, parameters))(rows)
        soft = log_softmax(logits / self.temperature, dim=1)
        taught = log_softmax(zero_shot_head(prepared)(rows) / self.temperature, dim=1)
        divergence = kl_div(soft, taught, reduction="batchmean", log_target=True) * self.temperature**2
        values = list(parameters.values())
        own = torch.autograd.grad(cross_entropy(logits, label), values, retain_graph=True)
        general = torch.autograd.grad(divergence, values)
        return torch.stack([(value * aligned(one, other, self.strength)).sum()
                            for value, one, other in zip(values, own, general, strict=True)]).sum()


def aligned(own: Tensor, general: Tensor, strength: float = 1.0) -> Tensor:
    """A gradient without what points against another one. own, general: of one parameter, any shape."""
    along, squared = (own * general).sum(), general.square().sum()
    part = torch.where((along < 0) & (squared > _SHORTEST**2), along / squared.clamp_min(_SHORTEST**2), 0.0)
    return own - strength * part * general
