"""Images of several classes each: every class ranks the images, which is scored by average precision."""

from __future__ import annotations

import csv
import io
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Classifier
from onceclip.adapters.errors import unknown
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.evaluate import logits_of, require_unseen
from onceclip.pipeline.files import key_of, read_text
from onceclip.pipeline.retrieval.metrics import ranks_of
from onceclip.pipeline.tasks.tasks import check_encoder
from onceclip.pipeline.words import counted, listing
from onceclip.stores import Store
from onceclip.stores.identity import digest
from onceclip.stores.schema import SPLITS

_SCORES = 2**22  # that are ranked at a time


@dataclass(frozen=True)
class LabelFile:
    """The classes of every image that a file lists, by key or path; none for one that shows no class.

    digest: of its content.
    """

    name: str
    digest: str
    labels: Mapping[str, frozenset[str]]


def read_labels(file: str) -> LabelFile:
    """Read a CSV file with the columns key and label: a line for every class of an image.

    An image without any class has one line with an empty label.
    Raises TaskError if it is something else, SourceError if it cannot be read.
    """
    text = read_text(file)
    try:
        table = csv.DictReader(io.StringIO(text), skipinitialspace=True)
        if not {"key", "label"} <= {*(table.fieldnames or ())}:
            raise ValueError("it has no columns key and label")
        labels: dict[str, set[str]] = {}
        for number, row in enumerate(table, 2):
            if not row["key"] or row["label"] is None:
                raise ValueError(f"line {number} has no key, or no label")
            labels.setdefault(row["key"], set()).update({row["label"]} - {""})
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{file} is no list of labels ({error}): write a CSV file with the columns key and label, a "
                        "line for every class of an image") from error
    return LabelFile(file, digest(text.encode("utf-8", "surrogateescape")).hex(),
                     {key: frozenset(names) for key, names in labels.items()})


def evaluate(classifier: Classifier, store: Store, labels: LabelFile, split: str = "test",
             progress: Progress = no_progress) -> dict[str, Any]:
    """Mean average precision of the listed images of a split, and that of every class, as JSON values.

    The images are ranked by a class's logit. Its average precision is the mean over its images of the share of them
    among all that stand at their rank or before; equal logits count half, as in retrieval. A class without images has
    none, and `map` is the mean over the others. Labels in the store are not read. A store of unlabelled images has no
    splits: all listed images count.
    Raises TaskError if the file lists an image or a class that is not there, or none of the split, or the classifier
    was fitted on that; StoreMismatch if another encoder made the store.
    """
    begun, names = time.perf_counter(), classifier.class_names
    check_encoder(classifier, store)
    require_unseen(classifier, store, split)
    rows, relevant = _listed(classifier, store, labels, split)
    scores, done = torch.empty(len(names), len(rows)), 0
    for (logits,) in logits_of([classifier], store, rows):
        scores[:, done:done + len(logits)] = logits.T
        done += len(logits)
        progress(done / len(rows))
    count = relevant.sum(axis=1)
    precision = np.full(len(names), np.nan)
    shown = np.flatnonzero(count)
    for chosen in np.array_split(shown, -(-len(shown) * len(rows) // _SCORES)):
        places = torch.full((len(chosen), int(count[chosen].max())), -1, dtype=torch.int64)
        for place, number in enumerate(chosen):
            places[place, :count[number]] = torch.from_numpy(np.flatnonzero(relevant[number]))
        precision[chosen] = ranks_of(scores[torch.from_numpy(chosen)], places).precision
    per_class = [{"class": name, "n": int(number), "average_precision": float(value) if number else None}
                 for name, number, value in zip(names, count, precision, strict=True)]
    return {"map": float(precision[shown].mean()), "split": split if store.classes else None, "n": len(rows),
            "classes": len(shown), "among": len(names), "labels_per_image": float(count.sum() / len(rows)),
            "method": classifier.method, "store": store.path, "store_fingerprint": store.fingerprint,
            "encoder": store.encoder["name"], "labels": {"file": labels.name, "digest": labels.digest},
            "per_class": per_class, "seconds": time.perf_counter() - begun}


def _listed(classifier: Classifier, store: Store, labels: LabelFile, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of a split that a file lists, and which of them each class is shown by: (classes, n) bool."""
    for name in sorted({name for several in labels.labels.values() for name in several}):
        if name not in classifier.class_names:
            raise TaskError(f"{labels.name}: {unknown('class', name, classifier.class_names, ' of the adapter')}")
    keys = store.column("key")
    known, found = {*keys.tolist()}, defaultdict[str, set[str]](set)
    for name, several in labels.labels.items():
        found[name if name in known else key_of(name.removeprefix("./"))] |= several
    if missing := [key for key in found if key not in known]:
        raise TaskError(f"{labels.name}: {counted(len(missing), 'image')} of {len(labels.labels):,} not in "
                        f"{store.path}: {listing(missing, 4)}; keys there are such as {listing(keys[:2].tolist())}: "
                        "name images by their keys")
    rows = {name: [row for row in store.rows(name, labelled=False) if keys[row] in found] for name in SPLITS}
    listed = rows[split] if store.classes else [row for row in store.rows(labelled=False) if keys[row] in found]
    if not any(found[keys[row]] for row in listed):
        there = ", ".join(f"{name} {len(several):,}" for name, several in rows.items())
        raise TaskError(f"{labels.name} gives no class to a {split} image of {store.path} (listed images: {there}): "
                        "list them, or choose another --split")
    place = {name: number for number, name in enumerate(classifier.class_names)}
    relevant = np.zeros((len(place), len(listed)), bool)
    for column, row in enumerate(listed):
        relevant[[place[name] for name in found[keys[row]]], column] = True
    return np.array(listed, np.int64), relevant
