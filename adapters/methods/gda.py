"""Gaussian discriminant analysis on top of zero-shot: closed form, one solve per fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, Linear, Sum
from onceclip.adapters.method import Method, require_two_images, zero_shot_head
from onceclip.adapters.ops import class_sums, place_in_class, unit
from onceclip.adapters.plugin import full_name
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

NEIGHBOURS = 64
TEXT_WEIGHT = 16.0
_CLASSES = 16  # whose neighbours are held at a time
_NOTHING = 1e-9  # mean squared distance of unit rows below which they are copies of each other, but for rounding
_ROWS = 1024  # per piece of leave-one-image-out, which needs a few (rows, classes) matrices


def gaussian_head(mean: Tensor, precision: Tensor, like: Tensor) -> Linear:
    """Logits `x P mu_c - mu_c P mu_c / 2` of equally frequent classes, in the type of a tensor.

    mean: (classes, dim). precision: P, (dim, dim).
    """
    weight = mean @ precision
    return Linear(weight.to(like), (-(weight * mean).sum(dim=1) / 2).to(like))


def new_classes(rows: Tensor, text: Tensor, neighbours: int = NEIGHBOURS, text_weight: float = TEXT_WEIGHT) -> Linear:
    """Make the Gaussian head of new classes from their texts and the images of the base classes.

    Every new class takes the nearest base rows of its text w as if they were its own: its mean is that of these rows
    and of w, counted `text_weight` times; its scatter is theirs around w. One precision serves all new classes: the
    mean of the shrunk precisions of each. As in `gda` it is rescaled to that of one row, so that the base's alpha
    serves here, too.

    rows: (rows, dim), unit, of the base classes. text: (classes, dim), unit. neighbours: rows that each class takes.
    Source: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation (Wang et al., ICLR 2024), with the
    numbers of the authors' code.
    """
    rows, weights = rows.double(), text.double()
    number = min(neighbours, len(rows))
    nearest = (weights @ rows.T).topk(number, dim=1).indices
    mean = text_weight * weights
    for each in nearest.T:
        mean = mean + rows[each]
    mean = mean / (number + text_weight)
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    for start in range(0, len(weights), _CLASSES):
        piece = slice(start, start + _CLASSES)
        total += _precisions(rows[nearest[piece]] - weights[piece].unsqueeze(1))
    return gaussian_head(mean, total / len(weights), text)


def _precisions(offset: Tensor) -> Tensor:
    """Sum over classes of `n (O^T O + t I)^-1`, t = tr(O^T O) / (n - 1), of offsets O (classes, n, dim): (dim, dim).

    By the identity of Woodbury that is `n / t (I - O^T (t I + O O^T)^-1 O)`, with an (n, n) inverse per class.
    """
    number = offset.shape[1]
    shrinkage = (offset.square().sum(dim=(1, 2)) / max(number - 1, 1)).clamp(min=1e-9)
    small = offset @ offset.transpose(1, 2)
    small.diagonal(dim1=1, dim2=2).add_(shrinkage.unsqueeze(1))
    scaled = torch.linalg.solve(small, offset) * (number / shrinkage).view(-1, 1, 1)
    identity = torch.eye(offset.shape[2], dtype=offset.dtype, device=offset.device)
    return identity * (number / shrinkage).sum() - offset.flatten(0, 1).T @ scaled.flatten(0, 1)


@dataclass(frozen=True)
class Statistics:
    """What the support says, in float64.

    mean: (classes, dim); of classes without a support image, the class's text weight.
    count: (classes,) rows of each class, or the sum of their weights. scatter, precision: (dim, dim).
    zero_shot: the first term.
    """

    task: Task
    mean: Tensor
    count: Tensor
    scatter: Tensor
    precision: Tensor
    zero_shot: Linear

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (dim,) and eigenvectors (dim, dim) of the scatter."""
        values, vectors = torch.linalg.eigh(self.scatter)
        return values, vectors

    @cached_property
    def neighbours(self) -> Tensor:
        """Unit rows (n, dim) that classes without images may borrow: up to 64 of every class, evenly spread."""
        rows, label = self.task.support.stacked
        order, classes = label.argsort(stable=True), len(self.count)
        place, count = place_in_class(label, classes)[order], torch.bincount(label, minlength=classes)[label[order]]
        return rows[order[(place + 1) * NEIGHBOURS // count > place * NEIGHBOURS // count]]


@dataclass(frozen=True)
class Moments:
    """Sums over unit rows, in float64, that rows may be added to.

    count: (classes,) rows, or the sum of their weights. total: (classes, dim), their sum. second: (dim, dim), the sum
    of their squares.
    """

    count: Tensor
    total: Tensor
    second: Tensor

    @classmethod
    def of(cls, task: Task) -> Moments:
        """Those of a task's support; every view is a row."""
        rows, label = task.support.stacked
        rows, weight = rows.double(), task.support.stacked_weight
        weighted = rows * weight.unsqueeze(1)
        return cls(class_sums(weight, label, task.classes), class_sums(weighted, label, task.classes),
                   weighted.T @ rows)

    def after(self, state: dict[str, Tensor]) -> Moments:
        """With those that were kept, of the first classes, added."""
        if not state:
            return self
        classes = len(state["count"])
        count, total = self.count.clone(), self.total.clone()
        count[:classes] += state["count"]
        total[:classes] += state["total"]
        return Moments(count, total, self.second + state["second"])


class GDA(Method):
    """Zero-shot logits plus those of Gaussian classes with one shared covariance.

    With S the within-class scatter of the N unit rows (every view is a row) and t = tr S / (N - 1):
    `P = N (S + t I)^-1`, `W_c = P mu_c`, `b_c = -1/2 mu_c^T P mu_c`, uniform prior, means not scaled to unit
    length. The published precision is D (S + t I)^-1, which shrinks with the number of rows and makes the
    useful alpha grow with shots and classes; here `alpha` multiplies the rescaled logits, so that one value
    serves all shots (published alpha = alpha N / D). With one row per class, or copies of it, S is zero, which
    the published pseudo-inverse turns silently into zero-shot; here the total scatter stands in for it.

    The authors' code of base classes takes the mean covariance of the classes by a pseudo-inverse instead
    (`covariance=class-mean`). Nothing shrinks it: with fewer rows than dimensions it is of no use.

    Other classes, of which only the text is known, borrow the nearest rows of these; the classifier keeps up to 64 of
    every class for them. See `new_classes`.

    Source: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation (Wang et al., ICLR 2024), eq. 5 to 8.
    """

    name = "gda"
    summary = "Gaussian discriminant analysis, closed form"
    family = "closed form"
    equation = "logits = s x.W0' + alpha (x.P mu_c - mu_c'P mu_c / 2),  P = N (S + tr(S)/(N-1) I)^-1"
    hyperparameters = {
        "alpha": Hyperparameter(0.02, "weight of the Gaussian logits", high=10.0),
        "covariance": Hyperparameter("pooled", "the covariance of all classes: of all rows around their means, shrunk; "
                                     "or the mean of the classes' own, as it is (the authors' code of base classes)",
                                     choices=("pooled", "class-mean")),
    }
    mixing = "alpha"
    transfers = True
    weighs = True

    def check(self, task: Task) -> None:
        super().check(task)
        if task.support.weight is not None and self.covariance != "pooled":
            raise MethodError("gda weighs its support rows with covariance=pooled alone, and these have weights: leave "
                              "covariance out")

    def prepare(self, task: Task) -> Statistics:
        moments = Moments.of(task)
        found = self._statistics(task, moments)
        if self.covariance == "class-mean" and (moments.count > 1).any():
            rows, label = task.support.stacked
            precision = _class_mean_precision(rows.double() - found.mean[label], label, moments.count)
            return replace(found, precision=precision)
        return found

    def _statistics(self, task: Task, moments: Moments) -> Statistics:
        """What moments say, whichever rows they are of."""
        count, number = moments.count, float(moments.count.sum())
        mean = moments.total / torch.where(count > 0, count, 1.0).unsqueeze(1)
        scatter = moments.second - (mean * count.unsqueeze(1)).T @ mean
        if scatter.trace() < _NOTHING * number:
            centre = moments.total.sum(dim=0) / max(number, _NOTHING)
            scatter = moments.second - number * torch.outer(centre, centre)
        # A class without a support image stands where its prompts are.
        mean = torch.where(count.unsqueeze(1) > 0, mean, task.text.class_weights.double())
        return Statistics(task, mean, count, scatter, precision_of(scatter, number), zero_shot_head(task))

    def update(self, state: dict[str, Tensor], task: Task, seed: int = 0) -> tuple[Classifier, dict[str, Tensor]]:
        """Add this session's moments to those kept, which is all that a fit on all rows would read of them.

        Kept are the number and the sum of the rows of every class and their second moment: equal to the joint fit.
        """
        self.check(task)
        if self.covariance != "pooled":
            raise MethodError("gda learns classes that arrive with covariance=pooled alone: leave covariance out")
        moments = Moments.of(task).after(state)
        head = self.head(self._statistics(task, moments), {})
        fitted = Classifier(head, task.text.class_names, task.dim, full_name(type(self)), dict(self.values))
        return fitted, {"count": moments.count, "total": moments.total, "second": moments.second}

    def terms(self, prepared: Statistics, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        return prepared.zero_shot, gaussian_head(prepared.mean, prepared.precision, prepared.zero_shot.weight)

    def kept(self, prepared: Statistics, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"rows": prepared.neighbours}

    def for_classes(self, task: Task, kept: dict[str, Tensor]) -> Head:
        gaussian = new_classes(kept["rows"], unit(task.text.class_weights))
        return Sum((zero_shot_head(task), gaussian), (1.0, self.alpha))

    def check_left_out(self, task: Task) -> None:
        if self.covariance != "pooled" or task.support.views is not None:
            raise MethodError("leave-one-image-out of gda needs covariance=pooled and no stored views: use --select "
                              "val")
        require_two_images(task)

    def leave_one_out(self, prepared: Statistics) -> tuple[Tensor, Tensor]:
        support = prepared.task.support
        pieces = [_without(prepared, *piece) for piece in
                  zip(support.unit.double().split(_ROWS), support.label.split(_ROWS), strict=True)]
        second = torch.cat(pieces)
        for row in torch.nonzero(_left_scatter(prepared) < _NOTHING * len(support))[:, 0].tolist():
            # This image was all the scatter there was: what a fit without it falls back to has no short form.
            others = torch.arange(len(support), device=support.label.device) != row
            without = self.prepare(replace(prepared.task, support=support.at(others)))
            second[row] = self.terms(without, {})[1](support.unit[row:row + 1])[0]
        return prepared.zero_shot(support.unit), second.to(support.unit)


def _left_scatter(prepared: Statistics) -> Tensor:
    """Trace of the scatter (rows,) that is left without each support row."""
    rows, own = prepared.task.support.unit.double(), prepared.task.support.label
    factor = prepared.count[own] / (prepared.count[own] - 1)
    return prepared.scatter.trace() - factor * (rows - prepared.mean[own]).square().sum(1)


def _without(prepared: Statistics, rows: Tensor, own: Tensor) -> Tensor:
    """Gaussian logits (rows, classes) of support rows of classes `own`, each fitted without itself.

    Without a row, S loses c v v^T, where v = x - mu and c = n / (n - 1). In the eigenbasis of S the shrunk matrix
    is diagonal, and Sherman and Morrison give the inverse after the loss: two products more per class.
    """
    scatter, basis = prepared.eigen
    rows, mean = rows @ basis, prepared.mean @ basis
    count, total = prepared.count[own].unsqueeze(1), float(prepared.count.sum()) - 1
    offset, factor = rows - mean[own], count / (count - 1)
    shrinkage = (scatter.sum() - factor * offset.square().sum(1, keepdim=True)) / max(total - 1, 1)
    inverse = total / (scatter + shrinkage)
    lost = inverse * offset
    gain = factor / (total - factor * (offset * lost).sum(1, keepdim=True))

    def logits(by_row: Tensor, by_lost: Tensor, by_self: Tensor) -> Tensor:
        return by_row + gain * by_lost * (lost * rows).sum(1, keepdim=True) - (by_self + gain * by_lost.square()) / 2

    moved = mean[own] - offset / (count - 1)
    alone = logits(*((each * moved).sum(1, keepdim=True) for each in (inverse * rows, lost, inverse * moved)))
    others = logits((inverse * rows) @ mean.T, lost @ mean.T, inverse @ mean.square().T)
    return others.scatter(1, own.unsqueeze(1), alone)


def _class_mean_precision(offset: Tensor, label: Tensor, count: Tensor) -> Tensor:
    """Pseudo-inverse (dim, dim) of the mean covariance of the classes with two rows or more.

    offset: (rows, dim), rows less the means of their classes. label: (rows,). count: (classes,).
    """
    share = 1 / ((count - 1).clamp(min=1) * (count > 1).sum())
    return torch.linalg.pinv(offset.T @ (share[label].unsqueeze(1) * offset), hermitian=True)


def precision_of(scatter: Tensor, rows: float) -> Tensor:
    """Shrunk inverse `N (S + t I)^-1` of a scatter matrix (dim, dim) of N rows, or of weights that sum to N."""
    shrinkage = scatter.diagonal().sum() / max(rows - 1, 1)
    identity = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    if shrinkage * rows < _NOTHING:
        return identity * len(scatter)
    return rows * torch.linalg.inv(scatter + shrinkage * identity)
