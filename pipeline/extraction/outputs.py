"""What a store has per image beside the embedding: which was asked for, and whether a store has just that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onceclip.pipeline.decoding.views import Views
from onceclip.stores import NotAStore, Output, Store, StoreMismatch, StoreWriter, open_store
from onceclip.stores.flat_files import row_checksums
from onceclip.stores.location import require_writable
from onceclip.stores.schema import COLUMNS, SPLITS, checksum_name
from onceclip.stores.storage import occupied

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import Encoder

VIEW, PREPROJ, TOKEN, STATISTICS = "view", "preproj", "token", "statistics"
_DIMENSIONS = {VIEW: ("view", "dim"), PREPROJ: ("width",), TOKEN: ("token", "dim"),
               STATISTICS: ("block", "statistic", "width")}


@dataclass(frozen=True)
class OutputOptions:
    """What to store beside the embedding.

    views: how they are made, None for none. views_for: of images in which splits. preproj: the encoder's output before
    its projection. tokens: which patch tokens, "last" or "value"; empty for none. layer_statistics: mean and deviation
    over the patches of every block.
    """

    views: Views | None = None
    views_for: tuple[str, ...] = ("train",)
    preproj: bool = False
    tokens: str = ""
    layer_statistics: bool = False

    @property
    def specs(self) -> dict[str, dict[str, Any]]:
        """What the arrays are that these options ask for, by name."""
        specs: dict[str, dict[str, Any]] = {}
        if self.views:
            specs[VIEW] = {**self.views.spec(), "splits": [name for name in SPLITS if name in self.views_for]}
        if self.preproj:
            specs[PREPROJ] = {"layer": "before the projection"}
        if self.tokens:
            specs[TOKEN] = {"tokens": self.tokens}
        if self.layer_statistics:
            specs[STATISTICS] = {"of": "patches", "statistics": ["mean", "deviation"]}
        return specs

    def planned(self, encoder: Encoder) -> dict[str, Output]:
        """The arrays that these options ask for.

        Raises EncoderError if the encoder cannot give one.
        """
        if self.views:
            encoder.check_views()
        specs = self.specs
        of_images = [name for name in specs if name != VIEW]
        shapes = encoder.output_shapes(("embedding", *of_images), self.tokens or "last")
        if self.views:
            shapes[VIEW] = (self.views.number, encoder.dim)
        return {name: Output(shapes[name], _DIMENSIONS[name], spec) for name, spec in specs.items()}


EMBEDDING_ALONE = OutputOptions()


@dataclass(frozen=True)
class StorePlan:
    """What a store is made from: an encoder as a value, and the outputs that the store is to have.

    info, dim, has_text: as of `Encoder`. outputs: arrays beside the embedding. projection, projection_bias: as of
    `Encoder`, if "preproj" is among the outputs.
    """

    info: dict[str, Any]
    dim: int
    has_text: bool
    outputs: dict[str, Output]
    projection: np.ndarray | None = None
    projection_bias: np.ndarray | None = None

    @classmethod
    def of(cls, encoder: Encoder, options: OutputOptions) -> StorePlan:
        """Plan a store for an encoder.

        Raises EncoderError if it cannot give an output that is asked for.
        """
        outputs = options.planned(encoder)
        more = (encoder.projection, encoder.projection_bias) if PREPROJ in outputs else ()
        return cls(encoder.info, encoder.dim, encoder.has_text, outputs, *more)

    def writer(self, path: str, dtype: str | None, unit_rows: int) -> StoreWriter:
        """What writes the store at a path, or a new one. dtype: as of `ExtractOptions`. unit_rows: of a new one.

        Raises StoreMismatch if another encoder made the store or it has other outputs or another type.
        """
        if not store_exists(path):
            return StoreWriter.create(path, self.info, self.dim, dtype or "float16", unit_rows, self.outputs)
        writer = StoreWriter.open(path, self.info)
        check_outputs(writer.store, self.outputs, dtype)
        return writer

    def put_projection(self, writer: StoreWriter) -> None:
        """Store what leads from "preproj" to the embedding, if the store has "preproj" and the encoder a matrix."""
        if PREPROJ not in writer.store.outputs:
            return
        if self.projection is not None:
            writer.put_encoder("projection", self.projection)
        if self.projection_bias is not None:
            writer.put_encoder("projection_bias", self.projection_bias, ("dim",))


def store_exists(path: str) -> bool:
    """Whether there is a store to go on with; whatever else stands at the path is an error."""
    require_writable(path)
    try:
        open_store(path)
    except NotAStore:
        if occupied(path):
            raise
        return False
    return True


def check_outputs(store: Store, planned: dict[str, Output], dtype: str | None) -> None:
    """Raise StoreMismatch unless a store has, of what is asked for, just that; what nobody asks for it may have too.

    dtype: of its values; None for any.
    """
    if dtype not in (None, store.attributes["dtype"]):
        raise StoreMismatch(f"{store.path} is of {store.attributes['dtype']}, not of {dtype}: extract into another "
                            "store, or leave the option away")
    for name, output in planned.items():
        present = store.outputs.get(name)
        if present != output:
            has = f"no {name}"
            if present:
                other = [f"{key} {present.spec.get(key)}, not {value}" for key, value in output.spec.items()
                         if present.spec.get(key) != value]
                has = f"another {name} ({'; '.join(other) or present.shape})"
            raise StoreMismatch(f"{store.path} has {has}, and keeps to what it was made with: extract into another "
                                "store, or leave the option away")


def has_outputs(store: Store, options: OutputOptions, dtype: str | None) -> bool:
    """Whether a store has, of the outputs that are asked for, just those, and the type."""
    return dtype in (None, store.attributes["dtype"]) and all(
        name in store.outputs and store.outputs[name].spec == spec for name, spec in options.specs.items())


def rows_without_views(store: Store) -> np.ndarray:
    """Whether each row has no views: (rows,) bool; told by their checksums, without reading them."""
    nothing = row_checksums(np.full((1, *store.outputs[VIEW].shape), np.nan, store.attributes["dtype"]))
    found = store.column(checksum_name(VIEW))
    return (found == nothing) | (found == COLUMNS["checksum"].fill)


def views_of(store: Store) -> tuple[Views, list[str]] | None:
    """How a store's views are made, and of images in which splits; None if it has none of this project's making."""
    spec = store.outputs[VIEW].spec if VIEW in store.outputs else {}
    try:
        views = Views.of(spec)
    except ValueError as error:
        raise StoreMismatch(f"{store.path}: {error}: extract into another store") from error
    return None if views is None else (views, spec["splits"])
