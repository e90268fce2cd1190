"""A bias per class that gives unlabelled rows the class frequencies that are assumed of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads.batched import elements_at_once
from onceclip.adapters.inference.base import Inductive, Queries, fit_setting, log_scores, with_bias
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

UNIFORM, ESTIMATED = "uniform", "estimated"
_ENOUGH = 100.0  # times the precision of the numbers: a mean probability this near to its goal, relatively


class PriorBias(Inductive):
    """Optimal transport of rows to classes, whose dual variables are a bias that any classifier can keep.

    With the marginal `uniform` the bias b solves `mean_n softmax((l(x_n) + b) / temperature) = 1 / classes`: the
    entropic form of OTTER's transport with the scores as gains; as the temperature falls, its exact plan. It assumes
    that the rows it is fitted on are balanced, and ruins the scores if they are not. With `estimated` the frequencies
    are first found by expectation and maximization (Saerens); the bias is their logarithm.

    Source: OTTER: Effortless Label Distribution Adaptation of Zero-shot Models (Shin et al., NeurIPS 2024), equation 2;
    Adjusting the Outputs of a Classifier to New a Priori Probabilities (Saerens et al., Neural Computation 2002),
    equation 4.8.
    """

    name = "prior-bias"
    summary = "a bias per class, by optimal transport to balanced classes or by estimated frequencies"
    source = "Shin et al., OTTER: Effortless Label Distribution Adaptation of Zero-shot Models, NeurIPS 2024"
    equation = "logits = l(x) + b,  mean_n softmax((l(x_n) + b) / temperature) = 1/C;  estimated: b = ln pi"
    hyperparameters = {
        "marginal": Hyperparameter(UNIFORM, "frequencies of the classes among the rows it is fitted on: equal ones, or "
                                   "those that the classifier's probabilities speak for", choices=(UNIFORM, ESTIMATED)),
        "temperature": Hyperparameter(1.0, "smoothness of the transport, uniform alone", low=1e-3, high=1e3),
        "steps": Hyperparameter(1000, "iterations at most", low=1, high=1e6),
        **fit_setting(),
    }

    @property
    def prior(self) -> str:  # type: ignore[override]
        return str(self.marginal)

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        scores = log_scores(classifier, rows)
        if self.marginal == UNIFORM:
            bias = self.temperature * self._transport(scores.div_(self.temperature))
        else:
            bias = self._estimate(scores).log()
        return with_bias(self, classifier, (bias - bias.mean()).to(scores))

    def _transport(self, scores: Tensor) -> Tensor:
        """The bias (classes,) in float64 with which all classes are equally frequent: Sinkhorn's iterations."""
        bias = scores.new_zeros(scores.shape[1], dtype=torch.float64)
        enough = _ENOUGH * torch.finfo(scores.dtype).eps
        for step in range(self.steps):
            # A class of no probability anywhere is raised by the largest factor there is, not by an infinite one.
            change = -(mean_probability(scores, bias).clamp_min(_least(scores)) * len(bias)).log()
            bias += change
            self.progress((step + 1) / self.steps)
            if not torch.isfinite(bias).all():
                raise MethodError("the classifier gives logits that are not finite: fit it again")
            if float(change.abs().max()) < enough:
                break
        return bias

    def _estimate(self, scores: Tensor) -> Tensor:
        """The frequencies (classes,) in float64 of largest likelihood; uniform ones are assumed of the classifier."""
        prior = scores.new_full((scores.shape[1],), 1 / scores.shape[1], dtype=torch.float64)
        for step in range(min(self.steps, 100)):
            prior = mean_probability(scores, prior.log()).clamp_min(_least(scores))
            self.progress((step + 1) / 100)
        return prior


def mean_probability(scores: Tensor, bias: Tensor) -> Tensor:
    """Mean over the rows of `softmax(scores + bias)`: (classes,), in float64, piece by piece."""
    total = torch.zeros_like(bias)
    for piece in _pieces(scores):
        total += (piece + bias.to(piece)).softmax(dim=1).sum(dim=0)
    return total / len(scores)


def _pieces(scores: Tensor) -> Iterator[Tensor]:
    yield from scores.split(max(1, elements_at_once(scores.device.type) // scores.shape[1]))


def _least(scores: Tensor) -> float:
    return float(torch.finfo(scores.dtype).tiny)
