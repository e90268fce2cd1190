"""From a store to a task: text, support and validation rows of one run. Test rows never enter.

And from a fitted classifier to one of other classes, by the text of a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, Rows, Task, Text, transfer
from onceclip.adapters.heads.batched import row_pieces
from onceclip.adapters.task import BLOCK, EMBEDDING, Stream
from onceclip.adapters.text import RULES
from onceclip.adapters.tower import TextTower
from onceclip.adapters.transfer import wants_tower
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.classes import ALL, BASE, names_of
from onceclip.pipeline.tasks.draw_files import DrawFile, listed_draw
from onceclip.pipeline.tasks.draws import Draw, draw
from onceclip.pipeline.tasks.joined_keys import joined
from onceclip.pipeline.tasks.shapes import BALANCED, Shape
from onceclip.pipeline.tasks.ties import tied, ties_of
from onceclip.pipeline.words import counted
from onceclip.stores import Store, StoreMismatch, TextSet
from onceclip.stores.location import damage
from onceclip.stores.schema import SPLITS
from onceclip.stores.store import JoinedStore
from onceclip.stores.text_tower import TOWER

VAL_SHOTS = 4
UNLABELLED_PER_CLASS = 64
UNLABELLED = 10_000  # rows at most


@dataclass(frozen=True)
class Drawn:
    """A task and where it came from: its draws, its text set, and what a user should know of them.

    sourced: what is to be recorded of support rows that nobody labelled, and of a bank; empty where there are none.
    """

    task: Task
    support: Draw
    val: Draw | None
    unlabelled: Draw | None
    text: TextSet
    remarks: list[str] = field(default_factory=list)
    sourced: dict[str, Any] = field(default_factory=dict)


def make_task(store: Store, shots: int | None = None, seed: int = 1, text: str = "default",
              select: str = "fixed", class_weights: str = RULES[0], classes: str = ALL,
              outputs: Sequence[str] = (), unlabelled: bool = False, tower: bool = False) -> Task:
    """Draw the task of one run.

    shots: labelled rows per class, None for all of the train split. text: name of the text set.
    select: "val" adds min(shots, 4) validation rows per class, "val-full" the whole validation split.
    class_weights: how a class vector is made of the prompts; see `Text.class_weights`. classes: "all", or "base" for
        the first half alone, as if the store had no others; see `names_of`.
    outputs: what else of every row a method wants (its `inputs`), such as "preproj". unlabelled: add train rows
        outside the draw, without their labels. tower: add the encoder's text tower.
    Raises TaskError if the store has too few classes, StoreIncomplete if it is unfinished.

    Example:
        >>> task = onceclip.make_task(store, shots=4, seed=1, select="val")
        >>> task.support.embedding.shape, task.val.embedding.shape
        (torch.Size([16, 64]), torch.Size([16, 64]))
    """
    return draw_task(store, shots, seed, text, select, class_weights, outputs, classes=classes,
                     unlabelled=unlabelled, tower=tower).task


def draw_task(store: Store, shots: int | None = None, seed: int = 1, text: str = "default",
              select: str = "fixed", class_weights: str = RULES[0], outputs: Sequence[str] = (),
              stream: bool = False, classes: str = ALL, unlabelled: bool = False, names_alone: bool = False,
              draws: DrawFile | None = None, shape: Shape = BALANCED, tower: bool = False,
              labelled: bool = True) -> Drawn:
    """Draw a task and tell how; arguments and failures as for `make_task`.

    outputs: what else of every row a method wants, as far as the store has it. stream: read the support anew in every
        epoch instead of holding it in memory. unlabelled: add train rows outside the draw, without their labels: up to
        64 times the number of classes and 10,000 in all, drawn by the seed. names_alone: read no text set.
    draws: the file that lists support and validation rows, in place of the seed. shape: of the support. tower: add the
    encoder's text tower. labelled: without, no label is read, and the support is empty.
    """
    store.require_complete()
    if len(store.classes) < 2:
        raise TaskError(f"{store.path} has {counted(len(store.classes), 'class', 'classes')}: a classifier needs "
                        "two; extract a folder with one sub-folder per class")
    if labelled and shots is not None and shots < 1:
        raise TaskError(f"--shots {shots}: give a whole number from 1 up, or all")
    if classes not in (ALL, BASE):
        raise TaskError(f"no task of {classes!r} classes: there are: {ALL}, {BASE}")
    names = names_of(store, classes)
    words = (TextSet.of_names(store.classes, store.dim, store.encoder["fingerprint"]) if names_alone
             else store.text(text))
    remarks: list[str] = []
    # What stands in a later split too is left out here, a picture or others of its group: it would be known in advance.
    known = tied(store, store.rows("test"))
    listed = {} if draws is None else _listed(store, draws, shots, seed)
    later = known | tied(store, listed["val"] if listed and select != "val-full" else store.rows("val"))
    support = (_draw(store, "train", shots, seed, later, remarks, names, listed.get("train"), shape) if labelled else
               Draw(np.zeros(0, dtype=np.int64), ()))
    val = None
    if select in ("val", "val-full"):
        most = None if select == "val-full" or shots is None else min(shots, VAL_SHOTS)
        val = _draw(store, "val", most, seed, known, remarks, names,
                    None if select == "val-full" else listed.get("val"), shape)
    rest = _draw_unlabelled(store, support, seed, later, None if classes == ALL else len(names)) if unlabelled else None
    task = task_of(store, words.of_classes(names), class_weights, support, val, rest, outputs, stream, tower)
    return Drawn(task, support, val, rest, words, remarks)


def draw_rows(store: Store, shots: int | None, seed: int) -> dict[str, list[tuple[str, int]]]:
    """Keys and classes of a draw's support and of its validation rows, as `draw_task` draws them with "val"."""
    drawn = draw_task(store, shots, seed, select="val", names_alone=True)
    label = store.column("label")
    return {split: [] if each is None else list(zip(each.keys, label[each.rows].tolist(), strict=True))
            for split, each in (("train", drawn.support), ("val", drawn.val))}


def draw_labelled(store: Store, drawn: Drawn, splits: Sequence[str], class_weights: str = RULES[0],
                  outputs: Sequence[str] = (), stream: bool = False, classes: str = ALL,
                  tower: bool = False) -> tuple[Draw, Task]:
    """All labelled rows of some splits and their task, to fit on once hyperparameters are chosen.

    drawn: what chose them. Rows with ties to the test split are left out unless it is among the splits.
    """
    names, table = names_of(store, classes), store.table
    rows = np.concatenate([store.rows(split) for split in splits])
    rows = rows[table.label[rows] < len(names)]
    duplicate, same_group = ties_of(store, rows, set() if "test" in splits else tied(store, store.rows("test")))
    rows = rows[~(duplicate | same_group)]
    support = draw(rows, table.key[rows], table.label[rows], None, 1, "support")
    return support, task_of(store, drawn.text.of_classes(names), class_weights, support, outputs=outputs, stream=stream,
                            tower=tower)


def task_of(store: Store, words: TextSet, class_weights: str, support: Draw, val: Draw | None = None,
            unlabelled: Draw | None = None, outputs: Sequence[str] = (), stream: bool = False,
            tower: bool = False) -> Task:
    """Read the task of given classes and rows: what was drawn becomes tensors. Arguments as for `draw_task`."""
    return Task(
        Text(torch.from_numpy(words.embedding.astype(np.float32)), torch.from_numpy(words.class_index), words.classes,
             torch.from_numpy(words.template_id.astype(np.int64)), class_weights),
        _stream(store, support) if stream else _rows(store, support, outputs, _have_views(store, support.rows)),
        None if val is None or not len(val.rows) else _rows(store, val, outputs),
        None if unlabelled is None or not len(unlabelled.rows) else tensor_of(store.embeddings(unlabelled.rows)),
        **logit_numbers(store.encoder),
        projection=_encoder_array(store, "projection"), projection_bias=_encoder_array(store, "projection_bias"),
        tower=_tower(store, words.classes) if tower else None)


def _tower(store: Store, classes: Sequence[str]) -> TextTower | None:
    """The text tower for some classes, as far as there is one: a method says what it lacks."""
    if not store.tower_attributes:
        return None
    tower = read_tower(store)
    return tower.of(classes) if {*classes} <= {*tower.spec["names"]} else tower


def read_tower(store: Store) -> TextTower:
    """The text tower of a store's encoder, in float32.

    Raises StoreIncomplete if there is none, StoreMismatch if it is another encoder's, StoreDamaged.
    """
    stored = store.tower()
    tensors = {name: torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
               for name, array in stored.arrays.items()}
    with damage(store.path, TOWER):
        tower = TextTower.checked(tensors, stored.spec)
        if tower.dim != store.dim:
            raise ValueError(f"it gives {tower.dim} dimensions, and the images have {store.dim}")
        return tower


class LogitNumbers(TypedDict):
    """What an encoder's cosines become logits by."""

    logit_scale: float
    logit_bias: float


def logit_numbers(encoder: Mapping[str, Any]) -> LogitNumbers:
    """The scale and the bias of an encoder's logits; 100 and 0, as of CLIP, where its record in a store has none."""
    scale, bias = encoder.get("logit_scale"), encoder.get("logit_bias")
    return {"logit_scale": 100.0 if scale is None else scale, "logit_bias": 0.0 if bias is None else bias}


def _encoder_array(store: Store, name: str) -> torch.Tensor | None:
    if f"encoder/{name}" not in store.group:
        return None
    return tensor_of(store.encoder_array(name))


def _listed(store: Store, source: DrawFile, shots: int | None, seed: int) -> dict[str, np.ndarray]:
    """The rows of a draw that a file lists, by split."""
    images = listed_draw(source, shots, seed).images
    return {split: joined(store, images.get(split, ()), split, source.file) for split in ("train", "val")}


def _draw(store: Store, split: str, shots: int | None, seed: int, known: set[bytes | str],
          remarks: list[str], names: Sequence[str], listed: np.ndarray | None, shape: Shape) -> Draw:
    """Draw among the first classes of the store, or take of them the rows that are listed."""
    rows, table, classes = store.rows(split) if listed is None else listed, store.table, len(names)
    rows = rows[table.label[rows] < classes]
    duplicate, same_group = ties_of(store, rows, known)
    if duplicate.any():
        remarks.append(f"{counted(int(duplicate.sum()), f'{split} image')} left out: the same picture stands in a "
                       "later split")
    if same_group.any():
        remarks.append(f"{counted(int(same_group.sum()), f'{split} image')} left out: others of the group stand in a "
                       "later split")
    rows = rows[~(duplicate | same_group)]
    shots = shots if listed is None else None
    if split == "train":
        drawn = shape.support(rows, table.key[rows], table.label[rows], shots, seed, names)
    else:
        rows = rows[~np.isin(table.label[rows], list(shape.absent(names, seed)))]
        drawn = draw(rows, table.key[rows], table.label[rows], shots, seed, "val")
    if drawn.short:
        names = ", ".join(f"{store.classes[number]!r} ({count})" for number, count in list(drawn.short.items())[:4])
        more = f" and {len(drawn.short) - 4} more" if len(drawn.short) > 4 else ""
        remarks.append(f"fewer than {counted(shots or 0, f'{split} image')}, all taken, in "
                       f"{counted(len(drawn.short), 'class', 'classes')}: {names}{more}")
    empty = set(range(classes)) - set(table.label[rows].tolist()) - shape.absent(names, seed)
    if empty and split == "train" and len(rows):
        names = ", ".join(repr(store.classes[number]) for number in sorted(empty)[:8])
        remarks.append(f"no train image of {counted(len(empty), 'class', 'classes')}: "
                       f"{names}{' ...' if len(empty) > 8 else ''}")
    return drawn


def draw_unlabelled(store: Store, support: Draw, seed: int) -> Draw:
    """Draw train rows that are not in the support and have no ties to val or test; see `draw_task`."""
    later = tied(store, store.rows("test")) | tied(store, store.rows("val"))
    return _draw_unlabelled(store, support, seed, later, None)


def _draw_unlabelled(store: Store, support: Draw, seed: int, known: set[bytes | str], classes: int | None) -> Draw:
    """The same. known: digests and groups of later splits. classes: only of the first ones, where the others are
    unknown.
    """
    rows, table = store.rows("train", labelled=classes is not None), store.table
    if classes is not None:
        rows = rows[table.label[rows] < classes]
    rows = rows[~np.isin(rows, support.rows)]
    duplicate, same_group = ties_of(store, rows, known)
    rows = rows[~(duplicate | same_group)]
    most = min(UNLABELLED_PER_CLASS * (classes or len(store.classes)), UNLABELLED)
    return draw(rows, table.key[rows], np.zeros(len(rows), dtype=np.int64), most, seed, "unlabelled")


def tensor_of(values: np.ndarray) -> torch.Tensor:
    """Values as float32."""
    return torch.from_numpy(values.astype(np.float32))


def _rows(store: Store, drawn: Draw, outputs: Sequence[str], with_views: bool = False) -> Rows:
    views = tensor_of(store.embeddings(drawn.rows, "view")) if with_views else None
    others = {name: tensor_of(store.embeddings(drawn.rows, name)) for name in outputs
              if name != EMBEDDING and store.has(name)}
    label = torch.from_numpy(drawn.told(store.column("label")[drawn.rows].astype(np.int64)))
    return Rows(tensor_of(store.embeddings(drawn.rows)), label, views, others)


def _have_views(store: Store, rows: np.ndarray) -> bool:
    """Whether rows have views, which a store may have of some splits alone.

    Raises TaskError where some of them have and others do not.
    """
    if not store.has_views:
        return False
    splits = store.outputs["view"].spec.get("splits", SPLITS)
    found = {SPLITS[number] for number in np.unique(store.column("split")[rows]).tolist()}
    there, missing = sorted(found & {*splits}), sorted(found - {*splits})
    if there and missing:
        raise TaskError(f"{store.path} has views of {', '.join(there)} images and none of {', '.join(missing)} images, "
                        "which are to be learned from together: extract with --views-for all, or fit on one of the "
                        "splits")
    return bool(there)


def _stream(store: Store, drawn: Draw) -> Stream:
    order = np.argsort(drawn.rows)  # as they lie in the store
    rows = drawn.rows[order]
    label = torch.from_numpy(drawn.told(store.column("label")[drawn.rows].astype(np.int64))[order])

    def read(places: np.ndarray) -> Iterator[np.ndarray]:
        return (values for _, values in store.pieces(rows[places], BLOCK))

    return Stream(label, read, torch.empty(0, dtype=torch.float32))


def for_text(classifier: Classifier, store: Store, text: str = "default",
             classes: str | Sequence[str] | None = None) -> Classifier:
    """Make the classifier of the classes of a text set out of one that was fitted on others; nothing is trained.

    store: of the same encoder; its logit scale and projections count, its images are not looked at. classes: "all",
        "base", "new" or names, of the store; None for all that the text set has.
    Raises MethodError if the method does not serve other classes, StoreMismatch if another encoder made the store or
    the text set lacks a class, StoreIncomplete if there is no such text set.
    """
    check_encoder(classifier, store)
    words = store.text(text)
    if classes is not None:
        words = words.of_classes(names_of(store, classes) if isinstance(classes, str) else classes)
    made = classifier.provenance.get("text") or {}
    rule = made.get("class_weights", RULES[0])
    nothing = Draw(np.zeros(0, dtype=np.int64), ())
    wanted = wants_tower(classifier.method)
    other = transfer(classifier, task_of(store, words, rule, nothing, outputs=classifier.inputs, tower=wanted))
    source = {"name": text, "fingerprint": words.fingerprint, "class_weights": rule, **words.source}
    provenance = {**classifier.provenance, "text": source, "transferred_from": len(classifier.class_names)}
    return replace(other, provenance=provenance)


def inputs_of(classifier: Classifier, store: Store, rows: np.ndarray) -> Iterator[Tensor | np.ndarray]:
    """What a classifier takes of some rows of a store, raw, in pieces whose logits take little memory."""
    for piece, embeddings in store.pieces(rows):
        values = embeddings if classifier.inputs == ("embedding",) else np.concatenate(
            [(embeddings if name == "embedding" else store.embeddings(piece, name)).reshape(len(piece), -1)
             for name in classifier.inputs], axis=1)
        yield from row_pieces(values, len(classifier.class_names))


def check_encoder(classifier: Classifier, store: Store) -> None:
    """Raise StoreMismatch unless classifier and store, and those joined to it, belong to the same encoders."""
    encoder = classifier.encoder
    if encoder:
        store.require_encoder(str(encoder.get("fingerprint")), f"the adapter ({encoder.get('name')})")
    elif classifier.inputs == ("embedding",) and classifier.dim != store.dim:
        raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {store.path} has {store.dim}: "
                            "use a store of the adapter's encoder")
    made, joined = classifier.provenance.get("encoders"), store.joined if isinstance(store, JoinedStore) else {}
    for name, mark, _ in (each.partition("/") for each in classifier.inputs):
        if mark and name not in joined:
            raise StoreMismatch(f"{store.path} has no image/{name}{mark}embedding, which the adapter reads: join the "
                                f"store that has it with --join {name}=STORE, in Python with Store.join")
        other = made.get(name) if mark and isinstance(made, dict) else None
        if isinstance(other, dict):
            joined[name].require_encoder(str(other.get("fingerprint")), f"the adapter's input {name!r}")
