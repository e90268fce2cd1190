"""ZERO and MTA on the stored views of images beside encoding the views again, as the published scripts do in every run.

Encoding is that of the network alone, on pixels that are decoded already, and is measured on few images; all figures
are per image. ViT-B-32 has random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from bench.measure import Row, bench, in_turn, make_row, ratio
from bench.synthetic import features
from onceclip.adapters import ZeroShot
from onceclip.adapters.inference import INFERENCES
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.images import EncoderThreads
from onceclip.pipeline.evaluation.evaluate import score
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.stores import Store, open_store

NAMES = ("zero", "mta")
_TRAINED = 4  # further images of each class, for the train split


def make(path: Path, images: int, views: int, classes: int, dim: int) -> Store:
    """A store of images with views, as near to them as random crops are."""
    each = -(-images // classes)
    embedding, label, text = features(classes, each + _TRAINED, dim)
    split = np.tile(np.repeat(["test", "train"], [each, _TRAINED]), classes)
    random = np.random.default_rng(1)
    view = (embedding[:, None] + 0.5 * random.standard_normal((len(embedding), views, dim), np.float32)
            ).astype(np.float16)
    view[:, 0] = embedding
    np.savez(path.with_suffix(".npz"), embedding=embedding.astype(np.float16), label=label, split=split, view=view,
             text=text)
    import_arrays(path.with_suffix(".npz"), path, encoder="synthetic")
    path.with_suffix(".npz").unlink()
    return open_store(str(path))


@bench("views", small={"images": 40, "views": 4, "classes": 4, "encoded": 1, "model": "demo", "repeats": 1})
@click.option("--images", default=2000)
@click.option("--views", default=64)
@click.option("--classes", default=100)
@click.option("--encoded", default=8, help="Images whose views are encoded.")
@click.option("--model", default="ViT-B-32")
@click.option("--repeats", default=3)
def command(images: int, views: int, classes: int, encoded: int, model: str, repeats: int) -> Iterator[Row]:
    """Reading stored views beside encoding them again, per image."""
    encoder = open_encoder(EncoderSpec(model, allow_random=model != "demo"))
    shape = encoder.preparation.shape
    pixels = np.random.default_rng(0).integers(0, 256, (encoded, views, *shape), np.uint8)

    def encode() -> None:
        with EncoderThreads(encoder) as threads:
            for future in [threads.submit(encoder.encode_images, batch) for image in pixels
                           for batch in np.array_split(image, max(1, -(-views // encoder.batch_size)))]:
                future.result()

    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder) / "views.zarr", images, views, classes, encoder.dim)
        alone = score(ZeroShot().fit(make_task(store, shots=1)), store)
        ways = {name: (lambda name=name: read(alone, INFERENCES[name]())) for name in NAMES}
        seconds = in_turn({"encoding the views again": encode, **{f"ours, {name}": way for name, way in ways.items()}},
                          repeats)
    counts = {name: encoded if name.startswith("encoding") else len(alone.rows) for name in seconds}
    each = {name: [time / counts[name] for time in times] for name, times in seconds.items()}
    yield make_row(f"{views} views of {len(alone.rows):,} images, per image", {"model": model, "classes": classes,
                                                                              "encoded": encoded}, each,
                   [f"ours, {name}" for name in NAMES], threads=torch.get_num_threads(),
                   goals={f"18 {name}": ratio(each, "encoding the views again", f"ours, {name}") for name in NAMES})
