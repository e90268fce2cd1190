"""Support rows that nobody labelled, from the training images or from a bank, and what they must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Pool, Rows
from onceclip.adapters.ops import unit
from onceclip.adapters.support import Choice, SupportSource, rows_of
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.draws import NO_ROWS, tied, without_ties
from onceclip.pipeline.tasks.tasks import Drawn, logit_numbers, tensor_of
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
    left_out: dict[str, int]


def with_support(store: Store, drawn: Drawn, bank: Candidates | None = None, keep_bank: bool = False) -> Drawn:
    """A task with rows of the source that its draw asks for behind its labelled ones, and with the bank.

    bank: what the source chooses from; None for the training images outside the draw, whose labels are not read.
    keep_bank: whether the method reads the bank too; a source that needs none then chooses from the training images.
    Raises MethodError if there is nothing to choose from, or captions are missing.
    """
    task, source, sourced, remarks = drawn.task, drawn.spec.source, dict(drawn.sourced), list(drawn.remarks)
    if source is not None:
        candidates = bank if bank is not None and (source.from_bank or not keep_bank) else training_images(store, drawn)
        choice = source.chosen(task.text, candidates.pool, drawn.spec.seed)
        rows = _chosen(candidates, choice, drawn.inputs.outputs)
        sourced = _record(source, candidates, choice, bank=candidates is bank)
        remarks += _left_out(candidates.left_out, "bank" if candidates is bank else "training images")
        if sourced["classes"] < task.classes:
            missing = counted(task.classes - sourced["classes"], "class", "classes")
            remarks.append(f"{source} found no image for {missing} of {task.classes}")
        task = replace(task, support=task.support.joined(rows) if len(task.support) else rows)
    if bank is not None and keep_bank:
        remarks += [] if sourced.get("bank") else _left_out(bank.left_out, "bank")
        sourced |= {"bank": bank.store.fingerprint, "bank_rows": len(bank.pool), "left_out": bank.left_out}
        task = replace(task, bank=bank.pool)
    return replace(drawn, task=task, sourced=sourced, remarks=remarks)


def training_images(store: Store, drawn: Drawn) -> Candidates:
    """Training images outside a draw, labelled or not; none that stands in val or test too, alone or by its group."""
    rows, val = store.rows("train", labelled=False), NO_ROWS if drawn.val is None else drawn.val
    rows, left_out = without_ties(store, rows[~np.isin(rows, drawn.support.rows)], tied(store, *LATER, val.rows))
    pool = Pool(torch.from_numpy(store.embeddings(rows)), None, logit_numbers(store.encoder)["logit_scale"])
    return Candidates(store, rows, pool, left_out)


def require_bank(store: Store, bank: Store) -> None:
    """Raise StoreMismatch for a bank of another encoder than a store's, StoreIncomplete for an unfinished one."""
    bank.require_complete()
    bank.require_encoder(store.encoder["fingerprint"], f"{store.path}")


def bank_of(store: Store, bank: Store, captions: str = "") -> Candidates:
    """All images of a bank but those that would give away validation or test images of a store.

    These are equal ones (digest), others of their groups, and near copies: images whose embedding has a cosine of
    NEAR_COPY or more with that of a validation or test image.
    captions: name of the bank's text set of captions, or empty for none; images without a caption are left out then.
    Raises StoreMismatch if another encoder made the bank, TaskError if nothing of it is left.
    """
    require_bank(store, bank)
    rows, left_out = without_ties(bank, bank.rows(labelled=False), tied(store, *LATER))
    image, caption = torch.from_numpy(bank.embeddings(rows)), None
    later = np.concatenate([store.rows(split, labelled=False) for split in LATER])
    near = near_copies(image, torch.from_numpy(store.embeddings(later)))
    left_out["near"] = int(near.sum())
    rows, image = rows[~near.numpy()], image[~near]
    if captions:
        caption, there = _captions(bank, rows, captions)
        left_out["without caption"] = int((~there).sum())
        rows, image, caption = rows[there], image[torch.from_numpy(there)], caption[torch.from_numpy(there)]
    if not len(rows):
        raise TaskError(f"the bank {bank.path} has no image left: all are equal or near to validation or test images "
                        f"of {store.path}{', or have no caption' if captions else ''}; take another bank")
    return Candidates(bank, rows, Pool(image, caption, logit_numbers(store.encoder)["logit_scale"]), left_out)


def near_copies(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which raw embeddings (n, dim) have a cosine of NEAR_COPY or more with one of others (m, dim): (n,) bool."""
    found = torch.zeros(len(images), dtype=torch.bool)
    later = unit(others.float())
    step = max(1, _PAIRS // max(len(later), 1))
    for start in range(0, len(images) if len(later) else 0, step):
        piece = slice(start, start + step)
        found[piece] = (unit(images[piece].float()) @ later.T).amax(dim=1) >= NEAR_COPY
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


def _left_out(counts: dict[str, int], of: str) -> list[str]:
    """How many images were left out of a bank or of the training images, and why."""
    left_out = {reason: count for reason, count in counts.items() if count}
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return [f"{counted(sum(left_out.values()), 'image')} left out of the {of} ({reasons})"] if left_out else []
