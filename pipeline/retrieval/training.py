"""Training of maps and heads for retrieval on the captions of the train split, with the epoch that is best on val."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.evaluation import rank_all
from onceclip.pipeline.retrieval.heads import LinearMaps, Maps, TemporalHead
from onceclip.pipeline.retrieval.items import Captioned, Frames, captioned, read_frames, some_frames, unit_text
from onceclip.pipeline.retrieval.losses import clip_loss, contra_loss, geodesic_loss, hard_negative_loss
from onceclip.pipeline.retrieval.similarity import DIRECTIONS, MEAN, Gallery, Similarity
from onceclip.stores import Store, TextSet

Progress = Callable[[float], None]
_SCALE = 100.0  # of an encoder that does not say its own


@dataclass(frozen=True)
class Batch:
    """Pairs of one step: unit texts and items (pairs, dim) as the maps make them, and false captions (any, dim)."""

    text: Tensor
    item: Tensor
    negative: Tensor
    scale: float
    random: np.random.Generator


@dataclass(frozen=True)
class Recipe:
    """A way to train. make: gives the maps from dim and most rows of an item. loss: of a batch."""

    summary: str
    source: str
    make: Callable[[int, int], Maps]
    loss: Callable[[Batch], Tensor]
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 0.01


def _pairs(batch: Batch) -> Tensor:
    return clip_loss(batch.text, batch.item, batch.scale)


def _hard_negatives(batch: Batch) -> Tensor:
    return hard_negative_loss(batch.text, batch.item, batch.negative, batch.scale)


def _mixed(batch: Batch) -> Tensor:
    share = float(batch.random.beta(0.5, 0.5))
    return (_pairs(batch) + geodesic_loss(batch.text, batch.item, share, batch.scale)) / 2


RECIPES = {
    "labclip": Recipe("a linear map of texts, against false captions too", "LABCLIP (Koishigarina et al., 2025)",
                      lambda dim, most: LinearMaps(dim), _hard_negatives),
    "geodesic": Recipe("linear maps of both sides, with mixtures of pairs as negatives",
                       "Geodesic Multi-Modal Mixup (Oh et al., NeurIPS 2023)",
                       lambda dim, most: LinearMaps(dim, both=True), _mixed),
    "temporal": Recipe("a transformer over frames, added to their mean", "after CLIP4Clip's seqTransf (Luo et al., "
                       "2022)", lambda dim, most: TemporalHead(dim, most), _pairs),
    "contra": Recipe("a transformer over neighbouring clips, added to the middle one", "ConTra (Fragomeni et al., "
                     "2022)", lambda dim, most: TemporalHead(dim, most, middle=True),
                     lambda batch: contra_loss(batch.text, batch.item)),
}


@dataclass(frozen=True)
class Trained:
    """Maps that are trained, and JSON values of how."""

    maps: Maps
    made_by: dict[str, Any]


def train(store: Store, text: TextSet, name: str, recipe: str, negatives: TextSet | None = None, seed: int = 1,
          epochs: int | None = None, learning_rate: float | None = None, progress: Progress = lambda fraction: None
          ) -> Trained:
    """Train maps on the train split's captions; val captions, where there are any, choose the epoch.

    The start, which is the pooling `mean` (of contra the middle row), is among the epochs that are compared: training
    never gives what is worse on val.
    negatives: false captions of the same items, another set of captions.
    Raises RetrievalError if the train split has under two captioned items, or training diverges.
    """
    if recipe not in RECIPES:
        raise RetrievalError(unknown("training", recipe, RECIPES))
    made = RECIPES[recipe]
    epochs = made.epochs if epochs is None else epochs
    rate = made.learning_rate if learning_rate is None else learning_rate
    if negatives is not None and made.loss is not _hard_negatives:
        takers = ", ".join(each for each, its in RECIPES.items() if its.loss is _hard_negatives)
        raise RetrievalError(f"{recipe} makes its negatives itself: leave --negatives out, or train {takers}")
    pairs = captioned(store, text, "train", name)
    if len(pairs.items) < 2:
        raise RetrievalError(f"{store.path}: the train split has a single captioned item: training takes two at least")
    frames = read_frames(store, pairs.items)
    frames = Frames(frames.raw.float(), frames.pointer)
    false = _false_captions(store, pairs, negatives)
    judge = _judge(store, text, name)
    scale = float(store.encoder.get("logit_scale") or _SCALE)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = made.make(store.dim, int(frames.pointer.diff().max()))
        best, best_score, best_epoch = copy.deepcopy(maps.state_dict()), judge(maps), 0
        optimizer = torch.optim.AdamW(maps.parameters(), rate, weight_decay=made.weight_decay)
        for epoch in range(1, epochs + 1):
            maps.train()
            for chosen, captions in _batches(pairs, made.batch_size, random):
                words = maps.text(unit_text(pairs.text[captions]))
                wrong = maps.text(false[0][_some(false[1], chosen, random)]) if false else words[:0]
                part = some_frames(frames, chosen)
                loss = made.loss(Batch(words, maps.items(part), wrong, scale, random))
                if not torch.isfinite(loss):
                    raise RetrievalError(f"training {recipe} diverged in epoch {epoch}: use a smaller learning rate "
                                         f"than {rate:g}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            score = judge(maps)
            if score is None or best_score is None or score > best_score:
                best, best_score, best_epoch = copy.deepcopy(maps.state_dict()), score, epoch
            progress(epoch / epochs)
    maps.load_state_dict(best)
    return Trained(maps.eval().requires_grad_(False), {"trained": {
        "recipe": recipe, "source": made.source, "split": "train", "items": len(pairs.items),
        "captions": len(pairs.owner), "false_captions": len(false[0]) if false else 0,
        "negatives": negatives.fingerprint if negatives else None, "epochs": epochs, "epoch": best_epoch,
        "chosen_by": "mAP on val" if best_score is not None else "last epoch", "val_map": best_score,
        "batch_size": made.batch_size, "learning_rate": rate, "weight_decay": made.weight_decay, "seed": seed}})


def _batches(pairs: Captioned, size: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All items once in any order, each with one of its captions: items and captions of a step, two pairs at least."""
    order, pointer = random.permutation(len(pairs.items)), pairs.pointer
    number = max(1, round(len(order) / size))
    for chosen in np.array_split(order, number):
        low, high = pointer[chosen], pointer[chosen + 1]
        yield chosen, low + (random.random(len(chosen)) * (high - low)).astype(np.int64)


FalseCaptions = tuple[Tensor, np.ndarray]  # unit texts, and where those of each item begin


def _false_captions(store: Store, pairs: Captioned, negatives: TextSet | None) -> FalseCaptions | None:
    """False captions of the items that have some, by item."""
    if negatives is None:
        return None
    if not negatives.is_captions:
        raise RetrievalError("false captions are a set of captions: make one with `onceclip text STORE --captions FILE "
                             "--name negatives`")
    place = {name: number for number, name in enumerate(negatives.classes)}
    theirs: Sequence[np.ndarray] = [
        np.arange(*negatives.class_ptr[place[name]:place[name] + 2]) if name in place else np.empty(0, np.int64)
        for name in pairs.items.names.tolist()]
    rows = np.concatenate(theirs)
    if not len(rows):
        raise RetrievalError(f"{store.path}: no false caption belongs to an item of the train split")
    pointer = np.concatenate([[0], np.cumsum([len(each) for each in theirs])])
    return unit_text(torch.from_numpy(negatives.embedding[rows])), pointer


def _some(pointer: np.ndarray, chosen: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One of the rows of each item that has any."""
    low, high = pointer[chosen], pointer[chosen + 1]
    drawn = low + (random.random(len(chosen)) * (high - low)).astype(np.int64)
    return drawn[high > low]


def _judge(store: Store, text: TextSet, name: str) -> Callable[[Maps], float | None]:
    """What scores maps: mean of both directions' mAP on val, or None where val has no captions."""
    try:
        found = captioned(store, text, "val", name)
    except RetrievalError:
        return lambda maps: None
    frames = read_frames(store, found.items)
    frames = Frames(frames.raw.float(), frames.pointer)

    def score(maps: Maps) -> float:
        maps.eval()
        with torch.no_grad():
            words = maps.text(unit_text(found.text))
            gallery = Gallery(MEAN, maps.items(frames), None)
            return float(np.mean([rank_all(Similarity(words, gallery, direction), found).precision.mean()
                                  for direction in DIRECTIONS]))

    return score
