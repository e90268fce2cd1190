"""Questions about images or videos with several answers each, of which one is right: which of them scores highest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.evaluation.statistics import row_interval
from onceclip.pipeline.files import key_of, read_json
from onceclip.pipeline.retrieval.items import GROUP, KEY, Frames, Items, items_of, ranges, read_frames, unit_text
from onceclip.pipeline.retrieval.recipes import Maps, TemporalHead, Trained
from onceclip.pipeline.retrieval.training import descend
from onceclip.pipeline.words import version
from onceclip.stores import Store
from onceclip.stores.identity import digest
from onceclip.stores.schema import SPLITS

_SHAPE = 'write JSON [{"path": "film.mp4", "question": "...", "answers": ["...", "..."], "right": 0}, ...]'
EPOCHS, BATCH, LEARNING_RATE = 20, 32, 1e-4


@dataclass(frozen=True)
class Question:
    """item: name of an image or a group. sentences: one per answer, with the question before it. right: its number."""

    item: str
    sentences: tuple[str, ...]
    right: int


def load_questions(path: Path) -> tuple[list[Question], str]:
    """Read questions, and the digest of their file.

    Raises RetrievalError if the file is something else.
    """
    try:
        content = path.read_bytes()
        values = read_json(content.decode("utf-8-sig"))
        if not isinstance(values, list) or not values:
            raise ValueError("it is no list of questions")
        return [_question(number, each) for number, each in enumerate(values, 1)], digest(content).hex()
    except (OSError, ValueError) as error:
        raise RetrievalError(f"{path} is not a file of questions ({error}): {_SHAPE}") from error


def _question(number: int, value: Any) -> Question:
    values = value if isinstance(value, dict) else {}
    item, answers, right = (values.get(name) for name in ("path", "answers", "right"))
    question = values.get("question", "")
    if not (isinstance(item, str) and item and isinstance(answers, list) and len(answers) > 1
            and all(isinstance(each, str) and each.strip() for each in answers) and isinstance(question, str)
            and type(right) is int and 0 <= right < len(answers)):
        raise ValueError(f"entry {number} lacks a path, two answers or more, or the number of the right one from 0")
    return Question(item, tuple(" ".join(f"{question} {each}".split()) for each in answers), right)


@dataclass(frozen=True)
class Asked:
    """Questions about items of a split. item: (questions,) which. text: (answers of all, dim) unit.
    pointer: (questions + 1,) where each one's answers begin. right: (questions,).
    """

    items: Items
    item: np.ndarray
    text: Tensor
    pointer: np.ndarray
    right: Tensor

    def scores(self, vectors: Tensor, chosen: np.ndarray) -> Tensor:
        """Cosines of some questions' answers with vectors of their items: (questions, most answers), -inf for none."""
        sizes = np.diff(self.pointer)[chosen]
        there = torch.from_numpy(np.arange(sizes.max()) < sizes[:, None])
        rows = torch.from_numpy(self.pointer[chosen][:, None] + np.arange(sizes.max())).masked_fill(~there, 0)
        return (self.text[rows] * vectors[:, None]).sum(dim=-1).masked_fill(~there, -torch.inf)


def asked_of(store: Store, questions: Sequence[Question], text: Tensor, split: str | None) -> Asked:
    """The questions about items of a split, joined by key, or by group where not all names are keys.

    text: (all answers, dim) raw, question by question.
    Raises RetrievalError if a name is no item of the store, or there is no question of the split.
    """
    keys = set(items_of(store, KEY).names.tolist())
    by = KEY if all({each.item, key_of(each.item)} & keys for each in questions) else GROUP
    everywhere = set(items_of(store, by).names.tolist())
    names = [each.item if each.item in everywhere else key_of(each.item) for each in questions]
    if strange := [each for each in names if each not in everywhere]:
        raise RetrievalError(f"{store.path} has no item {strange[0]!r}"
                             f"{f' (and {len(strange) - 1} more)' if strange[1:] else ''} with an embedding: name "
                             "images by their keys and videos by theirs")
    items = items_of(store, by, split)
    place = {name: number for number, name in enumerate(items.names.tolist())}
    kept = [number for number, name in enumerate(names) if name in place]
    if not kept:
        raise RetrievalError(f"no question is about an item of the {split} split: name another --split")
    sizes = np.array([len(each.sentences) for each in questions])
    rows, pointer = ranges((np.cumsum(sizes) - sizes)[kept], sizes[kept])
    used, item = np.unique([place[names[number]] for number in kept], return_inverse=True)
    return Asked(items.chosen(used), item, unit_text(text[torch.from_numpy(rows)]), pointer,
                 torch.tensor([questions[number].right for number in kept]))


def answer(store: Store, questions: Sequence[Question], text: Tensor, split: str | None = None, train: bool = False,
           seed: int = 1, epochs: int | None = None, learning_rate: float | None = None,
           progress: Progress = no_progress) -> dict[str, Any]:
    """Share of the questions whose right answer scores above all others; an equal score is no right answer.

    split: what is scored; None for all. train: train a head over frames on the train split's questions first.
    Gives JSON values.
    Raises RetrievalError if there is no such question, or train is what would be scored.
    """
    begun = time.perf_counter()
    if train and split in (None, SPLITS[0]):
        raise RetrievalError("the head has seen the train split: score --split test or val")
    trained = Trained(Maps(), {})
    if train:
        rate = LEARNING_RATE if learning_rate is None else learning_rate
        trained = _train(store, asked_of(store, questions, text, SPLITS[0]), seed, EPOCHS if epochs is None else epochs,
                         rate, progress)
    asked = asked_of(store, questions, text, split)
    right = _right(trained.maps, read_frames(store, asked.items).to(torch.float32), asked)
    return {"task": "answers", "store": store.path, "encoder": store.encoder["name"], "split": split or "all",
            "fingerprints": {"store": store.fingerprint, "encoder": store.encoder["fingerprint"]},
            "questions": len(right), "items": len(asked.items), "accuracy": float(right.mean()),
            "accuracy_interval": list(row_interval(right, asked.item)),
            "chance": float((1 / np.diff(asked.pointer)).mean()), **trained.made_by, "version": version(),
            "seconds": time.perf_counter() - begun}


def _right(maps: Maps, frames: Frames, asked: Asked) -> np.ndarray:
    maps.eval()
    with torch.no_grad():
        scores = asked.scores(maps.items(frames)[asked.item], np.arange(len(asked.item)))
    own = scores.gather(1, asked.right[:, None])
    return ((scores >= own).sum(dim=1) == 1).numpy()


def answer_hinge(scores: Tensor, right: Tensor, margin: float = 1.0) -> Tensor:
    """Sum over the false answers of max(0, margin + score - score of the right one), averaged over the questions.

    scores: (questions, answers). right: (questions,) int64.
    Source: Tem-adapter (Chen et al., ICCV 2023).
    """
    own = scores.gather(1, right[:, None])
    over = (margin + scores - own).clamp_min(0).scatter(1, right[:, None], 0)
    return over.sum(dim=1).mean()


def _train(store: Store, asked: Asked, seed: int, epochs: int, rate: float, progress: Progress) -> Trained:
    """A head over frames with sinusoidal positions, trained with the hinge over the answers (Tem-adapter)."""
    frames, random = read_frames(store, asked.items).to(torch.float32), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TemporalHead(store.dim, int(frames.pointer.diff().max()), sinusoidal=True)

        def losses() -> Iterator[Tensor]:
            order = random.permutation(len(asked.item))
            for chosen in np.array_split(order, max(1, round(len(order) / BATCH))):
                vectors = head.items(frames.chosen(asked.item[chosen]))
                yield answer_hinge(asked.scores(vectors, chosen), asked.right[chosen])

        for _ in descend(head, losses, epochs, rate, progress=progress):
            pass
    return Trained(head.eval().requires_grad_(False), {"trained": {
        "recipe": "tem-adapter", "source": "Tem-adapter (Chen et al., ICCV 2023)", "split": SPLITS[0],
        "items": len(asked.items), "questions": len(asked.item), "epochs": epochs, "epoch": epochs,
        "chosen_by": "last epoch", "batch_size": BATCH, "learning_rate": rate, "seed": seed}})
