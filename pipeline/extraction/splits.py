"""The split of every row: the source's own, or drawn: stratified, recorded, and stable when a folder grows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction.survey import Survey, share_words
from onceclip.stores import Store, open_store
from onceclip.stores.identity import digest
from onceclip.stores.schema import NO_SPLIT, SPLITS, STORED

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
SEED = 1
PLANNED = "plan"  # the attribute of a store that says for which images parts of an extraction are at work
METHOD = "blake2b of seed and content, largest deficit first"


def splits_of(store: str, found: Survey, present: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The split of every row of a store, drawn where the source does not say; and how it came about.

    present: rows of the images that are there.
    Raises SourceError if none of these could be read.
    """
    table = open_store(store).table
    if not (table.state[present] == STORED).any():
        reasons = Counter(table.reason[present]).most_common(1)
        raise SourceError(f"none of the {len(present)} images in {found.source} could be read (most often: "
                          f"{reasons[0][0]}): look at the files, or give another folder")
    if found.has_splits:
        return table.split, {"how": "folders"}
    source = drawing_of(open_store(store), found)
    drawn = draw_splits(table.label, table.split, table.state, table.digest, table.group, source["seed"],
                        source["shares"])
    return drawn, source


def drawing_of(store: Store, found: Survey) -> dict[str, Any]:
    """How to draw the splits of a store, as its `split_source`: as before if it has drawn ones, else as asked for.

    Raises SourceError if drawn splits are asked for otherwise: images keep theirs.
    """
    known = store.attributes.get("split_source", {})
    before = {name: known.get(name, value) for name, value in (("seed", SEED), ("shares", SHARES))}
    options = found.options
    asked: dict[str, Any] = {} if options.split_seed is None else {"seed": options.split_seed}
    if options.split_shares is not None:
        asked["shares"] = dict(zip(SPLITS, (share / 100 for share in options.split_shares), strict=True))
    drawn = known.get("how") == "drawn" and (PLANNED in store.attributes or (store.table.split != NO_SPLIT).any())
    if drawn and {**before, **asked} != before:
        words = share_words(100 * before["shares"][name] for name in SPLITS)
        raise SourceError(f"{store.path} is split {words} with seed {before['seed']}, and its images keep their split: "
                          "leave out --split-shares and --split-seed, or extract into another store")
    return {"how": "drawn", "method": METHOD, **before, **asked}


def draw_splits(label: np.ndarray, split: np.ndarray, state: np.ndarray, content: np.ndarray,
                group: np.ndarray | None = None, seed: int = SEED,
                shares: Mapping[str, float] = SHARES) -> np.ndarray:
    """Give every labelled stored row without a split one, so that each class keeps the shares (of 1, by split).

    label, split, state: (rows,). content: (rows, 16) digests; rows of equal content go to one split.
    group: (rows,) text; rows of one group go to one split too, empty is none.
    Rows that have a split keep it. The order within a class is a hash of seed and content, so the draw depends
    neither on paths nor on the order of rows.
    """
    result = split.copy()
    usable = np.flatnonzero((state == STORED) & (label >= 0))
    contents = [content[row].tobytes() for row in usable]
    ties = ties_of(contents, [""] * len(usable) if group is None else group[usable].tolist())
    members: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # row, class and split of what is tied
    names: dict[int, bytes] = {}
    counts = [[0] * len(SPLITS) for _ in range(int(label.max(initial=0)) + 1)]
    for row, number, given, own, each in zip(usable.tolist(), label[usable].tolist(), split[usable].tolist(), contents,
                                             ties.tolist(), strict=True):
        members[each].append((row, number, given))
        names[each] = min(names.get(each, own), own)
        if given != NO_SPLIT:
            counts[number][given] += 1
    for each in sorted(members, key=lambda each: digest(b"%d:" % seed + names[each])):
        known = Counter(given for _, _, given in members[each] if given != NO_SPLIT)
        fresh = [(row, number) for row, number, given in members[each] if given == NO_SPLIT]
        if not fresh:
            continue
        sizes = Counter(number for _, number in fresh)
        chosen = min(known, key=lambda given: (-known[given], given)) if known else _neediest(counts, sizes, shares)
        for row, number in fresh:
            result[row] = chosen
            counts[number][chosen] += 1
    return result


def _neediest(counts: Sequence[Sequence[int]], sizes: Mapping[int, int], shares: Mapping[str, float]) -> int:
    """The split that lacks most rows of some classes, so many of each."""
    missing = [0.0] * len(SPLITS)
    for number, size in sorted(sizes.items()):
        total = sum(counts[number]) + 1
        for place, name in enumerate(SPLITS):
            missing[place] += size * (shares[name] * total - counts[number][place])
    return missing.index(max(missing))


def ties_of(contents: Sequence[bytes], groups: Sequence[str]) -> np.ndarray:
    """A number per row that rows share if equal content or groups tie them, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(contents)
    number: dict[bytes | str, int] = {}
    numbers = [number.setdefault(each, count + len(number)) for each in contents]
    rows = list(range(count))
    for row, group in enumerate(groups):
        if group:
            rows.append(row)
            numbers.append(number.setdefault(group, count + len(number)))
    size = count + len(number)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, numbers)), (size, size))
    return connected_components(graph, directed=False)[1][:count]
