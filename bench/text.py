"""Encoding class prompts: every one with the whole context, each distinct one, and with the context it needs.

1,000 classes x 80 templates with the shipped model; with `--model ViT-B-32 --classes 20` CLIP's size, with random
weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np
import torch

from bench.measure import Row, bench, in_turn, make_row
from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.encoders.sentences import BATCH, encode_sentences
from onceclip.pipeline.prompts import load_templates


def prompts(classes: int, repeated: float) -> list[str]:
    """Templates of all classes; a share of the classes has the name of another, as ImageNet's cranes do."""
    random = np.random.default_rng(0)
    words = ("red", "small", "northern", "striped", "common", "sea", "lion", "beetle", "crane", "wagon", "bell", "fox")
    names = [" ".join(random.choice(words, 2)) + f" {number}" for number in range(classes)]
    again = int(repeated * classes)
    names[:again] = names[len(names) - again:]
    return [template.replace("{}", name) for name in names for template in load_templates("imagenet")]


def whole(encoder: Encoder, sentences: list[str]) -> np.ndarray:
    """Every sentence, in batches as they come, with the model's whole context."""
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    return np.concatenate([encoder.encode_tokens(tokenizer(sentences[start:start + BATCH]))
                           for start in range(0, len(sentences), BATCH)])


def distinct(encoder: Encoder, sentences: list[str]) -> np.ndarray:
    """Every distinct sentence, with the model's whole context."""
    once = list(dict.fromkeys(sentences))
    place = {sentence: index for index, sentence in enumerate(once)}
    return whole(encoder, once)[[place[sentence] for sentence in sentences]]


@bench("text", small={"classes": 2, "repeats": 1})
@click.option("--model", default="demo")
@click.option("--classes", default=1000)
@click.option("--repeated", default=0.25, help="Share of the classes that have another's name.")
@click.option("--repeats", default=1)
def command(model: str, classes: int, repeated: float, repeats: int) -> Iterator[Row]:
    """Class prompts with and without what they have in common."""
    encoder = open_encoder(EncoderSpec(model, allow_random=model != "demo"))
    sentences = prompts(classes, repeated)
    found: dict[str, np.ndarray] = {}

    def keep(name: str, embedding: np.ndarray) -> None:
        found[name] = embedding

    first, own = "every prompt, whole context", "ours, distinct prompts, short context"
    seconds = in_turn({first: lambda: keep(first, whole(encoder, sentences)),
                       "distinct prompts, whole context": lambda: distinct(encoder, sentences),
                       own: lambda: keep(own, encode_sentences(encoder, sentences).embedding)}, repeats, warm=0)
    length = np.linalg.norm(found[first], axis=1)
    yield make_row(f"{len(sentences):,} prompts, {model}", {"classes": classes, "repeated": repeated}, seconds, [own],
                   distinct=len(set(sentences)), threads=torch.get_num_threads(),
                   largest_difference=float((np.linalg.norm(found[first] - found[own], axis=1) / length).max()))
