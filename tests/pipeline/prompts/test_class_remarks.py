"""What users are told of their classes: names that may be one, prompts that say the same, names that say nothing."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts import class_phrases
from onceclip.pipeline.words import class_remarks

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("names", [("Cat", "cat"), ("big dog", "big  dog"), ("a_b", "a b"), ("1", "1.0"), ("01", "1"),
                                   ("1e3", "1000"), (COMPOSED, DECOMPOSED)])
def test_names_that_may_be_meant_as_one_stay_apart_and_are_told(names: tuple[str, str]) -> None:
    """They stay apart: a folder of letters has the classes a and A."""
    remark, = class_remarks(dict.fromkeys([*names, "other"]))
    assert f"are different classes: {names[0]!r}, {names[1]!r}" in remark
    assert ("é as one character" in remark) == (names[0] == COMPOSED)


@pytest.mark.parametrize("names", [("cat", "cats"), ("1", "10"), ("1", "-1"), ("a1", "a1.0")])
def test_other_names_are_no_reason_for_words(names: tuple[str, str]) -> None:
    assert class_remarks(dict.fromkeys(names)) == []


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "<NA>"])
def test_names_that_stand_for_a_missing_label_are_told(name: str) -> None:
    remark, = class_remarks(dict.fromkeys(["cat", name]))
    assert repr(name) in remark


def test_numbers_in_any_spelling_say_nothing_to_a_text_encoder() -> None:
    remark, = class_remarks({"a": "0", "b": "1.0", "c": "1e3"})
    assert "call all classes by numbers, such as '0'" in remark
    assert class_remarks({"0": "cat", "1": "dog"}) == []


def test_an_empty_name_for_prompts_is_an_error() -> None:
    with pytest.raises(PromptError, match="class 'a' is empty"):
        class_phrases(["a", "b"], {"a": " "})


def test_extract_and_text_name_classes_with_equal_prompts(folder_of: Callable[..., Path], tmp_path: Path,
                                                          run: Callable[..., Any]) -> None:
    """Zero-shot never answers the second of them (CuPL#2)."""
    root = folder_of({"disc": 2, "ring": 2, "bar": 2})
    (tmp_path / "names.json").write_text(json.dumps({"disc": "shape", "ring": "shape"}))
    done = run("extract", root, tmp_path / "s.zarr", "--model", "demo", "--class-names", tmp_path / "names.json")
    assert "with the same prompts ('shape'), which text cannot tell apart: 'disc', 'ring'" in done.stderr
    (tmp_path / "p.json").write_text(json.dumps({"disc": ["a shape"], "ring": ["a shape"], "bar": ["long"]}))
    done = run("text", tmp_path / "s.zarr", "--name", "p", "--prompts", tmp_path / "p.json", "--prompts-form",
               "sentences", "--dry-run")
    assert "'disc', 'ring'" in done.stderr


def test_a_join_that_fails_by_the_unicode_form_alone_says_so(folder_of: Callable[..., Path], tmp_path: Path,
                                                             run: Callable[..., Any]) -> None:
    """Folders from macOS have decomposed names: two words that look the same."""
    root = folder_of({"disc": 2, "ring": 2})
    (root / "disc").rename(root / DECOMPOSED)
    (tmp_path / "names.json").write_text(json.dumps({COMPOSED: "coffee"}))
    done = run("extract", root, tmp_path / "s.zarr", "--model", "demo", "--class-names", tmp_path / "names.json")
    assert (done.exit_code, "another Unicode form" in done.stderr) == (1, True)
