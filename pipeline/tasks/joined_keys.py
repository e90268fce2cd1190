"""Images that a file lists, found among the rows of a store by their keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.words import counted, listing
from onceclip.stores import Store
from onceclip.stores.identity import encode_key


def joined(store: Store, images: Sequence[tuple[str, str | None]], what: str, file: str) -> np.ndarray:
    """Rows (n,) of the images that a file lists, in its order. what: of them, such as "train", for messages.

    images: key or path, and class as the file calls it, or None. A name is that of the row whose key it is; else of the
    only row whose key ends with it, or it with the key, by whole folders: paths of another machine fit.
    Raises TaskError for an image that is missing, means several rows, stands twice or in the test split, and for
    classes of the file that are not classes of the store.
    """
    rows = store.rows()
    keys = store.column("key")[rows]
    place = {str(key): row for key, row in zip(keys, rows.tolist(), strict=True)}
    endings: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for key, row in place.items():
        parts = tuple(key.split("/"))
        endings[parts[-1]].append((parts, row))
    found = [_row(name, place, endings) for name, _ in images]
    missing = [name for (name, _), several in zip(images, found, strict=True) if not several]
    if missing:
        raise TaskError(f"{file}: {counted(len(missing), f'{what} image')} of {len(images):,} not in {store.path}: "
                        f"{listing(missing, 4)}; keys there are such as {listing([str(key) for key in keys[:2]])}: "
                        "give the store of the images that were drawn")
    unclear = next((name for (name, _), several in zip(images, found, strict=True) if len(several) > 1), None)
    if unclear is not None:
        raise TaskError(f"{file}: {unclear} may be several images of {store.path}: list more of their path")
    chosen = np.array([several[0] for several in found], np.int64)
    if len(np.unique(chosen)) < len(chosen):
        twice = next(name for (name, _), row in zip(images, chosen, strict=True) if (chosen == row).sum() > 1)
        raise TaskError(f"{file}: {twice} is listed twice among its {what} images: list each once")
    tested = np.isin(chosen, store.rows("test"))
    if tested.any():
        raise TaskError(f"{file}: {counted(int(tested.sum()), f'{what} image')}, such as "
                        f"{images[int(tested.argmax())][0]}, of the test split of {store.path}: its splits are not "
                        "those of the draw; extract with them (docs/sources.md)")
    _require_classes(store, images, chosen, file)
    return chosen


def _row(name: str, place: dict[str, int], endings: dict[str, list[tuple[tuple[str, ...], int]]]) -> list[int]:
    """The rows that a name may mean."""
    plain = name.replace("\\", "/")
    for form in dict.fromkeys((name, encode_key(name), encode_key(plain))):
        if form in place:
            return [place[form]]
        parts = tuple(part for part in form.split("/") if part not in ("", "."))
        if not parts:
            continue
        close = []
        for key, row in endings.get(parts[-1], ()):
            length = min(len(key), len(parts))
            if key[-length:] == parts[-length:]:
                close.append(row)
        if close:
            return close
    return []


def _require_classes(store: Store, images: Sequence[tuple[str, str | None]], rows: np.ndarray, file: str) -> None:
    """Raise TaskError unless each class of the file is one of the store: else names were joined wrongly."""
    labels = store.column("label")[rows]
    of_file: dict[str, tuple[int, str]] = {}
    for (name, said), label in zip(images, labels.tolist(), strict=True):
        if said is not None:
            first, example = of_file.setdefault(said, (label, name))
            if first != label:
                raise TaskError(f"{file}: its class {said} has images of two classes of {store.path} ({example}: "
                                f"{store.classes[first]!r}, {name}: {store.classes[label]!r}): give the store of the "
                                "images that were drawn")
