"""The encoder that a store or an adapter records, loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onceclip.pipeline.encoders import Encoder, EncoderSpec, findable, open_encoder
from onceclip.pipeline.errors import SourceError


def recorded_encoder(info: Mapping[str, Any], owner: str, given: EncoderSpec | None = None, device: str = "auto",
                     otherwise: str = "") -> Encoder:
    """Load the encoder that made something; `given` says which where the record cannot.

    What decides the embeddings beside the weights, such as the precision, is as in the record.

    info: the record. owner: what has it, for people. otherwise: what they can do instead, for the end of the message.
    Raises SourceError if the record does not say where the encoder is, and nothing is given.
    """
    if given is None:
        if not findable(info):
            raise SourceError(f"{owner} does not say where its encoder ({info.get('name', 'unknown')}) is: name it "
                              f"with --model (and --pretrained){otherwise}")
        given = EncoderSpec(info["name"], info.get("pretrained"), device=device)
    return open_encoder(replace(given, precision=info.get("precision", given.precision),
                                decode=info.get("decode", given.decode), exif=info.get("exif", given.exif)))
