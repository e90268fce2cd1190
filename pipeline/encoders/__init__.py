"""Encoders: what a user names, how it is loaded, and what it computes."""

from onceclip.pipeline.encoders.backend import EMBEDDING, OUTPUTS, PREPROJ, TOKEN, TOKENS
from onceclip.pipeline.encoders.encoder import Encoder
from onceclip.pipeline.encoders.opening import check_spec, open_encoder
from onceclip.pipeline.encoders.spec import DEMO, EncoderSpec

__all__ = ["DEMO", "EMBEDDING", "OUTPUTS", "PREPROJ", "TOKEN", "TOKENS", "Encoder", "EncoderSpec", "check_spec",
           "open_encoder"]
