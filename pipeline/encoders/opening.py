"""From a specification to a loaded encoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch

from onceclip.adapters.cpu import DEFAULT, fast_bfloat16, fast_products
from onceclip.pipeline.encoders.backend import EMBEDDING, LAST, PRECISIONS, TOKEN, Backend, check_finite
from onceclip.pipeline.encoders.encoder import Encoder
from onceclip.pipeline.encoders.spec import (
    DEMO,
    LOCAL,
    TRANSFORMERS,
    EncoderSpec,
    check_model,
    is_open_clip,
    is_plugin,
)
from onceclip.pipeline.errors import EncoderError, SourceError
from onceclip.pipeline.workers.devices import device_named
from onceclip.stores import StoreMismatch
from onceclip.stores.identity import fingerprint

if TYPE_CHECKING:
    from onceclip.adapters import Classifier

_SMALL = 10_000_000  # weights: below, attention is many tiny products, each of which oneDNN takes longer to begin


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Load an encoder.

    Raises EncoderError if it does not exist, has no weights, or would give other embeddings than its authors';
    DeviceError if there is no such device.
    """
    check_spec(spec)
    device = device_named(spec.device)
    if spec.precision not in ("auto", *PRECISIONS):
        raise EncoderError(f"--precision {spec.precision}: there are auto, {', '.join(PRECISIONS)}")
    if spec.decode == "torchvision":
        spec = replace(spec, decode=_decode_on(device))
    backend = _backend(spec, device)
    # What is not the default enters the fingerprint only when it is chosen: fingerprints of older stores stay.
    chosen: dict[str, Any] = {"decode": spec.decode} if spec.decode != "exact" else {}
    if spec.exif:
        chosen["exif"] = True
    identity = {**backend.identity, **chosen}
    info = {"name": backend.info["name"], "pretrained": backend.info.get("pretrained"),
            "fingerprint": fingerprint(identity), **identity, **backend.info, "products": _products(backend, device),
            "compiled": spec.compile}
    if backend.precision == "bf16" and device.type == "cpu" and not fast_bfloat16():
        logging.getLogger(__name__).warning("--precision bf16: this processor has no fast instructions for bfloat16; "
                                            "fp32 takes less time here")
    if backend.model is not None:
        check_finite(backend.model, spec.model)
        # Where weights want no gradient, torch compiles attention into products of expanded copies of them: 4x slower.
        backend.model.eval().requires_grad_(spec.compile)
    return Encoder(backend, device, info, spec.compile)


def _backend(spec: EncoderSpec, device: torch.device) -> Backend:
    if is_plugin(spec.model):
        from onceclip.pipeline.encoders.plugin import PluginBackend

        return PluginBackend(spec, device)
    if spec.model.startswith(TRANSFORMERS):
        from onceclip.pipeline.encoders.transformers_models import TransformersBackend

        return TransformersBackend(spec, device)
    from onceclip.pipeline.encoders.open_clip_models import OpenClipBackend

    return OpenClipBackend(spec, device)


def _products(backend: Backend, device: torch.device) -> str:
    """How float32 matrices are to be multiplied."""
    if device.type != "cpu":
        return DEFAULT
    if backend.model is not None and sum(weights.numel() for weights in backend.model.parameters()) < _SMALL:
        return DEFAULT
    return fast_products()


def _decode_on(device: torch.device) -> str:
    """The way to decode on a device, by its kind: other decoders give other pixels."""
    from onceclip.pipeline.decoding.on_device import check_device

    kind = "cuda" if device.type == "cuda" else "cpu"
    check_device(device if kind == "cuda" else torch.device(kind))
    return f"torchvision-{kind}"


def recorded_encoder(info: Mapping[str, Any], owner: str, given: EncoderSpec | None = None, device: str = "auto",
                     otherwise: str = "") -> Encoder:
    """Load the encoder that made something; `given` says which one.

    A record may come from a stranger: without `given`, only what ships with onceclip or stands in open_clip's own list
    is opened by it. What decides the embeddings beside the weights, such as the precision, is as in the record.

    info: the record. owner: what has it, for people. otherwise: what they can do instead, for the end of the message.
    Raises SourceError if nothing is given and the record alone does not suffice.
    """
    if given is None:
        from onceclip.pipeline.encoders.open_clip_models import is_listed

        name, weights = str(info.get("name", "")), info.get("pretrained")
        if "plugin" in info or info.get("imported") or not is_listed(name, weights):
            raise SourceError(f"{owner} was made with the encoder {_shown(name) or 'unknown'}, which is not opened by "
                              f"what a file says: name it with {_options(info)} if you trust it{otherwise}")
        given = EncoderSpec(name, None if name == DEMO else weights, device=device)
    return open_encoder(replace(given, precision=info.get("precision", given.precision),
                                decode=info.get("decode", given.decode), exif=info.get("exif", given.exif)))


def require_encoder(classifier: Classifier, encoder: Encoder, otherwise: str) -> str:
    """Raise unless an encoder is that of an adapter, and say which patch tokens the adapter takes.

    otherwise: what a user can do whose adapter does not say which patch tokens it takes.
    Raises StoreMismatch for another encoder, EncoderError for an adapter that does not say which patch tokens it takes.
    """
    made, mine, name = classifier.encoder, encoder.info["fingerprint"], encoder.info["name"]
    tokens = classifier.provenance.get("outputs", {}).get(TOKEN, {}).get("tokens", "")
    if TOKEN in classifier.inputs and not tokens:
        raise EncoderError(f"the adapter ({classifier.method}) takes patch tokens and does not say which: {otherwise}")
    if not made.get("imported") and made.get("fingerprint") not in (None, mine):
        raise StoreMismatch(f"the adapter was fitted on embeddings of {made['name']} ({made['fingerprint']}), this "
                            f"encoder is {name} ({mine}): name the right one with --model and --pretrained")
    if made.get("imported") or classifier.inputs == (EMBEDDING,):
        width = sum(math.prod(shape) for shape in encoder.output_shapes(classifier.inputs, tokens or LAST).values())
        if width != classifier.dim:
            raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {name} gives {width}: name the "
                                "encoder that made the features")
    return tokens or LAST


def _options(info: Mapping[str, Any]) -> str:
    """The options by which a user names the encoder of a record."""
    name, weights = _shown(info.get("name")), _shown(info.get("pretrained"))
    if "plugin" in info:
        return "--model MODULE:FUNCTION"
    if info.get("imported") or not name:
        return "--model (and --pretrained)"
    if name.startswith(LOCAL) or (name.startswith(TRANSFORMERS) and "/" not in name):
        return f"--model {name.partition(':')[0]}:FOLDER"
    return f"--model {quote(name)}{f' --pretrained {quote(weights)}' if weights else ''}"


def _shown(name: object) -> str:
    """A name of a record as it can be shown on a terminal."""
    text = "" if name is None else str(name)[:200]
    return text if text.isprintable() else ascii(text)


def check_spec(spec: EncoderSpec) -> None:
    """Raise EncoderError for what is wrong with a specification before anything is loaded."""
    check_model(spec)
    if is_open_clip(spec.model):
        from onceclip.pipeline.encoders.open_clip_models import check_pretrained

        check_pretrained(spec)
