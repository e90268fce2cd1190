"""Pictures of every mode: the pixels that the encoder's own preprocessing would see, without a warning."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.decoding import preparation
from onceclip.pipeline.errors import BadImage
from onceclip.stores import open_store

Extract = Callable[..., Any]
FolderOf = Callable[..., Path]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def palette_with_transparency() -> bytes:
    image = picture("P")
    return saved(image, "png", transparency=bytes(range(256)))


def sixteen_bits() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)), "png")


ODD_FILES = {
    "one.png": lambda: saved(picture(size=(1, 1)), "png"),
    "long.png": lambda: saved(picture(size=(300, 2)), "png"),
    "grey.png": lambda: saved(picture("L"), "png"),
    "greyalpha.png": lambda: saved(picture("LA"), "png"),
    "alpha.png": lambda: saved(picture("RGBA"), "png"),
    "bits.png": lambda: saved(picture("1"), "png"),
    "cmyk.jpg": lambda: saved(picture("CMYK"), "jpeg"),
    "palette.png": palette_with_transparency,
    "sixteen.png": sixteen_bits,
    "film.gif": lambda: saved(picture("P"), "gif", save_all=True, append_images=[Image.new("P", (40, 30))] * 3),
    "really-a-png.jpg": lambda: saved(picture(), "png"),
}


@pytest.fixture
def root(folder_of: FolderOf) -> Path:
    return folder_of({"disc": 6, "ring": 6})


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_image_is_encoded_as_by_the_encoders_own_preprocessing(
        root: Path, tmp_path: Path, extract_demo: Extract, encoder: Any, name: str,
        own_preprocess: Callable[..., np.ndarray]) -> None:
    """Modes that Pillow converts with a warning; 16 bits, which it clips to white (lessons.md, part E)."""
    content = ODD_FILES[name]()
    (root / "disc" / name).write_bytes(content)
    done = extract_demo(root, tmp_path / "s.zarr")
    assert (done.bad_images, done.encoded) == ({}, 13)
    plain: Image.Image = Image.open(io.BytesIO(content))
    if name == "sixteen.png":
        plain = Image.fromarray((np.asarray(plain) // 256).astype(np.uint8))
    with warnings.catch_warnings(action="ignore"):
        expected = encoder.encode_images(own_preprocess(plain))["embedding"]
    store = open_store(str(tmp_path / "s.zarr"))
    row = np.flatnonzero(store.table.key == f"disc/{name}")
    np.testing.assert_allclose(store.embeddings(row), expected, atol=1e-2 * np.abs(expected).max())


def test_the_cameras_orientation_is_left_alone_like_the_encoders_own_preprocessing(root: Path, tmp_path: Path,
                                                                                   extract_demo: Extract) -> None:
    """vision#7977: papers' pipelines ignore EXIF; turning images here would silently differ from them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "disc" / "plain.png").write_bytes(saved(picture(), "png"))
    (root / "disc" / "turned.png").write_bytes(saved(picture(), "png", exif=exif))
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    rows = [int(np.flatnonzero(store.table.key == f"disc/{name}.png")[0]) for name in ("plain", "turned")]
    np.testing.assert_array_equal(*store.embeddings(np.array(rows)))


def test_another_way_of_decoding_is_another_encoder_and_is_never_chosen_by_itself(root: Path, tmp_path: Path,
                                                                                  run_json: Callable[..., Any],
                                                                                  run: Callable[..., Any]) -> None:
    """clip-retrieval#264: what made the pixels belongs to what identifies the embeddings."""
    command = ("extract", root, tmp_path / "s.zarr", "--model", "demo")
    plain = run_json(*command)["encoder"]
    assert not {"decode", "exif"} & set(plain)
    for options in (("--decode", "fast"), ("--exif",)):
        refused = run(*command, *options)
        assert refused.exit_code == 1
        assert f"they differ in {options[0].strip('-')}" in refused.stderr
        other = run_json("extract", root, tmp_path / f"{options[-1]}.zarr", "--model", "demo", *options)["encoder"]
        assert other["fingerprint"] != plain["fingerprint"]


def test_images_are_turned_as_their_cameras_say_where_that_is_asked_for(root: Path, tmp_path: Path,
                                                                        run_json: Callable[..., Any]) -> None:
    """vision#7977: photographs of phones lie on their side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "disc" / "plain.png").write_bytes(saved(picture().transpose(Image.Transpose.ROTATE_270), "png"))
    (root / "disc" / "turned.png").write_bytes(saved(picture(), "png", exif=exif))
    run_json("extract", root, tmp_path / "s.zarr", "--model", "demo", "--exif", "--batch-size", 1)
    store = open_store(str(tmp_path / "s.zarr"))
    rows = [int(np.flatnonzero(store.table.key == f"disc/{name}.png")[0]) for name in ("plain", "turned")]
    np.testing.assert_array_equal(*store.embeddings(np.array(rows)))


def test_photographs_of_phones_are_read_where_pillow_heif_is_installed(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow does not look for it by itself, and `pip install pillow-heif` changed nothing."""
    (tmp_path / "pillow_heif.py").write_text(
        "import io\nfrom PIL import Image\ndef register_heif_opener():\n"
        "    Image.register_open('HEIF', lambda file, _: Image.open(io.BytesIO(file.read()[12:]), formats=['PNG']),\n"
        "                        lambda start: start[4:12] == b'ftypheic')\n")
    content = b"\0\0\0\x0cftypheic" + saved(picture(), "png")
    monkeypatch.setattr(preparation, "_formats", preparation._formats.__wrapped__)
    with pytest.raises(BadImage, match="not an image"):
        preparation.Preparation((8, 8)).open(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert preparation.Preparation((8, 8)).open(content).size == (40, 30)
