"""A bias per class that gives unlabelled rows the class frequencies that are assumed of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError, unknown
from onceclip.adapters.heads.batched import elements_at_once
from onceclip.adapters.inference.base import Inductive, Queries, fit_setting, log_scores, with_bias
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

UNIFORM, ESTIMATED, GIVEN = "uniform", "estimated", "given"
_ENOUGH = 100.0  # times the precision of the numbers: a mean probability this near to its goal, relatively


class PriorBias(Inductive):
    """Optimal transport of rows to classes, whose dual variables are a bias that any classifier can keep.

    With the marginal `uniform` the bias b solves `mean_n softmax((l(x_n) + b) / temperature) = 1 / classes`: the
    entropic form of OTTER's transport with the scores as gains; as the temperature falls, its exact plan. It assumes
    that the rows it is fitted on are balanced, and ruins the scores if they are not. A `prior` that is given takes the
    place of `1 / classes`. With `estimated` the frequencies are first found by expectation and maximization (Saerens);
    the bias is their logarithm.

    Source: OTTER: Effortless Label Distribution Adaptation of Zero-shot Models (Shin et al., NeurIPS 2024), equation 2;
    Adjusting the Outputs of a Classifier to New a Priori Probabilities (Saerens et al., Neural Computation 2002),
    equation 4.8.
    """

    name = "prior-bias"
    summary = "a bias per class, by optimal transport to balanced classes or given shares, or by estimated frequencies"
    equation = "logits = l(x) + b,  mean_n softmax((l(x_n) + b) / temperature) = 1/C or pi;  estimated: b = ln pi"
    hyperparameters = {
        "marginal": Hyperparameter(UNIFORM, "frequencies of the classes among the rows it is fitted on: equal ones, or "
                                   "those that the classifier's probabilities speak for", choices=(UNIFORM, ESTIMATED)),
        "prior": Hyperparameter("", "shares of all classes, by name, that are known instead: on the command line the "
                                "name of a .csv file with lines CLASS,SHARE, in Python a dict"),
        "temperature": Hyperparameter(1.0, "smoothness of the transport, not of estimated", low=1e-3, high=1e3),
        "steps": Hyperparameter(1000, "iterations at most", low=1, high=1e6),
        **fit_setting(),
    }

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("prior"), Mapping):
            values["prior"] = json.dumps(values["prior"])
        super().__init__(**values)
        if self.values["prior"]:
            if self.marginal != UNIFORM:
                raise MethodError(f"marginal={self.marginal} finds the frequencies that prior gives: leave one out")
            self.values["prior"] = json.dumps(_shares(self.values["prior"]), sort_keys=True)

    @property
    def prior(self) -> str:  # type: ignore[override]
        return GIVEN if self.values["prior"] else str(self.marginal)

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        scores = log_scores(classifier, rows)
        if self.marginal == UNIFORM:
            goal = self._goal(classifier.class_names).to(scores.device)
            bias = self.temperature * self._transport(scores.div_(self.temperature), goal)
        else:
            bias = self._estimate(scores).log()
        return with_bias(self, classifier, (bias - bias.mean()).to(scores))

    def _goal(self, names: tuple[str, ...]) -> Tensor:
        """The frequencies (classes,) in float64 that the classes are to have."""
        if not self.values["prior"]:
            return torch.full((len(names),), 1 / len(names), dtype=torch.float64)
        shares = _shares(self.values["prior"])
        for name in shares:
            if name not in names:
                raise MethodError(unknown("class", name, names, " of the prior"))
        if missing := [name for name in names if name not in shares]:
            raise MethodError(f"the prior has no share of {missing[0]!r}"
                              f"{f' and {len(missing) - 1} more classes' if missing[1:] else ''}: give one of all")
        goal = torch.tensor([shares[name] for name in names], dtype=torch.float64)
        return goal / goal.sum()

    def _transport(self, scores: Tensor, goal: Tensor) -> Tensor:
        """The bias (classes,) in float64 with which the classes are as frequent as the goal: Sinkhorn's iterations."""
        bias = scores.new_zeros(scores.shape[1], dtype=torch.float64)
        enough = _ENOUGH * torch.finfo(scores.dtype).eps
        for step in range(self.steps):
            # A class of no probability anywhere is raised by the largest factor there is, not by an infinite one.
            change = -(mean_probability(scores, bias).clamp_min(_least(scores)) / goal).log()
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


def _shares(text: str) -> dict[str, float]:
    """Shares by class of a JSON text. Raises MethodError if it is something else, or a share is not above 0."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not values:
        raise MethodError(f"prior={text[:40]} has no shares by class: give a .csv file with lines CLASS,SHARE, or a "
                          "dict of them")
    for name, share in values.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise MethodError(f"the prior's share of {name!r} is {share!r}: give numbers above 0; what they add up to "
                              "does not matter")
    return {name: float(share) for name, share in values.items()}


def mean_probability(scores: Tensor, bias: Tensor) -> Tensor:
    """Mean over the rows of `softmax(scores + bias)`: (classes,), in float64, piece by piece."""
    total = torch.zeros_like(bias)
    for piece in scores.split(max(1, elements_at_once(scores.device.type) // scores.shape[1])):
        total += (piece + bias.to(piece)).softmax(dim=1).sum(dim=0)
    return total / len(scores)


def _least(scores: Tensor) -> float:
    return float(torch.finfo(scores.dtype).tiny)
