"""Extraction beside the encoder alone, decoding alone and the peers' way: `python bench/extract.py`.

The peers' way is a DataLoader with open_clip's preprocessing, one process per core, in float32 and under autocast, as
CLIP_benchmark and clip-retrieval do. All ways run in turn, A B A B, and medians are shown: images per second, and
milliseconds of processor time per image (the start of processes included), which other work on the machine disturbs
less. Where decoding and encoding share the cores, no more than `bound` can be reached: 1 / (1 / encoder + 1 / decode).
Models other than the demo's have random weights.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.encoders import DEMO, Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.fill import Filling
from onceclip.pipeline.inventory import take_inventory
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.sources import class_names, open_source
from onceclip.stores import StoreWriter

SIZES = {"500x375": (500, 375), "1920x1080": (1920, 1080)}
NAMES = ("encoder_only", "decode_only", "extract", "decode_fast", "peer_feed", "peer_float32", "peer_autocast")
_BATCH = 64


def make_photographs(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write JPEGs that are as hard to decode as photographs: smooth shapes under fine noise."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.normal(0, 6, smooth.shape).astype(np.int16)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)


class Files(Dataset):
    """Image files through open_clip's own preprocessing."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image)


class Ways:
    """The ways to go through one folder with one encoder; each gives the number of its images."""

    def __init__(self, folder: Path, encoder: Encoder, full: Encoder, processes: int) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.encoder, self.full, self.processes, self.begun = encoder, full, processes, 0.0
        self.records = open_source(str(folder)).records
        self.files = [folder / record.key for record in self.records]
        preparation = encoder.preparation
        self.transform = image_transform_v2(PreprocessCfg(
            preparation.size[0], mean=preparation.mean, std=preparation.std, interpolation=preparation.interpolation,
            resize_mode=preparation.resize_mode, fill_color=preparation.fill), is_train=False)
        self.pixels = np.zeros((_BATCH, *preparation.shape), preparation.dtype)

    def encoder_only(self) -> int:
        """Batches that are in memory already, in as many lanes as an extraction has."""
        with Lanes(self.encoder) as lanes:
            passes = max(lanes.number, -(-len(self.records) // _BATCH))
            for future in [lanes.submit(self.encoder.encode_images, self.pixels) for _ in range(passes)]:
                future.result()
        return passes * _BATCH

    def decode_only(self, decode: str = "exact") -> int:
        """All decode processes, and nobody who wants the pixels."""
        preparation = replace(self.encoder.preparation, decode=decode)
        with self._decoders() as decoders:
            for batch in decoders.batches(enumerate(record.content for record in self.records), preparation, _BATCH, 4):
                decoders.release(batch)
        return len(self.records)

    def decode_fast(self) -> int:
        """The same with `--decode fast`."""
        return self.decode_only("fast")

    def extract(self) -> int:
        """Reading, decoding, encoding and writing into a store, as `onceclip extract` does."""
        with tempfile.TemporaryDirectory() as folder, self._decoders() as decoders:
            writer = StoreWriter.create(f"{folder}/s.zarr", self.encoder.info, self.encoder.dim)
            classes = class_names(self.records)
            inventory = take_inventory(self.records, classes, writer.store)
            writer.plan(inventory.table, classes)
            with Lanes(self.encoder) as lanes:
                filling = Filling(writer, decoders, lanes, inventory.contents)
                filling.embeddings()
            return filling.images

    @contextmanager
    def _decoders(self) -> Iterator[Decoders]:
        """Decode processes that have started, as they do while a model is loaded; the clock runs from here."""
        with Decoders(len(self.records), self.processes) as decoders:
            first = ((number, self.records[0].content) for number in range(8 * self.processes))
            for batch in decoders.batches(first, self.encoder.preparation, 1, 8 * self.processes):
                decoders.release(batch)
            self.begun = time.perf_counter()
            yield decoders

    def fast_distance(self) -> dict[str, float]:
        """How far `--decode fast` moves embeddings: 1 - cosine to the exact ones, and grey levels of pixels."""
        contents = [record.content.read() for record in self.records[:_BATCH]]
        exact, fast = (np.stack([replace(self.encoder.preparation, decode=decode).pixels(content)
                                 for content in contents]) for decode in ("exact", "fast"))
        first, second = (self.full.encode_images(pixels)["embedding"].astype(np.float64) for pixels in (exact, fast))
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
        apart = ((unit[0] - unit[1]) ** 2).sum(axis=1) / 2
        levels = np.abs(exact.astype(int) - fast)
        return {"median": float(np.median(apart)), "99 %": float(np.quantile(apart, 0.99)), "max": float(apart.max()),
                "levels mean": float(levels.mean()), "levels max": float(levels.max())}

    def peer_feed(self) -> int:
        """The peers' DataLoader, and nobody who wants its batches."""
        return sum(len(images) for images in self._loader())

    def peer_float32(self) -> int:
        """The peers' loop in float32, with torch's own products and threads."""
        with torch.inference_mode():
            return self._peer()

    def peer_autocast(self) -> int:
        """The peers' loop under autocast to bfloat16."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return self._peer()

    def _peer(self) -> int:
        model: Any = self.full.model
        return sum(len(model.encode_image(images)) for images in self._loader())

    def _loader(self) -> DataLoader:
        return DataLoader(Files(self.files, self.transform), _BATCH, num_workers=self.processes)


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF,
                                                                                  resource.RUSAGE_CHILDREN)))


def measure(ways: Ways, rounds: int) -> dict[str, dict[str, float]]:
    """Images per second, and milliseconds of processor time per image, of every way."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            used, ways.begun = processor_seconds(), time.perf_counter()
            images = getattr(ways, name)()
            seconds = time.perf_counter() - ways.begun
            found[name].append((images / seconds, 1000 * (processor_seconds() - used) / images))
    return {name: {"rate": statistics.median(rate for rate, _ in each),
                   "cpu_ms": statistics.median(used for _, used in each)} for name, each in found.items()}


def report(name: str, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print a table and give its figures with the ratios that the project has goals for."""
    rate = {way: each["rate"] for way, each in found.items()}
    bound = 1 / (1 / rate["encoder_only"] + 1 / rate["decode_only"])
    ratios = {"of encoder": rate["extract"] / rate["encoder_only"], "of decode": rate["extract"] / rate["decode_only"],
              "of bound": rate["extract"] / bound, "feed of peer": rate["decode_only"] / rate["peer_feed"],
              "fast feed of peer": rate["decode_fast"] / rate["peer_feed"],
              "of peer float32": rate["extract"] / rate["peer_float32"],
              "of peer autocast": rate["extract"] / rate["peer_autocast"]}
    click.echo(f"{name:36}images/s   cpu ms/image")
    for way, each in found.items():
        click.echo(f"  {way.replace('_', ' '):32}{each['rate']:10.1f}{each['cpu_ms']:15.2f}")
    click.echo("  extract: " + ", ".join(f"{what} {value:.2f}" for what, value in ratios.items()))
    return {**found, "bound": bound, "ratios": ratios}


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, default=(DEMO, "ViT-B-32"), show_default=True)
@click.option("--precision", default="bf16", show_default=True, help="Of ours; the demo model runs in fp32.")
@click.option("--folder", "folders", multiple=True, type=click.Path(path_type=Path, exists=True), help="Photographs.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=tuple(SIZES), show_default=True)
@click.option("--images", default=256, show_default=True, help="Of each synthetic size.")
@click.option("--processes", default=0, help="Decode processes and DataLoader workers.  [default: one per core]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures here as one JSON row.")
def main(models: tuple[str, ...], precision: str, folders: tuple[Path, ...], sizes: tuple[str, ...], images: int,
         processes: int, rounds: int, out: Path | None) -> None:
    """Print a table for every model and folder."""
    processes = processes or torch.get_num_threads()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        for size in sizes:
            make_photographs(Path(made) / size, SIZES[size], images)
        for model in models:
            spec = EncoderSpec(model, device="cpu", allow_random=model != DEMO)
            full = open_encoder(replace(spec, precision="fp32"))
            encoder = full if model == DEMO else open_encoder(replace(spec, precision=precision))
            for folder in [*folders, *(Path(made) / size for size in sizes)]:
                ways = Ways(folder, encoder, full, processes)
                name = f"{model}, {folder.name}, {len(ways.records)} images"
                figures[name] = report(name, measure(ways, rounds))
                figures[name]["fast"] = ways.fast_distance()
                click.echo("  decode fast, 1 - cosine: " + ", ".join(f"{what} {value:.1e}" for what, value in
                                                                    figures[name]["fast"].items()))
    if out:
        machine = {"machine": platform.processor() or platform.machine(), "cores": processes,
                   "torch": torch.__version__, "precision": precision}
        with out.open("a", encoding="ascii") as file:
            file.write(json.dumps({"bench": "extract", **machine, **figures}) + "\n")


if __name__ == "__main__":
    main()
