"""From a store to a task: text, support and validation rows of one run. Test rows never enter."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from onceclip.adapters import Rows, Task, Text
from onceclip.pipeline.draws import Draw, draw
from onceclip.pipeline.errors import TaskError
from onceclip.stores import Store, TextSet

VAL_SHOTS = 4


@dataclass(frozen=True)
class Drawn:
    """A task and where it came from: its draws, its text set, and what a user should know of them."""

    task: Task
    support: Draw
    val: Draw | None
    text: TextSet
    remarks: list[str] = field(default_factory=list)


def make_task(store: Store, shots: int | None = None, seed: int = 1, text: str = "default",
              select: str = "fixed") -> Task:
    """Draw the task of one run.

    shots: labelled rows per class, None for all of the train split. text: name of the text set.
    select: "val" adds min(shots, 4) validation rows per class, "val-full" the whole validation split.
    Raises TaskError if the store has too few classes, StoreIncomplete if it is unfinished.
    """
    return draw_task(store, shots, seed, text, select).task


def draw_task(store: Store, shots: int | None = None, seed: int = 1, text: str = "default",
              select: str = "fixed") -> Drawn:
    """Draw a task and tell how; arguments and failures as for `make_task`."""
    store.require_complete()
    if len(store.classes) < 2:
        raise TaskError(f"{store.path} has {len(store.classes)} class: a classifier needs two; extract a folder with "
                        "one sub-folder per class")
    if shots is not None and shots < 1:
        raise TaskError(f"--shots {shots}: give a whole number from 1 up, or all")
    words = store.text(text).of_classes(store.classes)
    remarks: list[str] = []
    # A picture that stands in a later split too is left out here: it would be known in advance there.
    known = _contents(store, "test")
    support = _draw(store, "train", shots, seed, known | _contents(store, "val"), remarks)
    val = None
    if select in ("val", "val-full"):
        most = None if select == "val-full" or shots is None else min(shots, VAL_SHOTS)
        val = _draw(store, "val", most, seed, known, remarks)
    task = Task(
        Text(torch.from_numpy(words.embedding.astype(np.float32)), torch.from_numpy(words.class_index), words.classes),
        _rows(store, support, store.has_views), None if val is None or not len(val.rows) else _rows(store, val),
        logit_scale=store.encoder.get("logit_scale") or 100.0, logit_bias=store.encoder.get("logit_bias") or 0.0)
    return Drawn(task, support, val, words, remarks)


def _draw(store: Store, split: str, shots: int | None, seed: int, known: set[bytes], remarks: list[str]) -> Draw:
    rows, table = store.rows(split), store.table
    fresh = np.array([bytes(table.digest[row]) not in known for row in rows], dtype=bool)
    if not fresh.all():
        remarks.append(f"{int((~fresh).sum())} {split} images were left out: the same pictures stand in a later split")
    rows = rows[fresh]
    drawn = draw(rows, table.key[rows], table.label[rows], shots, seed, "support" if split == "train" else "val")
    if drawn.short:
        names = ", ".join(f"{store.classes[number]!r} ({count})" for number, count in list(drawn.short.items())[:4])
        more = f" and {len(drawn.short) - 4} more" if len(drawn.short) > 4 else ""
        remarks.append(f"{len(drawn.short)} classes have fewer than {shots} {split} images, all taken: {names}{more}")
    empty = set(range(len(store.classes))) - set(table.label[rows].tolist())
    if empty and split == "train" and len(rows):
        names = ", ".join(repr(store.classes[number]) for number in sorted(empty)[:8])
        remarks.append(f"no train image of {len(empty)} classes: {names}{' ...' if len(empty) > 8 else ''}")
    return drawn


def _contents(store: Store, split: str) -> set[bytes]:
    digests = store.column("digest")[store.rows(split)]
    return {bytes(each) for each in digests if each.any()}


def _rows(store: Store, drawn: Draw, with_views: bool = False) -> Rows:
    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32))

    views = tensor(store.embeddings(drawn.rows, "view")) if with_views else None
    label = torch.from_numpy(store.column("label")[drawn.rows].astype(np.int64))
    return Rows(tensor(store.embeddings(drawn.rows)), label, views)
