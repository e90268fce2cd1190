"""Stores of several encoders on the same images: joined as a user names them, and the task as each encoder has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onceclip.adapters import Classifier, Rows, Task
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.draws import NO_ROWS
from onceclip.pipeline.tasks.tasks import task_of
from onceclip.stores import Store, TextSet, open_store
from onceclip.stores.store import JoinedStore


def named_store(text: str) -> tuple[str, str]:
    """Name and path of NAME=PATH. Raises TaskError if it is not that."""
    name, mark, path = str(text).partition("=")
    if not (name and mark and path):
        raise TaskError(f"--join {text}: give NAME=STORE, such as dino=dino.zarr")
    return name, path


def require_read(join: Sequence[str], inputs: Sequence[str], reader: str) -> None:
    """Raise TaskError for a joined store of which nothing is read, and for two of one name.

    join: NAME=PATH of each. inputs: what is read. reader: who reads it, for people.
    """
    names = [name for name, _ in map(named_store, join)]
    wanted = dict.fromkeys(each.partition("/")[0] for each in inputs if "/" in each)
    for name in names:
        if names.count(name) > 1:
            raise TaskError(f"--join {name}=... is given twice: give each store a name of its own")
        if name not in wanted:
            how = f"call it {' or '.join(wanted)}" if wanted else f"fit with --inputs {name}/embedding"
            raise TaskError(f"{reader} reads nothing of the joined store {name!r}: leave --join {name}=... out, or "
                            f"{how}")


def require_store(join: Sequence[str], store: Store | None) -> None:
    """Raise TaskError for stores that are to be joined to none."""
    if join and store is None:
        raise TaskError("--join joins stores of the same images: give a STORE, not images")


def joined_store(store: Store, join: str | Sequence[str], *classifiers: Classifier) -> Store:
    """A store with others that are named as NAME=PATH joined to it.

    join: one or several. classifiers: that are to read it; one of them must read each.
    Raises TaskError for one that none reads, StoreMismatch for one of other images.
    """
    join = [join] if isinstance(join, str) else join
    if classifiers:
        require_read(join, [name for each in classifiers for name in each.inputs], "the adapter")
    for name, path in map(named_store, join):
        store = store.join(open_store(path), name)
    return store


def task_of_encoder(task: Task, store: Store, name: str, text: str = "default", class_weights: str = RULES[0],
                    tower: bool = False) -> Task:
    """The same draw as another encoder has it: its embeddings of the images, and its own text set of the classes.

    task: drawn from the joined store with the output `name/embedding`. name: of the encoder; empty for the store's own.
        text: name of the text set, which is not needed where the other store has none at all.
    Raises TaskError if no store of that name is joined, StoreMismatch if its text set lacks a class.
    """
    if not name:
        return task
    if not isinstance(store, JoinedStore) or name not in store.joined:
        raise TaskError(f"nothing of that name is joined to {store.path}: add --join {name}=STORE, the same images by "
                        "that encoder")
    other, names, output = store.joined[name], task.text.class_names, f"{name}/embedding"
    words = (other.text(text) if other.texts else
             TextSet.of_names(names, other.dim, other.encoder["fingerprint"]))
    own = task_of(other, words.of_classes(names), class_weights, NO_ROWS, tower=tower)

    def seen(rows: Rows) -> Rows:
        return Rows(rows.input((output,)), rows.label, weight=rows.weight, group=rows.group)

    return replace(own, support=seen(task.support), val=task.val and seen(task.val))
