"""Rows of a store with their views or patch tokens, a few at a time, and the train rows of the normal class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, MethodError
from onceclip.adapters.inference import Inference, Queries
from onceclip.adapters.inference.anomaly import anomaly_score, normal_class
from onceclip.adapters.ops import unit
from onceclip.pipeline.evaluation.evaluate import Evaluation, logits_of
from onceclip.pipeline.evaluation.metrics import DETECTION, auroc, average_precision
from onceclip.stores import Store, StoreIncomplete

OUTPUTS = {"views": "view", "patches": "token"}  # what the store calls what a strategy sees
OPTIONS = {"views": "--views 64 --views-for {split}", "patches": "--tokens value"}
NORMAL_IMAGES = 500  # train images that a strategy is prepared with, at most
_ROWS = 4096  # whose scores are computed together
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


def normal_queries(strategy: Inference, classifier: Classifier, store: Store) -> tuple[Queries | None, np.ndarray]:
    """Train images of the normal class with their patches, and their rows; None where there are none.

    At most NORMAL_IMAGES, drawn by the seed 1.
    Raises MethodError where no class is the normal one.
    """
    name = normal_name(strategy, classifier)
    require_several(store, "patches", "train", strategy.name)
    rows = store.rows("train")
    rows = rows[store.column("label")[rows] == (store.classes.index(name) if name in store.classes else -1)]
    if len(rows) > NORMAL_IMAGES:
        rows = np.sort(np.random.default_rng(1).choice(rows, NORMAL_IMAGES, replace=False))
    if not len(rows):
        return None, rows
    shape, dtype, done = store.outputs["token"].shape, classifier.head.dtype, 0
    found = Queries(torch.empty(len(rows), store.dim, dtype=dtype), patches=torch.empty(len(rows), *shape, dtype=dtype))
    for piece in several_queries(classifier, store, rows, "patches"):
        assert found.patches is not None
        assert piece.patches is not None
        found.embedding[done:done + len(piece)], found.patches[done:done + len(piece)] = piece.embedding, piece.patches
        done += len(piece)
    return found, rows


def detection_of(alone: Evaluation, strategy: Inference,
                 logits: Tensor) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Area under the ROC curve and average precision of abnormal images, with a strategy and alone, as JSON values.

    logits: (n, classes) of the classifier, of the rows of the evaluation. None for a strategy that knows of no normal
    class, or where that does not compete.
    """
    rows = normal_rows(alone, strategy)
    if rows is None:
        return None
    positive, normal = ~rows, normal_class(alone.classifier.class_names, strategy.values["normal"])
    own = [anomaly_score(piece, normal) for piece in logits.split(_ROWS)]
    others = [anomaly_score(piece, normal) for (piece,) in logits_of([alone.classifier], alone.store, alone.rows)]
    return _areas(own, positive), _areas(others, positive)


def normal_rows(alone: Evaluation, strategy: Inference) -> np.ndarray | None:
    """Which rows of an evaluation are of the normal class, (n,) bool; None as of `detection_of`."""
    if "normal" not in strategy.values or (name := normal_name(strategy, alone.classifier)) not in alone.candidates:
        return None
    return alone.label == alone.candidates.index(name)


def _areas(score: list[Tensor], positive: np.ndarray) -> dict[str, Any]:
    values = torch.cat(score).double().numpy()
    return dict(zip(DETECTION, (auroc(values, positive), average_precision(values, positive)), strict=True))


def normal_name(strategy: Inference, classifier: Classifier) -> str:
    """The normal class of a strategy that has one. Raises MethodError where no class is the normal one."""
    return classifier.class_names[normal_class(classifier.class_names, strategy.values["normal"])]


def output_spec(store: Store, sees: str) -> dict[str, Any]:
    """How a store's views or patches were made, as JSON values."""
    output = store.outputs[OUTPUTS[sees]]
    return {"number": output.shape[0], **output.spec}


def _unit(classifier: Classifier, values: np.ndarray) -> Tensor:
    rows = torch.from_numpy(values.astype(np.float32)).to(classifier.head.dtype)
    if not torch.isfinite(rows).all() or not rows.any(dim=-1).all():
        raise MethodError("views or patches hold NaN, infinity or nothing but zeros: leave out the rows of bad images, "
                          "and import views of every image")
    return unit(rows)
