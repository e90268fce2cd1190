"""Which classes of a store: all, the base or the new half of the field's split, or some by name."""

from __future__ import annotations

from collections.abc import Sequence

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import TaskError
from onceclip.stores import Store

ALL, BASE, NEW = CHOICES = ("all", "base", "new")


def names_of(store: Store, classes: str | Sequence[str]) -> tuple[str, ...]:
    """Names of classes of a store.

    classes: "all"; "base", the first half of the store's classes, which has one more where their number is odd; "new",
        the other half; or names, which come back in the order given.
    Raises TaskError for a name that the store does not have, and for halves of fewer than four classes.

    Source: CoCoOp (Zhou et al., CVPR 2022), section 4.1, the split of the authors' code.
    """
    if classes == ALL:
        return store.classes
    if isinstance(classes, str) and classes in CHOICES:
        if len(store.classes) < 4:
            raise TaskError(f"{store.path} has {len(store.classes)} classes: base and new classes need two each, so "
                            "four in all; use all classes")
        half = -(-len(store.classes) // 2)
        return store.classes[:half] if classes == BASE else store.classes[half:]
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    for name in names:
        if name not in store.classes:
            raise TaskError(unknown("class", name, store.classes, f" in {store.path}"))
    return names
