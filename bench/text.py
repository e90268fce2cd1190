"""Encoding class prompts: every one with the whole context, each distinct one, and with the context it needs.

`python bench/text.py` takes the shipped model and 1,000 classes x 80 templates; with `--model ViT-B-32 --classes 20` it
takes CLIP's size, with random weights. The ways run in turn in one process; medians are printed, and a JSON row.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch

from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.prompts import load_templates
from onceclip.pipeline.sentences import BATCH, encode_sentences


def main() -> None:
    """Print the table of `compare`."""
    command()


def prompts(classes: int, repeated: float) -> list[str]:
    """Templates of all classes; a share of the classes has the name of another, as ImageNet's cranes do."""
    random = np.random.default_rng(0)
    words = ("red", "small", "northern", "striped", "common", "sea", "lion", "beetle", "crane", "wagon", "bell", "fox")
    names = [" ".join(random.choice(words, 2)) + f" {number}" for number in range(classes)]
    names[:int(repeated * classes)] = names[-int(repeated * classes):] if repeated else []
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


@click.command()
@click.option("--model", default="demo", show_default=True)
@click.option("--classes", default=1000, show_default=True)
@click.option("--repeated", default=0.25, show_default=True, help="Share of the classes that have another's name.")
@click.option("--turns", default=3, show_default=True)
def command(model: str, classes: int, repeated: float, turns: int) -> None:
    """Compare the ways."""
    encoder = open_encoder(EncoderSpec(model, allow_random=model != "demo"))
    sentences = prompts(classes, repeated)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "every prompt, whole context": lambda: whole(encoder, sentences),
        "distinct prompts, whole context": lambda: distinct(encoder, sentences),
        "distinct prompts, short context": lambda: encode_sentences(encoder, sentences).embedding,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, np.ndarray] = {}
    for _ in range(turns):
        for name, way in ways.items():
            begun = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first, *_, last = found.values()
    error = float((np.linalg.norm(first - last, axis=1) / np.linalg.norm(first, axis=1)).max())
    slowest = max(medians.values())
    click.echo(f"{model}: {len(sentences):,} prompts, {len(set(sentences)):,} distinct; {torch.get_num_threads()} "
               "threads")
    for name, median in medians.items():
        click.echo(f"  {name:<33}{median:9.2f} s{len(sentences) / median:12,.0f} prompts/s{slowest / median:8.1f} x")
    click.echo(f"  largest difference, as a share of the vector's length: {error:.1e}")
    click.echo(json.dumps({"bench": "text", "model": model, "prompts": len(sentences),
                           "distinct": len(set(sentences)), "threads": torch.get_num_threads(), "seconds": medians,
                           "difference": error, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
