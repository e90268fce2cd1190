"""Which rule chooses hyperparameters best: every rule on the same candidates, on related classes of real stores.

For every method, group of classes, number of shots and draw, all candidates are fitted on the support; a rule sees
their logits on the validation rows alone and names one, whose accuracy on test rows is what counts. Groups are those
of `groups.json` whose classes the store has, by name; a store without any is one group. `--text` damages the text, so
that the defaults, which trust it, are wrong.

Rows of classes with few of them are pooled and cut anew by every draw: the support, then up to 4 per class to choose
on, but at most half of what is left, then test rows.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters import METHODS, Method, MethodError, Rows, Task, Text
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.selection.rule import calibrated_loss, departure, weights_to_try
from onceclip.adapters.selection.selection import choices
from onceclip.adapters.training.engine import finite, train
from onceclip.adapters.training.loop import Run
from onceclip.pipeline.api.runs import make_task
from onceclip.stores import Store, open_store

GROUPS = Path(__file__).with_name("groups.json")
TEXTS = ("real", "half", "shuffled", "random")
MOST = 4  # validation rows per class
NOISE = 0.5  # points that do not count
ZERO_SHOT, BEST = "zero-shot", "best candidate"


@dataclass(frozen=True)
class Cell:
    """What one draw gives: a task, its validation rows, and test rows."""

    task: Task
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Candidates:
    """All settings of one method on one cell, each with all of its mixing weights in order.

    settings: their number. weight: (candidates,), the mixing weight or 1. prior: (candidates,), what the rule charges
    for leaving the defaults. default: position of the default. entropy, calibrated: (candidates, rows), cross-entropies
    of the validation rows. right: (candidates, rows). accuracy: (candidates,) on test rows. alone: calibrated
    cross-entropies of the support rows left out one by one (candidates, rows), or None.
    """

    settings: int
    weight: np.ndarray
    prior: np.ndarray
    default: int
    entropy: np.ndarray
    calibrated: np.ndarray
    right: np.ndarray
    accuracy: np.ndarray
    alone: np.ndarray | None

    def within(self, loss: np.ndarray, order: np.ndarray) -> int:
        """The first in some order of all within one standard error of the best, by paired differences of rows."""
        best = loss - loss[loss.mean(axis=1).argmin()]
        error = best.std(axis=1, ddof=1) / np.sqrt(loss.shape[1])
        allowed = np.flatnonzero(best.mean(axis=1) <= error + 1e-9)
        return int(allowed[np.lexsort((loss.mean(axis=1)[allowed], order[allowed]))[0]])

    def middle(self) -> int:
        """Of every setting that is as accurate as any the middle of its widest best interval; the surest of these."""
        right = self.right.sum(axis=1)
        found = []
        for places in np.split(np.arange(len(right)), self.settings):
            best = places[right[places] == right.max()]
            runs = [run for run in np.split(best, np.flatnonzero(np.diff(best) > 1) + 1) if len(run)]
            if runs:
                widest = max(runs, key=lambda run: self.weight[run[-1]] - self.weight[run[0]])
                middle = (self.weight[widest[0]] + self.weight[widest[-1]]) / 2
                found.append(int(widest[np.abs(self.weight[widest] - middle).argmin()]))
        return min(found, key=lambda place: float(self.entropy[place].sum()))

    def chosen(self) -> dict[str, int]:
        """What every rule takes."""
        wrong, best = 1.0 - self.right, np.flatnonzero(self.right.sum(axis=1) == self.right.sum(axis=1).max())
        found = {
            "fixed": self.default,
            "accuracy, middle": self.middle(),
            "accuracy, smallest": int(best[self.weight[best].argmin()]),
            "cross-entropy": int(self.entropy.sum(axis=1).argmin()),
            "calibrated": int(self.calibrated.sum(axis=1).argmin()),
            "accuracy, 1 SE to default": self.within(wrong, self.prior),
            "cross-entropy, 1 SE to default": self.within(self.entropy, self.prior),
            "calibrated, 1 SE to default": self.within(self.calibrated, self.prior),
            "calibrated, 1 SE to zero-shot": self.within(self.calibrated, self.weight),
            "cross-entropy, prior": int((self.entropy.sum(axis=1) + self.prior).argmin()),
            "calibrated, prior": int((self.calibrated.sum(axis=1) + self.prior).argmin()),
            BEST: int(self.accuracy.argmax()),
        }
        if self.alone is not None:
            found["left out, prior"] = int((self.alone.sum(axis=1) + self.prior).argmin())
            both = self.alone.sum(axis=1) + self.calibrated.sum(axis=1)
            found["calibrated and left out, prior"] = int((both + self.prior).argmin())
        return found


def groups_of(store: Store) -> dict[str, list[int]]:
    """Classes of every group that the store has all classes of; all of its classes where it has no group."""
    first = [name.split(",")[0] for name in store.classes]
    position = {name: place for place, name in enumerate(first)} | {name: place for place, name in
                                                                   enumerate(store.classes)}
    found = {}
    for title, entries in json.loads(GROUPS.read_text(encoding="ascii")).items():
        ends = [entry if isinstance(entry, list) else [entry, entry] for entry in entries]
        if all(name in position for pair in ends for name in pair):
            found[title] = [place for low, high in ends for place in range(position[low], position[high] + 1)]
    return found or {store.path.rstrip("/").rsplit("/", 1)[-1]: list(range(len(store.classes)))}


def cells(store: Store, classes: Sequence[int], shots: int, draws: int, text: str) -> Iterator[Cell]:
    """The draws of one group of classes."""
    whole, table = make_task(store), store.table
    label = np.full(len(store.classes), -1)
    label[list(classes)] = np.arange(len(classes))
    for draw in range(draws):
        generator = np.random.default_rng(draw)
        support, val, test = _cut(store, classes, shots, generator)
        embedding = whole.text.class_weights[list(classes)]
        words = Text(_damaged(embedding, text, torch.Generator().manual_seed(draw)), torch.arange(len(classes)),
                     tuple(store.classes[place] for place in classes))
        rows = [Rows(torch.from_numpy(store.embeddings(each).astype(np.float32)),
                     torch.from_numpy(label[table.label[each]])) for each in (support, val, test)]
        task = Task(words, rows[0], rows[1], logit_scale=whole.logit_scale, logit_bias=whole.logit_bias)
        yield Cell(task, rows[1], rows[2])


def _cut(store: Store, classes: Sequence[int], shots: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Positions of support, validation and test rows."""
    own = {}
    for name in ("train", "val", "test"):
        rows = store.rows(name)
        own[name] = [generator.permutation(rows[store.table.label[rows] == place]) for place in classes]
    most = min(shots, MOST)
    if min(map(len, own["train"])) >= shots and min(map(len, own["val"])) >= MOST:
        cut = [([*train[:shots]], [*val[:most]], [*test]) for train, val, test in zip(*own.values(), strict=True)]
    else:
        cut = []
        for three in zip(*own.values(), strict=True):
            rows = generator.permutation(np.concatenate(three))
            end = shots + min(most, (len(rows) - shots) // 2)
            cut.append(([*rows[:shots]], [*rows[shots:end]], [*rows[end:]]))
    return [np.array(list(itertools.chain(*each)), dtype=np.int64) for each in zip(*cut, strict=True)]


def _damaged(text: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Class vectors with all or half of the names shuffled, or random ones."""
    if how == "random":
        return torch.randn(text.shape, generator=generator)
    order = torch.randperm(len(text), generator=generator)
    moved = order[:0 if how == "real" else len(text) // 2 if how == "half" else len(text)]
    return text.index_copy(0, moved, text[moved.roll(1)])


@torch.no_grad()
def candidates(name: str, cell: Cell) -> Candidates:
    """Fit all settings of a method on one cell."""
    method = METHODS[name]().suited(cell.task)
    free = {key: values for key, values in choices(method).items() if key != method.mixing}
    settings = [method.with_values(**dict(zip(free, values, strict=True)))
                for values in itertools.product(*free.values())]
    task, chosen_on = cell.task, cell.val
    prepared = method.prepare(task)
    trained = train([Run(each, task, prepared, 0) for each in settings])
    fitted = [pair for pair in zip(settings, trained, strict=True) if finite(pair[1])]
    weights, defaults = [1.0], {key: method.values[key] for key in free}
    if method.mixing:
        bounds, middle = method.hyperparameters[method.mixing], float(method.values[method.mixing])
        weights = weights_to_try(middle, bounds.low, bounds.high)
        defaults[method.mixing] = middle
    rows = []
    on = [_terms(fitted, prepared, method, part) for part in (chosen_on, cell.test)]
    for (each, _), val, test in zip(fitted, *on, strict=True):
        left = _left_out(each, prepared, task)
        for weight in weights:
            logits, tested = (first + weight * second for first, second in (val, test))
            values = {**each.values, **({method.mixing: weight} if method.mixing else {})}
            rows.append((weight, departure(values, defaults), cross_entropy(logits, chosen_on.label, reduction="none"),
                         calibrated_loss(logits, chosen_on.label), logits.argmax(1) == chosen_on.label,
                         float((tested.argmax(1) == cell.test.label).double().mean()), left and calibrated_loss(
                             left[0] + weight * left[1], task.support.label)))
    columns = [np.array([np.asarray(value) for value in column]) if column[0] is not None else None
               for column in zip(*rows, strict=True)]
    return Candidates(len(fitted), columns[0], columns[1],  # type: ignore[arg-type]
                      int(columns[1].argmin()), *columns[2:])  # type: ignore[union-attr, arg-type]


def _terms(fitted: Sequence[tuple[Method, Any]], prepared: Any, method: Method,
           rows: Rows) -> list[tuple[Tensor, Tensor]]:
    """Logits A and B of all settings; B is zero where there is no mixing weight."""
    values = method.rows_of(rows)
    if method.mixing is None:
        heads = [each.head(prepared, parameters) for each, parameters in fitted]
        return [(logits, torch.zeros(())) for logits in batched_logits(heads, values)]
    pairs = [each.terms(prepared, parameters) for each, parameters in fitted]
    return list(zip(*(batched_logits([pair[side] for pair in pairs], values) for side in (0, 1)), strict=True))


def _left_out(method: Method, prepared: Any, task: Task) -> tuple[Tensor, Tensor] | None:
    try:
        method.check_left_out(task)
    except MethodError:
        return None
    return method.leave_one_out(prepared)


@click.command("study", context_settings={"show_default": True})
@click.argument("stores", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--methods", default="gda,tip-adapter,proker", help="Names with commas between.")
@click.option("--shots", default="1,2,4", help="Numbers with commas between.")
@click.option("--draws", default=10)
@click.option("--text", default=TEXTS[0], type=click.Choice(TEXTS), help="What becomes of the class names.")
@click.option("--out", type=click.Path(path_type=Path), help="Append a row per method, group and shots, as JSON lines.")
def command(stores: Sequence[str], methods: str, shots: str, draws: int, text: str, out: Path | None) -> None:
    """Compare rules for choosing hyperparameters on groups of related classes of STORES."""
    rows = []
    for name in methods.split(","):
        for store in map(open_store, stores):
            for title, classes in groups_of(store).items():
                for number in map(int, shots.split(",")):
                    if (row := _row(name, store, title, classes, number, draws, text)) is None:
                        continue
                    rows.append(row)
                    if out is not None:
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
        show(name, [row for row in rows if row["method"] == name])


def _row(name: str, store: Store, group: str, classes: Sequence[int], shots: int, draws: int,
         text: str) -> dict[str, Any] | None:
    """Mean accuracy in % of what every rule takes; None where the store has too few rows."""
    found = defaultdict(list)
    for cell in cells(store, classes, shots, draws, text):
        if len(cell.task.support) < shots * len(classes) or not len(cell.test):
            return None
        tried = candidates(name, cell)
        for rule, place in tried.chosen().items():
            found[rule].append(100 * float(tried.accuracy[place]))
        logits = cell.test.unit @ cell.task.zero_shot_weights.T
        found[ZERO_SHOT].append(100 * float((logits.argmax(1) == cell.test.label).double().mean()))
    return {"method": name, "group": group, "classes": len(classes), "shots": shots, "draws": draws, "text": text,
            "accuracy": {rule: float(np.mean(each)) for rule, each in found.items()}}


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of one method: mean accuracy, and beside fixed and zero-shot the mean difference, the worst one
    and the share of cells that are more than half a point below."""
    click.echo(f"\n{name}: {len(rows)} cells\n{'':34}{'mean':>6}{'to fixed':>10}{'worst':>7}{'below':>7}"
               f"{'to zero-shot':>14}{'worst':>7}{'below':>7}")
    for rule in dict.fromkeys(rule for row in rows for rule in row["accuracy"]):
        have = [row["accuracy"] for row in rows if rule in row["accuracy"]]
        line = f"{rule:34}{np.mean([each[rule] for each in have]):6.2f}"
        for other, width in (("fixed", 10), (ZERO_SHOT, 14)):
            difference = np.array([each[rule] - each[other] for each in have])
            line += f"{difference.mean():+{width}.2f}{difference.min():+7.1f}{(difference < -NOISE).mean():7.0%}"
        click.echo(line)
