"""A store that has all that is asked for is left alone without loading the encoder, and only then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction import processes
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.stores import StoreMismatch, open_store

Extract = Callable[..., Any]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders that are loaded."""
    found: list[str] = []
    open_encoder = processes.open_encoder

    def counting(spec: EncoderSpec) -> Any:
        found.append(spec.model)
        return open_encoder(spec)

    monkeypatch.setattr(processes, "open_encoder", counting)
    return found


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"disc": 4, "ring": 4})


@pytest.fixture
def path(root: Path, tmp_path: Path, extract_demo: Extract) -> Path:
    extract_demo(root, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def test_nothing_is_loaded_where_nothing_is_new_and_the_answer_is_the_same(
        root: Path, path: Path, extract_demo: Extract, loads: list[str]) -> None:
    done = extract_demo(root, path)
    assert loads == []
    assert (done.images, done.reused, done.encoded, done.text["prompts"], done.text["encoded"]) == (8, 8, 0, 2, 0)
    assert done.encoder == open_store(str(path)).encoder


@pytest.mark.parametrize("options", [{"templates": ("a drawing of a {}.",)}, {"phrases": {"disc": "coin"}}], ids=str)
def test_new_prompts_are_embedded(root: Path, path: Path, extract_demo: Extract, loads: list[str],
                                  options: dict[str, Any]) -> None:
    assert extract_demo(root, path, **options).text["encoded"] > 0
    assert loads == ["demo"]
    assert extract_demo(root, path, **options).text["encoded"] == 0
    assert loads == ["demo"]


def test_changed_moved_removed_and_new_files_are_seen(root: Path, path: Path, extract_demo: Extract, loads: list[str],
                                                      glyph: Callable[..., Path]) -> None:
    first, second, third, *_ = sorted((root / "disc").glob("*.png"))
    glyph(first, "disc", 100)
    second.rename(root / "ring" / "moved.png")
    third.unlink()
    done = extract_demo(root, path)
    assert (done.encoded, done.moved, done.removed) == (1, 1, 1)
    assert loads == ["demo"]


def test_other_outputs_and_splits_are_refused_as_before(root: Path, path: Path, extract_demo: Extract) -> None:
    with pytest.raises(StoreMismatch, match="no preproj"):
        extract_demo(root, path, outputs=OutputOptions(preproj=True))
    with pytest.raises(SourceError, match="keep their split"):
        extract_demo(root, path, split_seed=7)


def test_a_folder_of_weights_counts_by_its_content_and_not_by_its_name(root: Path, tmp_path: Path, other_encoder: str,
                                                                       extract_demo: Extract, loads: list[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(str(files("onceclip.pipeline.encoders") / "demo_model"), folder)
    extract_demo(root, tmp_path / "s.zarr", f"local-dir:{folder}")
    loads.clear()
    folder.rename(tmp_path / "renamed")
    extract_demo(root, tmp_path / "s.zarr", f"local-dir:{tmp_path / 'renamed'}")
    assert loads == []
    weights = "open_clip_model.safetensors"
    shutil.copy(Path(other_encoder.removeprefix("local-dir:")) / weights, tmp_path / "renamed" / weights)
    with pytest.raises(StoreMismatch, match="made by encoder"):
        extract_demo(root, tmp_path / "s.zarr", f"local-dir:{tmp_path / 'renamed'}")


def test_words_that_may_mean_another_encoder_are_another_request(tmp_path: Path) -> None:
    spec = EncoderSpec("ViT-B-32", "openai", device="cpu")
    others = [EncoderSpec("ViT-B-16", "openai", device="cpu"), EncoderSpec("ViT-B-32", "laion400m_e32", device="cpu"),
              EncoderSpec("ViT-B-32", "openai", device="cpu", precision="bf16"),
              EncoderSpec("ViT-B-32", "openai", device="cuda"),
              EncoderSpec("ViT-B-32", "openai", device="cpu", exif=True),
              EncoderSpec("ViT-B-32", "openai", device="cpu", decode="fast")]
    assert len({each.request for each in (spec, *others)}) == 1 + len(others)
    assert spec.request == EncoderSpec("ViT-B-32", "openai", device="cpu", cache_dir=str(tmp_path)).request
    assert EncoderSpec("module:function").request is None


def test_a_store_of_before_is_loaded_once_and_then_known(root: Path, path: Path, extract_demo: Extract,
                                                         loads: list[str]) -> None:
    from onceclip.stores import StoreWriter

    StoreWriter.open(str(path), open_store(str(path)).encoder).update(request=None)
    extract_demo(root, path)
    extract_demo(root, path)
    assert loads == ["demo"]
