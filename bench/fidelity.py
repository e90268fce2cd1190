"""How far each precision of an encoder is from float64, and how fast.

One thread; seconds of processor time per image, so that other work on the machine does not count. Models of open_clip
get random weights where none are named.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from bench.machine import this_machine
from bench.measure import Row, Seconds, bench, make_row
from onceclip.adapters.cpu import DEFAULT, ONEDNN
from onceclip.pipeline.commands.demo import write_digits
from onceclip.pipeline.encoders import DEMO, Encoder, EncoderSpec, open_encoder

WAYS = {"fp32 default": ("fp32", DEFAULT), "fp32 onednn": ("fp32", ONEDNN), "fp16": ("fp16", DEFAULT),
        **({"bf16": ("bf16", DEFAULT)} if this_machine()["bfloat16"] else {})}


def digits(encoder: Encoder, count: int) -> np.ndarray:
    """Pixels of handwritten digits, evenly out of all of them."""
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder))
        files = sorted(Path(folder).rglob("*.png"))
        chosen = [files[place] for place in np.linspace(0, len(files) - 1, count).astype(int)]
        return np.stack([encoder.preparation.pixels(file.read_bytes()) for file in chosen])


def pictures(encoder: Encoder, count: int) -> np.ndarray:
    """Pixels of smooth random pictures, of the size that an encoder takes."""
    random, (high, wide) = np.random.default_rng(0), encoder.preparation.size
    coarse = [Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) for image in coarse])


def exact(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """Embeddings (n, dim) computed in float64 throughout."""
    model: Any = encoder.model
    with torch.inference_mode():
        images = encoder._normalized(torch.from_numpy(np.array(pixels))).double()
        found = torch.cat([model.double().encode_image(part) for part in images.split(16)])
    model.float()
    return found.numpy()


def distance(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """One minus the cosine, row by row; from the difference of unit vectors, which keeps the digits of small ones."""
    unit = [rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            for rows in (found, reference)]
    return ((unit[0] - unit[1]) ** 2).sum(axis=1) / 2


def measure(spec: EncoderSpec, count: int, batch: int, rounds: int) -> tuple[Seconds, dict[str, np.ndarray]]:
    """Processor seconds per image of every way, and distances (count,) to float64."""
    encoders = {precision: open_encoder(EncoderSpec(**{**vars(spec), "precision": precision}))
                for precision in dict.fromkeys(precision for precision, _ in WAYS.values())}
    full = encoders["fp32"]
    pixels = (digits if spec.model == DEMO else pictures)(full, count)
    reference = exact(full, pixels)
    seconds: Seconds = {way: [] for way in WAYS}
    rows = {}
    for turn in range(rounds + 1):
        for way, (precision, products) in WAYS.items():
            for encoder in encoders.values():
                encoder.info["products"] = products
            begun = time.process_time()
            found = np.concatenate([encoders[precision].encode_images(pixels[start:start + batch])["embedding"]
                                    for start in range(0, count, batch)])
            if turn:  # the first also prepares
                seconds[way].append((time.process_time() - begun) / count)
            rows[way] = distance(found, reference)
    return seconds, rows


@bench("fidelity", small={"models": (DEMO,), "images": 4, "rounds": 1})
@click.option("--model", "models", multiple=True, default=(DEMO, "ViT-B-32"))
@click.option("--pretrained", help="Weights of the models named; else random ones.")
@click.option("--images", default=32)
@click.option("--batch-size", default=32)
@click.option("--rounds", default=2)
def command(models: tuple[str, ...], pretrained: str | None, images: int, batch_size: int,
            rounds: int) -> Iterator[Row]:
    """The precisions of encoders, on one thread."""
    torch.set_num_threads(1)
    for model in models:
        spec = EncoderSpec(model, pretrained if model != DEMO else None, device="cpu",
                           allow_random=pretrained is None and model != DEMO)
        seconds, rows = measure(spec, images, batch_size, rounds)
        own = [way for way in WAYS if way != "fp32 default"]
        far: dict[str, Any] = {f"{way}, 1 - cosine, {what}": float(take(rows[way])) for way in WAYS
               for what, take in (("mean", np.mean), ("max", np.max))}
        yield make_row(f"an image, {model}", {"weights": pretrained or "as shipped or random"}, seconds, own, **far)
