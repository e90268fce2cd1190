"""From the bytes of a file to pixels: bit for bit open_clip's own transform, unless something else is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.functional import normalize, to_tensor

from onceclip.pipeline.decoding.preparation import Preparation, decoding
from onceclip.pipeline.decoding.views import TEN_CROP
from onceclip.pipeline.errors import BadImage

MODES = ("RGB", "L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "LAB", "transparent", "bytes")
SIZES = ((1, 1), (2, 300), (300, 2), (500, 375), (375, 500), (32, 32), (31, 33), (64, 1000), (7, 5), (3000, 20))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with decoding():
        yield


def odd_image(number: int) -> bytes:
    """One of many images of every mode and shape, as a file."""
    random = np.random.default_rng(number)
    mode, size = MODES[number % len(MODES)], SIZES[number // len(MODES) % len(SIZES)]
    smooth = random.integers(0, 256, (max(2, size[1] // 20), max(2, size[0] // 20), 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)
    file, options = io.BytesIO(), {}
    if mode == "transparent":
        image, options = image.convert("P"), {"transparency": 3}
    elif mode == "bytes":
        image, options = image.convert("P"), {"transparency": bytes(range(256))}
    else:
        image = image.convert(mode)
        if mode in ("LA", "RGBA"):  # seen through in places, which Pillow's resizing weighs by
            image.putalpha(Image.fromarray(smooth[..., 0]).resize(size))
    kind = {"RGB": "jpeg", "L": "jpeg", "CMYK": "jpeg", "YCbCr": "tiff", "LAB": "tiff"}.get(mode, "png")
    image.save(file, kind, **options)
    return file.getvalue()


def own_transform(preparation: Preparation) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    height, width = preparation.size
    return image_transform_v2(PreprocessCfg(
        height if height == width else (height, width), mean=preparation.mean, std=preparation.std,
        interpolation=preparation.interpolation, resize_mode=preparation.resize_mode, fill_color=preparation.fill,
    ), is_train=False)


def as_tensor(pixels: np.ndarray, preparation: Preparation) -> torch.Tensor:
    return normalize(to_tensor(pixels.copy()), preparation.mean, preparation.std)


@pytest.mark.parametrize("preparation", [
    Preparation((96, 96)), Preparation((32, 32), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    Preparation((64, 64), resize_mode="longest", fill=127), Preparation((64, 48), resize_mode="squash"),
    Preparation((64, 48), interpolation="bilinear"),
], ids=["clip", "bilinear", "longest", "squash", "oblong"])
def test_pixels_are_open_clips_own_bit_for_bit(preparation: Preparation) -> None:
    """clip-retrieval#264: published embeddings could not be reproduced, another resize was in between."""
    transform = own_transform(preparation)
    for number in range(len(MODES) * len(SIZES) * 2):  # 220 images
        content = odd_image(number)
        try:
            expected = transform(Image.open(io.BytesIO(content)))
        except Exception:
            with pytest.raises(BadImage, match="cannot be prepared"):
                preparation.pixels(content)
            continue
        found = as_tensor(preparation.pixels(content), preparation)
        assert torch.equal(found, expected), f"image {number}: {MODES[number % len(MODES)]}"


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped_to_white(kind: str) -> None:
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    files = [io.BytesIO(), io.BytesIO()]
    if kind == "pgm":
        files[0].write(b"P5\n64 64\n65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(files[0], kind)
    Image.fromarray((deep // 256).astype(np.uint8)).save(files[1], "png")
    found, expected = (Preparation((32, 32)).pixels(file.getvalue()) for file in files)
    np.testing.assert_array_equal(found, expected)
    assert found.max() > found.mean() + 50


def test_integers_of_32_bits_have_no_known_scale_and_are_bad() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(file, "tiff")
    with pytest.raises(BadImage, match="unsupported pixel format I"):
        Preparation((32, 32)).pixels(file.getvalue())


def test_a_file_that_another_program_would_have_to_draw_is_no_image(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript on PostScript, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BadImage, match="not an image"):
        Preparation((8, 8)).pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert not (tmp_path / "called").exists()


def test_text_and_profiles_of_any_size_are_no_damage() -> None:
    """Programs that draw pictures write what they were told into the file."""
    text = PngInfo()
    text.add_text("parameters", "y" * 2_000_000, zip=True)
    profile = np.random.default_rng(0).integers(0, 9, 3_000_000, dtype=np.uint8).tobytes()
    with decoding():
        found = Preparation((32, 32)).pixels(photograph((60, 40), "png", pnginfo=text, icc_profile=profile))
    np.testing.assert_array_equal(found, Preparation((32, 32)).pixels(photograph((60, 40), "png")))


def photograph(size: tuple[int, int], kind: str = "jpeg", **options: Any) -> bytes:
    random = np.random.default_rng(sum(size))
    image = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1920, 1080), (224, 224), (100, 300), (301, 451),
                                  (2000, 100)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_fast_pixels_are_close_and_in_the_same_place(size: tuple[int, int], mode: str, kind: str) -> None:
    exact = Preparation((224, 224), resize_mode=mode)
    content = photograph(size, kind)
    plain = exact.pixels(content).astype(int)
    fast = replace(exact, decode="fast").pixels(content).astype(int)
    assert np.abs(plain - fast).mean() < 1.0
    assert np.abs(plain - fast).max() <= (24 if kind == "jpeg" else 2)


def test_fast_decodes_a_large_jpeg_at_reduced_size_but_never_below_twice_the_target() -> None:
    content = photograph((1920, 1080))
    fast = Preparation((224, 224), decode="fast").open(content)
    assert (fast.image.size, fast.size) == ((960, 540), (1920, 1080))
    assert Preparation((224, 224), decode="fast").open(photograph((800, 600))).image.size == (800, 600)
    assert Preparation((224, 224)).open(content).image.size == (1920, 1080)
    assert Preparation((224, 224), decode="fast").open(content, whole=True).image.size == (1920, 1080)


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied_where_it_is_asked_for(orientation: int, decode: str) -> None:
    """vision#7977: photographs of phones lie on their side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, plain = photograph((300, 200), exif=exif), photograph((300, 200))
    turns = {1: (), 2: ("FLIP_LEFT_RIGHT",), 3: ("ROTATE_180",), 4: ("FLIP_TOP_BOTTOM",), 5: ("TRANSPOSE",),
             6: ("ROTATE_270",), 7: ("TRANSVERSE",), 8: ("ROTATE_90",)}
    upright = Image.open(io.BytesIO(plain))
    for turn in turns[orientation]:
        upright = upright.transpose(Image.Transpose[turn])
    file = io.BytesIO()
    upright.save(file, "png")
    off, on = Preparation((64, 48), decode=decode), Preparation((64, 48), decode=decode, exif=True)
    np.testing.assert_array_equal(off.pixels(content), off.pixels(plain))
    apart = np.abs(on.pixels(content).astype(int) - off.pixels(file.getvalue()))
    assert apart.max() <= (0 if decode == "exact" else 24)
    assert apart.mean() < 4  # a picture on its side is 40 away


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation: int) -> None:
    """Pillow#8390: newer versions turn TIFFs by themselves, and say their size turned before that."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    tiff, png = (photograph((300, 200), kind, exif=exif) for kind in ("tiff", "png"))
    on = Preparation((64, 48), exif=True)
    np.testing.assert_array_equal(on.pixels(tiff), on.pixels(png))
    np.testing.assert_array_equal(TEN_CROP.pixels(tiff, on), TEN_CROP.pixels(png, on))


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_orientation_is_no_reason_to_lose_a_picture(exif: bytes) -> None:
    content = photograph((60, 40), exif=exif)
    np.testing.assert_array_equal(Preparation((32, 32), exif=True).pixels(content),
                                  Preparation((32, 32)).pixels(content))


def test_a_preprocessing_of_its_own_gives_floats_of_the_size_that_it_says(tmp_path: Any,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownprep.py").write_text(
        "import numpy as np\n"
        "def good(image): return np.asarray(image.convert('RGB').resize((4, 4)), float).transpose(2, 0, 1)\n"
        "def wrong(image): return np.zeros((3, 5, 5))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    good = Preparation((4, 4), custom="ownprep:good")
    found = good.pixels(photograph((60, 40)))
    assert (found.shape, found.dtype, good.shape, good.dtype) == ((3, 4, 4), np.float32, (3, 4, 4), np.float32)
    with pytest.raises(BadImage, match=r"ownprep:wrong gave an array of shape \(3, 5, 5\), not \(3, 4, 4\)"):
        replace(good, custom="ownprep:wrong").pixels(photograph((60, 40)))


def test_a_decode_process_can_import_all_it_needs_without_torch(process: Any) -> None:
    """A worker that loads torch costs seconds and hundreds of megabytes, once per core."""
    code = ("import sys, onceclip.pipeline.decoding.worker, onceclip.pipeline.sources;"
            "print(sorted({'torch', 'torchvision', 'open_clip', 'click'} & set(sys.modules)))")
    done = process("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_warnings_of_bombs_are_errors_only_while_decoding() -> None:
    before = list(warnings.filters)
    with decoding():
        pass
    assert warnings.filters == before
