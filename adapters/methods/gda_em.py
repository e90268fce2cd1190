"""GDA without labels: a mixture of Gaussians, started at the zero-shot probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method, require_images, zero_shot_head
from onceclip.adapters.methods.gda import gaussian_head, precision_of
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_FEW = 1e-6  # rows that a class has in sum: with fewer it stays where its text is


@dataclass(frozen=True)
class Mixture:
    """Rows without labels. rows: (rows, dim), unit, float64. second_moment: (dim, dim), their sum of squares."""

    task: Task
    rows: Tensor
    second_moment: Tensor
    zero_shot: Tensor
    fitted: dict[tuple[float, int], Linear] = field(default_factory=dict)


class GDAEM(Method):
    """Zero-shot logits plus those of Gaussian classes with one covariance, both found without any label.

    Starts at `z = softmax(zero-shot)` and repeats: class means `mu_c = sum_n z_nc u_n / sum_n z_nc`, scatter
    `S = U^T U - sum_c n_c mu_c mu_c^T`, the shrunk precision and the linear logits of `gda` from both, uniform prior,
    `z = softmax(zero-shot + weight * Gaussian)`. What it gives is a linear head, so that it serves new rows, too. It
    takes the task's rows without labels; where there are none, the images of the support, whose labels it never reads.
    With a handful of images per class the soft labels drift: a weight of 0.02, which serves labelled images, takes
    1,000 classes of one image each from 61 to 42 % on ImageNet.

    Source: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation (Wang et al., ICLR 2024); no
    code of it was published, so that start, weight and number of steps are chosen here.

    Example:
        >>> with_others = onceclip.make_task(store, shots=4, unlabelled=True)
        >>> onceclip.adapters.GDAEM(steps=5).fit(with_others).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "gda-em"
    summary = "gda on unlabelled images by expectation maximisation"
    family = "closed form"
    equation = "as gda, with soft labels z = softmax(s x.W' + weight (x.P mu_c - mu_c'P mu_c / 2)) found by turns"
    needs = "unlabelled images; without them it takes those of the support and leaves their labels unread"
    hyperparameters = {
        "alpha": Hyperparameter(0.005, "weight of the Gaussian logits when predicting", high=10.0),
        "weight": Hyperparameter(0.002, "weight of the Gaussian logits while the soft labels are found; more where "
                                 "there are hundreds of images per class", search=(0.0, 0.002, 0.01, 0.05), high=10.0),
        "steps": Hyperparameter(10, "turns of soft labels and Gaussians", low=1, high=10_000),
    }
    mixing = "alpha"
    needs_support = False
    wants_unlabelled = True

    def check(self, task: Task) -> None:
        super().check(task)
        require_images(self, task)

    def prepare(self, task: Task) -> Mixture:
        given = task.unlabelled
        rows = (task.support.stacked[0] if given is None or not len(given) else unit(given)).double()
        return Mixture(task, rows, rows.T @ rows, zero_shot_head(task)(rows.to(task.text.embedding)).double())

    def terms(self, prepared: Mixture, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        key = self.weight, self.steps
        if key not in prepared.fitted:
            prepared.fitted[key] = self._gaussian(prepared)
        return zero_shot_head(prepared.task), prepared.fitted[key]

    def _gaussian(self, prepared: Mixture) -> Linear:
        rows, logits = prepared.rows, prepared.zero_shot
        text = prepared.task.text.class_weights.double()
        for _ in range(self.steps):
            share = logits.softmax(dim=1)
            count = share.sum(dim=0).unsqueeze(1)
            mean = (share.T @ rows) / count.clamp(min=_FEW)
            scatter = prepared.second_moment - (mean * count).T @ mean
            mean = torch.where(count > _FEW, mean, text)
            precision = precision_of(scatter, len(rows))
            logits = prepared.zero_shot + self.weight * gaussian_head(mean, precision, rows)(rows)
        return gaussian_head(mean, precision, prepared.task.text.embedding)
