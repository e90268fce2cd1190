"""RAPF: a linear map of images whose old classes are remembered as Gaussians, for classes that arrive."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Head, Projected
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.ops import product, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.optimizer import Optimizer, Position
from onceclip.adapters.training.trainable import Hyperparameter, recipe

_LEAST = 1e-4  # added to the diagonal of covariances
_OLD = 2  # old classes that a step samples
_MARGIN = 0.1


class RAPF(Method):
    """Logits `s unit(A x) . w_c` with a trained map A, which starts at the identity.

    At a session, each step lowers the cross-entropy of a batch of its rows and of samples of two old classes, drawn
    from the Gaussian that is kept of each, plus a hinge on samples of old classes whose text is near to that of a new
    one: `mean relu(0.1 - z . w_old + z . w_new)`. Afterwards A is fused with that of before, entry by entry in the
    basis of its singular vectors: what changed most is taken from the new one. Kept are A and a mean and a covariance
    of every class, which for 1,000 classes of 512 dimensions are a gigabyte.

    Source: Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter Fusion (Huang et al.,
    ECCV 2024), equations 4 to 9; the start at the identity is ours, and the step size, which the authors divide by ten
    after 4 and 10 epochs.
    """

    name = "rapf"
    summary = "linear map with old classes kept as Gaussians; classes may arrive"
    family = "adapter"
    equation = "logits_c = s unit(A x).w_c,  A from I by cross-entropy, samples and a hinge, then fused"
    hyperparameters = {
        "near": Hyperparameter(0.65, "distance of two classes' texts below which they are kept apart", high=2.0,
                               retrain=False),
        "samples": Hyperparameter(20, "samples of an old class in a step", low=1, high=1e6, retrain=False),
        "fusion": Hyperparameter(0.6, "share that every entry takes of the new map at least", high=1.0, retrain=False),
        **recipe(learning_rate=1e-4, epochs=15, batch_size=64, weight_decay=0.0, optimizer="adam"),
    }

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": torch.eye(prepared.dim).to(prepared.text.embedding)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Projected(zero_shot_head(prepared), parameters["matrix"])

    def update(self, state: dict[str, Tensor], task: Task, seed: int = 0) -> tuple[Classifier, dict[str, Tensor]]:
        """Train A on this session's rows and on samples of the classes kept, fuse it, and keep the new classes too."""
        self.check(task)
        before = state.get("matrix", self.initial(task, torch.Generator())["matrix"])
        matrix = self._trained(before, state, task, torch.Generator().manual_seed(seed))
        if state:
            matrix = fused(before, matrix, float(self.fusion))
        kept = {"matrix": matrix, **_gaussians(task, state)}
        return self.classifier(task, task, {"matrix": matrix}), kept

    def _trained(self, start: Tensor, state: dict[str, Tensor], task: Task, generator: torch.Generator) -> Tensor:
        matrix = start.detach().clone().requires_grad_()
        optimizer = Optimizer([self], {"matrix": matrix}, alone=True)
        rows, label, weights = task.support.unit, task.support.label, task.text.class_weights
        old = len(state["mean"]) if state else 0
        pairs = torch.nonzero(torch.cdist(unit(weights[:old]), unit(weights[old:])) < float(self.near))
        for epoch in range(self.epochs):
            batches = self.batches(len(label), generator)
            for number, batch in enumerate(batches, epoch * len(batches)):
                shown, known = rows[batch], label[batch]
                if old:
                    some = torch.randint(old, (_OLD,), generator=generator).tolist()
                    drawn = torch.cat([_samples(state, each, int(self.samples), generator) for each in some])
                    shown = torch.cat([shown, drawn.to(shown)])
                    known = torch.cat([known, torch.tensor(some).repeat_interleave(int(self.samples)).to(known)])
                loss = cross_entropy(self.head(task, {"matrix": matrix})(shown), known)
                if len(pairs):
                    first, second = pairs[int(torch.randint(len(pairs), (1,), generator=generator))].tolist()
                    close = unit(product(_samples(state, first, int(self.samples), generator).to(rows), matrix))
                    loss = loss + hinge(close, weights[first], weights[old + second])
                position = Position(number, self.epochs * len(batches), epoch, self.epochs)
                optimizer.step(torch.autograd.grad(loss, [matrix]), position)
        return matrix.detach()


def hinge(rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """`mean relu(0.1 - z . w_old + z . w_new)` of unit rows z (n, dim) of an old class. old, new: (dim,)."""
    return relu(_MARGIN - rows @ old + rows @ new).mean()


def shrunk(covariance: Tensor) -> Tensor:
    """A covariance (dim, dim) plus the mean of its diagonal on it, and the mean of its other entries on the others."""
    dim = len(covariance)
    diagonal = covariance.diagonal().mean()
    others = (covariance.sum() - covariance.trace()) / max(dim * (dim - 1), 1)
    identity = torch.eye(dim).to(covariance)
    return covariance + diagonal * identity + others * (1 - identity)


def fused(old: Tensor, new: Tensor, least: float) -> Tensor:
    """Two maps (dim, dim) as one: in the basis of the old one's left singular vectors, by how much an entry changed.

    least: share of the new map in an entry that did not change; the one that changed most is the new map's.
    """
    basis, values, right = torch.linalg.svd(old.double())
    before, after = values.unsqueeze(1) * right, basis.T @ new.double()
    change = (after - before).abs()
    share = (change / change.max().clamp_min(1e-12) + least).clamp(max=1)
    return (basis @ (after * share + before * (1 - share))).to(old)


def _gaussians(task: Task, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean (classes, dim) and covariance (classes, dim, dim) of the classes kept and of those of this session."""
    means, covariances = list(state.get("mean", ())), list(state.get("covariance", ()))
    for number in range(len(means), task.classes):
        rows = task.support.unit[task.support.label == number]
        mean = rows.mean(dim=0) if len(rows) else unit(task.text.class_weights[number])
        offset = rows - mean
        covariance = offset.T @ offset / max(len(rows) - 1, 1)
        means.append(mean)
        covariances.append(shrunk(covariance + _LEAST * torch.eye(task.dim).to(covariance)))
    return {"mean": torch.stack(means), "covariance": torch.stack(covariances)}


def _samples(state: dict[str, Tensor], number: int, count: int, generator: torch.Generator) -> Tensor:
    """Draws (count, dim) from the Gaussian of a class kept, of unit length."""
    values, vectors = torch.linalg.eigh(state["covariance"][number].double())
    noise = torch.randn(count, len(values), generator=generator, dtype=torch.float64)
    return unit(state["mean"][number].double() + noise * values.clamp(min=0).sqrt() @ vectors.T)
