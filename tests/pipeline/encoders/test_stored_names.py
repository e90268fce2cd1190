"""What a file of a stranger names is data: no code of it runs, and nothing is fetched because of it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import zarr

from onceclip.adapters import load_classifier
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.opening import recorded_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError, SourceError
from onceclip.pipeline.prediction.encoding import encoder_of
from onceclip.stores import open_store
from onceclip.stores.schema import ATTRIBUTE, seal

Run = Callable[..., Any]
CODE = "import pathlib\npathlib.Path('ran').touch()\nload = Evil = lambda *_, **__: None\n"
RECORDS = {
    "plug-in": ({"name": "weights_helper:load"}, "--model weights_helper:load"),
    "hub": ({"name": "hf-hub:evil/clip"}, "--model hf-hub:evil/clip"),
    "transformers": ({"name": "transformers:evil/clip"}, "--model transformers:evil/clip"),
    "folder": ({"name": "local-dir:evil"}, "--model local-dir:FOLDER"),
    "weights": ({"name": "ViT-B-32", "pretrained": "evil.pt"}, "--model ViT-B-32 --pretrained evil.pt"),
    "shell": ({"name": "hf-hub:a/b; rm -rf ~"}, f"--model {shlex.quote('hf-hub:a/b; rm -rf ~')}"),
    "terminal": ({"name": "hf-hub:\x1b[2J"}, "\\x1b"),
    "own": ({"name": "mine", "plugin": "mine"}, "--model MODULE:FUNCTION"),
    "imported": ({"name": "x", "imported": True}, "--model (and --pretrained)"),
}


@pytest.fixture
def clone(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that somebody else filled, with code beside what is opened, and no way to fetch anything."""
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        (tmp_path / "ran").touch()
        raise OSError("nothing is to be fetched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights_helper.py").write_text(CODE)
    (tmp_path / "evil.pt").write_bytes(b"weights")
    shutil.copy(image_folder / "disc" / "disc-1.png", tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("door", ["predict", "export", "text", "python"])
def test_no_door_opens_an_encoder_that_only_a_file_names(clone: Path, adapter_path: Path, store_path: Path, run: Run,
                                                         door: str, name: str) -> None:
    record, shown = RECORDS[name]
    record = {**record, "dim": 64, "fingerprint": "0"}
    classifier = replace(load_classifier(adapter_path), provenance={"encoder": record})
    if door == "python":
        with pytest.raises(SourceError) as caught:
            encoder_of(classifier)
        message = str(caught.value)
    else:
        if door == "text":
            group = zarr.open_group(shutil.copytree(store_path, clone / "s.zarr"), mode="r+")
            group.attrs[ATTRIBUTE] = seal({**group.attrs[ATTRIBUTE], "encoder": record})  # type: ignore[dict-item]
            result = run("text", "s.zarr", "--name", "more", "--templates", "imagenet-7")
        else:
            classifier.save(clone / "adapter")
            result = run("predict", "adapter", "photo.png") if door == "predict" else run(
                "export", "adapter", "--to", "torch", "a.pt2", "--with-encoder")
        assert result.exit_code == 1, result.output
        message = result.stderr.strip()
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert shown in message
    assert not (clone / "ran").exists()
    assert "weights_helper" not in sys.modules
    assert str(clone) not in sys.path


@pytest.mark.parametrize("command", ["extract good s.zarr --model demo --workers 1", "evaluate adapter s.zarr",
                                     "predict adapter s.zarr", "info s.zarr", "verify s.zarr"])
def test_commands_on_a_store_leave_its_encoder_alone(clone: Path, adapter_path: Path, store_path: Path, run: Run,
                                                     folder_of: Callable[..., Path], command: str) -> None:
    folder_of({"disc": 2, "ring": 2}, "good")
    group = zarr.open_group(shutil.copytree(store_path, clone / "s.zarr"), mode="r+")
    record = {**open_store(str(store_path)).encoder, "name": "weights_helper:load"}
    group.attrs[ATTRIBUTE] = seal({**group.attrs[ATTRIBUTE], "encoder": record})  # type: ignore[dict-item]
    replace(load_classifier(adapter_path), provenance={"encoder": record}).save(clone / "adapter")
    result = run(*command.split())
    assert result.exit_code == 0, result.output
    assert not (clone / "ran").exists()
    assert "weights_helper" not in sys.modules


def test_what_ships_with_onceclip_is_opened_by_name(encoder: Any) -> None:
    assert recorded_encoder(encoder.info, "a store").info["fingerprint"] == encoder.info["fingerprint"]


@pytest.fixture
def evil(clone: Path) -> Callable[..., str]:
    """The demo model in a folder with a tokenizer of its own code: evil(text={...}, vision={...})."""

    def make(text: dict[str, Any], vision: dict[str, Any]) -> str:
        folder = Path(shutil.copytree(str(files("onceclip.pipeline.encoders") / "demo_model"), clone / "evil"))
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"] |= text
        config["model_cfg"]["vision_cfg"] |= vision
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
        (folder / "evil.py").write_text(CODE)
        return f"local-dir:{folder}"

    return make


@pytest.mark.parametrize(("text", "vision", "message"), [
    ({"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}, {}, "trust_remote_code"),
    ({"hf_model_name": "evil/text"}, {}, "names the repository 'evil/text'"),
    ({}, {"timm_model_name": "hf-hub:evil/image"}, "names the repository 'hf-hub:evil/image'"),
])
def test_a_model_folder_that_wants_code_or_other_repositories_is_refused(
        evil: Callable[..., str], clone: Path, text: dict[str, Any], vision: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder(EncoderSpec(evil(text, vision)))
    assert not (clone / "ran").exists()


def test_a_tokenizer_of_code_is_no_hindrance_where_no_text_is_wanted(evil: Callable[..., str], clone: Path) -> None:
    encoder = open_encoder(EncoderSpec(evil({"hf_tokenizer_name": "x"}, {})))
    assert encoder.dim == 64
    with pytest.raises(EncoderError, match="cannot load the tokenizer of local-dir:"):
        encode_sentences(encoder, ["a photo"])
    assert not (clone / "ran").exists()
