"""Linear heads beside the tools that people take for them, on one thread.

The weight decays of CLIP_benchmark's search, 97 of them, each a training of its own there; its DataLoader starts four
workers anew in every epoch. Its trainings are timed on decays spread over the 97. Logistic regression is compared
with scikit-learn at the loosest tolerance at which scikit-learn's objective is as good as ours. Ridge regressions of
97 strengths share one matrix in `adapters/ridge.py`, on which kernel regressions stand; scikit-learn fits each anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import click
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from bench import peers
from bench.machine import precisions
from bench.measure import Row, bench, in_turn, make_row, ratio, scaled
from bench.synthetic import task as make_task
from onceclip.adapters import Classifier, LinearProbe, LinearProbeAdamW, Task
from onceclip.adapters.training.compile import OFF, ON, Compiling, compiling
from onceclip.adapters.training.convex import Ridges
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

NUMBER = 97
MATCH = 1e-5  # of the objective
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def decays(task: Task, epochs: int, points: int, repeats: int) -> Row:
    """Seconds per training of 97 weight decays."""
    support, grid = task.support, np.logspace(-6, 2, NUMBER).tolist()
    methods = [LinearProbeAdamW(start="random", learning_rate=0.1, epochs=epochs, batch_size=64, weight_decay=decay)
               for decay in grid]
    trained: dict[str, list[Classifier]] = {}

    def ours(name: str) -> None:
        with compiling(Compiling(ON if name.endswith("compiled") else OFF)):
            found = train([Run(method, task, task, 0) for method in methods], narrow="bfloat16" in name)
        trained[name] = [method.classifier(task, task, each) for method, each in zip(methods, found, strict=True)]

    chosen = [(2 * place + 1) * NUMBER // (2 * points) for place in range(points)]
    theirs: dict[int, torch.nn.Module] = {}

    def loop(places: Sequence[int], workers: int) -> None:
        for place in places:
            theirs[place] = peers.train("linear", support.embedding, support.label, task.text.class_weights, epochs,
                                        0.1, batch_size=64, weight_decay=grid[place], workers=workers, epsilon=1e-8)

    kinds = [f"ours, {kind}" for kind in reversed(precisions())]
    own = [*(f"{kind}, compiled" for kind in kinds), *kinds]
    begun = time.perf_counter()
    for name in own[:len(kinds)]:
        ours(name)
    first = time.perf_counter() - begun
    seconds = in_turn({"peer, no workers": partial(loop, chosen, 0), "peer, four workers": partial(loop, chosen[:1], 4),
                       **{name: partial(ours, name) for name in own}}, repeats, warm=0)
    runs = {"peer, no workers": points, "peer, four workers": 1}
    seconds = {name: scaled(times, 1 / runs.get(name, NUMBER)) for name, times in seconds.items()}
    val = task.val or support
    exact = trained["ours, float32"]
    apart = [abs(peers.accuracy(theirs[place], val.embedding, val.label) - _accuracy(exact[place], task))
             for place in chosen]
    return make_row("97 weight decays", _at(task, epochs=epochs), seconds, own,
                    goals={"6 loop": ratio(seconds, "peer, no workers", own[0]),
                           "6 workers": ratio(seconds, "peer, four workers", own[0])} if len(kinds) > 1 else {},
                    first_time_of_all_compiled=first, peer_trainings_timed=points,
                    accuracies_differ_at_most=max(apart))


def _accuracy(classifier: Classifier, task: Task) -> float:
    val = task.val or task.support
    return float((classifier.logits(val.embedding).argmax(dim=1) == val.label).double().mean())


def _at(task: Task, **others: float) -> dict[str, float]:
    return {"classes": task.classes, "rows": len(task.support), "dim": task.dim, **others}


def objective(weight: Tensor, bias: Tensor, task: Task, l2: float) -> float:
    """Mean cross-entropy plus `l2 / 2 |W|^2`, in float64."""
    logits = task.support.unit.double() @ weight.double().T + bias.double()
    return float(cross_entropy(logits, task.support.label) + l2 / 2 * weight.double().square().sum())


def logistic(task: Task, l2: float, repeats: int) -> Row:
    """Exact logistic regression of one strength."""
    rows, label = task.support.unit.numpy(), task.support.label.numpy()
    method = LinearProbe(l2=l2)
    head = method.fit(task).head
    ours = objective(head.weight, head.bias, task, l2)  # type: ignore[attr-defined]

    def peer(tolerance: float) -> LogisticRegression:
        return LogisticRegression(C=1 / (l2 * len(rows)), tol=tolerance, max_iter=10_000).fit(rows, label)

    for tolerance in TOLERANCES:
        found = peer(tolerance)
        theirs = objective(torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_), task, l2)
        if theirs <= ours * (1 + MATCH):
            break
    seconds = in_turn({"scikit-learn": lambda: peer(tolerance), "ours": lambda: method.fit(task)}, repeats)
    good = ours <= theirs * (1 + MATCH)
    return make_row(f"logistic regression, l2 = {l2:g}", _at(task), seconds, ["ours"],
                    goals={"8 logistic": ratio(seconds, "scikit-learn", "ours")} if good else {},
                    tolerance_of_scikit_learn=tolerance, objective=ours, objective_of_scikit_learn=theirs)


def ridge(task: Task, repeats: int) -> Row:
    """97 ridge regressions onto one-hot labels, each scored on val rows."""
    val = task.val or task.support
    rows, target = task.support.unit.double(), one_hot(task.support.label, task.classes).double()
    others, strengths = val.unit.double(), np.logspace(-6, 2, NUMBER).tolist()
    found: dict[str, list[float]] = {}

    def score(logits: Tensor) -> float:
        return float((logits.argmax(dim=1) == val.label).double().mean())

    def ours() -> None:
        ridges = Ridges(rows.T @ rows, rows.T @ target)
        found["ours"] = [score(others @ ridges.solution(strength)) for strength in strengths]

    def peer() -> None:
        fitted = (Ridge(strength, fit_intercept=False).fit(rows.numpy(), target.numpy()) for strength in strengths)
        found["peer"] = [score(torch.from_numpy(each.predict(others.numpy()))) for each in fitted]

    seconds = in_turn({"scikit-learn, refits": peer, "ours, one matrix": ours}, repeats)
    return make_row("97 ridge regressions", _at(task), seconds, ["ours, one matrix"],
                    goals={"8 ridge": ratio(seconds, "scikit-learn, refits", "ours, one matrix")},
                    accuracies_differ_at_most=max(abs(one - other) for one, other in
                                                  zip(found["ours"], found["peer"], strict=True)))


@bench("probe", small={"classes": 4, "shots": 4, "dim": 16, "epochs": 2, "points": 1, "repeats": 1})
@click.option("--classes", default=100)
@click.option("--shots", default=16)
@click.option("--dim", default=512)
@click.option("--epochs", default=10)
@click.option("--points", default=4, help="Of the peers' trainings that are timed.")
@click.option("--repeats", default=2)
def command(classes: int, shots: int, dim: int, epochs: int, points: int, repeats: int) -> Iterator[Row]:
    """97 weight decays, exact logistic regression and ridge regressions beside the usual tools."""
    torch.set_num_threads(1)
    task = make_task(classes, shots, dim, noise=3.0)
    yield decays(task, epochs, points, repeats)
    with threadpool_limits(1):
        for l2 in (1e-3, 1e-5):
            yield logistic(task, l2, repeats)
        yield ridge(task, repeats)
