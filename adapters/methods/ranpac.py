"""RanPAC: ridge regression to labels on random features, from sums that rows can be added to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.heads.layers import RandomFeatures
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.training.convex import Ridges
from onceclip.adapters.training.trainable import Hyperparameter

RIDGES = tuple(10.0**power for power in range(-8, 9))
_FIFTH = 5  # one of so many rows is held out, to choose the ridge on
_ROUNDING = 1e-6  # of the trace of G
_PIECE = 2**14


@dataclass(frozen=True)
class Sums:
    """A task, the random projection (features, dim), and G = H'H and Q = H'Y of the rows in float64."""

    task: Task
    projection: Tensor
    gram: Tensor
    cross: Tensor

    def without(self, features: Tensor) -> Tensor:
        """G without rows of these features (n, features)."""
        return self.gram - features.T @ features


class RanPAC(Method):
    """Logits `relu(x R^T) (G + ridge I)^-1 Q`, `G = H^T H`, `Q = H^T Y`, of the support's features `H = relu(X R^T)`.

    R is drawn from a normal distribution, once for all sessions. Classes that arrive add their rows to G and Q. With
    `ridge=0` one of 10^-8 to 10^8 is chosen by the squared error on a fifth of the present rows; which, follows from a
    random projection of the rows, and not from their order as in the authors' code. The published number of features
    is 10,000, which is 800 MB of G. Several views of an image count as its mean view.

    Source: RanPAC: Random Projections and Pre-trained Models for Continual Learning (McDonnell et al., NeurIPS 2023),
    equations 4 to 6.
    """

    name = "ranpac"
    summary = "ridge regression on random features; classes may arrive"
    family = "closed form"
    equation = "logits = relu(x.R') (G + ridge I)^-1 Q,  G = H'H, Q = H'Y, H = relu(X R')"
    hyperparameters = {
        "features": Hyperparameter(2000, "random features", low=1, high=1e5),
        "ridge": Hyperparameter(0.0, "strength of the regularisation; 0 chooses one on a fifth of the rows", high=1e12),
    }
    needs_text = False

    def prepare(self, task: Task) -> Sums:
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(int(self.features), task.dim, generator=generator, dtype=torch.float64)
        return self.sums(task, projection.to(task.support.embedding))

    def sums(self, task: Task, projection: Tensor) -> Sums:
        """G and Q of a task's support, for a given projection."""
        rows, label = task.support.keys, task.support.label
        gram = torch.zeros(len(projection), len(projection), dtype=torch.float64, device=rows.device)
        cross = gram.new_zeros(len(projection), task.classes)
        for piece, own in zip(rows.split(_PIECE), label.split(_PIECE), strict=True):
            features = _features(piece, projection)
            gram += features.T @ features
            cross += features.T @ one_hot(own, task.classes).double()
        return Sums(task, projection, gram, cross)

    def head(self, prepared: Sums, parameters: dict[str, Tensor]) -> Head:
        ridge = float(self.ridge) or self._best_ridge(prepared)
        solvable = max(ridge, 1e-13 * float(prepared.gram.trace()), 1e-30)
        weight = Ridges(prepared.gram, prepared.cross).solution(solvable)
        return RandomFeatures(prepared.projection, Linear(weight.T.to(prepared.projection).contiguous()))

    def _best_ridge(self, prepared: Sums) -> float:
        """The ridge of least squared error on a random fifth of the present rows."""
        task = prepared.task
        rows, label = task.support.keys, task.support.label
        held = (rows.double() @ prepared.projection[0].double()).argsort()[::_FIFTH]
        if len(rows) < 2:
            return 1.0
        features = _features(rows[held], prepared.projection)
        target = one_hot(label[held], task.classes).double()
        systems = Ridges(prepared.without(features), prepared.cross - features.T @ target)
        least = _ROUNDING * float(prepared.gram.trace())  # below it, what decides is how float32 rounds
        tried = [ridge for ridge in RIDGES if ridge >= least] or [least]
        return min(tried, key=lambda ridge: float((features @ systems.solution(ridge) - target).square().sum()))

    def update(self, state: dict[str, Tensor], task: Task, seed: int = 0) -> tuple[Classifier, dict[str, Tensor]]:
        """Add this session's G and Q to those kept, and solve again."""
        self.check(task)
        now = self.prepare(task)
        gram, cross = now.gram, now.cross
        if state:
            gram = gram + state["gram"]
            cross = cross.clone()
            cross[:, :state["cross"].shape[1]] += state["cross"]
        ridge = float(self.ridge) or self._best_ridge(now)
        fitted = self.with_values(ridge=ridge).classifier(task, Sums(task, now.projection, gram, cross), {})
        return fitted, {"gram": gram, "cross": cross}


def _features(rows: Tensor, projection: Tensor) -> Tensor:
    """Random features (n, features) of unit rows, in float64."""
    return relu(rows.double() @ projection.double().T)
