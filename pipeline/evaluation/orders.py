"""Orders of a stream: a seed each, and what the strategies that read streams reach in them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from onceclip.adapters.inference import Inference
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.evaluate import Evaluation, columns_of
from onceclip.pipeline.evaluation.inference import INFERENCE, Read, Session, score_logits, told
from onceclip.pipeline.evaluation.intervals import compare, row_interval
from onceclip.pipeline.evaluation.metrics import SCORES, Tally
from onceclip.pipeline.words import numbers_in

DEFAULT = (1, 2, 3)


def parse_orders(text: str) -> tuple[int, ...]:
    """The seeds that a list such as "1-5" or "1,4,9" names.

    Raises TaskError for what is none, or names a seed twice.
    """
    seeds = numbers_in(text)
    if not seeds:
        raise TaskError(f"no orders {text!r}: give seeds of permutations, such as 1-5 or 1,4,9")
    if len({*seeds}) < len(seeds):
        raise TaskError(f"the orders {text!r} name a seed twice: give each once")
    return tuple(seeds)


def orders_for(strategy: Inference | None, orders: Sequence[int] | str | None, batches: bool) -> tuple[int, ...]:
    """Seeds of the orders in which a strategy reads the rows; none but for a stream that is not dealt in batches.

    orders: that are asked for, None for DEFAULT. batches: whether batches are.
    Raises TaskError for orders of what is no stream, or that are none.
    """
    stream = strategy is not None and strategy.sees == "stream"
    if orders is None:
        return DEFAULT if stream and not batches else ()
    if strategy is not None and not stream:
        raise TaskError(f"--orders is for strategies that read a stream, and {strategy.name} does not: leave it out")
    if batches:
        raise TaskError("--orders and batches are two ways to deal out a stream: give one of them")
    return parse_orders(orders if isinstance(orders, str) else ",".join(map(str, orders)))


def permutation(seed: int, rows: int) -> np.ndarray:
    """The order of a seed, by torch's generator on a CPU: (rows,) int64."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()


def order_hash(order: np.ndarray) -> str:
    """SHA-256 of a permutation, as little-endian int64."""
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class OrdersRead(Read):
    """A classifier that read the rows of a split as a stream, in several orders.

    evaluation: of the first order, its rows as in `alone`. others: of the further orders. orders: JSON values of each
    order: its seed, the hash of its permutation, its accuracy.
    """

    others: tuple[Evaluation, ...] = ()
    orders: tuple[dict[str, Any], ...] = ()

    def as_values(self) -> dict[str, Any]:
        """Scores as means over the orders; what is said of single classes and pairs is the first order's.

        The ends of intervals are means over the orders, too; `spread` is the standard deviation of the accuracies, p
        the largest of the orders'.
        """
        values, every = super().as_values(), (self.evaluation, *self.others)
        tallies = [each.tally.scores() for each in every]
        values |= {name: None if tallies[0][name] is None else fmean(each[name] or 0.0 for each in tallies)
                   for name in SCORES}
        values["interval"] = _mean_ends([row_interval(each.right, each.unit) for each in every])
        found = [compare(each.right, self.alone.right, self.alone.unit) for each in every]
        difference = {**found[0], "difference": fmean(each["difference"] for each in found),
                      "difference_interval": _mean_ends([each["difference_interval"] for each in found]),
                      "p": max(each["p"] for each in found)}
        accuracies = [each["accuracy"] for each in self.orders]
        record = {**values[INFERENCE], "orders": list(self.orders), "difference": difference,
                  "spread": stdev(accuracies) if len(accuracies) > 1 else None}
        return {**values, INFERENCE: record}


def read_orders(alone: Evaluation, strategy: Inference, orders: Sequence[int] = DEFAULT,
                progress: Callable[[float], None] = no_progress) -> OrdersRead:
    """Read the rows that a classifier was scored on as a stream, anew in each order, without memory of another.

    orders: seeds of their permutations. progress: is told the fraction that is done.
    Raises MethodError if the strategy cannot work with the classifier or the store.
    """
    columns, label = columns_of(alone.classifier, alone.candidates), torch.from_numpy(alone.label)
    record: dict[str, Any] = {}
    found, told_of = [], []

    def tell(number: int, done: float) -> None:
        progress((number + done) / len(orders))

    for number, seed in enumerate(orders):
        begun, order = time.perf_counter(), permutation(seed, len(alone.rows))
        session = Session.begin(told(strategy, partial(tell, number)), alone.classifier, alone.store)
        inferred = session.infer(alone.rows[order])
        tally = Tally(len(alone.candidates))
        predicted = np.empty(len(order), np.int32)
        predicted[order] = score_logits(tally, inferred.logits, label[order], columns)
        found.append(replace(alone, predicted=predicted, tally=tally, seconds=time.perf_counter() - begun))
        record = record or session.record(alone.split, alone.rows, inferred.diagnostics)
        told_of.append({"seed": seed, "permutation": order_hash(order), "accuracy": float(found[-1].right.mean())})
    progress(1.0)
    return OrdersRead(found[0], alone, record, others=tuple(found[1:]), orders=tuple(told_of))


def _mean_ends(intervals: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(each[0] for each in intervals), fmean(each[1] for each in intervals)]
