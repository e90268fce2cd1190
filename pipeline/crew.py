"""What encodes for an extraction in this process, and what the extraction has to know of an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.embed import embed_prompts
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.fill import Filling
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.outputs import PREPROJ, OutputOptions
from onceclip.pipeline.profile import Samples
from onceclip.pipeline.sources import Content
from onceclip.stores import Output, StoreWriter

if TYPE_CHECKING:
    from onceclip.pipeline.extract import ExtractOptions


@dataclass(frozen=True)
class Described:
    """What of an encoder a store is planned by.

    info, dim, has_text: as of `Encoder`. outputs: what the store is to have beside the embedding.
    projection, projection_bias: as of `Encoder`, if "preproj" is among the outputs.
    """

    info: dict[str, Any]
    dim: int
    has_text: bool
    outputs: dict[str, Output]
    projection: np.ndarray | None = None
    projection_bias: np.ndarray | None = None

    @classmethod
    def of(cls, encoder: Encoder, wanted: OutputOptions) -> Described:
        """Describe an encoder.

        Raises EncoderError if it cannot give an output that is wanted.
        """
        outputs = wanted.planned(encoder)
        more = (encoder.projection, encoder.projection_bias) if PREPROJ in outputs else ()
        return cls(encoder.info, encoder.dim, encoder.has_text, outputs, *more)


class Crew:
    """An encoder in this process, and the processes that decode for it."""

    def __init__(self, encoder: Encoder, decoders: Decoders, options: ExtractOptions) -> None:
        self.encoder, self.decoders, self.options = encoder, decoders, options
        self.described = Described.of(encoder, options.outputs)

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """Embed the prompts of the classes; gives what was done, and the writer to go on with."""
        return embed_prompts(writer, self.encoder, classes, self.options.phrases, self.options.templates), writer

    @contextmanager
    def filling(self, writer: StoreWriter, contents: Mapping[int, Content]) -> Iterator[Filling]:
        """Have a store filled. contents: row to image file."""
        with Lanes(self.encoder) as lanes:
            yield Filling(writer, self.decoders, lanes, contents, self.options.batch_size, self.options.progress,
                          Samples(lanes.number) if self.options.profile else None)
