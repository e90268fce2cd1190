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

from onceclip.adapters import Classifier, Method, Rows, Task, Text, transfer
from onceclip.adapters.heads.batched import row_pieces
from onceclip.adapters.task import EMBEDDING, Stream
from onceclip.adapters.text import RULES
from onceclip.adapters.tower import TextTower
from onceclip.adapters.transfer import wants_tower
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.draw_files import SPLITS as LISTED_SPLITS
from onceclip.pipeline.tasks.draw_files import listed_draw, rows_of
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.draws import ALL, NO_ROWS, Draw, draw, names_of, tied, without_ties
from onceclip.pipeline.words import counted, listing
from onceclip.stores import Store, StoreMismatch, TextSet
from onceclip.stores.schema import SPLITS
from onceclip.stores.storage import damage
from onceclip.stores.store import JoinedStore
from onceclip.stores.text import TOWER

VAL_SHOTS = 4
UNLABELLED_PER_CLASS = 64
UNLABELLED = 10_000  # rows at most


@dataclass(frozen=True)
class Inputs:
    """What a method takes beside labelled embeddings and prompts.

    outputs: of every row, such as "preproj", as far as the store has it. unlabelled: train rows outside the draw,
        without their labels: up to 64 times the number of classes and 10,000 in all, drawn by the seed. tower: the
        encoder's text tower.
    """

    outputs: Sequence[str] = ()
    unlabelled: bool = False
    tower: bool = False

    @classmethod
    def of(cls, method: Method) -> Inputs:
        """Those of a method."""
        return cls(method.inputs, method.wants_unlabelled, method.wants_tower)


EVERY_ROW, EMBEDDINGS = DrawSpec(), Inputs()


@dataclass(frozen=True)
class Drawn:
    """A task and where it came from: its draws, its text set, and what a user should know of them.

    spec, inputs: what was asked for. sourced: what is to be recorded of support rows that nobody labelled, and of a
    bank; empty where there are none.
    """

    task: Task
    support: Draw
    val: Draw | None
    unlabelled: Draw | None
    text: TextSet
    spec: DrawSpec
    inputs: Inputs
    remarks: list[str] = field(default_factory=list)
    sourced: dict[str, Any] = field(default_factory=dict)


def names_for(store: Store, spec: DrawSpec) -> tuple[str, ...]:
    """Names of the classes of a draw.

    Raises TaskError if the store has too few for it, StoreIncomplete if it is unfinished.
    """
    store.require_complete()
    if len(store.classes) < 2:
        raise TaskError(f"{store.path} has {counted(len(store.classes), 'class', 'classes')}: a classifier needs "
                        "two; extract a folder with one sub-folder per class")
    names = names_of(store, spec.classes)
    spec.absent(names)  # complains of names that are no class
    return names


def draw_task(store: Store, spec: DrawSpec = EVERY_ROW, select: str = "fixed", text: str | None = "default",
              class_weights: str = RULES[0], inputs: Inputs = EMBEDDINGS) -> Drawn:
    """Draw the task of one run and tell how.

    select: "val" adds min(shots, 4) validation rows per class, "val-full" the whole validation split.
    text: name of the text set, or None for class names alone. class_weights: how a class vector is made of the prompts;
        see `Text.class_weights`. inputs: what the method takes.
    Raises TaskError if the store has too few classes, StoreIncomplete if it is unfinished.
    """
    names = names_for(store, spec)
    val = unlabelled = None
    remarks: list[str] = []
    if spec.shots == 0 and not (spec.support or spec.bank):
        raise TaskError("--shots 0: give a whole number from 1 up, or all")
    words = (TextSet.of_names(store.classes, store.dim, store.encoder["fingerprint"]) if text is None
             else store.text(text))
    listed: dict[str, np.ndarray] = {}
    if spec.draws:
        images = listed_draw(spec.draws, spec.shots, spec.seed).images
        listed = {split: rows_of(store, images.get(split, ()), split, spec.draws.file) for split in LISTED_SPLITS}
    # What stands in a later split too is left out here, a picture or others of its group: it would be known in advance.
    known = tied(store, "test")
    later = known | tied(store, listed["val"] if listed and select != "val-full" else "val")
    support = (NO_ROWS if spec.shots == 0 else
               _draw(store, "train", spec, spec.shots, later, remarks, names, listed.get("train")))
    if select == "val":
        most = None if spec.shots is None else min(spec.shots, VAL_SHOTS)
        val = _draw(store, "val", spec, most, known, remarks, names, listed.get("val"))
    elif select == "val-full":
        val = _draw(store, "val", spec, None, known, remarks, names, None)
    if inputs.unlabelled:
        unlabelled = draw_unlabelled(store, support, spec.seed, later, None if spec.classes == ALL else len(names))
    task = task_of(store, words.of_classes(names), class_weights, support, val, unlabelled, inputs.outputs, spec.stream,
                   inputs.tower)
    return Drawn(task, support, val, unlabelled, words, spec, inputs, remarks)


def _draw(store: Store, split: str, spec: DrawSpec, shots: int | None, known: set[bytes | str],
          remarks: list[str], names: Sequence[str], listed: np.ndarray | None) -> Draw:
    """Draw among the first classes of the store, or take of them the rows that are listed."""
    rows, table, classes = store.rows(split) if listed is None else listed, store.table, len(names)
    rows, left_out = without_ties(store, rows[table.label[rows] < classes], known)
    for reason, why in (("digest", "the same picture stands"), ("group", "others of the group stand")):
        if left_out[reason]:
            remarks.append(f"{counted(left_out[reason], f'{split} image')} left out: {why} in a later split")
    shots = shots if listed is None else None
    if split == "train":
        drawn = spec.choose(rows, table.key[rows], table.label[rows], names, listed is not None)
    else:
        rows = rows[~np.isin(table.label[rows], list(spec.absent(names)))]
        drawn = draw(rows, table.key[rows], table.label[rows], shots, spec.seed, "val")
    if drawn.short:
        some = ", ".join(f"{store.classes[number]!r} ({count})" for number, count in list(drawn.short.items())[:4])
        more = f" and {len(drawn.short) - 4} more" if len(drawn.short) > 4 else ""
        remarks.append(f"fewer than {counted(shots or 0, f'{split} image')}, all taken, in "
                       f"{counted(len(drawn.short), 'class', 'classes')}: {some}{more}")
    empty = set(range(classes)) - set(table.label[rows].tolist()) - spec.absent(names)
    if empty and split == "train" and len(rows):
        remarks.append(f"no train image of {counted(len(empty), 'class', 'classes')}: "
                       f"{listing([repr(store.classes[number]) for number in sorted(empty)])}")
    return drawn


def draw_unlabelled(store: Store, support: Draw, seed: int, known: set[bytes | str],
                    classes: int | None = None) -> Draw:
    """Draw train rows that are not in the support and have no ties to later splits; how many, `Inputs` says.

    known: of the later splits, as of `tied`. classes: only rows of the first ones, where the others are unknown.
    """
    rows, table = store.rows("train", labelled=classes is not None), store.table
    if classes is not None:
        rows = rows[table.label[rows] < classes]
    rows, _ = without_ties(store, rows[~np.isin(rows, support.rows)], known)
    most = min(UNLABELLED_PER_CLASS * (classes or len(store.classes)), UNLABELLED)
    return draw(rows, table.key[rows], np.zeros(len(rows), dtype=np.int64), most, seed, "unlabelled")


def draw_labelled(store: Store, drawn: Drawn, splits: Sequence[str]) -> tuple[Draw, Task]:
    """All labelled rows of some splits and their task, to fit on once hyperparameters are chosen.

    drawn: what chose them; where its support has no views, none are read. Rows with ties to the test split are left out
        unless it is among the splits.
    """
    names, table = names_of(store, drawn.spec.classes), store.table
    rows = np.concatenate([store.rows(split) for split in splits])
    rows = rows[table.label[rows] < len(names)]
    rows, _ = without_ties(store, rows, set() if "test" in splits else tied(store, "test"))
    support = draw(rows, table.key[rows], table.label[rows], None, 1, "support")
    return support, task_of(store, drawn.text.of_classes(names), drawn.task.text.rule, support,
                            outputs=drawn.inputs.outputs, stream=drawn.spec.stream, tower=drawn.inputs.tower,
                            views=drawn.task.support.views is not None)


def task_of(store: Store, words: TextSet, class_weights: str, support: Draw, val: Draw | None = None,
            unlabelled: Draw | None = None, outputs: Sequence[str] = (), stream: bool = False,
            tower: bool = False, views: bool = True) -> Task:
    """Read the task of given classes and rows: what was drawn becomes tensors. Arguments as for `draw_task`.

    views: read those of the support where the store has them.
    """
    def encoder_array(name: str) -> Tensor | None:
        return tensor_of(store.encoder_array(name)) if f"encoder/{name}" in store.group else None

    return Task(
        Text(tensor_of(words.embedding), torch.from_numpy(words.class_index), words.classes,
             torch.from_numpy(words.template_id.astype(np.int64)), class_weights),
        _stream(store, support) if stream else _rows(
            store, support, outputs, views and _have_views(store, support.rows)),
        None if val is None or not len(val.rows) else _rows(store, val, outputs),
        None if unlabelled is None or not len(unlabelled.rows) else tensor_of(store.embeddings(unlabelled.rows)),
        **logit_numbers(store.encoder),
        projection=encoder_array("projection"), projection_bias=encoder_array("projection_bias"),
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
    tensors = {name: tensor_of(array) if array.dtype.kind == "f" else torch.from_numpy(array)
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


def tensor_of(values: np.ndarray) -> torch.Tensor:
    """Values as float32."""
    return torch.from_numpy(values.astype(np.float32))


def _rows(store: Store, drawn: Draw, outputs: Sequence[str], with_views: bool = False) -> Rows:
    views = tensor_of(store.embeddings(drawn.rows, "view")) if with_views else None
    others = {name: tensor_of(store.embeddings(drawn.rows, name)) for name in outputs
              if name != EMBEDDING and store.has(name)}
    label = torch.from_numpy(drawn.told(store.column("label")[drawn.rows].astype(np.int64)))
    return Rows(tensor_of(store.embeddings(drawn.rows)), label, views, others, group=_groups(store, drawn.rows))


def _groups(store: Store, rows: np.ndarray) -> Tensor | None:
    """A number for the group of each row, -1 for none: (rows,); None where no row has one."""
    names = store.column("group")[rows].astype(object)
    if (names == "").all():
        return None
    return torch.from_numpy(np.where(names == "", -1, np.unique(names, return_inverse=True)[1]).astype(np.int64))


def _have_views(store: Store, rows: np.ndarray) -> bool:
    """Whether rows have views, which a store may have of some splits alone.

    Raises TaskError where some of them have and others do not.
    """
    if not store.has("view"):
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
    return Stream(label, lambda places: store.embeddings(rows[places]), torch.empty(0, dtype=torch.float32))


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
    other = transfer(classifier, task_of(store, words, rule, NO_ROWS, outputs=classifier.inputs,
                                        tower=wants_tower(classifier.method)))
    source = {"name": text, "fingerprint": words.fingerprint, "class_weights": rule, **words.source}
    provenance = {**classifier.provenance, "text": source, "transferred_from": len(classifier.class_names)}
    return replace(other, provenance=provenance)


def inputs_of(classifier: Classifier, store: Store, rows: np.ndarray) -> Iterator[Tensor | np.ndarray]:
    """What a classifier takes of some rows of a store, raw, in pieces whose logits take little memory."""
    for piece, embeddings in store.pieces(rows):
        values = embeddings if classifier.inputs == (EMBEDDING,) else np.concatenate(
            [(embeddings if name == EMBEDDING else store.embeddings(piece, name)).reshape(len(piece), -1)
             for name in classifier.inputs], axis=1)
        yield from row_pieces(values, len(classifier.class_names))


def check_encoder(classifier: Classifier, store: Store) -> None:
    """Raise StoreMismatch unless classifier and store, and those joined to it, belong to the same encoders."""
    encoder = classifier.encoder
    if encoder:
        store.require_encoder(str(encoder.get("fingerprint")), f"the adapter ({encoder.get('name')})")
    elif classifier.inputs == (EMBEDDING,) and classifier.dim != store.dim:
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
