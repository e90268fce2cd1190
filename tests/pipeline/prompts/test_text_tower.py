"""`onceclip text --tower`: the encoder's text model in the store, and methods that learn prompts with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import METHODS, MethodError, load_classifier
from onceclip.adapters.ops import unit
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.errors import EncoderError, PromptError
from onceclip.pipeline.evaluation.evaluate import score
from onceclip.pipeline.export import export
from onceclip.pipeline.prompts.tower import add_tower, make_tower
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import sweep
from onceclip.pipeline.tasks.tasks import read_tower
from onceclip.stores import StoreDamaged, StoreIncomplete, StoreMismatch, StoreWriter, open_store
from onceclip.stores.compact import compact
from onceclip.stores.verification import verify

LEARNERS = [name for name, method in METHODS.items() if method.wants_tower and method.inputs == ("embedding",)]


@pytest.fixture(scope="module")
def towered(store_path: Path, encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared store with its text tower; not to be changed."""
    path = Path(shutil.copytree(store_path, tmp_path_factory.mktemp("towered") / "glyphs.zarr"))
    add_tower(str(path), encoder)
    return path


@pytest.fixture
def copied(towered: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(towered, tmp_path / "copied.zarr"))


def quick(name: str, **values: Any) -> dict[str, Any]:
    few = {"epochs": 2, "hidden": 16, "contexts": 2}
    return {**{key: value for key, value in few.items() if key in METHODS[name].hyperparameters}, **values}


def test_the_tower_gives_what_the_encoder_gives(towered: Path, encoder: Any) -> None:
    store = open_store(str(towered))
    tower = read_tower(store).of(store.classes)
    sentences = [f"a photo of a {name}." for name in store.classes]
    theirs = encoder.encode_tokens(encoder.tokenizer(sentences))
    np.testing.assert_allclose(tower.encode_tokens(encoder.tokenizer(sentences)).numpy(), theirs, rtol=0,
                               atol=1e-5 * np.abs(theirs).max())
    vectors = tower.encode(tower.phrase("a photo of a"))
    torch.testing.assert_close(vectors, unit(torch.from_numpy(store.text().embedding)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_method_that_learns_prompts_runs_on_a_store(towered: Path, name: str) -> None:
    """Two fits agree to the bit, and a row names the tower that it was fitted with."""
    store = open_store(str(towered))
    first, second = (fit(store, RunSpec(name, 2, values=quick(name), select="fixed")) for _ in range(2))
    rows = store.embeddings(store.rows("test"))
    assert torch.equal(first.classifier.logits(rows), second.classifier.logits(rows))
    assert first.row["fingerprints"]["tower"] == store.tower_attributes["fingerprint"]
    assert 0 <= first.row["accuracy"] <= 1
    assert first.row["run"] == second.row["run"] != RunSpec("gda", 2).identity(store)


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_base_to_new_and_a_saved_adapter_on_other_classes(towered: Path, tmp_path: Path, name: str) -> None:
    store = open_store(str(towered))
    fitted = fit(store, RunSpec(name, 4, values=quick(name), select="fixed", classes="base"))
    row = fitted.row
    assert row["classes"] == row["classes_new"] == 2
    assert row["harmonic_mean"] is not None
    fitted.classifier.save(tmp_path / "adapter")
    loaded = load_classifier(tmp_path / "adapter")
    rows = store.embeddings(store.rows("test"))
    assert torch.equal(loaded.logits(rows), fitted.classifier.logits(rows))
    scores = score(loaded, store, classes="new").as_values()
    assert scores["accuracy"] is not None
    assert scores["n"] == row["n_test_new"]


def test_contexts_of_their_own_serve_no_other_class_and_say_so(towered: Path, run: Callable[..., Any],
                                                              tmp_path: Path) -> None:
    store, out = open_store(str(towered)), tmp_path / "adapter"
    fitted = fit(store, RunSpec("coop", 2, values=quick("coop", per_class=True), select="fixed", classes="base"))
    assert (fitted.row["accuracy_new"], fitted.row["harmonic_mean"]) == (None, None)
    fitted.classifier.save(out)
    result = run("evaluate", out, towered, "--classes", "new")
    assert result.exit_code == 1
    assert "was saved without what it needs for other classes" in result.stderr


def test_training_moves_what_the_classifier_says_towards_its_images(towered: Path) -> None:
    store = open_store(str(towered))
    task = make_task(store, tower=True)
    plain, learned = (METHODS["coop"](epochs=epochs, learning_rate=8e-3).fit(task) for epochs in (0, 40))
    losses = [torch.nn.functional.cross_entropy(each.logits(task.support.embedding), task.support.label)
              for each in (plain, learned)]
    assert losses[1] < 0.8 * losses[0]


def test_the_command_writes_once_and_again_only_for_more_words(copied: Path, run_json: Callable[..., Any],
                                                               run: Callable[..., Any]) -> None:
    first = run_json("text", copied, "--tower")
    assert (first["written"], first["classes"]) == (False, 4)
    more = run_json("text", copied, "--tower", "--words", "a blurry picture")
    assert more["written"]
    assert {"a blurry picture", "blurry", "a photo of a"} <= set(more["phrases"])
    assert run_json("text", copied, "--tower")["written"] is False
    done = run("fit", copied, "--method", "coop", "--shots", "2", "--set", "words=a blurry photo", "--set", "epochs=1")
    assert done.exit_code == 0, done.stderr
    unknown = run("fit", copied, "--method", "coop", "--shots", "2", "--set", "words=a vague photo")
    assert unknown.exit_code == 1
    assert "no tokens for the word 'vague'" in unknown.stderr


@pytest.mark.parametrize(("options", "said"), [
    ((), "--name says what to call the set"), (("--tower", "--name", "x"), "--tower makes no text set"),
    (("--tower", "--templates", "photo"), "--tower makes no prompts"),
    (("--tower", "--names", "a,b"), "--tower makes no prompts"),
    (("--tower", "--truncate"), "--tower makes no prompts"),
    (("--name", "x", "--words", "a"), "--words goes with --tower")])
def test_options_that_do_not_go_together_are_one_line(towered: Path, run: Callable[..., Any], options: tuple[str, ...],
                                                      said: str) -> None:
    result = run("text", towered, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_without_a_tower_the_command_that_writes_one_is_named(store_path: Path, run: Callable[..., Any]) -> None:
    result = run("fit", store_path, "--method", "coop", "--shots", "2")
    assert result.exit_code == 1
    assert "coop needs the encoder's text tower and the task has none" in result.stderr
    assert "`onceclip text STORE --tower`" in result.stderr
    with pytest.raises(StoreIncomplete, match="--tower"):
        open_store(str(store_path)).tower()
    with pytest.raises(MethodError, match=r"coop needs the encoder's text tower .*`onceclip text STORE --tower`"):
        METHODS["coop"]().fit(make_task(open_store(str(store_path)), 2))


def test_a_sweep_over_a_store_without_a_tower_goes_on_with_the_other_methods(store_path: Path, tmp_path: Path) -> None:
    specs = make_specs(["coop", "zero-shot"], [1], [1])
    coop, zero_shot = sweep([open_store(str(store_path))], specs, tmp_path)
    assert (coop["accuracy"], "text tower" in coop["error"]) == (None, True)
    assert zero_shot["accuracy"] is not None


def test_a_tower_of_another_encoder_is_refused(copied: Path, other_encoder: str) -> None:
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder

    with pytest.raises(StoreMismatch, match="the text tower"):
        add_tower(str(copied), open_encoder(EncoderSpec(other_encoder)))
    store = open_store(str(copied))
    strange = replace(store.tower(), encoder="0" * 32)
    with pytest.raises(StoreMismatch, match="the text tower"):
        StoreWriter.open(str(copied), store.encoder).put_tower(strange)
    strange.write(store.group.__class__.open(str(copied / "encoder" / "text_tower"), zarr_format=3))
    with pytest.raises(StoreMismatch, match="its text tower is of encoder 0000"):
        open_store(str(copied)).tower()


def test_damage_is_found_by_verify_and_by_who_reads_it(copied: Path) -> None:
    assert verify(str(copied)).faults == []
    chunk, = (path for path in (copied / "encoder" / "text_tower" / "norm.weight" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    assert any("text_tower" in problem.where for problem in verify(str(copied)).faults)
    with pytest.raises(StoreDamaged, match="text_tower"):
        read_tower(open_store(str(copied)))


def test_arrays_that_change_places_are_found(copied: Path) -> None:
    folder = copied / "encoder" / "text_tower"
    for name in ("norm_1.weight", "norm_2.weight"):
        shutil.move(folder / name, folder / f"{name}-moved")
    shutil.move(folder / "norm_1.weight-moved", folder / "norm_2.weight")
    shutil.move(folder / "norm_2.weight-moved", folder / "norm_1.weight")
    with pytest.raises(StoreDamaged, match="not those that its attributes name"):
        open_store(str(copied)).tower()
    assert [problem.where for problem in verify(str(copied)).faults] == ["encoder/text_tower"]


def test_one_that_was_cut_short_counts_as_none_and_is_written_again(copied: Path, encoder: Any) -> None:
    file = copied / "encoder" / "text_tower" / "zarr.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "attributes": {}}))
    assert open_store(str(copied)).tower_attributes == {}
    assert verify(str(copied)).faults == []
    assert add_tower(str(copied), encoder)["written"]
    assert open_store(str(copied)).tower()


def test_a_compact_copy_has_the_tower_too(towered: Path, tmp_path: Path) -> None:
    compact(str(towered), str(tmp_path / "compact.zarr"))
    first, second = (open_store(str(path)).tower() for path in (towered, tmp_path / "compact.zarr"))
    assert first.fingerprint == second.fingerprint
    assert verify(str(tmp_path / "compact.zarr")).faults == []


def test_names_that_end_in_what_a_tokenizer_joins_are_prompts_as_it_makes_them(towered: Path, encoder: Any) -> None:
    """"Dr. No!" and a full stop are other tokens together than one by one."""
    store = open_store(str(towered))
    texts = {"default": {**store.attributes["texts"]["default"]}}
    texts["default"]["source"] = {**texts["default"]["source"], "phrases": {"disc": "Dr. No!", "ring": "U.S."}}
    store.attributes["texts"] = texts
    tower = make_tower(store, encoder)
    assert [tower.spec["stems"][name] for name in ("disc", "ring")] == [
        len(tower.spec["names"][name]) for name in ("disc", "ring")]
    texts["default"]["source"]["phrases"] = {"disc": "very " * 30 + "long"}
    with pytest.raises(PromptError, match=r"is longer than the 24 tokens .*: give the class 'disc' a shorter name"):
        make_tower(store, encoder)


def test_an_encoder_without_a_tower_that_can_be_written_is_one_line(means: str, towered: Path, encoder: Any) -> None:
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder

    with pytest.raises(EncoderError, match="means embeds images only: it has no text tower"):
        make_tower(open_store(str(towered)), open_encoder(EncoderSpec(means)))


def test_cocoop_is_not_exported_and_coop_is(towered: Path, tmp_path: Path) -> None:
    from onceclip.pipeline.errors import ExportError

    task = make_task(open_store(str(towered)), 2, tower=True)
    made = export(METHODS["coop"](epochs=1).fit(task), "safetensors", tmp_path / "coop.safetensors")
    assert made.difference < 1e-4
    with pytest.raises(ExportError, match="cocoop encodes prompts for every image"):
        export(METHODS["cocoop"](epochs=1).fit(task), "onnx", tmp_path / "cocoop.onnx")
