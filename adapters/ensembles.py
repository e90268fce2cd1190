"""Adapters of several encoders, or of one, that answer as one classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Columns, Head
from onceclip.adapters.heads.answers import CONFIDENT, LOG_PROBABILITY, Answers, Controlled
from onceclip.adapters.heads.linear import Projected
from onceclip.adapters.heads.perceptron import Perceptron
from onceclip.adapters.selection.automatic import ENSEMBLE
from onceclip.adapters.selection.rule import best_weight, some_rows
from onceclip.adapters.task import EMBEDDING, Rows
from onceclip.adapters.training.trainable import linear_bias, linear_start

MEAN, CONFIDENCE, WEIGHT, SYNERGY = "mean", "confidence", "weight", "synergy"
RULES = {
    MEAN: "the mean of log-probabilities",
    CONFIDENCE: "the mean of probabilities, each weighted by 1 - entropy / ln classes",
    WEIGHT: "of two, the mean of log-probabilities with the weight that validation images choose",
    SYNERGY: "the sum of log-probabilities, each times a factor that a small network gives for every image, trained on "
             "validation images",
}
_HIDDEN, _STEPS, _RATE, _DECAY = 64, 200, 1e-3, 1e-2  # of the network


def ensemble(classifiers: Mapping[str, Classifier | Sequence[Classifier]], rule: str = MEAN,
             rows: Rows | None = None, seed: int = 0) -> Classifier:
    """One classifier of several adapters for the same classes, on the images of joined stores.

    classifiers: one or several by the name under which their encoder's store is joined, "" for the store itself; see
        `Store.join`. Each answers with its own temperature. rule: one of RULES. rows: validation rows of the joined
        store, for "weight" and "synergy", never those that the number is reported on. seed: of the network's start.
    Raises MethodError if class names differ, there is no such rule, or it lacks rows.

    The network of "synergy" has one hidden layer of 64 units on the unit embeddings side by side; it starts where the
    answer is the mean, and is trained for 200 steps of AdamW on all rows at once.

    Source: Unveiling Backbone Effects in CLIP (Rodriguez-Opazo et al., 2024): mean, confidence, and the neural logit
    controller, whose sizes and recipe are ours; the weight by the rule of every hyperparameter.

    Example:
        >>> from onceclip.adapters import GDA, TipAdapter, ensemble
        >>> both = ensemble({"": GDA().fit(task), "again": TipAdapter().fit(task)})
        >>> both.inputs, both.logits(torch.cat([embeddings, embeddings], dim=1)).shape
        (('embedding', 'again/embedding'), torch.Size([5, 4]))
    """
    members = [(name, each) for name, given in classifiers.items()
               for each in ([given] if isinstance(given, Classifier) else given)]
    parts = [part for _, part in members]
    if len(parts) < 2 or len({each.class_names for each in parts}) > 1:
        raise MethodError("an ensemble needs two classifiers or more of the same class names in the same order")
    if rule not in RULES:
        raise MethodError(f"no rule {rule!r} of an ensemble: there are: {', '.join(RULES)}")
    if rule == WEIGHT and len(parts) != 2:
        raise MethodError(f"the rule {WEIGHT} is for two classifiers, and here are {len(parts)}: take {MEAN}")
    if rule in (WEIGHT, SYNERGY) and (rows is None or not len(rows)):
        raise MethodError(f"the rule {rule} needs labelled validation images and there are none: take {MEAN} or "
                          f"{CONFIDENCE}")
    heads, inputs, widths = _side_by_side(members)
    share = (1 / len(parts),) * len(parts)
    head: Head = Answers(heads, tuple(part.temperature for part in parts), share,
                         CONFIDENT if rule == CONFIDENCE else LOG_PROBABILITY)
    if rule in (WEIGHT, SYNERGY) and rows is not None and isinstance(head, Answers):
        some = some_rows(rows, len(parts[0].class_names))
        values = some.input(inputs).to(head.dtype)
        answers = head.answers(values)
        if rule == WEIGHT:
            weight = best_weight(answers[0], answers[1] - answers[0], some.label, 0.5, high=1.0).weight
            share = (1 - weight, weight)
            head = replace(head, weights=share)
        else:
            head = _controlled(head, widths, values, torch.stack(answers, dim=1), some.label, seed)
    provenance = {**parts[0].provenance, "encoders": {name: part.encoder for name, part in members}}
    settings: dict[str, Any] = {"rule": rule}
    for label, part, weight in zip(labels(members), parts, share, strict=True):
        settings |= {f"{label} weight": weight, f"{label} temperature": part.temperature}
        settings |= {f"{label} {name}": value for name, value in part.hyperparameters.items()}
    return Classifier(head, parts[0].class_names, sum(widths), ENSEMBLE, settings, provenance, inputs)


def labels(members: Sequence[tuple[str, Classifier]]) -> list[str]:
    """What members are called: METHOD or NAME/METHOD, with a number where several are one."""
    plain = [f"{name}/{part.method}" if name else part.method for name, part in members]
    return [label if plain.count(label) == 1 else f"{label} {1 + plain[:place].count(label)}"
            for place, label in enumerate(plain)]


def _side_by_side(members: Sequence[tuple[str, Classifier]]) -> tuple[tuple[Head, ...], tuple[str, ...], list[int]]:
    """The members' heads on their columns of an ensemble's rows, the names of these inputs, and their widths."""
    starts: dict[tuple[str, ...], int] = {}
    widths: list[int] = []
    heads = []
    for name, part in members:
        if part.inputs != (EMBEDDING,) and not isinstance(part.head, Projected):
            raise MethodError(f"the ensemble takes heads on unit rows, and {part.method} takes "
                              f"{', '.join(part.inputs)} as they are: leave it out")
        own = tuple(f"{name}/{each}" if name else each for each in part.inputs)
        if own not in starts:
            starts[own] = sum(widths)
            widths.append(part.dim)
        heads.append(Columns(torch.arange(starts[own], starts[own] + part.dim), part.head))
    return tuple(heads), tuple(each for own in starts for each in own), widths


def _controlled(head: Answers, widths: Sequence[int], rows: Tensor, answers: Tensor, label: Tensor,
                seed: int) -> Controlled:
    """Train the network that says how much each answer (n, members, classes) counts for each row (n, width)."""
    generator, width, members = torch.Generator().manual_seed(seed), sum(widths), len(head.heads)
    parameters = [linear_start((_HIDDEN, width), generator, rows), linear_bias(_HIDDEN, width, generator, rows),
                  rows.new_zeros(members, _HIDDEN), rows.new_zeros(members)]
    with torch.enable_grad():
        controlled = Controlled(head, Perceptron(*(each.requires_grad_() for each in parameters)), tuple(widths))
        optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            cross_entropy(controlled.weighed(rows, answers), label).backward()
            optimizer.step()
    return Controlled(head, Perceptron(*(each.detach() for each in parameters)), tuple(widths))
