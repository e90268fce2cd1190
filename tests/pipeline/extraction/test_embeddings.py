"""Embeddings that no method could tell apart are not kept without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.survey import ExtractOptions

MODULE = """
import numpy as np
import torch

def preprocess(image):
    return np.asarray(image.convert("RGB").resize((8, 8)), np.float32).transpose(2, 0, 1) / 255

class Encoder:
    name, dim, identity = "own", 4, {"version": 1}
    preprocess = staticmethod(preprocess)

    def encode_image(self, pixels):
        return VALUES

def load():
    return Encoder()
"""


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], EncoderSpec]:
    """Write an encoder that gives some values: encoder(module, values)."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name: str, values: str) -> EncoderSpec:
        (tmp_path / f"{name}.py").write_text(MODULE.replace("VALUES", values))
        return EncoderSpec(f"{name}:load")

    return write


def test_zeros_are_no_embedding(encoder: Callable[[str, str], EncoderSpec], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the encoder gave zeros"):
        extract(pictures, tmp_path / "s.zarr", encoder("gives_zeros", "torch.zeros(len(pixels), 4)"),
                ExtractOptions(workers=1))


def test_one_embedding_of_all_pictures_is_told(encoder: Callable[[str, str], EncoderSpec], pictures: Path,
                                               tmp_path: Path) -> None:
    same = encoder("gives_ones", "torch.ones(len(pixels), 4) + 1e-5 * pixels[:, :1, 0, 0]")
    done = extract(pictures, tmp_path / "s.zarr", same, ExtractOptions(workers=1))
    assert any("own gives 16 different pictures the same embedding" in each for each in done.warnings)
    other = encoder("gives_means", "torch.cat([pixels.mean(dim=(2, 3)), torch.ones(len(pixels), 1)], dim=1)")
    done = extract(pictures, tmp_path / "other.zarr", other, ExtractOptions(workers=1))
    assert not any("the same embedding" in each for each in done.warnings)
