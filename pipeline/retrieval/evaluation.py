"""How well captions and the images or videos of a store find each other, in both directions, as one result row."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.training.loop import Progress, no_progress, part_of
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.comclip import Phrases, composed
from onceclip.pipeline.retrieval.items import GROUP, Captioned, captioned, unit_text
from onceclip.pipeline.retrieval.metrics import Ranks, ranks_of, relevant_of, summary
from onceclip.pipeline.retrieval.recipes import Trained
from onceclip.pipeline.retrieval.similarity import (
    COMCLIP,
    DIRECTIONS,
    ITEM_TO_TEXT,
    MEAN,
    TEXT_TO_ITEM,
    Choice,
    Gallery,
    Similarity,
    choice_of,
    pooling_of,
    rerank_of,
)
from onceclip.pipeline.words import version
from onceclip.stores import Store, TextSet
from onceclip.stores.identity import fingerprint
from onceclip.stores.schema import SPLITS

ALL = "all"
DUAL_SOFTMAX = "dual-softmax"
NORMALIZATIONS: dict[str, float | None] = {"qb": 20.0, DUAL_SOFTMAX: 100.0}  # with their inverse temperatures


@dataclass(frozen=True)
class Ranking:
    """Both directions of one evaluation, from which single queries can be ranked again. row: the result row.

    ranks: of all queries by direction. sides, normalize: by direction; None for scores as they are.
    """

    row: dict[str, Any]
    captions: Captioned
    ranks: dict[str, Ranks]
    sides: dict[str, Similarity]
    normalize: dict[str, Normalization | None]

    def scores(self, direction: str, query: int) -> Tensor:
        """Scores of one query with all candidates, as they were ranked."""
        found = self.sides[direction].rows(slice(query, query + 1))
        normalize = self.normalize[direction]
        return (normalize(found) if normalize else found)[0]


def evaluate(store: Store, name: str = "captions", split: str | None = None, pooling: str = "mean",
             rerank: str | None = None, normalize: str | None = None, bank: str | None = None,
             trained: Trained | None = None, phrases: Phrases | None = None, progress: Progress = no_progress
             ) -> Ranking:
    """Rank all items by every caption, and all captions by every item.

    name: of the text set of captions. split: one of SPLITS, "all", or None for test where there are captions of it.
    pooling, rerank, normalize: names, with a number behind a colon. bank: split whose queries QB-Norm takes.
    trained: maps that make the items' vectors, and what the row says of them. phrases: of every caption, for ComCLIP.
    Raises RetrievalError if there is nothing to rank, StoreIncomplete if there is no such text set.
    """
    begun = time.perf_counter()
    pooled, reranked = pooling_of(pooling), rerank_of(rerank) if rerank else None
    normalized = normalization_of(normalize) if normalize else None
    if bank is not None and (normalized is None or normalized.name == DUAL_SOFTMAX):
        raise RetrievalError("--bank says whose queries QB-Norm takes: give --normalize qb")
    if phrases is not None and (reranked is None or reranked.name != COMCLIP):
        raise RetrievalError("phrases are what comclip takes: add --rerank comclip, or leave --phrases out")
    if phrases is not None and (trained is not None or pooled != MEAN):
        raise RetrievalError("comclip scores images and crops as they are stored: leave out what is trained, and "
                             "--pooling")
    if trained is not None and reranked is not None:
        raise RetrievalError("re-ranking adds cosines of rows as they are stored, and what is trained makes its own "
                             "vectors: leave out --rerank, or the training")
    text = store.text(name)
    split = ranked_split(store, text, split)
    if trained:
        require_unseen(split, pooling, store, trained)
    found = captioned(store, text, split, name)
    side_of = partial(_side, store, pooling=pooled, rerank=reranked, trained=trained, phrases=phrases)
    side = side_of(found, progress=part_of(progress, 0, 0.2))
    other = _bank(store, text, name, split, bank) if normalized and normalized.name != DUAL_SOFTMAX else None
    of_bank = side_of(other[1]) if other else None
    sides = {direction: replace(side, direction=direction) for direction in DIRECTIONS}
    ranks: dict[str, Ranks] = {}
    normalizers: dict[str, Normalization | None] = {}
    with threads_for(len(found.owner) * len(found.items) * store.dim):
        for direction, told in zip(DIRECTIONS, (part_of(progress, 0.2, 0.4), part_of(progress, 0.6, 0.4)), strict=True):
            normalizers[direction] = normalize_by(normalized, _against(sides[direction], of_bank),
                                                  part_of(told, 0, 0.5)) if normalized else None
            ranks[direction] = rank_all(sides[direction], found, normalizers[direction],
                                        part_of(told, 0.5, 0.5) if normalized else told)
    owner = found.owner if len(found.owner) > len(found.items) else None
    sizes = np.bincount(found.owner)
    of_queries, queries = other or (split, found)
    row = {
        "task": "retrieval", "store": store.path, "encoder": store.encoder["name"], "text": name,
        "fingerprints": {"store": store.fingerprint, "encoder": store.encoder["fingerprint"], "text": text.fingerprint},
        "split": split or ALL, "by": text.source.get("by"), "items": len(found.items),
        "items_fingerprint": fingerprint(found.items.names.tolist()), "rows": len(found.items.rows),
        "captions": len(found.owner),
        "captions_per_item": {"least": int(sizes.min()), "mean": float(sizes.mean()), "most": int(sizes.max())},
        "left_out": found.left_out, "pooling": str(pooled), "rerank": str(reranked) if reranked else None,
        **(trained.made_by if trained else {}),
        **({"phrases": phrases.record, "crops": store.outputs["view"].spec} if phrases else {}),
        "normalize": str(normalized) if normalized else None,
        "bank": {"split": of_queries or ALL, "captions": len(queries.owner), "items": len(queries.items)}
        if normalized else None,
        "transductive": normalized is not None, "ties": "half",
        TEXT_TO_ITEM: summary(ranks[TEXT_TO_ITEM], owner), ITEM_TO_TEXT: summary(ranks[ITEM_TO_TEXT], None),
        "version": version(), "seconds": time.perf_counter() - begun,
    }
    return Ranking(row, found, ranks, sides, normalizers)


def ranked_split(store: Store, text: TextSet, split: str | None) -> str | None:
    """The split that `evaluate` ranks when it is given this one; None for all rows.

    By default the test split, where captions belong to rows of it.
    """
    if split is not None or not text.is_captions:
        return _split(ALL if split is None else split)
    rows = store.rows(SPLITS[2], labelled=False)
    names = store.column("key")[rows]
    if text.source.get("by") == GROUP:
        groups = store.column("group")[rows]
        names = np.where(groups == "", names, groups)
    return SPLITS[2] if not set(text.classes).isdisjoint(map(str, names)) else None


def require_unseen(split: str | None, pooling: str, store: Store, trained: Trained | None = None) -> None:
    """Raise RetrievalError unless trained maps may be scored on a split: training has seen train, and val chose.

    trained: None for what is to be trained on this store; maps of another one may be scored on all splits of it.
    """
    here = trained is None or trained.made_by["trained"].get("store", store.fingerprint) == store.fingerprint
    if (here and split != SPLITS[2]) or pooling_of(pooling) != MEAN:
        raise RetrievalError("training has seen the train and val splits and makes its own vectors: rank the test "
                             "split, with the pooling mean")


def rank_all(side: Similarity, captions: Captioned, normalize: Normalization | None = None,
             progress: Progress = no_progress) -> Ranks:
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


@dataclass(frozen=True)
class Normalization:
    """Scores made comparable across candidates: hubs, which are near to every query, lose what they win by it.

    mass: (candidates,) log of the sum over queries of exp(scale * score). hubs: None for dual softmax, a score times
    the softmax of its candidate's scores over all queries, so that it has seen every query (transductive). For QB-Norm
    (candidates,) bool, the best candidate of a query of the bank: rows whose best candidate is a hub become the bank's
    softmax (dynamic inverted softmax). Other rows stay, so that scores are to be compared within a row alone.
    Sources: CAMoE (Cheng et al., 2021); Cross Modal Retrieval with Querybank Normalisation (Bogolin et al., CVPR 2022),
    with k = 1.
    """

    scale: float
    mass: Tensor
    hubs: Tensor | None

    def __call__(self, scores: Tensor) -> Tensor:
        """Normalize scores (queries, candidates); those given stay as they are."""
        softmax = (self.scale * scores - self.mass).exp()
        if self.hubs is None:
            return scores * softmax
        return torch.where(self.hubs[scores.argmax(dim=1)][:, None], softmax, scores)


def normalization_of(text: str) -> Choice:
    """The normalization that a name means."""
    return choice_of(text, "normalize", NORMALIZATIONS)


def normalize_by(choice: Choice, bank: Similarity, progress: Progress = no_progress) -> Normalization:
    """Look at all queries of a bank, block by block; for dual softmax these are the queries that are ranked."""
    scale = choice.value or 0.0
    queries, candidates = bank.shape
    mass = torch.full((candidates,), -torch.inf, dtype=bank.text.dtype)
    hubs = torch.zeros(candidates, dtype=torch.bool)
    for where in bank.blocks():
        scores = bank.rows(where)
        hubs[scores.argmax(dim=1)] = True
        mass = torch.logaddexp(mass, (scale * scores).logsumexp(dim=0))
        progress(where.stop / queries)
    return Normalization(scale, mass, None if choice.name == DUAL_SOFTMAX else hubs)


def _side(store: Store, found: Captioned, pooling: Choice, rerank: Choice | None, trained: Trained | None,
          phrases: Phrases | None, progress: Progress = no_progress) -> Similarity:
    """Scores of captions with their items."""
    if rerank is not None and rerank.name == COMCLIP:
        return Similarity(*composed(store, found.items, found.text, found.sentences, phrases))
    gallery = Gallery.of_store(store, found.items, pooling, rerank, trained.maps.items if trained else None, progress)
    text = unit_text(found.text)
    return Similarity(unit_text(trained.maps.text(text)) if trained else text, gallery)


def _bank(store: Store, text: TextSet, name: str, split: str | None, bank: str | None
          ) -> tuple[str | None, Captioned] | None:
    """The split whose queries are QB-Norm's bank, and they; None where the queries themselves are the bank."""
    try:
        other = _split(SPLITS[0] if bank is None else bank)
        return None if other == split else (other, captioned(store, text, other, name))
    except RetrievalError as error:
        raise RetrievalError(f"QB-Norm needs a bank of queries: {error}; --bank names the split that has them, which "
                             "may be the one that is ranked") from error


def _against(side: Similarity, bank: Similarity | None) -> Similarity:
    """Scores of the bank's queries with the candidates that are ranked; without a bank, of the queries themselves."""
    if bank is None:
        return side
    if side.direction == TEXT_TO_ITEM:
        return replace(side, text=bank.text)
    return replace(side, gallery=bank.gallery)
