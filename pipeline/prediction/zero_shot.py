"""A classifier of class names alone: prompts are embedded, and no image is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from onceclip.adapters import Classifier, Rows, Task, Text, ZeroShot
from onceclip.adapters.text import RULES
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.prompts import build_prompts, class_phrases
from onceclip.pipeline.prompts.prompts import DEFAULT_TEMPLATES, check_names
from onceclip.pipeline.tasks.tasks import logit_numbers
from onceclip.pipeline.words import version
from onceclip.stores import Store, TextSet


def classifier_of_names(encoder: Encoder, names: Sequence[str], templates: Sequence[str] = (),
                        made: Mapping[str, Any] | None = None) -> Classifier:
    """Make the zero-shot classifier of some class names. templates: sentences with `{}`; "a photo of a {}." if none.

    made: the record of what made the images, which may call it otherwise; by default the encoder's own.
    Raises PromptError for names that are none, EncoderError for an encoder without text.
    """
    prompts = build_prompts(class_phrases(check_names(names)), tuple(dict.fromkeys(templates)) or DEFAULT_TEMPLATES)
    text = TextSet(encode_sentences(encoder, prompts.sentences).embedding, prompts.classes, prompts.class_ptr,
                   prompts.template_id, prompts.sentences, encoder.info["fingerprint"], prompts.source)
    return _classifier(text, made or encoder.info, {"fingerprint": text.fingerprint})


def classifier_of_text(store: Store, name: str = "default") -> Classifier:
    """Make the zero-shot classifier of a store's text set, which needs no encoder.

    Raises StoreIncomplete if the store has no such set.
    """
    return _classifier(store.text(name), store.encoder, {"name": name, "fingerprint": store.text_fingerprint(name)})


def _classifier(text: TextSet, encoder: Mapping[str, Any], said: Mapping[str, Any]) -> Classifier:
    vectors = torch.from_numpy(text.embedding.astype(np.float32))
    words = Text(vectors, torch.from_numpy(text.class_index), text.classes)
    none = Rows(vectors.new_empty(0, vectors.shape[1]), torch.empty(0, dtype=torch.int64))
    numbers = logit_numbers(encoder)
    fitted = ZeroShot().fit(Task(words, none, logit_scale=numbers["logit_scale"], logit_bias=numbers["logit_bias"]))
    return replace(fitted, provenance={"version": version(), "encoder": dict(encoder), "text": {
        **said, "class_weights": RULES[0], **text.source}, "shots": 0, "seed": None, "select": "fixed"})
