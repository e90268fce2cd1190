"""Few-shot draws: which classes and rows of a store a run may see, decided by names, keys and a seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import TaskError
from onceclip.stores import Store
from onceclip.stores.identity import DIGEST_BYTES, digest, fingerprint

ALL, BASE, NEW = CHOICES = ("all", "base", "new")
GENERATOR, LISTED = "blake2b-rank-1", "listed"  # of keys and a seed; by a file


def names_of(store: Store, classes: str | Sequence[str]) -> tuple[str, ...]:
    """Names of classes of a store.

    classes: "all"; "base", the first half of the store's classes, which has one more where their number is odd; "new",
        the other half; or names, which come back in the order given, each once.
    Raises TaskError for a name that the store does not have, and for halves of fewer than four classes.

    Source: CoCoOp (Zhou et al., CVPR 2022), section 4.1, the split of the authors' code.
    """
    if classes == ALL:
        return store.classes
    if classes in (BASE, NEW):
        if len(store.classes) < 4:
            raise TaskError(f"{store.path} has {len(store.classes)} classes: base and new classes need two each, so "
                            "four in all; use all classes")
        half = -(-len(store.classes) // 2)
        return store.classes[:half] if classes == BASE else store.classes[half:]
    names = (classes,) if isinstance(classes, str) else tuple(dict.fromkeys(classes))
    known = {*store.classes}
    for name in names:
        if name not in known:
            raise TaskError(unknown("class", name, store.classes, f" in {store.path}"))
    return names


@dataclass(frozen=True)
class Draw:
    """Rows drawn from a store.

    rows: (n,) positions in the store, class by class. keys: their keys. short: classes that had fewer rows than
    asked for, with their number. wrong: labels that are told instead of the true ones, by place among the rows.
    """

    rows: np.ndarray
    keys: tuple[str, ...]
    short: dict[int, int] = field(default_factory=dict)
    wrong: dict[int, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the draw: the set of its keys, and labels that are wrong."""
        wrong = {self.keys[place]: label for place, label in self.wrong.items()}
        return fingerprint({"generator": GENERATOR, "keys": sorted(self.keys), **({"wrong": wrong} if wrong else {})})

    def told(self, label: np.ndarray) -> np.ndarray:
        """The labels (n,) that a run is told. label: the true ones (n,)."""
        told = label.copy()
        told[list(self.wrong)] = list(self.wrong.values())
        return told


NO_ROWS = Draw(np.zeros(0, dtype=np.int64), ())


def draw(rows: np.ndarray, keys: Sequence[str], label: np.ndarray, shots: int | Mapping[int, int] | None, seed: int,
         purpose: str) -> Draw:
    """Draw up to `shots` rows of every class without replacement, or all of them; a number for each class or for all.

    rows: (n,) candidates. keys, label: of these candidates. purpose: "support" or "val"; each draws on its own.
    A row's rank in its class is a hash of purpose, seed and key. So a draw is the same on every machine and in
    every order of rows, fewer shots are a subset of more, and another class's images never move it.
    """
    chosen: list[int] = []
    short = {}
    order = np.argsort(label, kind="stable")
    numbers, starts = np.unique(label[order], return_index=True)
    for number, members in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
        ranked = sorted(members.tolist(), key=lambda each: digest(f"{purpose}:{seed}:{keys[each]}".encode()))
        most = shots[number] if isinstance(shots, Mapping) else shots
        if most is not None and len(ranked) < most:
            short[number] = len(ranked)
        chosen.extend(ranked[:most])
    return Draw(rows[chosen], tuple(str(keys[each]) for each in chosen), short)


def tied(store: Store, *rows: str | np.ndarray) -> set[bytes | str]:
    """Digests and groups of rows, or of the labelled rows of splits; what is known of an image is known of its ties."""
    places = np.concatenate([store.rows(each) if isinstance(each, str) else each for each in rows])
    return {*_digests(store, places), *store.column("group")[places].tolist()} - {bytes(DIGEST_BYTES), ""}


def without_ties(store: Store, rows: np.ndarray, known: set[bytes | str]) -> tuple[np.ndarray, dict[str, int]]:
    """The rows without ties to known images, and how many were left out: the same picture, or another of its group.

    known: as of `tied`. The numbers are by reason, "digest" and "group"; a row with both is counted as the first.
    """
    duplicate = np.fromiter((each in known for each in _digests(store, rows)), bool, len(rows))
    same_group = np.fromiter((each in known for each in store.column("group")[rows].tolist()), bool, len(rows))
    return rows[~(duplicate | same_group)], {"digest": int(duplicate.sum()),
                                             "group": int((same_group & ~duplicate).sum())}


def _digests(store: Store, rows: np.ndarray) -> list[bytes]:
    return store.column("digest")[rows].view(f"V{DIGEST_BYTES}").ravel().tolist()
