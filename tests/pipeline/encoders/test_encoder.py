"""Which encoder, exactly: what would give wrong embeddings in silence is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from onceclip.pipeline.encoders import EncoderSpec, check_spec, open_encoder
from onceclip.pipeline.encoders.open_clip_models import OpenClipBackend
from onceclip.pipeline.errors import DeviceError, EncoderError


@pytest.fixture
def model_copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copy the demo model's folder to another place."""
    return lambda name: Path(shutil.copytree(str(files("onceclip.pipeline.encoders") / "demo_model"), tmp_path / name))


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def info(folder: Path) -> dict[str, Any]:
    return open_encoder(EncoderSpec(f"local-dir:{folder}")).info


def test_a_fingerprint_does_not_depend_on_where_the_weights_lie(encoder: Any,
                                                                model_copy: Callable[[str], Path]) -> None:
    """datasets#2496: a fingerprint that changes when the folder is moved."""
    infos = [info(model_copy(name)) for name in ("here", "there")]
    assert [each["fingerprint"] for each in infos] == [encoder.info["fingerprint"]] * 2
    assert [each["name"] for each in infos] == ["local-dir:here", "local-dir:there"]


def test_a_relative_folder_has_a_plain_name(model_copy: Callable[[str], Path], tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    model_copy("here")
    monkeypatch.chdir(tmp_path)
    assert info(Path("here"))["name"] == "local-dir:here"


def test_one_changed_weight_is_another_encoder(encoder: Any, other_encoder: str) -> None:
    other = open_encoder(EncoderSpec(other_encoder)).info
    assert other["fingerprint"] != encoder.info["fingerprint"]
    assert other["weights"] != encoder.info["weights"]


@pytest.mark.parametrize("change", [{"mean": [0.4, 0.5, 0.5]}, {"interpolation": "bilinear"},
                                    {"resize_mode": "squash"}])
def test_another_preprocessing_is_another_encoder(encoder: Any, model_copy: Callable[[str], Path],
                                                  change: dict[str, Any]) -> None:
    """open_clip#204: wrong mean and deviation once crippled published checkpoints."""
    folder = model_copy("changed")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= change
    path.write_text(json.dumps(config))
    changed = info(folder)
    assert changed["fingerprint"] != encoder.info["fingerprint"]
    assert changed["weights"] == encoder.info["weights"]


def test_the_activation_is_part_of_the_fingerprint(encoder: Any, model_copy: Callable[[str], Path]) -> None:
    """open_clip#771: QuickGELU was lost when a model was saved and loaded; 0.59 instead of 0.65 in two papers."""
    folder = model_copy("quick")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    quick = info(folder)
    assert (quick["quick_gelu"], encoder.info["quick_gelu"]) == (True, False)
    assert quick["fingerprint"] != encoder.info["fingerprint"]


def test_an_activation_that_does_not_fit_the_weights_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip#970: since then a QuickGELU mismatch warns, and the embeddings are wrong all the same."""
    # The download alone is replaced; open_clip's own check runs before the weights are read.
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *arguments, **options: "/nonexistent")
    with pytest.raises(EncoderError, match=r"QuickGELU mismatch.*ViT-B-32-quickgelu"):
        open_encoder(EncoderSpec("ViT-B-32", "openai"))


def test_a_model_without_weights_is_an_error_that_lists_the_tags() -> None:
    """open_clip#168: without `pretrained` your code will happily chug away on an empty model."""
    with pytest.raises(EncoderError, match=r"ViT-B-32 needs --pretrained.*laion2b_s34b_b79k"):
        check_spec(EncoderSpec("ViT-B-32"))
    check_spec(EncoderSpec("ViT-B-32", allow_random=True))


def test_a_weights_file_without_its_preprocessing_is_an_error(tmp_path: Path) -> None:
    """open_clip#1068: weights from a local file silently got the default mean, deviation and interpolation."""
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    with pytest.raises(EncoderError, match="--preprocess openai"):
        check_spec(EncoderSpec("ViT-B-32", str(tmp_path / "w.safetensors")))
    check_spec(EncoderSpec("ViT-B-32", str(tmp_path / "w.safetensors"), preprocess="openai"))


@pytest.mark.parametrize("model", ["demo", "local-dir:folder", "hf-hub:org/name"])
def test_weights_beside_a_model_that_has_its_own_are_an_error(model: str) -> None:
    """open_clip takes those of the folder then, without a word, and the store would be named after the others."""
    with pytest.raises(EncoderError, match=f"--pretrained mine.pt: {model} has weights of its own: leave it away"):
        check_spec(EncoderSpec(model, "mine.pt"))


@pytest.mark.parametrize("left_out", [{"mean", "std", "interpolation", "resize_mode", "size"}, {"std"}])
def test_a_folder_that_does_not_say_how_images_are_prepared_is_an_error(
        encoder: Any, model_copy: Callable[[str], Path], tmp_path: Path, left_out: set[str]) -> None:
    """open_clip takes CLIP's own mean and deviation for what a configuration leaves out, without a word."""
    folder = model_copy("silent")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    given = config["preprocess_cfg"]
    config["preprocess_cfg"] = {name: value for name, value in given.items() if name not in left_out}
    path.write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="does not say how its images were prepared: add --preprocess openai"):
        info(folder)
    (tmp_path / "p.json").write_text(json.dumps({name: given[name] for name in
                                                 ("mean", "std", "interpolation", "resize_mode")}))
    mended = open_encoder(EncoderSpec(f"local-dir:{folder}", preprocess=str(tmp_path / "p.json"))).info
    assert mended["fingerprint"] == encoder.info["fingerprint"]


def test_a_configuration_of_before_the_resize_could_be_chosen_is_complete(encoder: Any,
                                                                         model_copy: Callable[[str], Path]) -> None:
    folder = model_copy("old")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] = {name: config["preprocess_cfg"][name] for name in ("mean", "std")}
    path.write_text(json.dumps(config))
    assert info(folder)["fingerprint"] == encoder.info["fingerprint"]


@pytest.mark.parametrize("change", [{"interpolation": "nearest"}, {"resize_mode": "stretch"}, {"mean": [0.5]}])
def test_a_preparation_that_is_not_known_is_named(model_copy: Callable[[str], Path], change: dict[str, Any]) -> None:
    folder = model_copy("odd")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=f"prepares images with {next(iter(change))}"):
        info(folder)


@pytest.fixture
def with_weights(model_copy: Callable[[str], Path]) -> Callable[..., Path]:
    """A copy of the demo model whose weights are what a function of them gives, saved by torch or as bytes."""

    def make(change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
        folder = model_copy("trained")
        file = folder / "open_clip_model.safetensors"
        made = change(load_file(file))
        file.unlink()
        if isinstance(made, bytes):
            file.write_bytes(made)
        else:
            torch.save(made, folder / "open_clip_pytorch_model.bin")
        return folder

    return make


@pytest.mark.parametrize("change", [
    lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    lambda weights: {"state_dict": {f"model.{name}": value for name, value in weights.items()}, "epoch": 3},
    lambda weights: {"model": {f"module._orig_mod.{name}": value for name, value in weights.items()}},
], ids=["compiled", "lightning", "distributed"])
def test_weights_are_taken_as_training_tools_save_them(encoder: Any, with_weights: Callable[..., Path],
                                                       change: Any) -> None:
    """open_clip#639: names of a compiled model."""
    assert info(with_weights(change))["fingerprint"] == encoder.info["fingerprint"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda weights: {name: value for name, value in weights.items() if name.startswith("visual")},
     r"Missing key.*positional_embedding.*incomplete or of another architecture"),
    (lambda weights: {**weights, "further.weight": weights["visual.proj"]}, "Unexpected key.*further.weight"),
    (lambda weights: {**weights, "visual.proj": weights["visual.proj"] * float("nan")},
     r"not finite \(visual.proj, float32\)"),
    (lambda weights: {}, "holds no weights"),
    (lambda weights: b"", "is empty"),
    (lambda weights: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    (lambda weights: b"\xff" * 100, "cannot be read as weights"),
    (lambda weights: {"state_dict": weights, "arguments": Path("a")}, "holds more than tensors"),
], ids=["half", "more", "nan", "none", "empty", "pointer", "damaged", "pickled"])
def test_weights_that_cannot_be_used_are_named_in_one_line(with_weights: Callable[..., Path], change: Any,
                                                           message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        info(with_weights(change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{\"means\": [1]}", "{\"mean\": [0.5, 0.5, 0.5]}"])
def test_a_malformed_preprocessing_file_is_a_named_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(EncoderError, match=r"--preprocess .*p.json"):
        open_encoder(EncoderSpec("ViT-B-32", str(tmp_path / "w.safetensors"), preprocess=str(tmp_path / "p.json")))


@pytest.mark.parametrize(("spec", "text"), [
    (EncoderSpec("ViT-B-23", "openai"), "did you mean 'ViT-B-32'"),
    (EncoderSpec("ViT-B-32", "openia"), "did you mean 'openai'"),
    (EncoderSpec("local-dir:/nonexistent/model"), "/nonexistent/model"),
    (EncoderSpec("demo", device="tpu"), "tpu"),
], ids=["model", "tag", "folder", "device"])
def test_what_cannot_be_loaded_is_one_line_that_names_it(spec: EncoderSpec, text: str) -> None:
    with pytest.raises((DeviceError, EncoderError)) as caught:
        open_encoder(spec)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_model_is_refused_before_torch_and_open_clip_are_imported(process: Callable[..., Any]) -> None:
    code = ("import sys; from onceclip.pipeline.encoders import EncoderSpec\n"
            "from onceclip.pipeline.extraction.extract import extract\n"
            "try: extract('.', 's.zarr', EncoderSpec('ViT-B-23', 'openai'))\n"
            "except Exception as error: print(error)\n"
            "print(sorted({'torch', 'open_clip'} & {*sys.modules}))")
    done = process("-c", code)
    assert "did you mean 'ViT-B-32'" in done.stdout, done.stderr
    assert done.stdout.endswith("[]\n")


def test_embeddings_do_not_depend_on_the_batch(encoder: Any) -> None:
    pixels = images(5)
    alone = np.concatenate([encoder.encode_images(row[None])["embedding"] for row in pixels])
    np.testing.assert_allclose(encoder.encode_images(pixels)["embedding"], alone, atol=1e-4)


def test_an_overflow_in_half_precision_is_encoded_again_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """openai/CLIP#198: NaN features in half precision."""
    half = open_encoder(EncoderSpec("demo", precision="bf16"))
    full = open_encoder(EncoderSpec("demo", precision="fp32"))
    assert half.info["fingerprint"] != full.info["fingerprint"]
    pixels = images(3)
    expected, plain = full.encode_images(pixels)["embedding"], OpenClipBackend.images

    def overflowing(backend: OpenClipBackend, batch: torch.Tensor, *wanted: Any) -> dict[str, torch.Tensor]:
        given = plain(backend, batch, *wanted)
        if batch.dtype == torch.bfloat16:
            given["embedding"][1] = float("inf")
        return given

    monkeypatch.setattr(OpenClipBackend, "images", overflowing)
    found = half.encode_images(pixels)["embedding"]
    assert np.isfinite(found).all()
    distance = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distance[1] < 0.03  # weights that bfloat16 rounded, computed in float32


def test_a_folder_with_a_configuration_and_no_weights_is_an_error(model_copy: Callable[[str], Path]) -> None:
    """open_clip#204, #168: without weights the code happily chugs away on an empty model; hub names go the same way."""
    folder = model_copy("empty")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(EncoderError, match="cannot load"):
        open_encoder(EncoderSpec(f"local-dir:{folder}"))
    assert open_encoder(EncoderSpec(f"local-dir:{folder}", allow_random=True)).dim == 64


def test_weights_that_cannot_be_downloaded_are_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise LocalEntryNotFoundError("we cannot find the files in the cache. Please check your connection")
        except LocalEntryNotFoundError as error:
            raise RuntimeError(f"Failed to download weights: {error}. Please check your connection") from error

    monkeypatch.setattr("open_clip.create_model", fail)
    with pytest.raises(EncoderError) as caught:
        open_encoder(EncoderSpec("ViT-B-32", "openai"))
    assert str(caught.value) == (
        "ViT-B-32 with openai is in no cache of this machine, and the network does not answer: check it, or use "
        "local-dir:FOLDER or a weights file for --pretrained; --model demo works without one")
