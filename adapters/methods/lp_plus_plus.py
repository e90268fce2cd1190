"""LP++: a linear probe plus zero-shot with one weight per class, its step sizes computed from the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Shared, share_setting
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_EVERY = 10  # epochs between two steps of alpha
_START = 250.0


@dataclass(frozen=True)
class Problem:
    """What the support says.

    rows: (n, dim), the unit keys of the images. target: (n, classes), one-hot labels. text: (classes, dim), the unit
    class vectors. cosine: (n, classes), of rows and text. weight_step, alpha_step: sizes of the steps of both blocks.
    """

    task: Task
    rows: Tensor
    target: Tensor
    text: Tensor
    cosine: Tensor
    weight_step: float
    alpha_step: float


class LPPlusPlus(Shared):
    """Logits `x . v_c + b_c + alpha_c x . w_c`, trained in two blocks that need no step size.

    V starts at the sum of each class's unit rows, b at zero, every alpha at `250 mean_c mean_i x_i . w_c`. V and b take
    full-batch steps with momentum of the size `4 N / lmax(X'X)`, alpha one step every tenth epoch of the size
    `N / (4 max_c sum_i (x_i . w_c)^2)`. Neither term has the logit scale. The result is mixed with zero-shot by
    `share`. The authors' code never clears the gradient of alpha, so that its steps use the sum of all gradients so
    far: `alpha_gradient=accumulate`; the honest form takes the present one. A class without an image starts alpha like
    the others.

    Source: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (Huang et al., CVPR 2024); start values from
    the authors' code.
    """

    name = "lp++"
    summary = "linear probe plus zero-shot, step sizes from the data"
    family = "linear"
    equation = "logits_c = x.v_c + b_c + alpha_c x.w_c"
    hyperparameters = {
        **share_setting(0.25, by_images=True),
        "epochs": Hyperparameter(300, "passes over the support rows", high=1e6),
        "momentum": Hyperparameter(0.9, "momentum of the steps of V and b", high=1.0),
        "alpha_gradient": Hyperparameter("fresh", "gradient of a step of alpha: the present one, the mean of the last "
                                         "ten, or the sum of all so far (the authors' code)",
                                         choices=("fresh", "mean", "accumulate")),
        "keep": Hyperparameter("best", "epoch that is kept: the last, or the last of those best on validation rows "
                               "where there are any", choices=("best", "last")),
    }
    presets = {"reference": {"share": 1.0, "alpha_gradient": "accumulate"}}
    by_images = True
    solver = "own"

    def prepare(self, task: Task) -> Problem:
        rows, text = task.support.keys, task.text.class_weights
        target = rows.new_zeros(len(rows), task.classes).scatter_(1, task.support.label.unsqueeze(1), 1.0)
        cosine = rows @ text.T
        weight_step = 4 * len(rows) / float(torch.linalg.matrix_norm(rows.double(), ord=2).square())
        alpha_step = len(rows) / (4 * float(cosine.double().square().sum(dim=0).max()))
        return Problem(task, rows, target, text, cosine, weight_step, alpha_step)

    def initial(self, prepared: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        count = prepared.target.sum(dim=0)
        true = (prepared.cosine * prepared.target).sum(dim=0)[count > 0] / count[count > 0]
        return {"weight": prepared.target.T @ prepared.rows, "bias": torch.zeros_like(count),
                "alpha": torch.full_like(count, _START * float(true.mean()))}

    def training_head(self, prepared: Problem, parameters: dict[str, Tensor]) -> Head:
        return Linear(parameters["weight"] + parameters["alpha"].unsqueeze(1) * prepared.text, parameters["bias"])

    @torch.no_grad()
    def solve(self, prepared: Problem, start: dict[str, Tensor],
              progress: Callable[[float], None]) -> dict[str, Tensor]:
        """Train both blocks; the gradients are written out, because they are a line each."""
        val = prepared.task.val if self.keep == "best" else None
        now = {name: value.clone() for name, value in start.items()}
        kept, best = now, -1.0
        moved = {name: torch.zeros_like(now[name]) for name in ("weight", "bias")}
        gathered, rows = torch.zeros_like(now["alpha"]), prepared.rows
        for epoch in range(self.epochs):
            logits = rows @ now["weight"].T + now["bias"] + now["alpha"] * prepared.cosine
            error = (logits.softmax(dim=1) - prepared.target) / len(rows)
            gradient = (error * prepared.cosine).sum(dim=0)
            gathered = gradient if self.alpha_gradient == "fresh" else gathered + gradient
            for name, slope in (("weight", error.T @ rows), ("bias", error.sum(dim=0))):
                moved[name].mul_(self.momentum).add_(slope)
                now[name].sub_(moved[name], alpha=prepared.weight_step)
            if epoch % _EVERY == _EVERY - 1:
                share = 1 / _EVERY if self.alpha_gradient == "mean" else 1.0
                now["alpha"].sub_(gathered, alpha=share * prepared.alpha_step)
                if self.alpha_gradient == "mean":
                    gathered.zero_()
            if val is not None:
                right = float((self.training_head(prepared, now)(val.unit).argmax(dim=1) == val.label).double().mean())
                if right >= best:
                    kept, best = {name: value.clone() for name, value in now.items()}, right
            progress((epoch + 1) / self.epochs)
        return now if val is None else kept
