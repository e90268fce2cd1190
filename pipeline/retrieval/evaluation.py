"""How well captions and the images or videos of a store find each other, in both directions, as one result row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.training.loop import part_of
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.comclip import Phrases, composed
from onceclip.pipeline.retrieval.heads import Maps
from onceclip.pipeline.retrieval.items import Captioned, captioned, default_split, unit_text
from onceclip.pipeline.retrieval.metrics import Ranks, ranks_of, relevant_of, summary
from onceclip.pipeline.retrieval.normalization import DUAL_SOFTMAX, Normalize, normalization_of, normalize_by
from onceclip.pipeline.retrieval.similarity import (
    COMCLIP,
    DIRECTIONS,
    MEAN,
    TEXT_TO_ITEM,
    Choice,
    Gallery,
    Similarity,
    described,
    pooling_of,
    rerank_of,
    similarity,
)
from onceclip.pipeline.words import version
from onceclip.stores import Store, TextSet
from onceclip.stores.identity import fingerprint
from onceclip.stores.schema import SPLITS

Progress = Callable[[float], None]
ALL = "all"


@dataclass(frozen=True)
class Ranking:
    """Both directions of one evaluation, from which single queries can be ranked again. row: the result row.

    ranks: of all queries by direction. sides, normalize: by direction; None for scores as they are.
    """

    row: dict[str, Any]
    captions: Captioned
    ranks: dict[str, Ranks]
    sides: dict[str, Similarity]
    normalize: dict[str, Normalize | None]

    def scores(self, direction: str, query: int) -> Tensor:
        """Scores of one query with all candidates, as they were ranked."""
        found = self.sides[direction].rows(slice(query, query + 1))
        normalize = self.normalize[direction]
        return (normalize(found) if normalize else found)[0]


def evaluate(store: Store, name: str = "captions", split: str | None = None, pooling: str = "mean",
             rerank: str | None = None, normalize: str | None = None, bank: str | None = None,
             maps: Maps | None = None, made_by: dict[str, Any] | None = None, phrases: Phrases | None = None,
             progress: Progress = lambda fraction: None) -> Ranking:
    """Rank all items by every caption, and all captions by every item.

    name: of the text set of captions. split: one of SPLITS, "all", or None for test where there are captions of it.
    pooling, rerank, normalize: names, with a number behind a colon. bank: split whose queries QB-Norm takes.
    maps: trained ones, which make the items' vectors; made_by: what the row says of them. phrases: of every caption,
        for ComCLIP.
    Raises RetrievalError if there is nothing to rank, StoreIncomplete if there is no such text set.
    """
    begun = time.perf_counter()
    pooled, reranked = pooling_of(pooling), rerank_of(rerank) if rerank else None
    normalized = normalization_of(normalize) if normalize else None
    if bank is not None and (normalized is None or normalized.name == DUAL_SOFTMAX):
        raise RetrievalError("--bank says whose queries QB-Norm takes: give --normalize qb")
    if phrases is not None and (reranked is None or reranked.name != COMCLIP):
        raise RetrievalError("phrases are what comclip takes: add --rerank comclip, or leave --phrases out")
    if phrases is not None and (maps is not None or pooled != MEAN):
        raise RetrievalError("comclip scores images and crops as they are stored: leave out what is trained, and "
                             "--pooling")
    text = store.text(name)
    split = ranked_split(store, text, split)
    if maps:
        require_unseen(split, pooling, store, made_by)
    found = captioned(store, text, split, name)
    side = _side(store, found, (pooled, reranked, maps, phrases), part_of(progress, 0, 0.2))
    banks = _banks(store, text, name, split, normalized, bank, (pooled, reranked, maps, phrases))
    sides = {direction: replace(side, direction=direction) for direction in DIRECTIONS}
    ranks: dict[str, Ranks] = {}
    normalizers: dict[str, Normalize | None] = {}
    with threads_for(len(found.owner) * len(found.items) * store.dim):
        for direction, told in zip(DIRECTIONS, (part_of(progress, 0.2, 0.4), part_of(progress, 0.6, 0.4)), strict=True):
            normalizers[direction] = normalize_by(normalized, _against(sides[direction], banks),
                                                  part_of(told, 0, 0.5)) if normalized else None
            ranks[direction] = rank_all(sides[direction], found, normalizers[direction],
                                        part_of(told, 0.5, 0.5) if normalized else told)
    owner = found.owner if len(found.owner) > len(found.items) else None
    sizes = np.bincount(found.owner)
    row = {
        "task": "retrieval", "store": store.path, "encoder": store.encoder["name"], "text": name,
        "fingerprints": {"store": store.fingerprint, "encoder": store.encoder["fingerprint"], "text": text.fingerprint},
        "split": split or ALL, "by": text.source.get("by"), "items": len(found.items),
        "items_fingerprint": fingerprint(found.items.names.tolist()), "rows": len(found.items.rows),
        "captions": len(found.owner),
        "captions_per_item": {"least": int(sizes.min()), "mean": float(sizes.mean()), "most": int(sizes.max())},
        "left_out": found.left_out, **described(pooled, reranked), **(made_by or {}),
        **({"phrases": phrases.record, "crops": store.outputs["view"].spec} if phrases else {}),
        "normalize": str(normalized) if normalized else None,
        "bank": (banks[1] if banks else _bank_of(split, found)) if normalized else None,
        "transductive": normalized is not None, "ties": "half",
        TEXT_TO_ITEM: summary(ranks[TEXT_TO_ITEM], owner), DIRECTIONS[1]: summary(ranks[DIRECTIONS[1]], None),
        "version": version(), "seconds": time.perf_counter() - begun,
    }
    return Ranking(row, found, ranks, sides, normalizers)


def ranked_split(store: Store, text: TextSet, split: str | None) -> str | None:
    """The split that `evaluate` ranks when it is given this one; None for all rows."""
    if split is not None:
        return _split(split)
    return default_split(store, text) if text.is_captions else None


def require_unseen(split: str | None, pooling: str, store: Store, made_by: dict[str, Any] | None = None) -> None:
    """Raise RetrievalError unless trained maps may be scored on a split: training has seen train, and val chose.

    made_by: of maps that were trained before; of another store they may be scored on all splits of this one.
    """
    here = made_by is None or made_by["trained"].get("store", store.fingerprint) == store.fingerprint
    if (here and split != SPLITS[2]) or pooling_of(pooling) != MEAN:
        raise RetrievalError("training has seen the train and val splits and makes its own vectors: rank the test "
                             "split, with the pooling mean")


def rank_all(side: Similarity, captions: Captioned, normalize: Normalize | None = None,
             progress: Progress = lambda fraction: None) -> Ranks:
    """Ranks of all queries of one direction, block by block."""
    queries, _ = side.shape
    pointer = captions.pointer
    parts = []
    for where in side.blocks():
        scores = side.rows(where)
        relevant = (relevant_of(pointer, where.start, where.stop) if side.direction != TEXT_TO_ITEM else
                    torch.from_numpy(captions.owner[where, None]))
        parts.append(ranks_of(normalize(scores) if normalize else scores, relevant))
        progress(where.stop / queries)
    return Ranks.together(parts)


def _split(name: str) -> str | None:
    if name not in (*SPLITS, ALL):
        raise RetrievalError(f"no split {name!r}: there are {', '.join(SPLITS)} and {ALL}")
    return None if name == ALL else name


Made = tuple[Choice, Choice | None, Maps | None, Phrases | None]  # pooling, re-ranking, what training made


def _side(store: Store, found: Captioned, made: Made, progress: Progress = lambda fraction: None) -> Similarity:
    """Scores of captions with their items."""
    pooling, rerank, maps, phrases = made
    if rerank is not None and rerank.name == COMCLIP:
        return Similarity(*composed(store, found.items, found.text, found.sentences, phrases))
    gallery = Gallery.of_store(store, found.items, pooling, rerank, maps.items if maps else None, progress)
    return similarity(maps.text(unit_text(found.text)) if maps else found.text, gallery, TEXT_TO_ITEM)


Bank = tuple[Similarity, dict[str, Any]]


def _banks(store: Store, text: TextSet, name: str, split: str | None, normalized: Choice | None, bank: str | None,
           made: Made) -> Bank | None:
    """The bank's captions and items, and what the row says of it; None where the queries themselves are the bank."""
    if normalized is None or normalized.name == DUAL_SOFTMAX:
        return None
    chosen = SPLITS[0] if bank is None else bank
    try:
        other = _split(chosen)
        if other == split:
            return None
        found = captioned(store, text, other, name)
    except RetrievalError as error:
        raise RetrievalError(f"QB-Norm needs a bank of queries: {error}; --bank names the split that has them, which "
                             "may be the one that is ranked") from error
    return _side(store, found, made), _bank_of(chosen, found)


def _bank_of(split: str | None, found: Captioned) -> dict[str, Any]:
    return {"split": split or ALL, "captions": len(found.owner), "items": len(found.items)}


def _against(side: Similarity, bank: Bank | None) -> Similarity:
    """Scores of the bank's queries with the candidates that are ranked; without a bank, of the queries themselves."""
    if bank is None:
        return side
    if side.direction == TEXT_TO_ITEM:
        return replace(side, text=bank[0].text)
    return replace(side, gallery=bank[0].gallery)
