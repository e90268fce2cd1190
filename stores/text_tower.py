"""The text tower of a store: the frozen weights of its encoder's text model, and the tokens of class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from onceclip.stores.identity import digest, fingerprint
from onceclip.stores.schema import ATTRIBUTE, get_array, put_array, read_whole, seal, unseal

TOWER = "encoder/text_tower"


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
