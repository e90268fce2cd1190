"""How far each precision of an encoder is from float64, and how fast: `python bench/fidelity.py`.

One thread; images per second of processor time, so that other work on the machine does not count; the ways run in
turn, A B A B, and the median is shown. Models of open_clip get random weights where none are named.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from onceclip.adapters.products import DEFAULT, ONEDNN
from onceclip.pipeline.demo.digits import write_digits
from onceclip.pipeline.encoders import DEMO, Encoder, EncoderSpec, open_encoder

WAYS = {"fp32 default": ("fp32", DEFAULT), "fp32 onednn": ("fp32", ONEDNN), "bf16": ("bf16", DEFAULT),
        "fp16": ("fp16", DEFAULT)}


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
        images = encoder._normalised(torch.from_numpy(np.array(pixels))).double()
        found = torch.cat([model.double().encode_image(part) for part in images.split(16)])
    model.float()
    return found.numpy()


def distance(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """One minus the cosine, row by row; from the difference of unit vectors, which keeps the digits of small ones."""
    unit = [rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            for rows in (found, reference)]
    return ((unit[0] - unit[1]) ** 2).sum(axis=1) / 2


def measure(spec: EncoderSpec, count: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Distances and rates of every way."""
    encoders = {precision: open_encoder(EncoderSpec(**{**vars(spec), "precision": precision}))
                for precision in dict.fromkeys(precision for precision, _ in WAYS.values())}
    full = encoders["fp32"]
    pixels = (digits if spec.model == DEMO else pictures)(full, count)
    reference = exact(full, pixels)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rows = {}
    for turn in range(rounds + 1):
        for way, (precision, products) in WAYS.items():
            for encoder in encoders.values():
                encoder.info["products"] = products
            begun = time.process_time()
            found = np.concatenate([encoders[precision].encode_images(pixels[start:start + batch])["embedding"]
                                    for start in range(0, count, batch)])
            if turn:  # the first also prepares
                seconds[way].append(time.process_time() - begun)
            rows[way] = distance(found, reference)
    return {way: {"mean": float(rows[way].mean()), "max": float(rows[way].max()),
                  "images_per_second": count / statistics.median(seconds[way])} for way in WAYS}


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, default=(DEMO, "ViT-B-32"), show_default=True)
@click.option("--pretrained", help="Weights of the models named; else random ones.")
@click.option("--images", default=64, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures here as one JSON row.")
def main(models: tuple[str, ...], pretrained: str | None, images: int, batch_size: int, rounds: int,
         out: Path | None) -> None:
    """Print a table for every model."""
    torch.set_num_threads(1)
    figures = {}
    for model in models:
        spec = EncoderSpec(model, pretrained if model != DEMO else None, device="cpu",
                           allow_random=pretrained is None and model != DEMO)
        figures[model] = measure(spec, images, batch_size, rounds)
        click.echo(f"{model}, {images} images        1-cos mean      max   images/s  of default")
        for way, each in figures[model].items():
            rate = each["images_per_second"]
            ratio = rate / figures[model]["fp32 default"]["images_per_second"]
            click.echo(f"  {way:28} {each['mean']:10.1e} {each['max']:8.1e} {rate:10.1f} {ratio:10.2f}x")
    if out:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        with out.open("a", encoding="ascii") as file:
            file.write(json.dumps({"bench": "fidelity", "images": images, **machine, **figures}) + "\n")


if __name__ == "__main__":
    main()
