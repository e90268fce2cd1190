"""Extraction beside the encoder alone, decoding alone and the peers' way.

The peers' way is a DataLoader with open_clip's preprocessing, one process per core, in float32 and under autocast, as
CLIP_benchmark and clip-retrieval do. Seconds are those of one image; `cpu ms` is processor time per image, the start of
processes included, which other work on the machine disturbs less. Files are listed several times, each time under
another key, and are read, decoded and encoded each time. The whole loops of the peers go through fewer images; their
clock starts as ours does, when their processes have started and done a few. Where decoding and encoding share the
cores, no more than the sum of both is allowed. Models other than the demo's have random weights.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bench.machine import this_machine
from bench.measure import Row, Seconds, bench, make_row, ratio
from bench.peers import Files
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.on_device import DeviceDecoder
from onceclip.pipeline.decoding.preparation import ON_DEVICE
from onceclip.pipeline.encoders import DEMO, Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.encoders.images import EncoderThreads
from onceclip.pipeline.extraction.inventory import take_inventory
from onceclip.pipeline.extraction.units import encode_units, rows_to_embed, units_of
from onceclip.pipeline.sources import class_names, open_source
from onceclip.pipeline.workers.devices import CUDA
from onceclip.stores import StoreWriter

SIZES = {"500x375": (500, 375), "1920x1080": (1920, 1080)}
WAYS = {"extract": "ours, extract", "encoder_only": "ours, encoder only", "decode_only": "ours, decode only",
        "decode_fast": "ours, decode only, fast", "decode_torchvision": "ours, decode only, torchvision",
        "peer_feed": "peer, DataLoader only", "peer_float32": "peer, float32",
        "peer_autocast": "peer, autocast"}
_BATCH = 64


def make_photographs(folder: Path, size: tuple[int, int], files: int) -> None:
    """Write JPEGs that are as hard to decode as photographs: smooth shapes under fine noise."""
    random = np.random.default_rng(0)
    for number in range(files):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.normal(0, 6, smooth.shape).astype(np.int16)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)


class Ways:
    """The ways to go through one folder with one encoder; each gives the number of its images.

    images: files are listed again and again until there are so many. few: images of the peers' whole loops.
    """

    def __init__(self, folder: Path, encoder: Encoder, full: Encoder, processes: int, images: int, few: int) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.encoder, self.full, self.processes, self.begun = encoder, full, processes, 0.0
        found = open_source(str(folder)).records
        self.files = [folder / record.key for record in found]
        again = ((record, turn) for turn in count() for record in found)
        self.records = [replace(record, key=f"{turn}/{record.key}") for record, turn in islice(again, images)]
        self.few = few
        preparation = encoder.preparation
        self.transform = image_transform_v2(PreprocessCfg(
            preparation.size[0], mean=preparation.mean, std=preparation.std, interpolation=preparation.interpolation,
            resize_mode=preparation.resize_mode, fill_color=preparation.fill), is_train=False)
        self.pixels = np.zeros((encoder.batch_size, *preparation.shape), preparation.dtype)

    def encoder_only(self) -> int:
        """Batches that are in memory already, in as many threads as an extraction has."""
        with EncoderThreads(self.encoder) as threads:
            passes = -(-len(self.records) // (threads.number * len(self.pixels))) * threads.number
            for future in [threads.submit(self.encoder.encode_images, self.pixels) for _ in range(passes)]:
                future.result()
        return passes * len(self.pixels)

    def decode_only(self, decode: str = "exact") -> int:
        """All decode processes, and nobody who wants the pixels."""
        preparation = replace(self.encoder.preparation, decode=decode)
        contents = enumerate(record.content for record in self.records)
        with ExitStack() as opened:
            device = None
            if decode in ON_DEVICE:
                device = opened.enter_context(DeviceDecoder(preparation, self.encoder.device, self.processes))
            decoders = opened.enter_context(self._decoders())
            for batch in decoders.batches(contents, preparation, _BATCH, 4, device=device):
                decoders.release(batch)
        return len(self.records)

    def decode_fast(self) -> int:
        """The same with `--decode fast`."""
        return self.decode_only("fast")

    def decode_torchvision(self) -> int:
        """The same with `--decode torchvision`."""
        return self.decode_only(self.torchvision)

    @property
    def torchvision(self) -> str:
        """That way to decode, with the kind of device."""
        return f"torchvision-{self.encoder.device.type}"

    def extract(self) -> int:
        """Reading, decoding, encoding and writing into a store, as `onceclip extract` does."""
        with tempfile.TemporaryDirectory() as folder, self._decoders() as decoders:
            writer = StoreWriter.create(f"{folder}/s.zarr", self.encoder.info, self.encoder.dim)
            classes = class_names(self.records)
            inventory = take_inventory(self.records, classes, writer.store)
            writer.plan(inventory.table, classes)
            remaining = rows_to_embed(writer)
            units = units_of(writer, remaining, inventory.contents)
            steps = encode_units(self.encoder, decoders, writer, units, len(remaining.rows), views=False)
            return sum(step.rows - step.bad for step in steps)

    @contextmanager
    def _decoders(self) -> Iterator[Decoders]:
        """Decode processes that have started, as they do while a model is loaded; the clock runs from here."""
        with Decoders(len(self.records), self.processes) as decoders:
            first = ((number, self.records[0].content) for number in range(8 * self.processes))
            for batch in decoders.batches(first, self.encoder.preparation, 1, 8 * self.processes):
                decoders.release(batch)
            self.begun = time.perf_counter()
            yield decoders

    def distance(self, decode: str) -> dict[str, float]:
        """How far a way to decode moves embeddings: 1 - cosine to the exact ones, and grey levels of pixels."""
        exact, other = (self._pixels(way) for way in ("exact", decode))
        first, second = (self.full.encode_images(pixels)["embedding"].astype(np.float64) for pixels in (exact, other))
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
        apart = ((unit[0] - unit[1]) ** 2).sum(axis=1) / 2
        levels = np.abs(exact.astype(int) - other)
        return {"median": float(np.median(apart)), "99 %": float(np.quantile(apart, 0.99)), "max": float(apart.max()),
                "levels mean": float(levels.mean()), "levels max": float(levels.max())}

    def _pixels(self, decode: str) -> np.ndarray:
        """Of the first images, (n, height, width, 3) uint8."""
        preparation = replace(self.encoder.preparation, decode=decode)
        contents = [record.content.read() for record in self.records[:_BATCH]]
        found: list[np.ndarray | None] = [None] * len(contents)
        if decode in ON_DEVICE:
            jpegs = {place: jpeg for place, content in enumerate(contents) if (jpeg := preparation.jpeg(content))}
            with DeviceDecoder(preparation, self.encoder.device, 1) as device:
                for place, pixels in zip(jpegs, device.submit(list(jpegs.values())).result(), strict=True):
                    found[place] = pixels
        return np.stack([preparation.pixels(content) if pixels is None else pixels
                         for content, pixels in zip(contents, found, strict=True)])

    def levels_apart(self) -> float:
        """Grey levels between pixels as they are decoded here and by open_clip's preprocessing, at most."""
        preparation, most = self.encoder.preparation, 0.0
        mean, std = (np.array(each, np.float64)[:, None, None] for each in (preparation.mean, preparation.std))
        for record, file in list(zip(self.records, self.files, strict=False))[:_BATCH]:
            with Image.open(file) as image:
                theirs = 255 * (self.transform(image).double().numpy() * std + mean)
            most = max(most, float(np.abs(theirs.transpose(1, 2, 0) - preparation.pixels(record.content.read())).max()))
        return round(most, 3)

    def peer_feed(self) -> int:
        """The peers' DataLoader, and nobody who wants its batches."""
        return sum(len(images) for images in self._batches(len(self.records)))

    def peer_float32(self) -> int:
        """The peers' loop in float32, with torch's own products and threads."""
        with torch.inference_mode():
            return self._peer()

    def peer_autocast(self) -> int:
        """The peers' loop under autocast to bfloat16."""
        with torch.no_grad(), torch.autocast(self.full.device.type, torch.bfloat16):
            return self._peer()

    def _peer(self) -> int:
        model: Any = self.full.model
        return sum(len(model.encode_image(images.to(self.full.device)).cpu()) for images in self._batches(self.few))

    def _batches(self, images: int) -> Iterator[torch.Tensor]:
        """Of a DataLoader whose workers have started; the clock runs from here."""
        places = [number % len(self.files) for number in range(8 * self.processes)]
        loader: DataLoader = DataLoader(Files(self.files, self.transform), _BATCH, sampler=places,
                                        num_workers=self.processes, persistent_workers=True)
        for _ in loader:
            pass
        places[:] = [number % len(self.files) for number in range(images)]
        self.begun = time.perf_counter()
        yield from loader


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF,
                                                                                  resource.RUSAGE_CHILDREN)))


def measure(ways: Ways, rounds: int) -> tuple[Seconds, dict[str, float]]:
    """Seconds per image of every way, and milliseconds of processor time per image."""
    seconds: Seconds = {way: [] for way in WAYS.values()}
    used: Seconds = {way: [] for way in WAYS.values()}
    for _ in range(rounds):
        for name, way in WAYS.items():
            before, ways.begun = processor_seconds(), time.perf_counter()
            images = getattr(ways, name)()
            seconds[way].append((time.perf_counter() - ways.begun) / images)
            used[way].append(1000 * (processor_seconds() - before) / images)
    return seconds, {way: statistics.median(times) for way, times in used.items()}


def goals_of(seconds: Seconds, model: str, size: str, encoder: Encoder, far: dict[str, float],
             levels: float) -> dict[str, float]:
    """The goals that a model, its precision, a size of photographs and a kind of device are about."""
    kind = encoder.device.type
    extract, alone, feed, fast, peer_feed = (WAYS[name] for name in ("extract", "encoder_only", "decode_only",
                                                                     "decode_fast", "peer_feed"))
    of_peer = ratio(seconds, WAYS["peer_float32"], extract)
    if kind == CUDA and (model, size) == ("ViT-L-14", "500x375"):
        return {"16 extract": ratio(seconds, alone, extract)}
    if kind != CUDA and (model, size) == (DEMO, "500x375"):
        return {"30 demo": of_peer}
    if kind == CUDA or model != "ViT-B-32":
        return {}
    if size == "1920x1080":
        return {"13 fast": ratio(seconds, peer_feed, fast), "13 distance": far["median"]}
    peers = ({"12 float32": of_peer, "12 autocast": ratio(seconds, WAYS["peer_autocast"], extract)}
             if encoder.info["precision"] == "bf16" else {"32": of_peer})
    return {"12 encoder": ratio(seconds, alone, extract), "13 feed": ratio(seconds, peer_feed, feed), **peers,
            "30 cores": ratio(seconds, alone, extract) + ratio(seconds, feed, extract), "13 levels": levels}


@bench("extract", small={"models": (DEMO,), "sizes": ("500x375",), "files": 4, "images": 8, "peer_images": 4,
                           "rounds": 1, "processes": 1})
@click.option("--model", "models", multiple=True, default=(DEMO, "ViT-B-32"))
@click.option("--device", default="cpu", help="Of the encoders: cpu, cuda, cuda:1 ...")
@click.option("--precision", default=lambda: "bf16" if this_machine()["bfloat16"] else "fp32",
              show_default="bf16 where the processor is faster with it", help="Of ours; the demo model runs in fp32.")
@click.option("--folder", "folders", multiple=True, type=click.Path(path_type=Path, exists=True), help="Photographs.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=tuple(SIZES))
@click.option("--files", default=128, help="Of each synthetic size.")
@click.option("--images", default=768, help="That every way goes through; files are listed several times.")
@click.option("--peer-images", default=192, help="That the peers' whole loops go through.")
@click.option("--processes", default=0, help="Decode processes and DataLoader workers.  [default: one per core]")
@click.option("--rounds", default=2)
def command(models: tuple[str, ...], device: str, precision: str, folders: tuple[Path, ...], sizes: tuple[str, ...],
            files: int, images: int, peer_images: int, processes: int, rounds: int) -> Iterator[Row]:
    """An extraction beside its stages and the field's loop, for every model and folder."""
    processes = processes or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as made:
        for size in sizes:
            make_photographs(Path(made) / size, SIZES[size], files)
        for model in models:
            spec = EncoderSpec(model, device=device, allow_random=model != DEMO)
            full = open_encoder(replace(spec, precision="fp32"))
            encoder = full if model == DEMO else open_encoder(replace(spec, precision=precision))
            for folder in [*folders, *(Path(made) / size for size in sizes)]:
                ways = Ways(folder, encoder, full, processes, images, peer_images)
                seconds, used = measure(ways, rounds)
                far = {way: ways.distance(decode)
                       for way, decode in (("fast", "fast"), ("torchvision", ways.torchvision))}
                levels = ways.levels_apart()
                goals = goals_of(seconds, model, folder.name, encoder, far["fast"], levels)
                at = {"precision": encoder.info["precision"], "files": len(ways.files), "images": images,
                      "peer images": peer_images}
                yield from _rows(f"{model}, {folder.name}", at, seconds, goals, used, far, levels)


def _rows(name: str, at: dict[str, Any], seconds: Seconds, goals: dict[str, float], used: dict[str, float],
          far: dict[str, dict[str, float]], levels: float) -> Iterator[Row]:
    """Three figures of one measurement: the whole, and its two stages."""
    for what, chosen, prefix in (("extracted", ("extract", "peer_float32", "peer_autocast"), ("12", "16", "30", "32")),
                                 ("decoded", ("decode_only", "decode_fast", "decode_torchvision",
                                              "peer_feed"), "13"),
                                 ("encoded", ("encoder_only",), "none")):
        times = {WAYS[each]: seconds[WAYS[each]] for each in chosen}
        values: dict[str, Any] = {f"cpu ms, {way}": used[way] for way in times}
        bound = None
        if what == "extracted":
            alone, decode = (statistics.median(seconds[WAYS[stage]]) for stage in ("encoder_only", "decode_only"))
            bound = alone + decode
            values |= {"of the encoder's speed": alone / statistics.median(seconds[WAYS["extract"]]),
                       "of the encoder's speed, at most": alone / bound}
        if what == "decoded":
            values |= {"levels from open_clip": levels, **{f"{way}, {key}": value for way, each in far.items()
                                                           for key, value in each.items()}}
        yield make_row(f"an image {what}, {name}", at, times, [way for way in times if way.startswith("ours")], bound,
                       {key: value for key, value in goals.items() if key.startswith(prefix)}, **values)
