"""ProKeR: kernel ridge regression of what zero-shot gets wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import FourierFeatures, Head, KernelMachine, Linear, Sum, fourier
from onceclip.adapters.method import Method, require_two_images, zero_shot_head
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.training.convex import Ridges
from onceclip.adapters.training.trainable import Hyperparameter

FORMS = ("auto", "views", "means", "features")
_MOST = 2**14  # rows of a kernel matrix: 2 GiB in float64
_FREQUENCIES = 2048
_PIECE = 2**12  # rows whose features are held at a time


@dataclass(frozen=True)
class Regression:
    """What the regression is made of.

    form: one of FORMS but "auto". rows: (rows, dim), unit, float64. label: (rows,). frequency: (frequencies, dim) for
    a sharpness of 1. ridges: the systems of the sharpness that was asked for last.
    """

    task: Task
    form: str
    rows: Tensor
    label: Tensor
    frequency: Tensor
    ridges: dict[float, Ridges] = field(default_factory=dict)

    def residual(self, piece: slice) -> Tensor:
        """One-hot label less cosine with the class texts (rows, classes)."""
        wrong = -self.rows[piece] @ self.task.text.class_weights.double().T
        return wrong.scatter_add(1, self.label[piece].unsqueeze(1), wrong.new_ones(len(wrong), 1))

    def features(self, rows: Tensor, beta: float) -> Tensor:
        """Fourier features of unit rows."""
        return fourier(rows, beta**0.5 * self.frequency)

    def systems(self, beta: float) -> Ridges:
        """The systems of one sharpness; every ridge, and selection, uses them again."""
        if beta not in self.ridges:
            self.ridges.clear()
            self.ridges[beta] = self._systems(beta)
        return self.ridges[beta]

    def _systems(self, beta: float) -> Ridges:
        if self.form != "features":
            kernel = (beta * (self.rows @ self.rows.T - 1)).exp_()
            return Ridges(kernel, self.residual(slice(None)))
        width = 2 * len(self.frequency)
        matrix, right = self.rows.new_zeros(width, width), self.rows.new_zeros(width, self.task.classes)
        for start in range(0, len(self.rows), _PIECE):
            piece = slice(start, start + _PIECE)
            features = self.features(self.rows[piece], beta)
            matrix += features.T @ features
            right += features.T @ self.residual(piece)
        return Ridges(matrix, right)


class ProKeR(Method):
    """Zero-shot plus a kernel ridge regression from support rows to their labels less the zero-shot cosines.

    With every stored view a row, `k(a, b) = exp(-beta (1 - a . b))` and residuals `R = Y - X W^T`:
    `logits = s (x W^T + g k(x, X) (K + ridge I)^-1 R)`. The authors' `(K / ridge + I)^-1` makes the gain g the ridge
    itself; the textbook's proximal regression has g = 1, and the two predict differently. The published logits have
    no scale s, which changes no class; here s makes an empty regression zero-shot itself.

    Solved in float64. Where the kernel matrix of all views would have more than 16384 rows, each image counts once,
    by its key (`rows = means`); beyond that, 4096 random Fourier features stand in for the kernel (`rows = features`,
    from a fixed seed). What was taken is recorded in `rows`. The presets are what the authors' code takes for so many
    shots, found on ImageNet. Leave-one-image-out is by blocks of the inverse, one for all views of an image.

    Source: ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models (Bendou et al., CVPR
    2025); the solve is the authors' code's.
    """

    name = "proker"
    summary = "kernel ridge regression towards zero-shot"
    family = "closed form"
    equation = "logits = s (x.W' + g k(x,X) (K + ridge I)^-1 (Y - X W')),  k(a,b) = exp(-beta (1 - a.b)),  g = ridge"
    hyperparameters = {
        "beta": Hyperparameter(0.25, "sharpness of the kernel", search=(0.25, 0.5, 1.0, 2.0, 4.0), high=1000.0),
        "ridge": Hyperparameter(0.07, "strength of the regularisation",
                                search=(0.01, 0.03, 0.07, 0.15, 0.4, 1.0, 3.0), low=1e-6, high=1e6),
        "gain": Hyperparameter("ridge", "factor of the regression: the ridge (the authors') or one (the textbook's)",
                               choices=("ridge", "one")),
        "rows": Hyperparameter("auto", "what the kernel compares with; auto takes the first that fits in memory",
                               choices=FORMS),
    }

    presets = {f"imagenet-{shots}": {"beta": beta, "ridge": ridge} for shots, beta, ridge in
               ((1, 3.0, 0.05), (2, 2.6, 0.05), (4, 1.5, 0.05), (8, 1.66, 0.07), (16, 1.7, 0.1))}

    def _form(self, support: Rows) -> str:
        """What the kernel compares with."""
        views = len(support) if support.views is None else support.views.shape[:2].numel()
        if self.rows != "auto":
            return str(self.rows)
        return "views" if views <= _MOST else "means" if len(support) <= _MOST else "features"

    def prepare(self, task: Task) -> Regression:
        support, form = task.support, self._form(task.support)
        rows, label = (support.keys, support.label) if form == "means" else support.stacked
        generator = torch.Generator().manual_seed(0)
        shape = (_FREQUENCIES if form == "features" else 0, task.dim)
        frequency = torch.randn(shape, generator=generator, dtype=torch.float64).to(rows.device)
        return Regression(task, form, rows.double(), label, frequency)

    def head(self, prepared: Regression, parameters: dict[str, Tensor]) -> Head:
        like, solution = prepared.task.text.embedding, prepared.systems(self.beta).solution(self.ridge)
        value = (prepared.task.logit_scale * self._gain * solution).to(like)
        if prepared.form == "features":
            frequency = (self.beta**0.5 * prepared.frequency).to(like)
            regression: Head = FourierFeatures(frequency, Linear(value.T.contiguous()))
        else:
            regression = KernelMachine(prepared.rows.to(like), value, self.beta)
        return Sum((zero_shot_head(prepared.task), regression), (1.0, 1.0))

    @property
    def _gain(self) -> float:
        return self.ridge if self.gain == "ridge" else 1.0

    @property
    def of_task(self) -> frozenset[str]:
        return frozenset({"rows"} if self.rows == "auto" else ())

    def classifier(self, task: Task, prepared: Regression, parameters: dict[str, Tensor]) -> Classifier:
        fitted = super().classifier(task, prepared, parameters)
        return replace(fitted, hyperparameters={**fitted.hyperparameters, "rows": prepared.form})

    def check_left_out(self, task: Task) -> None:
        require_two_images(task)
        if self._form(task.support) == "features":
            raise MethodError("leave-one-image-out of proker needs the kernel itself: use --select val")

    def leave_one_out(self, prepared: Regression) -> tuple[Tensor, Tensor]:
        support, scale = prepared.task.support, prepared.task.logit_scale
        systems, images = prepared.systems(self.beta), support.unit.double()
        solution, inverse = systems.solution(self.ridge), systems.inverse(self.ridge)
        kernel = (self.beta * (images @ prepared.rows.T - 1)).exp_()
        # Without the rows g of an image the solution is a - B_:g B_gg^-1 a_g, where B is the inverse and a the whole.
        own = torch.arange(len(prepared.rows), device=images.device).view(len(images), -1)
        block = inverse[own.unsqueeze(2), own.unsqueeze(1)]
        share = torch.linalg.solve(block, solution[own])
        reach = (kernel @ inverse).gather(1, own)
        without = kernel @ solution - (reach.unsqueeze(1) @ share).squeeze(1)
        first = zero_shot_head(prepared.task)(support.unit)
        return first, (scale * self._gain * without).to(first)
