"""Sentences and descriptors from files, and random words from a seed: whose they are, how they are put."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts import build_prompts, class_phrases, load_descriptions, waffle_templates
from onceclip.pipeline.prompts.descriptions import describe

PHRASES = class_phrases(["Annual_Crop", "Sea-Lake"], {"Sea-Lake": "sea or lake"})
GOOD = {"Annual_Crop": ["an annual crop field from above.", "rows of annual crop"], "Sea-Lake": ["a sea or lake."]}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of prompts: file({...}) or file("text")."""

    def write(content: Any, name: str = "prompts.json") -> Path:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return write


def sentences(path: Path, form: str | None = None, **options: Any) -> dict[str, tuple[str, ...]]:
    prompts = build_prompts(PHRASES, options.get("templates", ()), load_descriptions(path, form))
    return prompts.by_class()


def test_prompts_are_joined_to_classes_by_name_whatever_the_order_of_the_file(file: Callable[..., Path]) -> None:
    """CLIP_benchmark#21: prompts in another order than the labels moved a published number."""
    turned = dict(reversed(GOOD.items()))
    assert list(turned) != list(PHRASES)
    assert sentences(file(turned)) == {name: tuple(lines) for name, lines in GOOD.items()}


def test_sentences_of_a_text_file_are_of_every_class_that_they_name(file: Callable[..., Path]) -> None:
    phrases = {"dog": "dog", "frank": "hot dog", "bus": "bus", "coach": "Bus"}
    lines = "A dog eats a hot dog.\n\ntwo Dogs in  buses\nHot dogs!\na dogma about business\na dog, and a dog\n"
    made = build_prompts(phrases, (), load_descriptions(file(lines, "captions.txt")))
    assert [*made.by_class().values()] == [
        ("A dog eats a hot dog.", "two Dogs in buses", "a dog, and a dog"), ("A dog eats a hot dog.", "Hot dogs!"),
        ("two Dogs in buses",), ("two Dogs in buses",)]
    assert made.source["file"]["unused"] == 1
    with pytest.raises(PromptError, match=r"no line names 'cat', 'emu': add sentences"):
        build_prompts({"dog": "dog", "cat": "cat", "emu": "emu"}, (), load_descriptions(file("a dog", "captions.txt")))
    for content, name, form, words in ((" \n", "empty.txt", None, "no line.: write sentences, one a line"),
                                       ("a", "form.txt", "descriptors", "leave --prompts-form descriptors out")):
        with pytest.raises(PromptError, match=words):
            load_descriptions(file(content, name), form)
    with pytest.raises(PromptError, match=r"missing\.txt cannot be read: No such file"):
        load_descriptions(file("a", "there.txt").with_name("missing.txt"))


def test_a_file_may_name_a_class_as_prompts_do(file: Callable[..., Path]) -> None:
    spoken = {"annual crop": ["one"], "sea or lake": ["two {}"]}
    with pytest.raises(PromptError, match="unknown 'annual crop' \\(nearest: 'Annual_Crop'\\)"):
        sentences(file(spoken), "sentences")
    spoken = {"Annual Crop": ["one"], "sea or lake": ["two {}"]}
    assert sentences(file(spoken), "sentences") == {"Annual_Crop": ("one",), "Sea-Lake": ("two sea or lake",)}


@pytest.mark.parametrize(("content", "parts"), [
    ({"Annual_Crop": ["a crop"], "SeaLake": ["a sea"]},
     ["lacks 'Sea-Lake' (nearest: 'SeaLake')", "unknown 'SeaLake'", "the file has 'Annual_Crop', 'SeaLake'",
      "the store has 'Annual_Crop', 'Sea-Lake'"]),
    ({"Annual_Crop": ["a crop"]}, ["lacks 'Sea-Lake'", "unknown none"]),
    ({**GOOD, "Forest": ["trees"]}, ["lacks none", "unknown 'Forest'"]),
    ({**GOOD, "sea or lake": ["again"]}, ["'Sea-Lake' and 'sea or lake' are both class 'Sea-Lake'"]),
    ('{"Annual_Crop": ["a"], "Annual_Crop": ["b"]}', ["'Annual_Crop' is named twice"]),
    ({**GOOD, "Sea-Lake": []}, ["class 'Sea-Lake' has []"]), ({**GOOD, "Sea-Lake": [1]}, ["'Sea-Lake'"]),
    ({**GOOD, "Sea-Lake": [" "]}, ["'Sea-Lake'"]), ({**GOOD, "Sea-Lake": {"a": 1}}, ["'Sea-Lake'"]),
    ("[1]", ["not a JSON object"]), ("{", ["not a file of prompts"]), ("{}", ["not a JSON object"]),
])
def test_a_file_that_does_not_fit_the_classes_is_one_line_with_both_lists(file: Callable[..., Path], content: Any,
                                                                          parts: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        sentences(file(content), "sentences")
    assert [part for part in ["prompts.json", *parts] if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_name_that_two_classes_share_in_prompts_cannot_name_one(file: Callable[..., Path]) -> None:
    """Two ImageNet classes are called crane."""
    phrases = {"n1": "crane", "n2": "crane"}
    described = load_descriptions(file({"crane": ["a crane"], "n2": ["b crane"]}))
    with pytest.raises(PromptError, match=r"'crane' is what prompts call 'n1', 'n2': name the classes by"):
        described.sentences(phrases)


@pytest.mark.parametrize(("descriptor", "sentence"), [
    ("two legs", "a photo of a hen, which has two legs."), ("a red comb.", "a photo of a hen, which is a red comb."),
    ("an egg", "a photo of a hen, which is an egg."), ("antlers", "a photo of a hen, which has antlers."),
    ("has feathers", "a photo of a hen, which has feathers."), ("often brown", "a photo of a hen, which often brown."),
    ("used for eggs", "a photo of a hen, which is used for eggs.")])
def test_descriptors_become_the_sentence_of_the_paper(descriptor: str, sentence: str) -> None:
    """The published helper asks whether the text starts with the letter a: antlers become "which is antlers"."""
    assert describe("hen", descriptor) == sentence


def test_descriptors_name_their_class_by_its_phrase(file: Callable[..., Path]) -> None:
    made = sentences(file({"Annual_Crop": ["rows"], "Sea-Lake": ["a shore"]}), "descriptors")
    assert made == {"Annual_Crop": ("a photo of a Annual Crop, which has rows.",),
                    "Sea-Lake": ("a photo of a sea or lake, which is a shore.",)}


def test_descriptors_are_never_taken_for_sentences_without_a_word(file: Callable[..., Path]) -> None:
    """A prompt without its class scores on everything; and no guess is silent."""
    path = file({"Annual_Crop": ["rows"], "Sea-Lake": ["a shore", "sea or lake"]})
    with pytest.raises(PromptError, match=r"'rows' of 'Annual_Crop'.*form descriptors.*which has rows") as caught:
        sentences(path)
    assert "\n" not in str(caught.value)
    assert sentences(path, "sentences")["Annual_Crop"] == ("rows",)
    assert sentences(file(GOOD))["Sea-Lake"] == ("a sea or lake.",)


def test_a_sentence_counts_once_in_its_class_and_templates_come_first(file: Callable[..., Path]) -> None:
    """Duplicates in an ensemble would weigh twice in every mean."""
    path = file({"Annual_Crop": ["rows", "rows", "a Annual Crop", "field"], "Sea-Lake": ["rows"]})
    prompts = build_prompts(PHRASES, ("a {}",), load_descriptions(path, "sentences"))
    assert prompts.by_class()["Annual_Crop"] == ("a Annual Crop", "rows", "field")
    assert prompts.template_id.tolist() == [0, -1, -1, 0, -1]
    assert prompts.class_ptr.tolist() == [0, 3, 5]
    assert (prompts.source["file"]["repeated"], prompts.source["file"]["name"]) == (2, "prompts.json")


def test_the_source_tells_one_file_from_another_of_its_name(file: Callable[..., Path]) -> None:
    """datacomp#69: prompts were changed silently, and all evaluations had to be run again."""
    first = load_descriptions(file(GOOD)).digest
    assert load_descriptions(file(GOOD)).digest == first
    assert load_descriptions(file({**GOOD, "Sea-Lake": ["a lake"]})).digest != first


def test_waffle_templates_are_the_same_for_a_seed_and_shaped_like_the_class_names() -> None:
    phrases = ["snow leopard", "grey whale", "red fox"]
    templates = waffle_templates(phrases, 15, 1)
    assert templates == waffle_templates(phrases, 15, 1)
    assert templates == waffle_templates(list(reversed(phrases)), 15, 1)
    assert not set(templates) & set(waffle_templates(phrases, 15, 2))
    assert len(templates) == 30
    assert templates[:2] == ("a photo of a {}, which has azar veno.", "a photo of a {}, which has BfdS, VVuR.")
    for words, noise in zip(templates[::2], templates[1::2], strict=True):
        spoken = words.removeprefix("a photo of a {}, which has ").removesuffix(".").split(" ")
        strings = noise.removeprefix("a photo of a {}, which has ").removesuffix(".").split(", ")
        assert len(spoken) == len(strings) == 2
        assert all(3 <= len(word) <= 4 and set(word) <= set(string.ascii_lowercase) for word in spoken)
        assert all(len(word) == 4 for word in strings)


def test_fewer_waffle_pairs_are_the_first_of_more() -> None:
    assert waffle_templates(["cat", "dog"], 3, 1) == waffle_templates(["cat", "dog"], 15, 1)[:6]
