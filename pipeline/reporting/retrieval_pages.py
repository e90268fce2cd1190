"""Pages of retrieval: what a query found, and the best and worst queries of an evaluation, with small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.reporting.mistakes import with_pictures
from onceclip.pipeline.reporting.pages import write_page
from onceclip.pipeline.retrieval.evaluation import Ranking
from onceclip.pipeline.retrieval.search import Hit
from onceclip.pipeline.retrieval.similarity import ITEM_TO_TEXT, TEXT_TO_ITEM
from onceclip.stores import Store

SHOWN = 12  # queries of each kind
FOUND = 4  # candidates of a query
TITLES = {TEXT_TO_ITEM: "text to item", ITEM_TO_TEXT: "item to text"}


@dataclass(frozen=True)
class Picture:
    """An item on a page. key, row: of the row that is shown. score: with the query; right: whether it belongs to it.

    text: a sentence that stands in its place (then its row is -1), or beside it. picture, why: as of `Mistake`.
    """

    key: str
    row: int
    name: str = ""
    score: float | None = None
    right: bool = False
    text: str = ""
    picture: str = ""
    why: str = ""


def write_search_page(out: Path, store: Store, query: str, hits: Sequence[Hit], images: str | None = None) -> None:
    """Write one self-contained HTML file of what a query found. images: as of `with_pictures`."""
    keys = store.column("key")
    shown, remark = with_pictures([Picture(str(keys[hit.row]), hit.row, hit.name, hit.score) for hit in hits], store,
                                  images)
    write_page(out, "search.html", title=query, store=store, query=query, hits=shown, remark=remark)


def write_retrieval_page(out: Path, store: Store, ranking: Ranking, images: str | None = None) -> dict[str, Any]:
    """Write one self-contained HTML file of an evaluation: scores, and the best and worst queries of each direction."""
    sections: list[dict[str, Any]] = [
        {"direction": TITLES[direction], "id": f"{kind}-{direction.replace('_', '-')}", "kind": kind,
         "queries": [_query(store, ranking, direction, number) for number in numbers]}
        for direction in TITLES for kind, numbers in zip(("worst", "best"), _ends(ranking, direction), strict=True)]
    shown = [each for section in sections for query in section["queries"] for each in (query["itself"], *query["found"])
             if each.row >= 0]
    pictured, remark = with_pictures(shown, store, images)
    write_page(out, "retrieval.html", title=f"Retrieval on {Path(store.path).name}", row=ranking.row, titles=TITLES,
               sections=sections, pictures={each.row: each for each in pictured}, remark=remark)
    return {"page": str(out), "pictures": sum(bool(each.picture) for each in pictured)}


def _ends(ranking: Ranking, direction: str) -> tuple[Sequence[int], Sequence[int]]:
    """The queries with the highest and with the lowest ranks, none of them twice."""
    order = np.argsort(ranking.ranks[direction].rank, kind="stable").tolist()
    worst = order[::-1][:min(SHOWN, -(-len(order) // 2))]
    return worst, order[:min(SHOWN, len(order) - len(worst))]


def _query(store: Store, ranking: Ranking, direction: str, number: int) -> dict[str, Any]:
    """A query: its rank, itself, and the candidates that stand highest."""
    captions, items, scores = ranking.captions, ranking.captions.items, ranking.scores(direction, number)
    order = scores.argsort(descending=True, stable=True)[:FOUND].tolist()
    own = int(captions.owner[number]) if direction == TEXT_TO_ITEM else number

    def item(place: int, score: float | None, right: bool, text: str = "") -> Picture:
        """An item by its middle row, such as the middle frame of a video."""
        row = int(items.rows[(items.pointer[place] + items.pointer[place + 1]) // 2])
        return Picture(str(store.column("key")[row]), row, str(items.names[place]), score, right, text)

    if direction == TEXT_TO_ITEM:
        itself = item(own, float(scores[own]), True, captions.sentences[number])
        found = [item(place, float(scores[place]), place == own) for place in order]
    else:
        sentences = [captions.sentences[place] for place in np.flatnonzero(captions.owner == own)[:FOUND]]
        itself = item(own, None, True, " / ".join(sentences))
        found = [Picture("", -1, score=float(scores[place]), right=int(captions.owner[place]) == own,
                         text=captions.sentences[place]) for place in order]
    return {"rank": float(ranking.ranks[direction].rank[number]), "itself": itself, "found": found}
