"""The text side of an extraction: class prompts into a store's text set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onceclip.pipeline.encoder import Encoder
from onceclip.pipeline.prompts import DEFAULT_TEMPLATES, build_prompts, class_phrases
from onceclip.stores import StoreWriter, TextSet

NAME = "default"


def embed_prompts(writer: StoreWriter, encoder: Encoder, classes: Sequence[str],
                  phrases: Mapping[str, str] | None = None, templates: Sequence[str] | None = None) -> dict[str, Any]:
    """Embed the prompts of all classes into the set "default", unless it holds just these already.

    phrases: what the prompts call some classes. templates: sentences with `{}`. What is None stays as it is in
    the present set, so that a later extraction never changes prompts silently.
    Gives what was done, as JSON values.
    """
    present = writer.store.text(NAME) if NAME in writer.store.texts else None
    before = writer.store.attributes["texts"].get(NAME, {}).get("source", {})  # also of a set that was cut short
    if templates is None:
        templates = before.get("templates", DEFAULT_TEMPLATES)
    if phrases is None:
        phrases = {name: phrase for name, phrase in before.get("phrases", {}).items() if name in classes}
    spoken = class_phrases(classes, phrases)
    prompts = build_prompts(spoken, templates)
    source = {"templates": list(templates), "phrases": spoken}
    report = {"name": NAME, "prompts": len(prompts.sentences), "templates": list(templates)}
    if present and (present.prompts, present.classes) == (prompts.sentences, prompts.classes):
        return {**report, "encoded": 0, "fingerprint": present.fingerprint}
    text = TextSet(encoder.encode_text(prompts.sentences), prompts.classes, prompts.class_ptr, prompts.template_id,
                   prompts.sentences, encoder.info["fingerprint"], source)
    writer.put_text(NAME, text)
    return {**report, "encoded": len(prompts.sentences), "fingerprint": text.fingerprint}
