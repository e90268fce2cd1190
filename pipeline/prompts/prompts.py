"""From class names and templates, sentences with `{}` for the class, to the prompts of all classes."""

from __future__ import annotations

import csv
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.encoders.spec import open_clip_folder
from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.files import no_key_twice, read_json
from onceclip.pipeline.prompts.descriptions import Descriptions
from onceclip.pipeline.words import listing
from onceclip.stores.identity import decode_key, digest

DEFAULT_TEMPLATES = ("a photo of a {}.",)

# CoOp's single template for each of its data sets (Zhou et al., IJCV 2022, "CLIP + hand-crafted prompt").
_SINGLE = {
    "photo": DEFAULT_TEMPLATES[0],
    "caltech-101": "a photo of a {}.",
    "oxford-pets": "a photo of a {}, a type of pet.",
    "stanford-cars": "a photo of a {}.",
    "oxford-flowers": "a photo of a {}, a type of flower.",
    "food-101": "a photo of {}, a type of food.",
    "fgvc-aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
_OPEN_CLIP = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet-7": "SIMPLE_IMAGENET_TEMPLATES"}
NAMES = (*_OPEN_CLIP, *_SINGLE)
GENERATOR = "blake2b-index-1"
_SHORTEST = 3
_CHARACTERS = string.ascii_letters + string.digits + "!#"


@dataclass(frozen=True)
class Prompts:
    """The sentences of all classes.

    sentences: all of them, class by class. class_ptr: (classes + 1,) where each class begins and ends.
    template_id: (sentences,) position in the source's "templates", or -1 for what is of one class alone.
    source: JSON values that say what made them.
    """

    classes: tuple[str, ...]
    sentences: tuple[str, ...]
    class_ptr: np.ndarray
    template_id: np.ndarray
    source: dict[str, Any]

    def by_class(self) -> dict[str, tuple[str, ...]]:
        """The sentences of every class."""
        return {name: self.sentences[start:stop] for name, (start, stop) in zip(
            self.classes, pairwise(self.class_ptr.tolist()), strict=True)}


def build_prompts(phrases: Mapping[str, str], templates: Sequence[str], descriptions: Descriptions | None = None,
                  **origin: Any) -> Prompts:
    """Put every class's phrase into every template, then add what a file says of the class.

    A sentence that a class has already is not added again: it would count twice in every mean.

    phrases: what prompts call each class. origin: further JSON values for the source.
    Raises PromptError if the descriptions are not of these classes.
    """
    told = descriptions.sentences(phrases) if descriptions else {}
    sentences: list[str] = []
    template_id: list[int] = []
    pointer = [0]
    repeated = 0
    for name, phrase in phrases.items():
        made = [template.replace("{}", phrase) for template in templates]
        own = [line for line in dict.fromkeys(told.get(name, ())) if line not in made]
        repeated += len(told.get(name, ())) - len(own)
        sentences += made + own
        template_id += [*range(len(made)), *[-1] * len(own)]
        pointer.append(len(sentences))
    source: dict[str, Any] = {"templates": list(templates), "phrases": dict(phrases), **origin}
    if descriptions:
        source["file"] = {"name": descriptions.name, "digest": descriptions.digest,
                          "form": descriptions.form or "sentences", "repeated": repeated}
        if descriptions.plain:
            used = {line for lines in told.values() for line in lines}
            source["file"]["unused"] = sum(line not in used for line in descriptions.plain)
    return Prompts(tuple(phrases), tuple(sentences), np.array(pointer, np.int64), np.array(template_id, np.int32),
                   source)


def load_phrases(path: Path) -> dict[str, str]:
    """Read `--class-names`: a CSV file of `folder,name` or a JSON object.

    Raises PromptError if it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            phrases = read_json(text)
            if not (isinstance(phrases, dict) and all(isinstance(name, str) for name in phrases.values())):
                raise ValueError("not an object of texts")
            return phrases
        rows = [row for row in csv.reader(text.splitlines()) if row]
        if any(len(row) != 2 for row in rows):
            raise ValueError("every line must be folder,name")
        pairs = [(folder.strip(), name.strip()) for folder, name in rows]
        return no_key_twice(pairs[1:] if pairs and pairs[0] == ("folder", "name") else pairs)
    except (OSError, ValueError, csv.Error) as error:
        raise PromptError(f"{path} is not a table of class names ({error}): write CSV lines `folder,name` or a JSON "
                          "object {\"folder\": \"name\"}") from error


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, two or more, none twice and none empty. Raises PromptError for others."""
    found = tuple(name.strip() for name in names)
    twice = next((name for name, number in Counter(found).items() if number > 1), None)
    if twice is not None or "" in found or len(found) < 2:
        what = f"{twice!r} is there twice" if twice else "one of them is empty" if "" in found else "there are too few"
        raise PromptError(f"class names {listing([repr(each) for each in found]) or 'none'}: {what}; give two or more, "
                          "such as cat,dog")
    return found


def class_phrases(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a prompt calls each class: the given name, else the folder's with spaces for underscores.

    A folder's name of other bytes than UTF-8 stays as its key spells it.
    Raises PromptError if a name is given for a class that does not exist, or is empty.
    """
    given, known = given or {}, set(classes)
    extra = [name for name in given if name not in known]
    if extra:
        raise PromptError(f"--class-names: {unknown('class folder', extra[0], classes)}")
    blank = [name for name, phrase in given.items() if not phrase.strip()]
    if blank:
        raise PromptError(f"--class-names: the name of class {blank[0]!r} is empty: write what prompts shall call it, "
                          "or leave out its line")
    return {name: given.get(name, _spoken(name).replace("_", " ").strip() or name) for name in classes}


def _spoken(key: str) -> str:
    name = decode_key(key)
    return name if name.isprintable() else key


def load_templates(choice: str) -> tuple[str, ...]:
    """Templates by name (one of NAMES), from a file with one a line, or one template itself.

    Raises PromptError if there is no such name or file, or a template has no `{}`.
    """
    if "{}" in choice:
        return (choice,)
    path = Path(choice)
    if path.is_file():
        return _read(path)
    if choice in _SINGLE:
        return (_SINGLE[choice],)
    if choice not in _OPEN_CLIP:
        raise PromptError(unknown("template set or file", choice, NAMES) + "; a sentence with {} is taken as it is")
    # open_clip keeps these as functions; what they make of a mark is the template.
    return tuple(make("{}") for make in getattr(_open_clip_texts(), _OPEN_CLIP[choice]))


def _open_clip_texts() -> ModuleType:
    """The file of open_clip that has its templates, without open_clip, which takes seconds to import."""
    spec = spec_from_file_location("_open_clip_texts", open_clip_folder() / "zero_shot_metadata.py")
    module = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _read(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read ({error}): write one sentence with {{}} a line, in UTF-8") from error
    templates = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    bad = [template for template in templates if "{}" not in template]
    if bad or not templates:
        raise PromptError(f"{path}: " + (f"template {bad[0]!r} has no {{}} for the class name" if bad else
                                         "no templates in it") + ": write one sentence with {} a line")
    return templates


def waffle_templates(phrases: Sequence[str], pairs: int, seed: int) -> tuple[str, ...]:
    """Make pairs of templates: one with random words, one with random characters, the same for all classes.

    Words are from CLIP's vocabulary. Both have as many words as the classes have on average, of as many letters (three
    at least, so that they differ).

    phrases: what prompts call the classes. pairs: 15 in the paper. seed: decides all strings, on any machine.
    Source: Waffling around for Performance (Roth et al., ICCV 2023), section 3.2.
    """
    words = [word for phrase in phrases for word in phrase.split()]
    count = max(1, round(len(words) / len(phrases)))
    length = max(_SHORTEST, round(sum(map(len, words)) / len(words)))
    vocabulary = _vocabulary()
    templates = []
    for pair in range(pairs):
        spoken = [vocabulary[_draw(len(vocabulary), seed, pair, "word", place)][:length] for place in range(count)]
        noise = ["".join(_CHARACTERS[_draw(len(_CHARACTERS), seed, pair, "character", place, letter)]
                         for letter in range(length)) for place in range(count)]
        templates += [f"a photo of a {{}}, which has {text}." for text in (" ".join(spoken), ", ".join(noise))]
    return tuple(dict.fromkeys(templates))


def _vocabulary() -> list[str]:
    """Whole words of three letters or more, which the tokenizer keeps with the mark of a word's end."""
    from open_clip.tokenizer import SimpleTokenizer

    words = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.endswith("</w>"))
    return sorted(word for word in words if len(word) >= _SHORTEST and word.isascii() and word.isalpha())


def _draw(below: int, *key: object) -> int:
    return int.from_bytes(digest(":".join(map(str, ("waffle", *key))).encode()), "big") % below
