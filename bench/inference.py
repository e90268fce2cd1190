"""StatA and TransCLIP beside their formulas written down as the published loops are: differences of every row to every
class, chunk by chunk, and in StatA's first covariance a matrix per class.

The plain loops take minutes a step, and as long for every row and every step: they are timed on `--plain-rows` rows for
`--plain-steps` of their ten steps, and counted for all. Where that is all of them, the answers are compared too. The
neighbours are found in the same way on both sides.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import click
import torch
from torch import Tensor

from bench.measure import Row, bench, in_turn, make_row, ratio
from bench.synthetic import features
from onceclip.adapters import Classifier, Rows, Task, Text, ZeroShot
from onceclip.adapters.inference import INFERENCES, Queries, queries_of
from onceclip.adapters.inference.graph import affinity
from onceclip.adapters.inference.transclip import INNER, OUTER, ROWS, TEMPERATURE
from onceclip.adapters.ops import unit

_BYTES = 2**29  # of the largest tensor of the plain loops: a chunk of differences
NAMES = ("transclip", "stata")


def plain(name: str, rows: Tensor, text: Tensor, steps: int) -> Tensor:
    """The assignments (n, classes) after some steps of a published loop, term by term."""
    chunk = max(1, _BYTES // (4 * text.numel()))
    probability = (100 * rows @ text.T).softmax(dim=1)
    graph, z = affinity(rows, 3), probability
    if name == "stata":
        mean, variance = text, _covariance(z, rows, text)
        first = variance
    else:
        largest, index = z.topk(min(ROWS, len(rows)), dim=0)
        mean = unit(torch.einsum("kc,kcd->cd", largest, rows[index]))
        variance = torch.full_like(text, 1 / text.shape[1])
    for _ in range(steps):
        density = torch.cat([-0.5 * ((part[:, None] - mean).square() / variance).sum(dim=2)
                             for part in rows.split(chunk)])
        if name == "stata":
            density -= 0.5 * variance.log().sum(dim=1)
        z = _inner(z, probability, density, graph)
        if name == "stata":
            count = torch.bincount(z.argmax(dim=1), minlength=len(text)).unsqueeze(1).to(text)
            share = count / (1 + count)
            mean = unit(share * unit(z.T @ rows) + (1 - share) * text)
            spread = _spread(z, rows, mean, chunk) / z.sum(dim=0).clamp_min(1e-30).unsqueeze(1)
            variance = share * spread + (1 - share) * (first + (text - mean).square())
        else:
            mean = unit(z.T @ rows)
            variance = (_spread(z, rows, mean, chunk).sum(dim=0) / len(rows)).expand_as(text)
    if name == "transclip" and steps == OUTER:
        density = torch.cat([-0.5 * ((part[:, None] - mean).square() / variance).sum(dim=2)
                             for part in rows.split(chunk)])
        z = _inner(z, probability, density, graph)
    return z


def _inner(z: Tensor, probability: Tensor, density: Tensor, graph: Tensor) -> Tensor:
    for _ in range(INNER):
        power = (density + TEMPERATURE / 6 * torch.sparse.mm(graph, z)) / TEMPERATURE
        z = probability * (power - power.max(dim=1, keepdim=True).values).exp()
        z = z / z.sum(dim=1, keepdim=True)
    return z


def _spread(z: Tensor, rows: Tensor, mean: Tensor, chunk: int) -> Tensor:
    """`sum_n z_nc (x_n - mean_c)^2` (classes, dim) by all differences."""
    return sum((torch.einsum("nc,ncd->cd", share, (part[:, None] - mean).square())
                for share, part in zip(z.split(chunk), rows.split(chunk), strict=True)), start=torch.zeros_like(mean))


def _covariance(z: Tensor, rows: Tensor, text: Tensor) -> Tensor:
    """The spread of all rows around their texts, once for every class: the diagonal of a matrix per class."""
    size, mean = z.sum(dim=0), z.T @ rows
    total = z.T @ rows.square()
    outer = torch.zeros_like(text[0])
    for each, vector in zip(size.split(64), text.split(64), strict=True):  # all classes at once would take gigabytes
        square = torch.bmm(each[:, None, None] * vector[:, :, None], vector[:, None, :])
        outer += square.diagonal(dim1=1, dim2=2).sum(dim=0)
    return ((total - 2 * text * mean).sum(dim=0) + outer).div(len(rows)).expand_as(text)


def _seconds_of_neighbours(rows: Tensor) -> float:
    begun = time.perf_counter()
    affinity(rows, 3)
    return time.perf_counter() - begun


def _peak() -> float:
    """Most memory that this process has had, in GiB."""
    kilo = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilo / 2**20


@bench("inference", small={"rows": 60, "classes": 5, "dim": 16, "repeats": 1, "plain_rows": 60, "plain_steps": 10})
@click.option("--rows", default=50_000)
@click.option("--classes", default=1000)
@click.option("--dim", default=512)
@click.option("--repeats", default=1)
@click.option("--plain-rows", default=2000, help="Rows that the plain loops are timed on.")
@click.option("--plain-steps", default=1, help="Steps of ten that the plain loops are timed for.")
def command(rows: int, classes: int, dim: int, repeats: int, plain_rows: int, plain_steps: int) -> Iterator[Row]:
    """StatA and TransCLIP on a whole set, cached tensors in, assignments out."""
    embedding, label, text = features(classes, -(-rows // classes), dim)
    names = tuple(map(str, range(classes)))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))[:rows]
    words = Text(torch.from_numpy(text), torch.arange(classes), names)
    task = Task(words, Rows(torch.zeros(0, dim), torch.zeros(0, dtype=torch.int64)))
    classifier = ZeroShot().fit(task)
    queries = queries_of(classifier, torch.from_numpy(embedding)[order])
    for name in NAMES:
        yield _figure(name, classifier, queries, task, repeats, min(plain_rows, rows), plain_steps)


def _figure(name: str, classifier: Classifier, queries: Queries, task: Task, repeats: int, plain_rows: int,
            plain_steps: int) -> Row:
    found: dict[str, Tensor] = {}
    some = queries.embedding[:plain_rows]
    neighbours, of_some = (_seconds_of_neighbours(rows) for rows in (queries.embedding, some))
    before = _peak()

    def ours() -> None:
        found["ours"] = INFERENCES[name]().run(classifier, queries, task).logits.softmax(dim=1)

    own = in_turn({"ours": ours}, repeats, warm=0)
    peak = _peak()

    def loop() -> None:
        found["plain"] = plain(name, some, task.text.class_weights, plain_steps)

    theirs = in_turn({"plain loop": loop}, repeats, warm=0)["plain loop"]
    # The neighbours are found once, whatever the number of steps, in a time that is not linear in the rows.
    times = OUTER / plain_steps * len(queries) / plain_rows
    whole = [neighbours + max(each - of_some, 0) * times for each in theirs]
    seconds = {"plain loop": whole, **own}
    whole_loop = (plain_rows, plain_steps) == (len(queries), OUTER)
    apart = {"largest_difference": float((found["plain"] - found["ours"]).abs().max())} if whole_loop else {}
    return make_row(f"{name}, {len(queries):,} rows", {"classes": task.classes, "dim": task.dim}, seconds, ["ours"],
                    goals={f"19 {name}": ratio(seconds, "plain loop", "ours")}, threads=torch.get_num_threads(),
                    seconds_of_neighbours=neighbours, rows_of_the_plain_loop_timed=plain_rows,
                    steps_of_the_plain_loop_timed=plain_steps,
                    gib_at_most=peak, gib_before=before, **apart)
