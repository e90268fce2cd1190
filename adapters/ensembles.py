"""Several fitted classifiers made one: two averaged in their weights or logits, or many that answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Bottleneck, Columns, Head, Linear, Sum, mixed, pack, unpack
from onceclip.adapters.heads.answers import CONFIDENT, LOG_PROBABILITY, Answers, Controlled
from onceclip.adapters.heads.layers import Perceptron, Rectified
from onceclip.adapters.heads.linear import Projected
from onceclip.adapters.ops import unit
from onceclip.adapters.selection.automatic import ENSEMBLE, values_of
from onceclip.adapters.selection.calibration import VALIDATION, on_rows
from onceclip.adapters.selection.rule import Weighed, best_weight, some_rows
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
MERGED = "merged_with"  # among the values of a merged classifier: the method of the other one


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
    _check(parts, rule, rows)
    heads, inputs, widths = _heads_on_columns(members)
    shares = (1 / len(parts),) * len(parts)
    plain = Answers(heads, tuple(part.temperature for part in parts), shares,
                    CONFIDENT if rule == CONFIDENCE else LOG_PROBABILITY)
    head: Head = plain
    if rule in (WEIGHT, SYNERGY) and rows is not None:
        some = some_rows(rows, len(parts[0].class_names))
        values = some.input(inputs).to(plain.dtype)
        answers = plain.answers(values)
        if rule == WEIGHT:
            weight = best_weight(answers[0], answers[1] - answers[0], some.label, 0.5, high=1.0).weight
            shares = (1 - weight, weight)
            head = replace(plain, weights=shares)
        else:
            head = _controlled(plain, widths, values, torch.stack(answers, dim=1), some.label, seed)
    # What is recorded of the store's own encoder is said by a member of it, wherever that stands.
    own = next((part.provenance for name, part in members if not name), {})
    provenance = {**own, "encoders": {name: part.encoder for name, part in members}}
    settings = {"rule": rule, **values_of(zip(labels(members), parts, shares, strict=True))}
    return Classifier(head, parts[0].class_names, sum(widths), ENSEMBLE, settings, provenance, inputs)


def _check(parts: Sequence[Classifier], rule: str, rows: Rows | None) -> None:
    if len(parts) < 2 or len({each.class_names for each in parts}) > 1:
        raise MethodError("an ensemble needs two classifiers or more of the same class names in the same order")
    if rule not in RULES:
        raise MethodError(f"no rule {rule!r} of an ensemble: there are: {', '.join(RULES)}")
    if rule == WEIGHT and len(parts) != 2:
        raise MethodError(f"the rule {WEIGHT} is for two classifiers, and here are {len(parts)}: take {MEAN}")
    if rule in (WEIGHT, SYNERGY) and (rows is None or not len(rows)):
        raise MethodError(f"the rule {rule} needs labelled validation images and there are none: take {MEAN} or "
                          f"{CONFIDENCE}")


def labels(members: Sequence[tuple[str, Classifier]]) -> list[str]:
    """What members are called: METHOD or NAME/METHOD, with a number where several are one."""
    plain = [f"{name}/{part.method}" if name else part.method for name, part in members]
    return [label if plain.count(label) == 1 else f"{label} {1 + plain[:place].count(label)}"
            for place, label in enumerate(plain)]


def _heads_on_columns(members: Sequence[tuple[str, Classifier]]) -> tuple[tuple[Head, ...], tuple[str, ...], list[int]]:
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
    controlled = Controlled(head, Perceptron(*(each.requires_grad_() for each in parameters)), tuple(widths))
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            cross_entropy(controlled.weighed(rows, answers), label).backward()
            optimizer.step()
    for each in parameters:
        each.requires_grad_(False)
    return controlled


def merge(fitted: Classifier, start: Classifier, weight: float = 0.5, align: bool = False) -> Classifier:
    """Average a fitted classifier with one that it started from, or with any other of the same classes.

    weight: share of the fitted one, between 0 and 1. Heads of one form (two linear ones, two projections, ...) are
    averaged in their weights; others in their logits, which for linear heads is the same.
    align: first give the hidden units of a bottleneck the order in which they are most like those of the other, so that
        trainings of several seeds can be averaged.
    Raises MethodError if the two do not belong together.

    Source: Robust Fine-tuning of Zero-shot Models (Wortsman et al., CVPR 2022), equation 1; MerA (He et al., 2023) for
    the order of units.

    Example:
        >>> from onceclip.adapters import CLAP, ZeroShot, merge
        >>> merged = merge(CLAP().fit(task), ZeroShot().fit(task), weight=0.5)
        >>> merged.logits(embeddings).shape
        torch.Size([5, 4])
    """
    _require_alike(fitted, start)
    if not 0 <= weight <= 1:
        raise MethodError(f"weight {weight} of a merge is not between 0 and 1")
    head = aligned(fitted.head, start.head) if align else fitted.head
    return _merged(fitted, start, weight, average(start.head, head, weight))


def aligned(head: Head, like: Head) -> Head:
    """A head whose hidden units have the order of another's: those of the highest cosine of unit rows of `down` pair.

    It gives the same logits. What is no bottleneck on both sides, or of other widths, stays as it is.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s, which few who fit or load an adapter need

    if isinstance(head, Sum) and isinstance(like, Sum) and len(head.heads) == len(like.heads):
        return replace(head, heads=tuple(map(aligned, head.heads, like.heads)))
    if not isinstance(head, Bottleneck | Rectified) or not isinstance(like, type(head)):
        return head
    if head.down.shape != like.down.shape:
        return head
    alike = unit(like.down) @ unit(head.down).T
    order = torch.from_numpy(linear_sum_assignment(alike.cpu().numpy(), maximize=True)[1]).to(head.down.device)
    return replace(head, down=head.down[order], up=head.up[:, order])


def best_merge(fitted: Classifier, start: Classifier, rows: Rows) -> tuple[Classifier, Weighed]:
    """Average two classifiers with the weight that labelled rows speak for, and give it too.

    The logits are averaged; the weight is chosen as every hyperparameter is, and 0.5 is left only with evidence. The
    same rows give the average its temperature and the scores of prediction sets.
    rows: validation rows, never those that the number is reported on.
    Raises MethodError if the two do not belong together, or there are no rows.

    Example:
        >>> task = onceclip.make_task(store, shots=4, select="val")
        >>> from onceclip.adapters import GDA, ZeroShot, best_merge
        >>> merged, found = best_merge(GDA().fit(task), ZeroShot().fit(task), task.val)
        >>> 0 <= found.weight <= 1
        True
    """
    _require_alike(fitted, start)
    if not len(rows):
        raise MethodError("the best weight of a merge needs labelled rows and there are none: give `merge` a weight")
    rows = some_rows(rows, len(fitted.class_names))
    values = rows.input(fitted.inputs)
    first = start.logits(values)
    second = fitted.logits(values) - first
    found = best_weight(first, second, rows.label, 0.5, high=1.0)
    merged = _merged(fitted, start, found.weight, mixed(start.head, fitted.head, found.weight))
    return on_rows(merged, first + found.weight * second, rows.label, VALIDATION), found


def average(first: Head, second: Head, weight: float) -> Head:
    """The head `(1 - weight) first + weight second`: of the weights where both have one form, else of the logits."""
    if isinstance(first, Linear) and isinstance(second, Linear):
        return mixed(first, second, weight)
    form, one = pack(first)
    other_form, other = pack(second)
    # Numbers may differ, labels and positions may not.
    if form != other_form or any(value.shape != other[name].shape or not (
            value.is_floating_point() or torch.equal(value, other[name])) for name, value in one.items()):
        return Sum((first, second), (1 - weight, weight))
    return unpack(form, {name: torch.lerp(value, other[name], weight) if value.is_floating_point() else value
                         for name, value in one.items()})


def _require_alike(fitted: Classifier, start: Classifier) -> None:
    known = fitted.encoder and start.encoder
    for what, one, other in (("class names", fitted.class_names, start.class_names),
                             ("inputs", fitted.inputs, start.inputs), ("widths", fitted.dim, start.dim),
                             ("encoders", *(each.encoder.get("fingerprint") for each in (fitted, start)))):
        if one != other and (known or what != "encoders"):
            raise MethodError(f"two classifiers of different {what} do not merge: fit both on one task")


def _merged(fitted: Classifier, start: Classifier, weight: float, head: Head) -> Classifier:
    values = {**fitted.hyperparameters, MERGED: start.method, "merge_weight": weight}
    return fitted.with_head(head, hyperparameters=values, parameters={})
