"""What a strategy of inference sees of a store: rows with their views or patches, prompts, and labelled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, MethodError, Rows, Task, Text
from onceclip.adapters.inference import Inference, Queries
from onceclip.adapters.inference.anomaly import normal_class
from onceclip.adapters.ops import unit
from onceclip.adapters.task import EMBEDDING
from onceclip.adapters.text import RULES
from onceclip.pipeline.tasks.draws import NO_ROWS, Draw, tied, without_ties
from onceclip.pipeline.tasks.tasks import inputs_of, logit_numbers, task_of
from onceclip.stores import Store, StoreIncomplete
from onceclip.stores.identity import digest

OUTPUTS = {"views": "view", "patches": "token"}  # what the store calls what a strategy sees
OPTIONS = {"views": "--views 64 --views-for {split}", "patches": "--tokens value"}
NORMAL_IMAGES = 500  # train images that a strategy is prepared with, at most
_ELEMENTS = 1 << 22  # of views or patches, or of their scores, that are held at once


def require_several(store: Store, sees: str, split: str, name: str) -> None:
    """Raise StoreIncomplete unless a store has the views or patches of the images of a split.

    sees: "views" or "patches". name: of the strategy.
    """
    output = store.outputs.get(OUTPUTS[sees])
    option = OPTIONS[sees].format(split=split)
    if output is None:
        raise StoreIncomplete(f"{name} reads {sees} of the images, and {store.path} has none: extract into a new store "
                              f"with {option}")
    splits = output.spec.get("splits", (split,))
    if split not in splits:
        raise StoreIncomplete(f"{name} reads {sees} of {split} images, and {store.path} has those of "
                              f"{', '.join(splits)} images alone: extract into a new store with {option}")
    if output.shape[-1] != store.dim:
        raise StoreIncomplete(f"{name} reads {sees} of {store.dim} dimensions, as the embeddings have, and those of "
                              f"{store.path} have {output.shape[-1]}: extract into a new store with {option}")


def queries_from(classifier: Classifier, store: Store, rows: np.ndarray) -> Queries:
    """What a strategy sees of some rows of a store, read in pieces: never their labels.

    Raises MethodError for rows with NaN or infinity.
    """
    dtype = classifier.head.dtype
    inputs, done = torch.empty(len(rows), classifier.dim, dtype=dtype), 0
    for values in inputs_of(classifier, store, rows):
        inputs[done:done + len(values)] = classifier.prepared(values)
        done += len(values)
    if classifier.inputs == (EMBEDDING,):
        return Queries(inputs)
    embedding, done = torch.empty(len(rows), store.dim, dtype=dtype), 0
    for piece, raw in store.pieces(rows):
        embedding[done:done + len(piece)] = unit(torch.from_numpy(raw.astype(np.float32)).to(dtype))
        done += len(piece)
    return Queries(embedding, inputs)


def several_queries(classifier: Classifier, store: Store, rows: np.ndarray, sees: str) -> Iterator[Queries]:
    """Go through rows of a store with their views or patches, as many at a time as little memory allows.

    Where view 0 is not the plain image, as with --ten-crop, the plain image comes before the views.
    Raises MethodError for a classifier that takes other outputs than the embedding.
    """
    output = store.outputs[OUTPUTS[sees]]
    width = max(store.dim, len(classifier.class_names), classifier.head.width)
    step = max(1, _ELEMENTS // (output.shape[0] * width))
    for start in range(0, len(rows), step):
        piece = rows[start:start + step]
        embedding = _unit(classifier, store.embeddings(piece))
        several = _unit(classifier, store.embeddings(piece, OUTPUTS[sees]))
        if sees == "views" and output.spec.get("plain") != 0:
            several = torch.cat([embedding[:, None], several], dim=1)
        yield Queries(embedding, **{sees: several})


def _unit(classifier: Classifier, values: np.ndarray) -> Tensor:
    rows = torch.from_numpy(values.astype(np.float32)).to(classifier.head.dtype)
    if not torch.isfinite(rows).all() or not rows.any(dim=-1).all():
        raise MethodError("views or patches hold NaN, infinity or nothing but zeros: leave out the rows of bad images, "
                          "and import views of every image")
    return unit(rows)


def normal_queries(strategy: Inference, classifier: Classifier, store: Store) -> tuple[Queries | None, np.ndarray]:
    """Train images of the normal class with their patches, and their rows; None where there are none.

    At most NORMAL_IMAGES, drawn by the seed 1, and none that stands in a later split too, alone or by its group.
    Raises MethodError where no class is the normal one.
    """
    name = normal_name(strategy, classifier)
    require_several(store, "patches", "train", strategy.name)
    rows = store.rows("train")
    rows = rows[store.column("label")[rows] == (store.classes.index(name) if name in store.classes else -1)]
    rows, _ = without_ties(store, rows, tied(store, "val", "test"))
    if len(rows) > NORMAL_IMAGES:
        rows = np.sort(np.random.default_rng(1).choice(rows, NORMAL_IMAGES, replace=False))
    if not len(rows):
        return None, rows
    shape, dtype, done = store.outputs["token"].shape, classifier.head.dtype, 0
    embedding, patches = torch.empty(len(rows), store.dim, dtype=dtype), torch.empty(len(rows), *shape, dtype=dtype)
    for piece in several_queries(classifier, store, rows, "patches"):
        assert piece.patches is not None
        embedding[done:done + len(piece)], patches[done:done + len(piece)] = piece.embedding, piece.patches
        done += len(piece)
    return Queries(embedding, patches=patches), rows


def normal_name(strategy: Inference, classifier: Classifier) -> str:
    """The normal class of a strategy that has one. Raises MethodError where no class is the normal one."""
    return classifier.class_names[normal_class(classifier.class_names, strategy.values["normal"])]


def support_of(classifier: Classifier, store: Store) -> Draw:
    """The labelled rows that a classifier was fitted on, as its record has them; none where it was fitted without any.

    Raises MethodError if the store is not that which it was fitted on, with all its labels.
    """
    made, label = classifier.provenance, store.column("label")
    support = made.get("support") or {}
    rows, listed = store.rows("train"), support.get("keys")
    rows = rows[label[rows] < len(classifier.class_names)]
    if not listed or not len(rows):
        return NO_ROWS
    if listed == "all":
        rows, _ = without_ties(store, rows, tied(store, "test", "val"))
    else:
        rows = rows[np.isin(store.column("key")[rows], listed)]
    found = Draw(rows, tuple(store.column("key")[rows].tolist()))
    if (support.get("fingerprint"), made.get("store")) == (found.fingerprint, store.fingerprint):
        return found
    raise MethodError("the labelled images that the adapter was fitted on, and all their labels, are read from the "
                      f"store that it was fitted on, and those of {store.path} are others, or labels were replaced "
                      "(--label-noise): name that store, or an adapter of labels as they are")


def task_for(classifier: Classifier, store: Store, tower: bool = False,
             support: Draw = NO_ROWS) -> tuple[Task, str | None]:
    """A task without labelled rows but those given, and the fingerprint of its text set or None.

    It has the text of a classifier's classes, and the encoder's numbers, as far as the store has them.
    The text set is that which the classifier was fitted with, else the default one. Where the store has none for all
    of its classes, the text is names alone. tower: add the encoder's text tower.
    """
    made = classifier.provenance.get("text") or {}
    name = made["name"] if made.get("name") in store.texts else "default"
    words = store.text(name) if name in store.texts else None
    if words is None or not set(classifier.class_names) <= set(words.classes):
        return names_alone(classifier, store.dim, **logit_numbers(store.encoder)), None
    return task_of(store, words.of_classes(classifier.class_names), made.get("class_weights", RULES[0]), support,
                   tower=tower), words.fingerprint


def names_alone(classifier: Classifier, dim: int, **numbers: Any) -> Task:
    """A task of class names without any prompt. numbers: of the encoder's logits."""
    nothing, index = torch.zeros(0, dim), torch.zeros(0, dtype=torch.int64)
    return Task(Text(nothing, index, classifier.class_names), Rows(nothing, index), **numbers)


def keys_hash(keys: Sequence[str] | np.ndarray) -> str:
    """Identity of keys in their order: 32 hexadecimal digits."""
    return digest("\n".join(map(str, keys)).encode()).hex()
