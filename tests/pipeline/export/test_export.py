"""An adapter in files for other programs: what they say, what they tell of themselves, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from onceclip.adapters import Classifier, load_classifier
from onceclip.adapters.heads import Linear, Sum
from onceclip.adapters.heads.linear import as_linear
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export import FORMATS, export
from onceclip.pipeline.export.export import prepared_images
from onceclip.pipeline.export.model import Subject
from onceclip.pipeline.export.publish import FOLDER
from onceclip.pipeline.export.store_file import FORMATS as OF_STORES
from onceclip.stores import open_store

Run = Callable[..., Any]
FILES = {"safetensors": "a.safetensors", "torch": "a.pt2", "onnx": "a.onnx"}


@pytest.fixture(scope="module")
def linear_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter that is one linear map, with a temperature."""
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec

    path = tmp_path_factory.mktemp("linear") / "adapter"
    fitted = fit(open_store(str(store_path)), RunSpec("gda", 4)).classifier
    replace(fitted, temperature=2.5).save(path)
    return path


def stored(place: Path) -> np.ndarray:
    store = open_store(str(place))
    return store.embeddings(store.rows()).astype(np.float32)


def test_a_linear_adapter_is_two_tensors_and_one_line_of_numpy(linear_path: Path, store_path: Path, tmp_path: Path,
                                                               run_json: Run) -> None:
    file, rows = tmp_path / "new" / "folder" / "a.safetensors", stored(store_path)
    made = run_json("export", linear_path, "--to", "safetensors", file, "--check", store_path)
    assert (made["format"], made["rows"], made["size"]) == ("safetensors", 60, file.stat().st_size)
    assert made["difference"] < 1e-4
    with safe_open(file, framework="numpy") as opened:
        weight, bias, told = opened.get_tensor("weight"), opened.get_tensor("bias"), opened.metadata()
    classifier = load_classifier(linear_path)
    logits = rows / np.linalg.norm(rows, axis=1, keepdims=True) @ weight.T + bias
    np.testing.assert_allclose(logits, classifier.logits(rows).numpy(), atol=1e-4)
    assert tuple(json.loads(told["class_names"])) == classifier.class_names
    assert (told["temperature"], told["rows"], told["logit_scale"]) == ("2.5", "unit", "included")


def test_an_onnx_file_answers_and_tells_what_it_is(adapter_path: Path, store_path: Path, tmp_path: Path,
                                                   run: Run) -> None:
    file, rows, classifier = tmp_path / "a.onnx", stored(store_path), load_classifier(adapter_path)
    result = run("export", adapter_path, "--to", "onnx", file, "--check", store_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "differ from onceclip's by" in result.stdout
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(file)
    logits, probabilities = session.run(["logits", "probabilities"], {"embeddings": rows})
    expected = classifier.logits(rows).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities, classifier.probabilities(rows).numpy(), atol=1e-4)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["class_names"])) == classifier.class_names
    assert told["encoder_fingerprint"] == classifier.provenance["encoder"]["fingerprint"]
    assert float(told["temperature"]) == classifier.temperature
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_the_command_takes_the_formats_of_the_table() -> None:
    from onceclip.pipeline.commands.export import export as command

    choice, = (each.type for each in command.params if each.name == "format")
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == [*FORMATS, *OF_STORES, FOLDER]
    assert all(each.suffix == Path(FILES[name]).suffix for name, each in FORMATS.items())


def test_a_torch_program_of_encoder_and_adapter_holds_the_image_tower_alone(
        adapter_path: Path, encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    classifier, pixels = load_classifier(adapter_path), prepared_images(encoder, image_folder / "disc")
    made = export(classifier, "torch", tmp_path / "a.pt2", encoder, pixels)
    assert (made.rows, made.difference) == (15, pytest.approx(0, abs=1e-4))
    program = torch.export.load(tmp_path / "a.pt2")
    embedded = encoder.encode_images((pixels * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))["embedding"]
    torch.testing.assert_close(program.module()(torch.from_numpy(pixels))[0], classifier.logits(embedded),
                               rtol=1e-5, atol=1e-4)
    assert not [name for name in program.state_dict if "token_embedding" in name]
    assert made.size < 2 * sum(values.nbytes for values in encoder.model.visual.state_dict().values())


def test_what_an_encoder_in_half_precision_exports_computes_in_full(adapter_path: Path, image_folder: Path,
                                                                    encoder: Any) -> None:
    half = open_encoder(EncoderSpec("demo", precision="bf16", device="cpu"))
    classifier = replace(load_classifier(adapter_path), provenance={})
    pixels = torch.from_numpy(prepared_images(encoder, image_folder / "disc"))
    with torch.no_grad():
        rows, exact = (Subject(classifier, each).module.rows(pixels) for each in (half, encoder))
    assert rows.dtype == torch.float32
    assert 0 < float((rows - exact).abs().max()) < 0.1


@pytest.mark.parametrize("kind", ["last", "value"])
def test_an_adapter_of_patch_tokens_gets_those_that_it_was_fitted_on(adapter_path: Path, encoder: Any,
                                                                     image_folder: Path, kind: str) -> None:
    classifier = replace(load_classifier(adapter_path), inputs=("embedding", "token"),
                         provenance={"outputs": {"token": {"tokens": kind}}})
    pixels = prepared_images(encoder, image_folder / "disc")[:3]
    found = encoder.encode_images((pixels * 255).round().astype(np.uint8).transpose(0, 2, 3, 1),
                                  ("embedding", "token"), kind)
    with torch.no_grad():
        rows = Subject(classifier, encoder).module.rows(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(rows, np.concatenate([found["embedding"], found["token"].reshape(3, -1)], axis=1),
                               atol=1e-4)


@pytest.mark.parametrize("format", FILES)
def test_equal_adapters_give_equal_files_with_nothing_of_the_machine_in_them(
        linear_path: Path, tmp_path: Path, format: str) -> None:
    contents = []
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        export(load_classifier(linear_path), format, tmp_path / folder / f"{folder}{Path(FILES[format]).suffix}")
        contents.append((tmp_path / folder / f"{folder}{Path(FILES[format]).suffix}").read_bytes())
    assert contents[0] == contents[1]
    for place in (sys.prefix, str(Path(__file__).parents[3]), str(tmp_path), str(linear_path)):
        assert os.fsencode(place) not in contents[0]


@pytest.fixture
def saved(place: Path, linear_path: Path) -> Path:
    """`place` with further adapters: a linear one, and one of another encoder."""
    (place / "linear").symlink_to(linear_path)
    classifier = load_classifier(place / "adapter")
    replace(classifier, provenance={"encoder": {"name": "ViT-X", "fingerprint": "12"}}).save(place / "foreign")
    replace(classifier, inputs=("embedding", "token"), provenance={}).save(place / "tokens")
    return place


@pytest.mark.parametrize(("command", "message"), [
    ("missing --to onnx a.onnx", "missing is not a saved adapter"),
    ("adapter --to onnx a.bin", "a.bin: give a name that ends in .onnx"),
    ("adapter --to safetensors a.safetensors", "tip-adapter is not one linear map"),
    ("linear --to safetensors a.safetensors --with-encoder", "leave --with-encoder away"),
    ("adapter --to onnx adapter/README.md/a.onnx", "README.md: "),
    ("adapter --to torch a.pt2 --check good", "good is not a store"),
    ("foreign --to torch a.pt2 --check store.zarr", "ViT-X"),
    ("adapter --to torch a.pt2 --with-encoder --check store.zarr/missing", "is no folder"),
    ("adapter --to torch a.pt2 --with-encoder --check no-images", "no images"),
    ("adapter --to torch a.pt2 --with-encoder --model local-dir:other", "name the right one with --model"),
    ("tokens --to torch a.pt2 --with-encoder --model demo", "patch tokens"),
])
def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(saved: Path, run: Run, command: str,
                                                                message: str) -> None:
    before = sorted(saved.iterdir())
    result = run("export", *command.split())
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(saved.iterdir()) == before


@pytest.mark.parametrize(("command", "message"), [
    ("adapter --to onxx a.onnx", "'safetensors', 'torch', 'onnx'"),
    ("adapter a.onnx", "--to"),
    ("adapter --to onnx a.onnx --model demo", "add --with-encoder"),
])
def test_wrong_usage_exits_with_2_and_lists_the_formats(saved: Path, run: Run, command: str, message: str) -> None:
    result = run("export", *command.split())
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_unknown_format_lists_the_formats_in_python_too(adapter_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"did you mean 'onnx'.*safetensors, torch, onnx"):
        export(load_classifier(adapter_path), "onxx", tmp_path / "a.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages_one_line_says_what_to_install(saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch,
                                                            package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("export", "adapter", "--to", "onnx", "a.onnx")
    assert result.exit_code == 1
    assert f"needs the package {package}: pip install 'onceclip[onnx]'" in result.stderr
    assert not (saved / "a.onnx").exists()


def test_a_head_that_a_format_cannot_follow_is_refused_with_the_reason(linear_path: Path, tmp_path: Path) -> None:
    class Odd(Linear):
        def __call__(self, rows: torch.Tensor) -> torch.Tensor:
            return super().__call__(rows) * (1 if rows.sum().item() > 0 else 2)

    class Bessel(Linear):
        def __call__(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(super().__call__(rows))

    linear = as_linear(load_classifier(linear_path).head)
    assert linear is not None
    for kind, format, words in ((Odd, "torch", r"torch\.export cannot follow gda \(.+\): use `onceclip predict`"),
                                (Bessel, "onnx", r"ONNX does not have all that gda computes \(.+\): use --to torch")):
        classifier = replace(load_classifier(linear_path), head=kind(linear.weight, linear.bias))
        with pytest.raises(ExportError, match=words) as raised:
            export(classifier, format, tmp_path / FILES[format])
        assert len(str(raised.value).splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def test_large_terms_of_a_sum_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """A file may be nearer to the truth than onceclip, whose terms are rounded before they cancel each other."""
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    head = Sum((Linear(1e5 * weight), Linear(weight - 1e5 * weight)), (1.0, 1.0))
    made = export(Classifier(head, ("a", "b", "c"), 8, "zero-shot"), "safetensors", tmp_path / "a.safetensors")
    assert 1e-4 < made.difference < 0.1


def test_a_text_set_of_an_earlier_file_is_not_taken_for_the_stores(store_path: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "out.text-gpt.npz").write_bytes(b"of another store")
    done = run("export", store_path, "--to", "npz", tmp_path / "out.npz")
    assert done.exit_code == 1
    assert "out.text-gpt.npz is beside out.npz" in done.stderr
    assert not (tmp_path / "out.npz").exists()
