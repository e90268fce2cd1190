"""What a store has per image beside the embedding: which was asked for, and whether a store has just that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.views import KINDS, TEN_CROP, Views
from onceclip.stores import Output, Store, StoreMismatch, StoreWriter
from onceclip.stores.flat_files import row_checksums
from onceclip.stores.schema import COLUMNS, SPLITS, checksum_name

if TYPE_CHECKING:
    from onceclip.pipeline.crew import Described

VIEW, PREPROJ, TOKEN = "view", "preproj", "token"


@dataclass(frozen=True)
class OutputOptions:
    """What to store beside the embedding.

    views: how they are made, None for none. views_for: of images in which splits. preproj: the encoder's output before
    its projection. tokens: which patch tokens, "last" or "value"; empty for none.
    """

    views: Views | None = None
    views_for: tuple[str, ...] = ("train",)
    preproj: bool = False
    tokens: str = ""

    def planned(self, encoder: Encoder) -> dict[str, Output]:
        """The arrays that these options ask for.

        Raises EncoderError if the encoder cannot give one.
        """
        found = {}
        if self.views:
            splits = [name for name in SPLITS if name in self.views_for]
            found[VIEW] = Output((self.views.number, encoder.dim), ("view", "dim"),
                                 {**self.views.spec(), "splits": splits})
        wanted = [name for name, asked in ((PREPROJ, self.preproj), (TOKEN, self.tokens)) if asked]
        shapes = encoder.output_shapes(("embedding", *wanted), self.tokens or "last")
        if self.preproj:
            found[PREPROJ] = Output(shapes[PREPROJ], ("width",), {"layer": "before the projection"})
        if self.tokens:
            found[TOKEN] = Output(shapes[TOKEN], ("token", "dim"), {"tokens": self.tokens})
        return found


EMBEDDING_ALONE = OutputOptions()


def check_outputs(store: Store, planned: dict[str, Output]) -> None:
    """Raise StoreMismatch unless a store has, of what is asked for, just that; what nobody asks for it may have too."""
    for name, output in planned.items():
        present = store.outputs.get(name)
        if present != output:
            has = f"{name} {present.spec}" if present else f"no {name}"
            raise StoreMismatch(f"{store.path} has {has}, not {output.spec}: extract into another store, or leave the "
                                "option away")


def put_projection(writer: StoreWriter, described: Described) -> None:
    """Store what leads from "preproj" to the embedding, where the encoder has a matrix for it."""
    if described.projection is not None:
        writer.put_encoder("projection", described.projection)
    if described.projection_bias is not None:
        writer.put_encoder("projection_bias", described.projection_bias, ("dim",))


def rows_without_views(store: Store) -> np.ndarray:
    """Whether each row has no views: (rows,) bool; told by their checksums, without reading them."""
    nothing = row_checksums(np.full((1, *store.outputs[VIEW].shape), np.nan, store.attributes["dtype"]))
    found = store.column(checksum_name(VIEW))
    return (found == nothing) | (found == COLUMNS["checksum"].fill)


def views_of(store: Store) -> tuple[Views, list[str]] | None:
    """How a store's views are made, and of images in which splits; None if it has none of this project's making."""
    spec = store.outputs[VIEW].spec if VIEW in store.outputs else {}
    if spec.get("kind") not in KINDS:
        return None
    if spec["kind"] == TEN_CROP.kind:
        return TEN_CROP, spec["splits"]
    scale, ratio = (tuple(spec[name]) for name in ("scale", "ratio"))
    return Views(spec["kind"], spec["number"], scale, ratio, spec["seed"]), spec["splits"]
