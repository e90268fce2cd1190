"""`preprocess.py` beside an exported model gives the pixels of `predict`, with NumPy and Pillow alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onceclip
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export.export import script_beside

SHAPES = {"4-3": (320, 240), "upright": (240, 320), "panorama": (900, 150), "tiny": (9, 7), "square": (224, 224)}


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of many shapes and kinds."""
    root = tmp_path_factory.mktemp("photos")
    found = []

    def save(image: Image.Image, name: str, **options: Any) -> None:
        image.save(root / name, **options)
        found.append(root / name)

    for name, size in SHAPES.items():
        save(picture(*size), f"{name}.jpg", quality=95)
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(picture(320, 200), f"turned-{orientation}.jpg", exif=exif)
        save(picture(320, 200), f"turned-{orientation}.tiff", exif=exif)
    palette = picture(300, 200).quantize(64)
    save(palette, "palette.png")
    save(palette, "transparent.png", transparency=3)
    save(picture(200, 300).convert("L"), "grey.png")
    save(picture(200, 300).convert("RGBA"), "alpha.webp", lossless=True)
    save(picture(200, 160).convert("CMYK"), "cmyk.jpg")
    save(Image.fromarray(np.arange(200 * 120, dtype=np.uint16).reshape(120, 200) * 2), "deep.png")
    return found


@pytest.mark.parametrize("preparation", [
    Preparation((224, 224)), Preparation((224, 224), exif=True), Preparation((64, 64), interpolation="bilinear"),
    Preparation((96, 64)), Preparation((64, 64), resize_mode="squash"),
    Preparation((64, 64), resize_mode="longest", fill=127), Preparation((224, 224), style="transformers"),
    Preparation((63, 63), style="transformers", exif=True)], ids=str)
def test_pixels_are_those_of_predict_bit_for_bit(preparation: Preparation, photos: list[Path], tmp_path: Path) -> None:
    path, text = script_beside(tmp_path / "pets.onnx", preparation)
    assert path == tmp_path / "preprocess.py"
    script: dict[str, Any] = {"__name__": "preprocess"}
    exec(compile(text, str(path), "exec"), script)
    for photo in photos:
        expected = preparation.pixels(photo.read_bytes()).transpose(2, 0, 1).astype(np.float32) / 255
        np.testing.assert_array_equal(script["prepare"](str(photo)), expected, err_msg=photo.name)
    assert script["pixels"](list(map(str, photos[:3]))).shape == (3, 3, *preparation.size)


def test_a_model_with_its_script_answers_as_predict_does_without_onceclip(
        run: Callable[..., Any], adapter_path: Path, image_folder: Path, photos: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "pets.onnx"
    done = run("export", adapter_path, "--to", "onnx", file, "--with-encoder", "--check", image_folder)
    assert done.exit_code == 0, done.output
    assert f"Its answers on 16 images of {image_folder} differ from onceclip's by" in done.stdout
    assert "preprocess.py makes its pixels" in done.stdout
    code = ("import json, sys, onnxruntime, preprocess\n"
            "session = onnxruntime.InferenceSession(sys.argv[1])\n"
            "found, = session.run(['probabilities'], {'pixels': preprocess.pixels(sys.argv[2:])})\n"
            "assert not {'torch', 'onceclip', 'open_clip'} & set(sys.modules)\n"
            "told = session.get_modelmeta().custom_metadata_map\n"
            "assert json.loads(told['preprocessing'])['size'] == preprocess.HOW['size']\n"
            "print(json.dumps([json.loads(told['class_names']), found.tolist()]))")
    answer = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + code,
                             str(file), *map(str, photos)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    expected = onceclip.predict(adapter_path, list(map(str, photos)), top_k=4)
    names, probabilities = json.loads(answer.stdout)
    found = np.array(probabilities)
    assert [names[place] for place in found.argmax(axis=1)] == [each.class_name for each in expected]
    np.testing.assert_allclose(found.max(axis=1), [each.probability for each in expected], atol=1e-4)


def test_a_script_of_ones_own_or_of_another_encoder_is_never_overwritten(tmp_path: Path) -> None:
    path, text = script_beside(tmp_path / "a.onnx", Preparation((224, 224)))
    path.write_text(text)
    assert script_beside(tmp_path / "b.onnx", Preparation((224, 224))) == (path, text)
    with pytest.raises(ExportError, match="is there already"):
        script_beside(tmp_path / "a.onnx", Preparation((336, 336)))
    path.write_text("print('mine')")
    with pytest.raises(ExportError, match="is there already"):
        script_beside(tmp_path / "a.onnx", Preparation((224, 224)))
