"""Draws of a store, written for other code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onceclip.pipeline.api.arguments import listed, one_of, opened, path_of, shots_of, whole
from onceclip.pipeline.tasks.draw_files import FORMATS, write_draw
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import draw_task
from onceclip.stores import Store
from onceclip.stores.identity import decode_key


def write_draws(store: str | Path | Store, shots: Sequence[int | str | None] | int | str = (1, 2, 4, 8, 16),
                seeds: Sequence[int] | int = (1, 2, 3), *, out: str | Path, form: str = "json",
                root: str | Path | None = None) -> list[Path]:
    """Write the draws that runs on a store see, a file shot_K-seed_S each, and give the files.

    store: an open one or its path. form: "json", "csv", "coop" (its pickles) or "tip-adapter" (lists of path, class
        number and class name, as split files have). root: a folder that is put before every key, as other code has it.
    Raises TaskError if the store has too few classes, StoreIncomplete if it is unfinished, ArgumentError.

    Example:
        >>> [file.name for file in onceclip.write_draws("pets.zarr", shots=[1, 4], seeds=1, out="pets-draws")]
        ['shot_1-seed_1.json', 'shot_4-seed_1.json']
    """
    source, folder, ending = opened(store), path_of(out, "out: a folder"), FORMATS[one_of(form, "form", list(FORMATS))]
    files = []
    for number in map(shots_of, listed(shots, "shots")):
        for seed in (whole(each, "seed", 0) for each in listed(seeds, "seeds")):
            rows = _rows(source, DrawSpec(number, seed))
            files.append(folder / f"shot_{'all' if number is None else number}-seed_{seed}{ending}")
            write_draw(files[-1], form, number, seed, {split: [_image(source, key, label, root) for key, label in each]
                                                       for split, each in rows.items()})
    return files


def _image(store: Store, key: str, label: int, root: Any) -> tuple[str, int, str]:
    name = key if root is None else str(path_of(root, "root: a folder") / decode_key(key))
    return name, label, store.classes[label]


def _rows(store: Store, spec: DrawSpec) -> dict[str, list[tuple[str, int]]]:
    """Keys and class numbers of a draw's support and of its validation rows."""
    drawn = draw_task(store, spec, "val", text=None)
    label = store.column("label")
    return {split: [] if each is None else list(zip(each.keys, label[each.rows].tolist(), strict=True))
            for split, each in (("train", drawn.support), ("val", drawn.val))}
