"""What a user should know of a store that was extracted: of its classes, prompts, pictures and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from onceclip.pipeline.decoding.views import CROPS
from onceclip.pipeline.extraction.outputs import views_of
from onceclip.pipeline.extraction.survey import Survey, crops
from onceclip.pipeline.words import class_remarks, counted, listing
from onceclip.stores import Store
from onceclip.stores.verification import equal_content

_SAMPLE = 8  # images at either end of a store
_EQUAL = 1e-3  # distance of embeddings up to which they are the same, relative to their length


def remarks_on(store: Store, found: Survey, text: dict[str, Any], encoded: int) -> list[str]:
    """What is odd about a store and the source that it was made of.

    text: what was done about prompts. encoded: number of images that were.
    """
    said = found.phrases if text["encoded"] else dict.fromkeys(found.classes)
    remarks = [*found.remarks, *other_boxes(store, found), *class_remarks(said), *_conflicts(store),
               *(_alike(store) if encoded else [])]
    if store.classes and not store.texts:
        remarks.append(f"{store.encoder['name']} has no text encoder: the store has no prompts, which most methods "
                       "need (linear-probe does without)")
    remarks += [f"class {name!r} has no prompts, because the text set is from a file: add it there and run "
                "`onceclip text` again" for name in text.get("missing", ())]
    there = np.unique(store.table.label[store.rows()])
    return remarks + [f"class {name!r} has no readable image" for number, name in enumerate(store.classes)
                      if number not in there]


def other_boxes(store: Store, found: Survey) -> list[str]:
    """The remark on a source whose boxes are no longer those of a store's views."""
    made = views_of(store)
    if made is None or made[0].kind != CROPS or made[0] == crops(found.records):
        return []
    return ["the source gives other boxes than those of the store's views: views that are there stay as they are, and "
            "new images have theirs by the new boxes; extract with --crops into another store to have all by these"]


def _alike(store: Store) -> list[str]:
    """The remark on an encoder that does not tell pictures apart, by the first and the last ones of a store."""
    rows = store.rows(labelled=False)
    rows = np.union1d(rows[:_SAMPLE], rows[-_SAMPLE:])
    values = store.embeddings(rows).astype(np.float32)
    pictures = len(np.unique(store.table.digest[rows], axis=0))
    apart = np.linalg.norm(values - values[:1], axis=1)
    if pictures < 2 or (apart > _EQUAL * np.linalg.norm(values[:1])).any():
        return []
    return [f"{store.encoder['name']} gives {counted(pictures, 'different picture')} the same embedding: see that its "
            "weights are loaded, and what its preprocessing gives"]


def _conflicts(store: Store) -> list[str]:
    """The remark on equal pictures of different classes."""
    found = [each.where for each in equal_content(store, "label")]
    return [f"{counted(len(found), 'picture')} in several classes, some of which must be wrong: {listing(found, 4)}"] \
        if found else []
