"""Classes that arrive in sessions: what a method knows of all of them, session by session."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Classifier, Method, Rows, Task, Text
from onceclip.adapters.heads import pack
from onceclip.adapters.plugin import full_name
from onceclip.adapters.training.loop import Progress, no_progress, part_of
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.runs.results import append_rows, read_lines
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import draw_task, inputs_of
from onceclip.pipeline.words import counted, listing, version
from onceclip.stores import Store, write_lock
from onceclip.stores.identity import digest, fingerprint

NAME, PAGE = "incremental.jsonl", "incremental.html"  # rows, and the page of their curves


@dataclass(frozen=True)
class Sessions:
    """Runs on classes that arrive.

    method: its name. values: hyperparameters. sessions: number of them, of equal numbers of classes but for one. shots:
    labelled rows per class, None for all. seed: of the draw and of the training. text: name of the text set. joint: fit
    on the rows of all sessions so far, as a bound.
    """

    method: str
    sessions: int
    shots: int | None = None
    seed: int = 1
    values: tuple[tuple[str, Any], ...] = ()
    text: str = "default"
    joint: bool = False

    def built(self) -> Method:
        """The method with its values."""
        return run_method(self.method)(**dict(self.values))

    def identity(self, store: Store, order: int) -> str:
        """Name of the run with one order of classes: what was asked for, of which content."""
        asked = {"method": self.method, "values": self.built().values, "sessions": self.sessions, "shots": self.shots,
                 "seed": self.seed, "joint": self.joint, "order": order, "store": store.fingerprint,
                 "text": self.text_fingerprint(store)}
        return fingerprint({"incremental": asked})

    def text_of(self, store: Store) -> str | None:
        """Name of the text set; None of a store that has no text, where the method looks at none."""
        return self.text if store.texts or self.built().needs_text else None

    def text_fingerprint(self, store: Store) -> str:
        """Fingerprint of the text set, empty where there is none. Raises StoreIncomplete if the store lacks it."""
        name = self.text_of(store)
        return "" if name is None else store.text_fingerprint(name)


def order_of(classes: Sequence[str], seed: int, sessions: int) -> list[list[str]]:
    """Names of the classes of every session: ranked by a hash of seed and name, so that it is the same everywhere.

    Raises TaskError if the first session would have fewer than two classes.
    """
    if len(classes) < 2:
        raise TaskError(f"{counted(len(classes), 'class', 'classes')}: sessions need a store with two classes at least")
    if sessions < 1 or len(classes) < 2 * sessions:
        raise TaskError(f"{counted(sessions, 'session')} of {counted(len(classes), 'class', 'classes')}: give a number "
                        f"from 1 to {len(classes) // 2}, so that each has two classes at least")
    ranked = sorted(classes, key=lambda name: (digest(f"order:{seed}:{name}".encode()), name))
    return [list(part) for part in np.array_split(np.array(ranked, dtype=object), sessions)]


def incremental(store: Store, asked: Sessions, orders: Sequence[int], folder: Path | None = None,
                progress: Progress = no_progress) -> list[dict[str, Any]]:
    """A row for every order of classes: accuracies after each session, their mean, and what was forgotten.

    folder: its `incremental.jsonl` gets every row as soon as it is there; runs that have one are not repeated.
    Raises TaskError, MethodError or StoreError.
    """
    parts = [part_of(progress, number / len(orders), 1 / len(orders)) for number in range(len(orders))]
    if folder is None:
        return [_run(store, asked, order, part) for order, part in zip(orders, parts, strict=True)]
    with write_lock(str(folder / NAME)):
        known = {row.get("run"): row for row in read_lines(folder / NAME)}
        rows = []
        for order, part in zip(orders, parts, strict=True):
            row = known.get(asked.identity(store, order))
            if row is None:
                row = _run(store, asked, order, part)
                append_rows(folder, [row], NAME)
            rows.append(row)
    return rows


def _run(store: Store, asked: Sessions, order: int, progress: Progress) -> dict[str, Any]:
    begun, method = time.perf_counter(), asked.built()
    parts = order_of(store.classes, order, asked.sessions)
    if is_average(asked.method):
        raise TaskError(f"{asked.method} is of several methods: name each by itself, as in --method gda,zero-shot")
    if method.inputs != ("embedding",) or method.needs_bank or method.wants_tower:
        raise TaskError(f"{method.name} takes more than embeddings and prompts: use another method for sessions")
    task = draw_task(store, DrawSpec(asked.shots, asked.seed), text=asked.text_of(store)).task
    test = store.rows("test")
    truth = store.column("label")[test]
    number = {name: place for place, name in enumerate(store.classes)}
    if not np.isin(truth, [number[name] for name in parts[0]]).any():
        raise TaskError(f"{store.path} has no test image of the classes of the first session ({listing(parts[0], 4)}): "
                        "take fewer --sessions, or a store with a test split")
    state: dict[str, torch.Tensor] = {}
    seen: list[list[int]] = []
    accuracies, by_session = [], []
    for part in parts:
        seen.append([number[name] for name in part])
        all_seen = list(itertools.chain(*seen))
        session = session_task(task, all_seen, all_seen if asked.joint else seen[-1])
        if asked.joint:
            classifier = method.fit(session, asked.seed)
        else:
            classifier, state = method.update(state, session, asked.seed)
        accuracy, of_parts = _scores(classifier, store, test, truth, seen)
        accuracies.append(accuracy)
        by_session.append(of_parts)
        progress(len(seen) / len(parts))
    return {
        "method": full_name(type(method)), "hyperparameters": method.values, "joint": asked.joint, "order": order,
        "seed": asked.seed, "shots": "all" if asked.shots is None else asked.shots, "classes": len(store.classes),
        "sessions": parts, "classes_seen": np.cumsum([len(part) for part in parts]).tolist(), "accuracies": accuracies,
        "by_session": by_session, "accuracy": accuracies[-1],
        "average_incremental_accuracy": _mean(accuracies), "forgetting": forgetting(by_session),
        "bytes_kept": kept_bytes(classifier, state), "reads_old_rows": asked.joint, "n_test": len(test),
        "store": store.path, "encoder": store.encoder["name"], "text": asked.text,
        "fingerprints": {"encoder": store.encoder["fingerprint"], "store": store.fingerprint,
                         "text": asked.text_fingerprint(store)},
        "seconds": time.perf_counter() - begun, "version": version(), "run": asked.identity(store, order)}


def session_task(task: Task, seen: Sequence[int], now: Sequence[int]) -> Task:
    """The task of one session: the text of the classes seen, in their order, and the support rows of those of now.

    seen, now: positions in the whole task's classes.
    """
    place = torch.full((task.classes,), -1)
    place[list(seen)] = torch.arange(len(seen))
    text, support = task.text, task.support
    mine, rows = place[text.class_index] >= 0, torch.isin(support.label, torch.tensor(list(now)))
    words = Text(text.embedding[mine], place[text.class_index[mine]], tuple(text.class_names[each] for each in seen),
                 None if text.template_id is None else text.template_id[mine], text.rule)
    views = None if support.views is None else support.views[rows]
    return replace(task, text=words, support=Rows(support.embedding[rows], place[support.label[rows]], views), val=None)


def _scores(classifier: Classifier, store: Store, test: np.ndarray, truth: np.ndarray,
            parts: Sequence[Sequence[int]]) -> tuple[float, list[float | None]]:
    """Accuracy on the test rows of all classes seen, and on those of each session."""
    seen = np.array([number for part in parts for number in part])
    mine = np.isin(truth, seen)
    found = [classifier.logits(piece).argmax(dim=1).numpy() for piece in inputs_of(classifier, store, test[mine])]
    right = seen[np.concatenate(found)] == truth[mine]
    of = [right[np.isin(truth[mine], part)] for part in parts]
    return float(right.mean()), [float(each.mean()) if len(each) else None for each in of]


def forgetting(by_session: Sequence[Sequence[float | None]]) -> float | None:
    """Mean over all sessions but the last of the best accuracy that one had before the end, less its last one.

    by_session: after every session the accuracies on those so far.
    Source: Riemannian Walk for Incremental Learning (Chaudhry et al., ECCV 2018), section 3.2.
    """
    lost = []
    for number in range(len(by_session) - 1):
        before = [accuracies[number] for accuracies in by_session[number:-1]]
        values = [each for each in before if each is not None]
        last = by_session[-1][number]
        if values and last is not None:
            lost.append(max(values) - last)
    return _mean(lost) if lost else None


def kept_bytes(classifier: Classifier, state: dict[str, torch.Tensor]) -> int:
    """Bytes that are kept for the next session: the state, or the classifier where there is none."""
    tensors = state.values() or pack(classifier.head, copy=False)[1].values()
    return sum(each.numel() * each.element_size() for each in tensors)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
