"""What other code reads of a store: its rows as a torch Dataset, and its draws as files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from onceclip.pipeline.api.arguments import listed, one_of, opened, optional, output_of, path_of, shots_of, whole
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.tasks.draw_files import FORMATS, write_draw
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import draw_task
from onceclip.stores import Store, StoreMismatch, open_store
from onceclip.stores.identity import decode_key
from onceclip.stores.location import everywhere
from onceclip.stores.schema import SPLITS

PIECE_BYTES = 2**26  # that an iterable dataset holds of each output
Item = tuple[Any, ...]


class _StoreRows:
    """Rows of a store, which every process opens for itself: handles of files do not survive a fork."""

    def __init__(self, store: Store, rows: np.ndarray, outputs: Sequence[str], dtype: torch.dtype | None) -> None:
        self.rows, self.outputs, self.dtype = rows, tuple(outputs), dtype
        self.label = store.column("label")[rows].astype(np.int64)
        self._path, self._fingerprint = everywhere(store.path), store.fingerprint
        self._joined = {name: everywhere(other.path) for name, other in getattr(store, "joined", {}).items()}
        self._store, self._process = store, os.getpid()
        self._row_bytes = max(store.embeddings(rows[:1], name).nbytes for name in self.outputs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_process": 0}

    @property
    def store(self) -> Store:
        """The store, opened in this process."""
        if self._process != os.getpid():
            store = open_store(self._path)
            if store.fingerprint != self._fingerprint:
                raise StoreMismatch(f"{self._path} has changed since the dataset was made: make it again")
            for name, path in self._joined.items():
                store = store.join(open_store(path), name)
            self._store, self._process = store, os.getpid()
        return self._store

    def items(self, places: np.ndarray) -> list[Item]:
        """The items at some places among the rows, read together."""
        values = [torch.from_numpy(self.store.embeddings(self.rows[places], name)).to(self.dtype)
                  for name in self.outputs]
        return list(zip(*values, self.label[places].tolist(), strict=True))


class StoreDataset(_StoreRows, Dataset[Item]):
    """Rows of a store by their place; a DataLoader reads those of a batch together. See `torch_dataset`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Item:
        if not -len(self) <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} rows")
        return self.items(np.array([place]))[0]

    def __getitems__(self, places: Sequence[int]) -> list[Item]:
        return self.items(np.asarray(places, dtype=np.int64))


class StoreStream(_StoreRows, IterableDataset[Item]):
    """Rows of a store one after the other, each in one of a DataLoader's workers. See `torch_dataset`."""

    def __init__(self, *rows: Any, shuffle: bool = False) -> None:
        super().__init__(*rows)
        self.shuffle, self._passes = shuffle, 0

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        size = max(1, min(PIECE_BYTES // max(self._row_bytes, 1), -(-len(self.rows) // workers)))
        pieces = np.arange(-(-len(self.rows) // size))
        # All workers of an epoch shuffle alike: torch gives them one seed plus their number, and a worker that lives
        # on keeps its own for all epochs.
        seed = worker.seed - number + self._passes if worker else int(torch.empty((), dtype=torch.int64).random_())
        self._passes += 1
        generator = np.random.default_rng(seed)
        if self.shuffle:
            generator.shuffle(pieces)
        for piece in pieces[number::workers]:
            places = np.arange(piece * size, min((piece + 1) * size, len(self.rows)))
            if self.shuffle:
                generator.shuffle(places)
            yield from self.items(places)


def torch_dataset(store: str | Path | Store, split: str | None = None, outputs: Sequence[str] | str = "embedding", *,
                  dtype: str | torch.dtype | None = None, labelled: bool = True, iterable: bool = False,
                  shuffle: bool = False) -> StoreDataset | StoreStream:
    """The rows of a store as a torch Dataset; an item is what was asked for of an image, then its label.

    store: an open one or its path. split: "train", "val" or "test"; all by default. outputs: "embedding" (dim,), "view"
        (views, dim), "token" (tokens, width) or another output of the store, or several, in this order; raw, as
        `store.embeddings` gives them. dtype: of these, such as "float32"; as stored by default. labelled: leave out
        rows without a class; with False their label is -1. iterable: read forward through the files, each worker of a
        DataLoader other rows; shuffle: then in random order, of pieces of 64 MiB and within them, by torch's seed.
    Workers may be forked or spawned; each opens the store for itself. `rows` are the positions in the store.
    Raises StoreError for a split or output that is not there, ArgumentError for another wrong argument.

    Example:
        >>> dataset = onceclip.torch_dataset("pets.zarr", "train", dtype="float32")
        >>> embedding, label = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)))
        >>> embedding.shape, label.shape, embedding.dtype
        (torch.Size([8, 64]), torch.Size([8]), torch.float32)
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ArgumentError(f'dtype {dtype!r}: give a floating-point type of torch, such as "float32"')
    if shuffle and not iterable:
        raise ArgumentError("shuffle is for iterable=True: a DataLoader shuffles other datasets itself")
    target, names = opened(store), listed(outputs, "outputs")
    rows = target.rows(split, labelled)
    if labelled and not len(rows) and not len(target.rows()):
        raise ArgumentError(f"{target.path} has no labelled image: give labelled=False, and leave the split out where "
                            "there is none")
    found = {SPLITS[number] for number in np.unique(target.column("split")[rows]).tolist()}
    for name in names:
        made = target.outputs[name].spec.get("splits", SPLITS) if name in target.outputs else SPLITS
        if missing := found - {*made}:
            raise ArgumentError(f"{target.path} has {name}s of {', '.join(made)} images and none of "
                                f"{', '.join(sorted(missing))} images: give a split that has them, or extract with "
                                "--views-for all")
    arguments = target, rows, names, kind
    return StoreStream(*arguments, shuffle=shuffle) if iterable else StoreDataset(*arguments)


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
    source, ending = opened(store), FORMATS[one_of(form, "form", list(FORMATS))]
    folder, place, files = output_of(out, "out: a folder"), optional(path_of, root, "root: a folder"), []
    for number in map(shots_of, listed(shots, "shots")):
        for seed in (whole(each, "seed", 0) for each in listed(seeds, "seeds")):
            drawn = draw_task(source, DrawSpec(number, seed), "val", text=None)
            files.append(folder / f"shot_{'all' if number is None else number}-seed_{seed}{ending}")
            write_draw(files[-1], form, number, seed, {"train": _images(source, drawn.support, place),
                                                       "val": _images(source, drawn.val, place)})
    return files


def _images(store: Store, drawn: Draw | None, root: Path | None) -> list[tuple[str, int, str]]:
    """File, class number and class name of the rows of a draw; of none if there are none."""
    if drawn is None:
        return []
    label = store.column("label")[drawn.rows].tolist()
    return [(key if root is None else str(root / decode_key(key)), number, store.classes[number])
            for key, number in zip(drawn.keys, label, strict=True)]
