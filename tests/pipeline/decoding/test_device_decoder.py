"""JPEGs decoded by torchvision: close to the exact pixels, in the same place, and one that fails costs no other."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceclip.pipeline.decoding import batches
from onceclip.pipeline.decoding import on_device as device_decoder
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.on_device import DeviceDecoder, check_device
from onceclip.pipeline.decoding.preparation import Jpeg, Preparation, decoding
from onceclip.pipeline.errors import EncoderError

CPU = torch.device("cpu")
ON_CPU = Preparation((48, 48), decode="torchvision-cpu")


def picture(size: tuple[int, int] = (200, 150), mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(sum(size))
    small = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "jpeg", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(), exif=exif)


def overwritten(content: bytes) -> bytes:
    """Whole by its ends, with a marker amid its data that belongs elsewhere."""
    return content[:-400] + b"\xff\xc0\x00\x03" + content[-396:]


def without_colours(content: bytes) -> bytes:
    """Without the marker that says YCbCr; the components are named R, G and B instead."""
    assert content[2:4] == b"\xff\xe0"
    content = content[:2] + content[4 + int.from_bytes(content[4:6]):]
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    values = bytearray(content)
    for number, name in enumerate(b"RGB"):
        values[frame + 10 + 3 * number], values[scan + 5 + 2 * number] = name, name
    return bytes(values)


@pytest.fixture
def decoder() -> Any:
    with DeviceDecoder(ON_CPU, CPU, 2) as opened:
        yield opened


@pytest.mark.parametrize("style", ["open_clip", "transformers"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("wanted", [(48, 48), (64, 40)])
def test_pixels_are_those_of_the_exact_way_but_for_rounding(wanted: tuple[int, int], mode: str, style: str) -> None:
    preparation = Preparation(wanted, resize_mode=mode, fill=90, style=style, decode="torchvision-cpu")
    contents = [saved(picture(size)) for size in
                ((200, 150), (151, 203), (48, 48), (64, 40), (40, 64), (30, 20), (31, 300), (640, 100))]
    contents.append(saved(picture(mode="L")))
    jpegs = [jpeg for jpeg in map(preparation.jpeg, contents) if jpeg]
    assert len(jpegs) == len(contents)
    with DeviceDecoder(preparation, CPU, 1) as decoder:
        found = decoder.submit(jpegs).result()
    for content, pixels in zip(contents, found, strict=True):
        assert pixels is not None
        apart = np.abs(replace(preparation, decode="exact").pixels(content).astype(int) - pixels)
        assert pixels.shape == (*wanted, 3)
        assert apart.max() <= 8
        assert apart.mean() < 0.4


@pytest.mark.parametrize(("content", "exif", "plain"), [
    (lambda: saved(picture()), True, True), (lambda: saved(picture(mode="L")), False, True),
    (lambda: saved(picture(), subsampling=1, quality=97), False, True), (turned, False, True),
    (turned, True, False), (lambda: saved(picture(), progressive=True), False, False),
    (lambda: saved(picture(mode="CMYK")), False, False), (lambda: without_colours(saved(picture())), False, False),
    (lambda: saved(picture(), keep_rgb=True), False, False),
    (lambda: saved(picture())[:-2], False, False), (lambda: saved(picture()) + b"more", False, False),
    (lambda: saved(picture(), "mpo", save_all=True, append_images=[picture()]), False, False),
    (lambda: saved(picture(), "png"), False, False), (lambda: saved(picture())[:200], False, False),
    (lambda: saved(Image.new("L", (9000, 4000))), False, False), (lambda: saved(picture((3000, 1))), False, False),
    (lambda: b"", False, False), (lambda: b"\xff\xd8<html>\xff\xd9", False, False)], ids=[
    "colour", "grey", "subsampled", "lies on its side", "to be turned", "progressive", "cmyk", "rgb by its names",
    "rgb by its marker", "cut short", "followed by more", "several pictures", "png", "header", "large",
    "large when resized", "empty", "text"])
def test_only_plain_whole_jpegs_leave_the_decode_processes(content: Callable[[], bytes], exif: bool,
                                                           plain: bool) -> None:
    given = content()
    preparation = Preparation((224, 224), decode="torchvision-cpu", exif=exif)
    with decoding():
        found = preparation.jpeg(given)
        assert (found is not None) == plain
        if found:
            assert found.content == given
            assert found.pixels >= math.prod(Image.open(io.BytesIO(given)).size)


def test_a_jpeg_that_cannot_be_decoded_costs_no_other(decoder: DeviceDecoder) -> None:
    """yolo-scout#63: one bad image dropped its whole batch."""
    jpegs = [Jpeg(saved(picture((100 + each, 80))), 20_000) for each in range(5)]
    alone = decoder.submit(jpegs).result()
    jpegs[2:2] = [Jpeg(overwritten(saved(picture())), 30_000)]
    found = decoder.submit(jpegs).result()
    assert found[2] is None
    for pixels, same in zip(found[:2] + found[3:], alone, strict=True):
        assert pixels is not None
        np.testing.assert_array_equal(pixels, same)


def test_what_is_decoded_together_is_limited(decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """thingsvision#96: memory grew with the data set."""
    sizes: list[int] = []
    decode = device_decoder._decode

    def counting(contents: list[bytes], device: torch.device) -> list[torch.Tensor]:
        images = decode(contents, device)
        sizes.append(sum(image[0].numel() for image in images))
        return images

    monkeypatch.setattr(device_decoder, "_decode", counting)
    monkeypatch.setattr(device_decoder, "JPEG_PIXELS", 25_000)
    jpegs = [jpeg for size in ((100, 100), (100, 110), (300, 200), (10, 10), (90, 90), (99, 99))
             if (jpeg := ON_CPU.jpeg(saved(picture(size))))]
    assert len(decoder.submit(jpegs).result()) == 6
    assert sizes == [21_000, 60_000, 100 + 8_100 + 9_801]


def test_pixels_of_another_kind_of_device_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"decoded by torchvision on cuda, and it runs on cpu.*use --device cuda"):
        DeviceDecoder(Preparation((48, 48), decode="torchvision-cuda"), CPU, 1)


def test_a_torchvision_without_the_decoder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is deprecated there since 0.29, and CUDA's is in some builds only."""
    import torchvision.io

    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    with pytest.raises(EncoderError, match=r"^--decode torchvision: torchvision \S+ cannot decode JPEGs on cpu \(.+\): "
                                           "use --decode fast"):
        check_device(CPU)


@dataclass
class Here:
    """Bytes that the process of the test has."""

    content: bytes
    reading: str = "process"

    def read(self) -> bytes:
        return self.content


class Slow:
    """Gives pictures of one colour, the length of the file; fails on chosen ones.

    least: bytes before which it does not begin. most: bytes that it had at once.
    """

    def __init__(self, fails: Callable[[bytes], bool] = lambda _: False, least: int = 0) -> None:
        self.fails, self.least, self.most = fails, least, 0
        self.enough, self.pool = threading.Event(), ThreadPoolExecutor(1)
        self.given: list[tuple[int, Future[list[np.ndarray | None]]]] = []

    def submit(self, jpegs: list[Jpeg]) -> Future[list[np.ndarray | None]]:
        self.given.append((sum(len(jpeg.content) for jpeg in jpegs), self.pool.submit(self.work, jpegs)))
        self.most = max(self.most, sum(size for size, future in self.given if not future.done()))
        if self.most >= self.least:
            self.enough.set()
        return self.given[-1][1]

    def work(self, jpegs: list[Jpeg]) -> list[np.ndarray | None]:
        self.enough.wait(600)
        return [None if self.fails(jpeg.content) else np.full((8, 8, 3), len(jpeg.content) % 251, np.uint8)
                for jpeg in jpegs]


def noise(number: int) -> bytes:
    """A JPEG of a third of a megabyte."""
    random = np.random.default_rng(number)
    return saved(Image.fromarray(random.integers(0, 256, (400, 400 + number, 3), dtype=np.uint8)), quality=97)


def collect(contents: list[bytes], device: Slow) -> tuple[dict[int, np.ndarray], Decoders]:
    """The pixels of all, in order."""
    found: dict[int, np.ndarray] = {}
    with Decoders(len(contents), 2) as decoders, device.pool:
        preparation = Preparation((8, 8), decode="torchvision-cpu")
        for batch in decoders.batches(enumerate(map(Here, contents)), preparation, 16, 3, device=device):
            assert not any(batch.reasons)
            found |= zip(batch.rows, batch.pixels.copy(), strict=True)
            decoders.release(batch)
    assert list(found) == list(range(len(contents)))
    return found, decoders


def test_large_files_pass_both_ways_and_few_wait_for_a_slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end of a socket may wait for the other; what a device has not taken stays with the processes."""
    contents = [noise(each) for each in range(40)]
    task = 4 * max(map(len, contents))
    monkeypatch.setattr(batches, "_WAITING_BYTES", task)
    device = Slow(least=task)
    found, decoders = collect(contents, device)
    assert all((pixels == len(contents[row]) % 251).all() for row, pixels in found.items())
    assert task <= device.most <= 3 * task  # both processes may be heard at once
    assert decoders.given_back == 0


def test_what_the_device_cannot_decode_is_decoded_exactly_by_the_processes() -> None:
    contents = [saved(picture((60 + each, 50))) for each in range(20)]
    failing = set(contents[3:14:5])
    found, decoders = collect(contents, Slow(failing.__contains__))
    assert decoders.given_back == len(failing) == 3
    for row, content in enumerate(contents):
        np.testing.assert_array_equal(found[row], Preparation((8, 8)).pixels(content) if content in failing else
                                      np.full((8, 8, 3), len(content) % 251))
