"""Support rows that nobody labelled, from the training images or from a bank, and what they must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Pool, Rows
from onceclip.adapters.ops import unit
from onceclip.adapters.support import Choice, SupportSource, rows_of
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.tasks import Drawn, logit_numbers, tensor_of
from onceclip.pipeline.tasks.ties import tied, ties_of
from onceclip.pipeline.words import counted
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint

NEAR_COPY = 0.98  # cosine with a validation or test image from which a bank's image counts as a copy of it
LATER = ("val", "test")
_PAIRS = 2**24  # of bank and later images that are compared at a time


@dataclass(frozen=True)
class Candidates:
    """Images that support may be chosen from.

    store: where they are. rows: (n,) their positions there. pool: their embeddings. left_out: how many were left out,
    by reason.
    """

    store: Store
    rows: np.ndarray
    pool: Pool
    left_out: dict[str, int] = field(default_factory=dict)


def with_support(store: Store, drawn: Drawn, source: SupportSource | None, seed: int, bank: Candidates | None = None,
                 outputs: Sequence[str] = (), keep_bank: bool = False) -> Drawn:
    """A task with rows of a source behind its labelled ones, and with the bank where a method keeps it.

    source: None to add the bank alone. bank: what it chooses from, None for the training images outside the draw, whose
        labels are not read. outputs: what else of every row a method wants.
    Raises MethodError if there is nothing to choose from, or captions are missing.
    """
    task = drawn.task
    if source is not None:
        candidates = bank if bank is not None and (source.from_bank or not keep_bank) else training_images(store, drawn)
        choice = source.chosen(task.text, candidates.pool, seed)
        rows = _chosen(candidates, choice, outputs)
        support = task.support.joined(rows) if len(task.support) else rows
        record = _record(source, candidates, choice, bank=candidates is bank)
        remarks = _remarks(record, task.classes)
        drawn = replace(drawn, task=replace(task, support=support), sourced=record, remarks=[*drawn.remarks, *remarks])
    if bank is not None and keep_bank:
        entry = {"bank": bank.store.fingerprint, "bank_rows": len(bank.pool), "left_out": bank.left_out}
        remarks = [] if drawn.sourced.get("bank") else _left_out(bank.left_out, "bank")
        drawn = replace(drawn, task=replace(drawn.task, bank=bank.pool), sourced={**drawn.sourced, **entry},
                        remarks=[*drawn.remarks, *remarks])
    return drawn


def training_images(store: Store, drawn: Drawn) -> Candidates:
    """Training images outside a draw, labelled or not; none that stands in val or test too, alone or by its group."""
    rows = store.rows("train", labelled=False)
    rows = rows[~np.isin(rows, drawn.support.rows)]
    duplicate, same_group = ties_of(store, rows, tied(store, store.rows("val")) | tied(store, store.rows("test")))
    kept = rows[~(duplicate | same_group)]
    return Candidates(store, kept, Pool(torch.from_numpy(store.embeddings(kept)), None,
                                        logit_numbers(store.encoder)["logit_scale"]),
                      {"digest": int(duplicate.sum()), "group": int(same_group.sum())})


def bank_of(store: Store, bank: Store, captions: str = "") -> Candidates:
    """All images of a bank but those that would give away validation or test images of a store.

    These are equal ones (digest), others of their groups, and near copies: images whose embedding has a cosine of
    NEAR_COPY or more with that of a validation or test image.
    captions: name of the bank's text set of captions, or empty for none; images without a caption are left out then.
    Raises StoreMismatch if another encoder made the bank, TaskError if nothing of it is left.
    """
    bank.require_complete()
    bank.require_encoder(store.encoder["fingerprint"], f"{store.path}")
    rows = bank.rows(labelled=False)
    later = np.concatenate([store.rows(split, labelled=False) for split in LATER])
    duplicate, same_group = ties_of(bank, rows, set().union(*(tied(store, store.rows(split)) for split in LATER)))
    rows = rows[~(duplicate | same_group)]
    image = torch.from_numpy(bank.embeddings(rows))
    near = near_copies(image, torch.from_numpy(store.embeddings(later)))
    left_out = {"digest": int(duplicate.sum()), "group": int(same_group.sum()), "near": int(near.sum())}
    rows, image, caption = rows[~near.numpy()], image[~near], None
    if captions:
        caption, there = _captions(bank, rows, captions)
        left_out["without caption"] = int((~there).sum())
        rows, image, caption = rows[there], image[torch.from_numpy(there)], caption[torch.from_numpy(there)]
    if not len(rows):
        raise TaskError(f"the bank {bank.path} has no image left: all are equal or near to validation or test images "
                        f"of {store.path}{', or have no caption' if captions else ''}; take another bank")
    return Candidates(bank, rows, Pool(image, caption, logit_numbers(store.encoder)["logit_scale"]), left_out)


def near_copies(images: torch.Tensor, others: torch.Tensor, least: float = NEAR_COPY) -> torch.Tensor:
    """Which raw embeddings (n, dim) have a cosine of `least` or more with one of others (m, dim): (n,) bool."""
    found = torch.zeros(len(images), dtype=torch.bool)
    later = unit(others.float())
    step = max(1, _PAIRS // max(len(later), 1))
    for start in range(0, len(images) if len(later) else 0, step):
        piece = slice(start, start + step)
        found[piece] = (unit(images[piece].float()) @ later.T).amax(dim=1) >= least
    return found


def _captions(bank: Store, rows: np.ndarray, name: str) -> tuple[torch.Tensor, np.ndarray]:
    """Mean of the unit embeddings of each image's captions (rows, dim), and which of the images have one (rows,)."""
    words = bank.text(name)
    if not words.is_captions:
        raise TaskError(f"the text set {name!r} of {bank.path} has prompts of classes, not captions of images: name "
                        "one that `onceclip text BANK --captions FILE` made")
    place = {key: number for number, key in enumerate(words.classes)}
    named = zip(bank.column("key")[rows].tolist(), bank.column("group")[rows].tolist(), strict=True)
    item = np.array([place.get(key, place.get(group, -1)) for key, group in named], dtype=np.int64)
    vectors = unit(torch.from_numpy(words.embedding.astype(np.float32)))
    total = torch.zeros(len(words.classes), bank.dim).index_add(0, torch.from_numpy(words.class_index), vectors)
    count = torch.from_numpy(np.diff(words.class_ptr)).clamp(min=1).unsqueeze(1)
    there = (item >= 0) & (np.diff(words.class_ptr)[item] > 0)
    return (total / count)[torch.from_numpy(item)], there


def _chosen(candidates: Candidates, choice: Choice, outputs: Sequence[str]) -> Rows:
    """The chosen rows, with the outputs that the store has of them."""
    rows, places = rows_of(candidates.pool, choice), candidates.rows[choice.index.numpy()]
    others = {name: tensor_of(candidates.store.embeddings(places, name)) for name in outputs
              if name != EMBEDDING and candidates.store.has(name)}
    return replace(rows, others={**rows.others, **others})


def _record(source: SupportSource, candidates: Candidates, choice: Choice, bank: bool) -> dict[str, Any]:
    """What a row says of the chosen rows; never whether their labels are right."""
    index = choice.index.numpy()
    keys = candidates.store.column("key")[candidates.rows[index]].tolist()
    return {"source": str(source), "values": dict(source.values), "rows": len(index), "pool": len(candidates.pool),
            "images": len(np.unique(index)), "classes": len(choice.label.unique()),
            "bank": candidates.store.fingerprint if bank else None, "left_out": candidates.left_out,
            "near_copy": NEAR_COPY if bank else None,
            "keys": fingerprint(sorted(zip(keys, choice.label.tolist(), strict=True)))}


def _remarks(record: dict[str, Any], classes: int) -> list[str]:
    """What a user should know of the chosen rows."""
    found = _left_out(record["left_out"], "bank" if record["bank"] else "training images")
    if record["classes"] < classes:
        missing = counted(classes - record["classes"], "class", "classes")
        found.append(f"{record['source']} found no image for {missing} of {classes}")
    return found


def _left_out(counts: dict[str, int], of: str) -> list[str]:
    """How many images were left out of a bank or of the training images, and why."""
    left_out = {reason: count for reason, count in counts.items() if count}
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return [f"{counted(sum(left_out.values()), 'image')} left out of the {of} ({reasons})"] if left_out else []
