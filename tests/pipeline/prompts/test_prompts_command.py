"""`onceclip text`: a further text set in a store, whole or not at all, and what made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.prompts import load_phrases
from onceclip.stores import Store, StoreMismatch, StoreWriter, TextSet, open_store, write_lock

Json = Callable[..., dict[str, Any]]
LINES = {"ring": ["a ring that is hollow"], "disc": ["a disc that is full", "a disc without a hole"],
         "cross": ["a cross of two strokes"], "bar": ["one bar", "a bar that stands"]}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of sentences for the classes of the shared store, in another order."""
    (tmp_path / "gpt.json").write_text(json.dumps(LINES))
    return tmp_path / "gpt.json"


def content(path: Path, *parts: str) -> dict[str, bytes]:
    """All files of a part of a store."""
    return {str(file): file.read_bytes() for file in sorted(path.joinpath(*parts).rglob("*")) if file.is_file()}


def test_a_set_is_added_without_touching_images_or_other_sets(store_copy: Path, run_json: Json, passed: list[int],
                                                              lines: Path) -> None:
    before = content(store_copy, "image") | content(store_copy, "text", "default")
    known = open_store(str(store_copy)).fingerprint
    done = run_json("text", store_copy, "--name", "gpt", "--prompts", lines, "--templates", "a {}", "--templates", "{}")
    assert (done["prompts"], done["encoded"], done["classes"], done["truncated"]) == (14, 14, 4, 0)
    assert content(store_copy, "image") | content(store_copy, "text", "default") == before
    assert passed == []
    store = open_store(str(store_copy))
    assert (store.fingerprint, store.texts) == (known, ["default", "gpt"])
    text = store.text("gpt")
    assert text.classes == ("bar", "cross", "disc", "ring")
    assert text.prompts[text.class_ptr[2]:text.class_ptr[3]] == ("a disc", "disc", *LINES["disc"])
    assert text.template_id.tolist()[:4] == [0, 1, -1, -1]
    assert np.linalg.norm(text.embedding, axis=1).min() > 2  # raw
    row = run_json("fit", store_copy, "--method", "tip-adapter", "--shots", 2, "--text", "gpt")
    assert (row["text"], row["fingerprints"]["text"]) == ("gpt", done["fingerprint"])


def test_lines_of_a_text_file_that_name_no_class_are_counted(store_copy: Path, run: Callable[..., Any],
                                                             tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a ring\na disc on a bar\na cross\na square\na triangle\n")
    result = run("text", store_copy, "--name", "lines", "--prompts", tmp_path / "lines.txt", "--json")
    assert (result.exit_code, json.loads(result.stdout)["unused"]) == (0, 2), result.stderr
    assert "2 lines of lines.txt left out" in result.stderr


def test_the_same_set_made_in_two_runs_is_equal(store_path: Path, tmp_path: Path, run_json: Json, lines: Path) -> None:
    import shutil

    made = []
    for name in ("one", "two"):
        path = Path(shutil.copytree(store_path, tmp_path / f"{name}.zarr"))
        run_json("text", path, "--name", "w", "--prompts", lines, "--waffle", 5, "--templates", "imagenet-7")
        made.append(open_store(str(path)).text("w"))
    np.testing.assert_array_equal(made[0].embedding, made[1].embedding)
    assert (made[0].fingerprint, made[0].source) == (made[1].fingerprint, made[1].source)


def test_a_dry_run_prints_the_sentences_and_needs_no_encoder(store_copy: Path, run: Callable[..., Any], lines: Path,
                                                             run_json: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb#1103: a look at the sentences would have shown AnnualCrop."""
    def refuse(*arguments: Any) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr("onceclip.pipeline.encoders.opening.open_encoder", refuse)
    before = content(store_copy)
    shown = run("text", store_copy, "--name", "gpt", "--prompts", lines, "--templates", "a {}.", "--dry-run")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[:4] == ["bar\ta bar.", "bar\tone bar", "bar\ta bar that stands", "cross\ta cross."]
    values = run_json("text", store_copy, "--name", "gpt", "--prompts", lines, "--dry-run")
    assert values["prompts"] == {name: LINES[name] for name in ("bar", "cross", "disc", "ring")}
    assert content(store_copy) == before


def test_a_set_is_never_replaced_without_a_word(store_copy: Path, run: Callable[..., Any], run_json: Json) -> None:
    """datacomp#69: a release silently overwrote the templates."""
    first = run_json("text", store_copy, "--name", "a", "--templates", "imagenet-7")
    again = run_json("text", store_copy, "--name", "a", "--templates", "imagenet-7")
    assert (first["encoded"], again["encoded"], again["fingerprint"]) == (28, 0, first["fingerprint"])
    refused = run("text", store_copy, "--name", "a", "--templates", "one {}")
    assert refused.exit_code == 1
    assert "text set 'a' of other prompts" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert open_store(str(store_copy)).text("a").fingerprint == first["fingerprint"]
    assert run("text", store_copy, "--name", "default", "--templates", "{}").exit_code == 1
    more = run_json("text", store_copy, "--name", "a", "--templates", "imagenet-7", "--templates", "{}", "--overwrite")
    assert (more["prompts"], more["encoded"]) == (32, 32)


def test_sentences_of_a_file_are_no_templates_even_if_they_read_the_same(store_copy: Path, run: Callable[..., Any],
                                                                         run_json: Json, tmp_path: Path) -> None:
    """AutoCLIP weighs a template over all classes; sentences that only look alike are not one."""
    (tmp_path / "same.json").write_text(json.dumps({name: [f"a {name}", name] for name in LINES}))
    run_json("text", store_copy, "--name", "a", "--templates", "a {}", "--templates", "{}")
    assert run("text", store_copy, "--name", "a", "--prompts", tmp_path / "same.json").exit_code == 1
    made = run_json("text", store_copy, "--name", "a", "--prompts", tmp_path / "same.json", "--overwrite")
    assert made["encoded"] == 8
    assert set(open_store(str(store_copy)).text("a").template_id.tolist()) == {-1}
    weighed = ["fit", store_copy, "--method", "zero-shot", "--text", "a", "--set", "prompts=autoclip"]
    failed = run(*weighed)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "onceclip text" in failed.stderr
    run_json("text", store_copy, "--name", "a", "--templates", "a {}", "--templates", "{}", "--overwrite")
    assert run_json(*weighed)["hyperparameters"]["prompts"] == "autoclip"


def test_info_prints_everything_that_made_a_set(store_copy: Path, run: Callable[..., Any], run_json: Json, lines: Path,
                                                tmp_path: Path) -> None:
    """datacomp#69: the prompts that made a text row are written next to it."""
    (tmp_path / "names.csv").write_text("disc,full moon\n")
    run_json("text", store_copy, "--name", "a", "--prompts", lines, "--prompts-form", "descriptors", "--waffle", 3,
             "--seed", 7, "--class-names", tmp_path / "names.csv", "--templates", "a {}")
    source = run_json("info", store_copy)["texts"]["a"]["source"]
    assert source["waffle"]["seed"] == 7
    assert source["phrases"]["disc"] == "full moon"
    assert len(source["templates"]) == 7
    shown = run("info", store_copy).stdout
    for part in ("'a {}'", "and 4 more", "3 pairs of random words", "seed 7", "gpt.json, descriptors",
                 source["file"]["digest"], "'disc' as 'full moon'", "'a photo of a {}.'"):
        assert part in shown


def test_an_adapter_keeps_and_shows_what_made_its_text(store_copy: Path, run: Callable[..., Any], run_json: Json,
                                                       lines: Path, tmp_path: Path) -> None:
    run_json("text", store_copy, "--name", "gpt", "--prompts", lines)
    row = run_json("fit", store_copy, "--method", "zero-shot", "--text", "gpt", "--class-weights", "raw-mean", "--out",
                   tmp_path / "out")
    assert row["class_weights"] == "raw-mean"
    shown = run("info", tmp_path / "out").stdout
    assert "'gpt', class weights raw-mean" in shown
    assert "gpt.json, sentences" in shown


def test_class_weights_are_a_choice_for_every_method(store_copy: Path, run: Callable[..., Any], run_json: Json,
                                                     lines: Path) -> None:
    run_json("text", store_copy, "--name", "gpt", "--prompts", lines)
    for method in ("zero-shot", "tip-adapter"):
        losses = {run_json("fit", store_copy, "--method", method, "--shots", 2, "--text", "gpt", "--class-weights",
                           rule)["nll"] for rule in ("unit-mean", "raw-mean", "score-mean")}
        assert len(losses) == 3
    assert run("fit", store_copy, "--method", "zero-shot", "--class-weights", "median").exit_code == 2


def test_names_of_the_default_set_hold_for_other_sets_too(tmp_path: Path, folder_of: Callable[..., Path],
                                                          extract_demo: Callable[..., Any], run_json: Json) -> None:
    """mteb#1103: EuroSAT was far too low because the class was AnnualCrop and not annual crop land."""
    (tmp_path / "n.csv").write_text("Annual_Crop,annual crop land\n")
    extract_demo(folder_of({"Annual_Crop": 2, "Sea": 2}), tmp_path / "s.zarr", phrases=load_phrases(tmp_path / "n.csv"))
    values = run_json("text", tmp_path / "s.zarr", "--name", "a", "--templates", "{}", "--dry-run")
    assert values["prompts"] == {"Annual_Crop": ["annual crop land"], "Sea": ["Sea"]}


def test_classes_that_are_numbers_in_prompts_are_pointed_out(tmp_path: Path, folder_of: Callable[..., Path],
                                                             extract_demo: Callable[..., Any],
                                                             run: Callable[..., Any]) -> None:
    """pytorch/vision#714, places365#22: a folder's number is not what a class is called."""
    extract_demo(folder_of({"0": 2, "1": 2}), tmp_path / "s.zarr")
    (tmp_path / "n.csv").write_text("0,zero\n1,one\n")
    plain = run("text", tmp_path / "s.zarr", "--name", "a", "--dry-run")
    named = run("text", tmp_path / "s.zarr", "--name", "a", "--dry-run", "--class-names", tmp_path / "n.csv")
    assert ("--class-names" in plain.stderr, "--class-names" in named.stderr) == (True, False)
    assert (plain.exit_code, named.stdout) == (0, "0\ta photo of a zero.\n1\ta photo of a one.\n")


def test_a_set_that_was_cut_short_is_not_there_and_the_same_command_makes_it(
        store_copy: Path, run_json: Json, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        write = TextSet.write

        def die(self: TextSet, group: Any) -> None:
            write(self, group)
            raise KeyboardInterrupt

        patch.setattr(TextSet, "write", die)
        assert run("text", store_copy, "--name", "a", "--templates", "imagenet-7").exit_code == 130
    assert open_store(str(store_copy)).texts == ["default"]
    failed = run("fit", store_copy, "--method", "zero-shot", "--text", "a")
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert run_json("fit", store_copy, "--method", "zero-shot")["n_test"] > 0
    assert run_json("text", store_copy, "--name", "a", "--templates", "imagenet-7")["encoded"] == 28
    assert run("verify", store_copy).exit_code == 0


def test_a_store_that_is_being_written_is_left_alone(store_copy: Path, run: Callable[..., Any]) -> None:
    with write_lock(str(store_copy)):
        failed = run("text", store_copy, "--name", "a")
    assert failed.exit_code == 1
    assert "being written by another process" in failed.stderr
    assert open_store(str(store_copy)).texts == ["default"]


@pytest.mark.parametrize("name", ["../image", "a/b", "", ".zgroup", "a b", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(store_copy: Path, run: Callable[..., Any], name: str) -> None:
    failed = run("text", store_copy, "--name", name)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "--name" in failed.stderr


def test_prompts_that_are_too_long_are_refused_or_cut_and_counted(store_copy: Path, run: Callable[..., Any],
                                                                  run_json: Json) -> None:
    template = f"a {'very ' * 30}long {{}}"
    failed = run("text", store_copy, "--name", "a", "--templates", template)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "--truncate" in failed.stderr
    assert "a very very" in failed.stderr
    done = run("text", store_copy, "--name", "a", "--templates", template, "--templates", "{}", "--truncate")
    assert "4 prompts are longer than the encoder reads" in done.stderr
    assert run_json("info", store_copy)["texts"]["a"]["source"]["truncated"] == 4
    assert "4 prompts were cut" in run("info", store_copy).stdout


def test_the_encoder_is_the_stores_own_and_no_other(image_folder: Path, tmp_path: Path, other_encoder: str,
                                                    extract_demo: Callable[..., Any], run: Callable[..., Any],
                                                    run_json: Json) -> None:
    """Two models' vectors in one store are plausible results that are wrong (lancedb#737)."""
    extract_demo(image_folder, tmp_path / "s.zarr", model=other_encoder)
    unsaid = run("text", tmp_path / "s.zarr", "--name", "a")
    assert unsaid.exit_code == 1
    assert "--model" in unsaid.stderr
    wrong = run("text", tmp_path / "s.zarr", "--name", "a", "--model", "demo")
    assert wrong.exit_code == 1
    assert "was made by encoder local-dir:other" in wrong.stderr
    assert run_json("text", tmp_path / "s.zarr", "--name", "a", "--model", other_encoder)["encoded"] == 4


def test_imported_features_get_text_from_the_encoder_that_the_user_names(
        arrays: dict[str, np.ndarray], import_of: Callable[..., Store], run: Callable[..., Any],
        run_json: Json, other_encoder: str) -> None:
    wide = {**arrays, "embedding": np.tile(arrays["embedding"], 4), "text": np.tile(arrays["text"], 4)}
    store = import_of(wide, "wide", encoder="demo")
    before = run_json("fit", store.path, "--method", "zero-shot")["accuracy"]
    assert "--model" in run("text", store.path, "--name", "a").stderr
    assert run_json("text", store.path, "--name", "a", "--model", "demo")["encoded"] == 4
    assert open_store(store.path).text("a").source["text_encoder"]["name"] == "demo"
    assert run_json("fit", store.path, "--method", "zero-shot")["accuracy"] == before
    assert run_json("fit", store.path, "--method", "zero-shot", "--text", "a")["text"] == "a"
    same = open_store(store.path).text_fingerprint("a")
    refused = run("text", store.path, "--name", "a", "--model", other_encoder)
    assert "has a text set 'a' of other prompts, or by another encoder: " in refused.stderr
    assert run_json("text", store.path, "--name", "a", "--model", other_encoder, "--overwrite")["encoded"] == 4
    assert open_store(store.path).text_fingerprint("a") != same
    made = open_store(store.path).text("a")  # as sets were before they said what made them
    nameless = replace(made, source={name: value for name, value in made.source.items() if name != "text_encoder"})
    StoreWriter.open(store.path, store.encoder).put_text("a", nameless)
    refused = run("text", store.path, "--name", "a", "--model", other_encoder)
    assert "has a text set 'a' that does not say which encoder made it: " in refused.stderr
    narrow = import_of(arrays, "narrow", encoder="demo")
    failed = run("text", narrow.path, "--name", "a", "--model", "demo")
    assert "has 16 dimensions, demo gives 64" in failed.stderr


def test_some_classes_come_from_the_same_set_without_encoding(store_copy: Path, run_json: Json, lines: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and new classes: what a class's prompts are never depends on the other classes."""
    run_json("text", store_copy, "--name", "gpt", "--prompts", lines)
    text = open_store(str(store_copy)).text("gpt")
    some = text.of_classes(["ring", "bar"])
    assert some.prompts == (*LINES["ring"], *LINES["bar"])
    np.testing.assert_array_equal(some.embedding[0], text.embedding[text.prompts.index(LINES["ring"][0])])
    with pytest.raises(StoreMismatch, match=r"no prompts for 'moon'; it has 'bar'.*onceclip text"):
        text.of_classes(["bar", "moon"])


def test_a_later_extraction_keeps_a_default_set_of_a_file(
        folder_of: Callable[..., Path], glyph: Callable[..., Path], tmp_path: Path, run: Callable[..., Any],
        extract_demo: Callable[..., Any], run_json: Json) -> None:
    path, root = tmp_path / "s.zarr", folder_of({"disc": 6, "ring": 6})
    extract_demo(root, path)
    (tmp_path / "p.json").write_text(json.dumps({name: LINES[name] for name in ("disc", "ring")}))
    made = run_json("text", path, "--name", "default", "--prompts", tmp_path / "p.json", "--overwrite")
    assert extract_demo(root, path).text["fingerprint"] == made["fingerprint"]
    for seed in range(6):
        glyph(root / "cross" / f"{seed}.png", "cross", seed)
    assert extract_demo(root, path).text["missing"] == ["cross"]
    failed = run("fit", path, "--method", "zero-shot")
    assert "no prompts for 'cross'" in failed.stderr
    assert extract_demo(root, path, templates=("{}",)).text["encoded"] == 3
    assert run_json("fit", path, "--method", "zero-shot")["classes"] == 3


def test_a_new_class_gets_prompts_and_the_others_keep_theirs(folder_of: Callable[..., Path], tmp_path: Path,
                                                             glyph: Callable[..., Path],
                                                             extract_demo: Callable[..., Any]) -> None:
    path, root = tmp_path / "s.zarr", folder_of({"disc": 2, "ring": 2})
    extract_demo(root, path, templates=("a {}", "{}"))
    before = open_store(str(path)).text()
    glyph(root / "cross" / "0.png", "cross")
    assert extract_demo(root, path).text["encoded"] == 6
    after = open_store(str(path)).text()
    np.testing.assert_allclose(after.of_classes(before.classes).embedding, before.embedding, rtol=1e-3, atol=1e-5)
    assert after.prompts[:2] == ("a cross", "cross")


def test_a_damaged_set_is_made_anew_and_its_images_stay(store_copy: Path, run: Callable[..., Any],
                                                        passed: list[int]) -> None:
    whole = open_store(str(store_copy)).text()
    chunk = next(each for each in (store_copy / "text/default/embedding").rglob("*") if each.parent.name == "0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    command = ["text", store_copy, "--name", "default", "--overwrite"]
    advice = run("verify", store_copy, "--repair").stderr.splitlines()[-1]
    assert f"make that set anew by `onceclip {' '.join(map(str, command))}`" in advice
    assert run(*command).exit_code == 0
    assert run("verify", store_copy).exit_code == 0
    np.testing.assert_array_equal(open_store(str(store_copy)).text().embedding, whole.embedding)
    assert passed == []
