"""Choosing Tip-Adapter's alpha and beta beside the double loop of the field's scripts.

The published script computes affinities, cache and zero-shot logits anew at each of the 200 x 20 points; that loop is
timed on points spread over the grid and multiplied up. A second loop keeps what can be kept. The package chooses among
the same betas and all weights up to 50, by its rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import click
import torch
from torch import Tensor

from bench import peers
from bench.measure import Row, bench, in_turn, make_row, ratio, scaled
from bench.synthetic import features
from onceclip.adapters import Rows, Task, Text
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.heads.kernel import cache_logits
from onceclip.adapters.selection.rule import Race, Weighed

BETAS = [0.1 + number * (13 - 0.1) / 200 for number in range(200)]
ALPHAS = [0.1 + number * (13 - 0.1) / 20 for number in range(20)]
LOOP, OURS = "peer, double loop", "ours, every weight"
NOISE = 5.0  # added to features that are too easy for any cell to differ


def make(classes: int, shots: int, dim: int) -> tuple[Task, Tensor, Tensor]:
    """A task, and as many unit rows as it has keys to choose on, with their labels."""
    embedding, label, text = (torch.from_numpy(each) for each in features(classes, 2 * shots, dim))
    embedding = embedding + NOISE * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    val = torch.arange(len(label)) % 2 == 0
    task = Task(Text(text, torch.arange(classes), tuple(map(str, range(classes)))), Rows(embedding[~val], label[~val]))
    return task, Rows(embedding[val], label[val]).unit, label[val]


def caches(task: Task, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-shot logits (rows, classes) and those of the cache at every beta (betas, rows, classes)."""
    return (rows @ task.zero_shot_weights.T,
            cache_logits(rows, task.support.keys, task.support.label, task.classes, BETAS))


def ours(task: Task, rows: Tensor, label: Tensor) -> Weighed:
    """The beta and the weight that the rule chooses."""
    with threads_for(0):
        zero_shot, every = caches(task, rows)
        race = Race(label, 1.0, high=50.0)
        return min((race.weigh(zero_shot, cache) for cache in every), key=lambda each: each.cost)


def table(task: Task, rows: Tensor, label: Tensor) -> Tensor:
    """Accuracies (betas, alphas) at every point of the published loop."""
    zero_shot, every = caches(task, rows)
    return torch.stack([torch.stack([((zero_shot + alpha * cache).argmax(dim=1) == label).double().mean()
                                     for alpha in ALPHAS]) for cache in every])


def some(peer: peers.Cache, points: Sequence[tuple[float, float]]) -> None:
    """Some points of the published loop."""
    for beta, alpha in points:
        peer.point(beta, alpha)


@bench("selection", small={"classes": 5, "shots": 2, "dims": "16", "points": 2, "repeats": 1})
@click.option("--classes", default=100)
@click.option("--shots", default=16)
@click.option("--dims", default="512,1024", help="Widths of the embeddings.")
@click.option("--points", default=20, help="Points of the published loop that are timed.")
@click.option("--repeats", default=5)
def command(classes: int, shots: int, dims: str, points: int, repeats: int) -> Iterator[Row]:
    """A 200 x 20 search for Tip-Adapter's alpha and beta with as many validation rows as keys, on one thread."""
    torch.set_num_threads(1)
    for dim in map(int, dims.split(",")):
        task, rows, label = make(classes, shots, dim)
        peer = peers.Cache(rows, label, task.support.keys, task.support.label, task.text.class_weights)
        spread = [(BETAS[number * len(BETAS) // points], ALPHAS[number % len(ALPHAS)]) for number in range(points)]
        seconds = in_turn({LOOP: partial(some, peer, spread), OURS: partial(ours, task, rows, label)}, repeats)
        seconds[LOOP] = scaled(seconds[LOOP], len(BETAS) * len(ALPHAS) / points)
        seconds |= in_turn({"peer, what can be kept": partial(peer.kept, BETAS, ALPHAS)}, 1, 0)
        theirs = peer.kept(BETAS, ALPHAS)
        different = ((table(task, rows, label) - theirs).abs() * len(label)).round()
        goals = {"1": ratio(seconds, LOOP, OURS), "1 cells": float(different.max())}
        yield make_row(f"Tip-Adapter's search, {dim} dimensions", {"classes": classes, "shots": shots, "dim": dim},
                       seconds, [OURS], goals=goals, peer_from_points=points, cells=different.numel(),
                       cells_that_differ=int((different > 0).sum()), best_of_the_table=float(theirs.max()),
                       of_the_rule=ours(task, rows, label).accuracy)
