"""What a store has of text: sets of prompt embeddings with what made them, and the encoder's frozen text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from onceclip.stores.errors import StoreMismatch
from onceclip.stores.identity import digest, fingerprint
from onceclip.stores.schema import ATTRIBUTE, get_array, put_array, read_whole, seal, unseal

CAPTION = "caption"  # kind of a set whose sentences belong to images or groups instead of classes
TEXT_ENCODER = "text_encoder"  # in the source of a set: what made it, where the store cannot say that it is its own
TOWER = "encoder/text_tower"
BESIDE = ",new"  # ending of the group of a set that is to take the place of another; no set's name has a comma


@dataclass(frozen=True)
class TextSet:
    """Prompt embeddings of all classes under one name; classes may have different numbers of prompts.

    Of captions (`is_captions`), `classes` are the items that they belong to: keys of images, or groups.

    embedding: (prompts, dim) float32, raw. classes: one name per class.
    class_ptr: (classes + 1,) int64; the prompts of class c are rows class_ptr[c] to class_ptr[c + 1].
    template_id: (prompts,) int32, which template made the prompt, or -1. prompts: the sentences.
    source: JSON values that say what made them. encoder: fingerprint of the encoder.
    """

    embedding: np.ndarray
    classes: tuple[str, ...]
    class_ptr: np.ndarray
    template_id: np.ndarray
    prompts: tuple[str, ...]
    encoder: str
    source: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_names(cls, classes: tuple[str, ...], dim: int, encoder: str) -> TextSet:
        """A set of no prompts: classes that have names alone."""
        return cls(np.zeros((0, dim), np.float32), classes, np.zeros(len(classes) + 1, np.int64), np.zeros(0, np.int32),
                   (), encoder)

    @property
    def fingerprint(self) -> str:
        """Identity of the set: its sentences, their classes, and the encoder; with imported ones, the numbers."""
        values: dict[str, Any] = {"classes": list(self.classes), "class_ptr": self.class_ptr.tolist(),
                                  "prompts": list(self.prompts), "encoder": self.encoder}
        if self.is_captions:
            values["kind"] = CAPTION
        if isinstance(made := self.source.get(TEXT_ENCODER), dict):
            values[TEXT_ENCODER] = made.get("fingerprint")
        if not any(self.prompts):
            values["embedding"] = digest(np.ascontiguousarray(self.embedding).tobytes()).hex()
        return fingerprint(values)

    @property
    def is_captions(self) -> bool:
        """Whether the sentences are captions of images or groups, and say nothing of classes."""
        return self.source.get("kind") == CAPTION

    @property
    def class_index(self) -> np.ndarray:
        """Position of each prompt's class: (prompts,) int64."""
        return np.repeat(np.arange(len(self.classes)), np.diff(self.class_ptr))

    def of_classes(self, names: Sequence[str]) -> TextSet:
        """The same prompts for some classes, in the order given; joined by name.

        Raises StoreMismatch if a class has no prompts.
        """
        place = {name: index for index, name in enumerate(self.classes)}
        missing = [name for name in names if name not in place]
        if missing and self.is_captions:
            raise StoreMismatch("the text set holds captions of single images or groups, not prompts of classes: name "
                                "another one, or make one with `onceclip text`")
        if missing:
            raise StoreMismatch(f"the text set has no prompts for {_listing(missing)}; it has "
                                f"{_listing(self.classes)}: embed those of all classes with `onceclip text` or by "
                                "`onceclip extract` once more")
        pieces = [np.arange(self.class_ptr[place[name]], self.class_ptr[place[name] + 1]) for name in names]
        rows = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        pointer = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)]).astype(np.int64)
        return TextSet(self.embedding[rows], tuple(names), pointer, self.template_id[rows],
                       tuple(self.prompts[row] for row in rows), self.encoder, self.source)

    def write(self, group: zarr.Group) -> None:
        """Store the set as one group; its attributes, written last, make it count."""
        put_array(group, "embedding", self.embedding.astype(np.float32), np.nan, ("prompt", "dim"))
        put_array(group, "class_ptr", self.class_ptr.astype(np.int64), -1, ("class_end",))
        put_array(group, "template_id", self.template_id.astype(np.int32), -1, ("prompt",))
        put_array(group, "prompt", np.array(self.prompts, dtype=object), "", ("prompt",))
        if self.is_captions:  # too many names for attributes
            put_array(group, "item", np.array(self.classes, dtype=object), "", ("item",))
        group.attrs[ATTRIBUTE] = seal({"classes": [] if self.is_captions else list(self.classes),
                                       "encoder": self.encoder, "source": self.source, "fingerprint": self.fingerprint})

    @classmethod
    def read(cls, group: zarr.Group) -> TextSet:
        """Read the set that `write` stored.

        Raises KeyError, ValueError or TypeError if it is damaged.
        """
        attributes = unseal(group.attrs[ATTRIBUTE])
        columns = {name: read_whole(get_array(group, name))
                   for name in ("embedding", "class_ptr", "template_id", "prompt")}
        classes = attributes["classes"]
        if isinstance(attributes["source"], dict) and attributes["source"].get("kind") == CAPTION:
            classes = [str(name) for name in read_whole(get_array(group, "item"))]
        pointer, prompts = columns["class_ptr"], len(columns["embedding"])
        if (len(pointer) != len(classes) + 1 or pointer[0] != 0 or pointer[-1] != prompts
                or (np.diff(pointer) < 0).any() or {len(columns["template_id"]), len(columns["prompt"])} != {prompts}):
            raise ValueError("its arrays do not fit each other")
        return cls(columns["embedding"], tuple(classes), columns["class_ptr"], columns["template_id"],
                   tuple(map(str, columns["prompt"])), attributes["encoder"], attributes["source"])


@dataclass(frozen=True)
class StoredTower:
    """A text tower as arrays.

    arrays: by name. spec: JSON values that say how to compute with them. encoder: fingerprint of the encoder.
    """

    arrays: Mapping[str, np.ndarray]
    spec: Mapping[str, Any]
    encoder: str

    @property
    def fingerprint(self) -> str:
        """Identity of the tower: encoder, spec, and every number."""
        digests = {name: [str(array.dtype), list(array.shape), digest(np.ascontiguousarray(array).tobytes()).hex()]
                   for name, array in self.arrays.items()}
        return fingerprint({"encoder": self.encoder, "spec": self.spec, "arrays": digests})

    def write(self, group: zarr.Group) -> None:
        """Store the tower as one group; its attributes, written last, make it count."""
        for name, array in self.arrays.items():
            fill = np.nan if array.dtype.kind == "f" else -1
            put_array(group, name, array, fill, tuple(f"{name}_{axis}" for axis in range(array.ndim)))
        group.attrs[ATTRIBUTE] = seal({"spec": dict(self.spec), "encoder": self.encoder,
                                       "arrays": list(self.arrays), "fingerprint": self.fingerprint})

    @classmethod
    def read(cls, group: zarr.Group) -> StoredTower:
        """Read the tower that `write` stored.

        Raises KeyError, ValueError or TypeError if it is damaged.
        """
        attributes = unseal(group.attrs[ATTRIBUTE])
        tower = cls({name: read_whole(get_array(group, name)) for name in attributes["arrays"]}, attributes["spec"],
                    attributes["encoder"])
        if tower.fingerprint != attributes["fingerprint"]:
            raise ValueError("its arrays are not those that its attributes name")
        return tower


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
