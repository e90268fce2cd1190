"""Runs of several methods: the average where a user names none, or [RULE:]A+B; see `average_of`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from onceclip.adapters import METHODS, Classifier, Method, MethodError, Task, ensemble, method_class
from onceclip.adapters.classifier import to_device
from onceclip.adapters.ensembles import RULES, best_merge, labels, merge
from onceclip.adapters.selection.automatic import AUTOMATIC, MERGE, Reached, fit_automatically
from onceclip.adapters.selection.calibration import VALIDATION, on_rows
from onceclip.adapters.selection.rule import best_temperature, calibrated_loss, some_rows
from onceclip.adapters.selection.selection import Selection, default_policy, fit_selected
from onceclip.adapters.task import EMBEDDING, Rows
from onceclip.adapters.training.loop import Progress, part_of
from onceclip.pipeline.workers.devices import CPU

Member = tuple[str, type[Method]]  # the name of a joined encoder, empty for the store's own, and the method

# What stands before A+B, and what it then means; without a rule it is the first.
KINDS = {
    "": "an ensemble: logits at their best temperatures, weighed by what validation images say of each method",
    MERGE: "of two methods the weights of heads of one form, else the logits, with the weight that validation images "
           "choose (WiSE-FT)",
    **RULES,
}
_NAMED = re.compile(f"({'|'.join(filter(None, KINDS))}):(.*)", re.DOTALL)
_MEMBERS = re.compile("(?:[^+/]+/)?(?:" + "|".join([*(re.escape(name) for name in METHODS if "+" in name), "[^+]+"])
                      + ")")  # lp++ is one


class Automatic(Method):
    """Stands where a method is asked what it needs; `average_of` fits it. members: the methods, or none to choose some.

    rule: of KINDS. encoders: names of the joined encoders that members are of.
    """

    name = AUTOMATIC
    summary = "The weighted average of several methods, each with hyperparameters chosen for the task."
    needs_text = False
    members: ClassVar[tuple[Member, ...]] = ()
    rule: ClassVar[str] = ""
    encoders: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Average(Selection):
    """A fitted average. reached: what each method reached on the rows that weighed it, the average last."""

    reached: tuple[Reached, ...] = ()


def parts_of(name: str) -> tuple[str, list[str]]:
    """The rule and the members' names, METHOD or ENCODER/METHOD, of [RULE:]A+B; no members for any other name."""
    named = _NAMED.fullmatch(name)
    rule, plain = named.groups() if named else ("", name)
    found = _MEMBERS.findall(plain)
    if "+".join(found) != plain:
        found = plain.split("+")  # one of them is empty, and no method
    return (rule, found) if len(found) > 1 else ("", [])


def member_names(name: str) -> list[str]:
    """The names of the methods that [RULE:]A+B means; none for any other name."""
    return [each.rpartition("/")[2] for each in parts_of(name)[1]]


def is_average(name: str) -> bool:
    """Whether a run is one of several methods."""
    return name == AUTOMATIC or bool(parts_of(name)[1])


def run_method(name: str | type[Method]) -> type[Method]:
    """The method of a run by its name, as `method_class`; "automatic" and [RULE:]A+B are some too.

    Raises MethodError for members that cannot be averaged.
    """
    if isinstance(name, str) and parts_of(name)[1]:
        return _average_class(name)
    if isinstance(name, str) and (named := _NAMED.fullmatch(name)) and named[2] in METHODS:
        raise MethodError(f"{name}: {named[1]} is of two methods or more, such as {named[1]}:gda+zero-shot")
    return Automatic if name == AUTOMATIC else method_class(name)


@lru_cache(maxsize=256)
def _average_class(name: str) -> type[Method]:
    rule, given = parts_of(name)
    pairs = [each.rpartition("/")[::2] for each in given]
    members = tuple((encoder, method_class(method)) for encoder, method in pairs)
    encoders = tuple(dict.fromkeys(encoder for encoder, _ in members if encoder))
    if len(set(members)) < len(members):
        raise MethodError(f"{name} has a method twice: name each once")
    if rule in (MERGE, "weight") and len(members) != 2:
        raise MethodError(f"{name}: {rule} is of two methods")
    if encoders and rule not in RULES:
        raise MethodError(f"{name}: methods of several encoders answer by a rule: write {' or '.join(RULES)} before "
                          f"it, such as {next(iter(RULES))}:{'+'.join(given)}")
    for _, member in members:
        if member.inputs != (EMBEDDING,) or member.wants_unlabelled or member.needs_bank:
            raise MethodError(f"{name}: {member.name} needs {member.needs}, and only methods of embeddings and labels "
                              "are averaged")
    inputs = tuple(dict.fromkeys(f"{encoder}/{EMBEDDING}" if encoder else EMBEDDING for encoder, _ in members))
    return type("Average", (Automatic,), {
        "__doc__": Automatic.__doc__, "__module__": __name__, "name": name, "members": members, "rule": rule,
        "encoders": encoders, "inputs": inputs if encoders else (EMBEDDING,),
        "needs_text": any(member.needs_text for _, member in members),
        "wants_tower": any(member.wants_tower for _, member in members)})


def average_of(method: Method, tasks: Mapping[str, Task], seed: int, progress: Progress) -> Average:
    """Fit an average: of methods weighed by labelled rows, of two whose weight these choose, or by a rule of RULES.

    tasks: one draw, by the names of encoders; that of the store itself is under "".
    An ensemble without a rule is `fit_automatically` of its members, with a rule `ensemble`. A merge is the average of
    the classifiers that its members are alone, in the weights of heads of one form and else in the logits, with the
    weight that validation rows choose, or one half (WiSE-FT, CVPR 2022, equation 1).
    """
    assert isinstance(method, Automatic)
    if not method.rule:
        classifier, reached = fit_automatically(tasks[""], seed, progress, [member for _, member in method.members])
        return Average(classifier, reached[-1].accuracy, len(reached) - 1, reached=tuple(reached))
    found = [fit_selected(member(), tasks[encoder], default_policy(member(), tasks[encoder]), seed=seed,
                          progress=part_of(progress, place / len(method.members), 1 / len(method.members))).classifier
             for place, (encoder, member) in enumerate(method.members)]
    val = None if tasks[""].val is None or not len(tasks[""].val) else tasks[""].val
    if method.rule != MERGE:
        return _ensemble(method, to_device(found, CPU), val and val.to(_on_cpu), seed)
    if val is None:
        return Average(_merged(merge(found[0], found[1]), found[0]))
    merged, weighed = best_merge(found[0], found[1], val)
    return Average(_merged(merged, found[0]), weighed.accuracy, 1, (weighed.low, weighed.high), weighed.cost)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _merged(classifier: Classifier, first: Classifier) -> Classifier:
    """A merge called what it is, which says of what."""
    return replace(classifier, method=MERGE, hyperparameters={"merged": first.method, **classifier.hyperparameters})


def _ensemble(method: Automatic, found: Sequence[Classifier], val: Rows | None, seed: int) -> Average:
    """The answers of members by a rule, at the temperatures that validation rows give, if there are any."""
    members = [(encoder, each) for (encoder, _), each in zip(method.members, found, strict=True)]
    reached = []
    if val is not None:
        val = some_rows(val, len(found[0].class_names))
        logits = [each.logits(val.input((f"{encoder}/{EMBEDDING}" if encoder else EMBEDDING,))) for encoder, each in
                  members]
        members = [(encoder, replace(each, temperature=best_temperature(own, val.label)))
                   for (encoder, each), own in zip(members, logits, strict=True)]
    groups = {name: [each for encoder, each in members if encoder == name] for name, _ in members}
    made = ensemble(groups, method.rule, val, seed)
    for place, (label, (_, each)) in enumerate(zip(labels(members), members, strict=True)):
        accuracy, loss = (None, 0.0) if val is None else _said(logits[place], val.label)
        reached.append(Reached(label, each.hyperparameters, accuracy, loss, made.hyperparameters[f"{label} weight"]))
    if val is None:
        return Average(made, None, len(members),
                       reached=(*reached, Reached(made.method, made.hyperparameters, None, 0.0, 1.0)))
    answers = made.logits(val.input(made.inputs))
    made = on_rows(made, answers, val.label, VALIDATION)
    reached.append(Reached(made.method, made.hyperparameters, *_said(answers, val.label), 1.0))
    return Average(made, reached[-1].accuracy, len(members), reached=tuple(reached))


def _said(logits: Tensor, label: Tensor) -> tuple[float, float]:
    """Accuracy on labelled rows, and the sum of their calibrated cross-entropies."""
    return (float((logits.argmax(dim=1) == label).double().mean()), float(calibrated_loss(logits, label).sum()))
