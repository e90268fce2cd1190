"""What the prompts say, and that it never changes without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip import OnceclipError
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError, PromptError
from onceclip.pipeline.prompts import load_phrases, load_templates
from onceclip.stores import open_store

Extract = Callable[..., Any]


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"Annual_Crop": 2, "Sea-Lake": 2})


def prompts(path: Path) -> tuple[str, ...]:
    return open_store(str(path)).text().prompts


def test_underscores_in_class_folders_are_spaces_in_prompts(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    extract_demo(root, tmp_path / "s.zarr")
    assert prompts(tmp_path / "s.zarr") == ("a photo of a Annual Crop.", "a photo of a Sea-Lake.")


@pytest.mark.parametrize(("name", "text"), [
    ("n.csv", "Annual_Crop,annual crop land\n\nSea-Lake,\"sea, or lake\"\n"),
    ("bom.csv", "\ufefffolder,name\r\nAnnual_Crop , annual crop land\r\nSea-Lake,\"sea, or lake\"\r\n"),
    ("n.json", json.dumps({"Annual_Crop": "annual crop land", "Sea-Lake": "sea, or lake"})),
], ids=["csv", "spreadsheet", "json"])
def test_class_names_say_what_prompts_call_a_folder(root: Path, tmp_path: Path, extract_demo: Extract, name: str,
                                                    text: str) -> None:
    """mteb#1103: EuroSAT was far too low because the class was AnnualCrop and not annual crop land."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    extract_demo(root, tmp_path / "s.zarr", phrases=load_phrases(tmp_path / name))
    assert prompts(tmp_path / "s.zarr") == ("a photo of a annual crop land.", "a photo of a sea, or lake.")
    assert open_store(str(tmp_path / "s.zarr")).classes == ("Annual_Crop", "Sea-Lake")


def test_a_name_for_a_class_that_does_not_exist_suggests_the_nearest(root: Path, tmp_path: Path,
                                                                     extract_demo: Extract) -> None:
    with pytest.raises(PromptError, match=r"'AnnualCrop'.*did you mean 'Annual_Crop'"):
        extract_demo(root, tmp_path / "s.zarr", phrases={"AnnualCrop": "annual crop land"})
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(("name", "text"), [("n.csv", "a,b,c\n"), ("n.json", "[1]"), ("n.json", "{"),
                                            ("n.json", "{\"a\": 1}"), ("n.csv", "a,one\na,two\n"),
                                            ("n.json", "{\"a\": \"one\", \"a\": \"two\"}")])
def test_a_malformed_table_of_class_names_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=name) as caught:
        load_phrases(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_templates_are_kept_when_they_are_not_given_again(root: Path, tmp_path: Path, extract_demo: Extract,
                                                          glyph: Callable[..., Path]) -> None:
    """datacomp#69: a release silently overwrote the templates, and all evaluations had to be run again."""
    path, templates = tmp_path / "s.zarr", ("a map of {}.", "{} from above")
    extract_demo(root, path, templates=templates, phrases={"Sea-Lake": "water"})
    before = prompts(path)
    assert before == ("a map of Annual Crop.", "Annual Crop from above", "a map of water.", "water from above")
    done = extract_demo(root, path)
    assert (prompts(path), done.text["encoded"]) == (before, 0)
    glyph(root / "Forest" / "0.png")
    extract_demo(root, path)
    assert prompts(path) == (*before[:2], "a map of Forest.", "Forest from above", *before[2:])
    assert open_store(str(path)).text().source["templates"] == list(templates)


def test_new_templates_replace_the_old_ones_without_encoding_images(root: Path, tmp_path: Path, extract_demo: Extract,
                                                                    passed: list[int]) -> None:
    extract_demo(root, tmp_path / "s.zarr")
    passed.clear()
    done = extract_demo(root, tmp_path / "s.zarr", templates=("{}",))
    assert (done.encoded, done.text["encoded"], passed) == (0, 2, [])
    assert prompts(tmp_path / "s.zarr") == ("Annual Crop", "Sea-Lake")


def test_prompt_embeddings_are_the_encoders_own_raw_ones(root: Path, tmp_path: Path, extract_demo: Extract,
                                                         encoder: Any) -> None:
    import numpy as np

    extract_demo(root, tmp_path / "s.zarr", templates=("a map of {}.", "{}"))
    text = open_store(str(tmp_path / "s.zarr")).text()
    alone = [encode_sentences(encoder, [each]).embedding for each in text.prompts]
    np.testing.assert_allclose(text.embedding, np.concatenate(alone),
                               atol=1e-4)
    assert text.encoder == encoder.info["fingerprint"]


def test_a_prompt_that_the_encoder_would_cut_is_an_error_that_shows_it(root: Path, tmp_path: Path,
                                                                       extract_demo: Extract) -> None:
    words = "very " * 60
    with pytest.raises(EncoderError, match=r"longer than the 24 tokens that demo reads.*--truncate.*a very very"):
        extract_demo(root, tmp_path / "s.zarr", templates=(f"a {words}long photo of {{}}",))


def test_templates_come_from_a_name_a_file_or_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {}.\n\n  one {}  \na {}.\n")
    assert load_templates(str(tmp_path / "t.txt")) == ("a {}.", "one {}")
    assert load_templates("a sketch of {}") == ("a sketch of {}",)
    assert load_templates("photo") == ("a photo of a {}.",)
    assert (len(load_templates("imagenet")), len(load_templates("imagenet-7"))) == (80, 7)
    assert all("{}" in template for template in load_templates("imagenet"))
    assert load_templates("dtd") == ("{} texture.",)
    assert load_templates("oxford-pets") == ("a photo of a {}, a type of pet.",)


@pytest.mark.parametrize(("choice", "text"), [("imagnet", "did you mean 'imagenet'"), ("bad.txt", "no {}"),
                                              ("empty.txt", "no templates"), ("missing.txt", "missing.txt"),
                                              ("latin.txt", "UTF-8"), ("oxfordpets", "did you mean 'oxford-pets'")])
def test_templates_that_do_not_work_are_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str,
                                                      text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("a photo\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {}\n")
    with pytest.raises(OnceclipError) as caught:
        load_templates(choice)
    assert text in str(caught.value)


def test_class_folders_that_are_numbers_are_warned_about_once(folder_of: Callable[..., Path], tmp_path: Path,
                                                              extract_demo: Callable[..., Any]) -> None:
    """torchvision#714: is folder 2 the second class, or `100`? And "a photo of a 2." says nothing to CLIP."""
    root = folder_of({"0": 2, "1": 2, "10": 2})
    first, again = (extract_demo(root, tmp_path / "s.zarr") for _ in range(2))
    assert [warning for warning in first.warnings if "--class-names" in warning and "numbers" in warning]
    assert again.warnings == []
    named = extract_demo(root, tmp_path / "n.zarr", phrases={"0": "zero", "1": "one", "10": "ten"})
    assert named.warnings == []


def test_prompts_speak_a_folders_own_name_and_not_its_escapes(folder_of: Callable[..., Path], tmp_path: Path,
                                                              extract_demo: Callable[..., Any]) -> None:
    extract_demo(folder_of({"50%_off": 2, "ring": 2}), tmp_path / "s.zarr", templates=("{}",))
    text = open_store(str(tmp_path / "s.zarr")).text()
    assert dict(zip(text.classes, text.prompts, strict=True)) == {"50%25_off": "50% off", "ring": "ring"}
