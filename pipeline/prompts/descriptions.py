"""Sentences or descriptions of every class, such as a language model writes them, from a JSON file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceclip.adapters.errors import same_but_for_form
from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.files import read_json
from onceclip.stores.identity import digest

FORMS = ("sentences", "descriptors")
_SHAPE = '{"class": ["sentence", ...], ...}'


@dataclass(frozen=True)
class Descriptions:
    """What a file says of the classes.

    name, digest: of the file. lines: what it says of each name in it. form: "sentences" stand as they are (`{}` in one
    is the class); "descriptors" are put behind "a photo of a {}, which has ".
    """

    name: str
    digest: str
    lines: Mapping[str, tuple[str, ...]]
    form: str | None = None

    def sentences(self, phrases: Mapping[str, str]) -> dict[str, list[str]]:
        """The sentences of every class; the file may call one by its folder or by its name in prompts.

        phrases: what prompts call each class.
        Raises PromptError if file and classes do not match one to one, or if the form is not given and the lines
            look like descriptors: taken for sentences, they would leave out the class.
        """
        lines = self._by_class(phrases)
        if self.form is None and 2 * sum(_names(phrases[name], line) for name in lines for line in lines[name]) < sum(
                map(len, lines.values())):
            name = next(iter(lines))
            raise PromptError(f"{self.name}: most lines do not name their class, such as {lines[name][0]!r} of "
                              f"{name!r}: say what they are with --prompts-form descriptors (they become "
                              f"{describe(phrases[name], lines[name][0])!r}) or --prompts-form sentences")
        if self.form == "descriptors":
            return {name: [describe(phrases[name], line) for line in lines[name]] for name in phrases}
        return {name: [line.replace("{}", phrases[name]) for line in lines[name]] for name in phrases}

    def _by_class(self, phrases: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        spoken: dict[str, list[str]] = {}
        for name, phrase in phrases.items():
            spoken.setdefault(phrase, []).append(name)
        found: dict[str, str] = {}
        strange = []
        for key in self.lines:
            names = [key] if key in phrases else spoken.get(key, [])
            if len(names) > 1:
                raise PromptError(f"{self.name}: {key!r} is what prompts call {_listing(names)}: name the classes by "
                                  "their folders")
            if not names:
                strange.append(key)
            elif names[0] in found:
                raise PromptError(f"{self.name}: {found[names[0]]!r} and {key!r} are both class {names[0]!r}: keep one")
            else:
                found[names[0]] = key
        missing = [name for name in phrases if name not in found]
        if missing or strange:
            raise PromptError(f"{self.name} does not have the store's classes: it lacks "
                              f"{_nearest(missing, strange)} and has unknown {_nearest(strange, missing)}; the file "
                              f"has {_listing(self.lines)}, the store has {_listing(phrases)}: rename them in the "
                              "file, or name the store's classes with --class-names")
        return {name: self.lines[found[name]] for name in phrases}


@dataclass(frozen=True)
class Sentences(Descriptions):
    """Sentences of a text file, `plain`: each is of every class that it names, and may be of none.

    A class is named by what prompts call it, as whole words, in singular or plural; a name within a longer one, such as
    dog in hot dog, does not count.
    Source: the noun filter of TaI-DPT (Guo et al., CVPR 2023), section 3.2, without synonyms.
    """

    plain: tuple[str, ...] = ()

    def sentences(self, phrases: Mapping[str, str]) -> dict[str, list[str]]:
        """The sentences of every class; see `Descriptions`.

        Raises PromptError if no sentence names a class.
        """
        spoken: dict[str, list[str]] = {}
        for name, phrase in phrases.items():
            spoken.setdefault(phrase.lower(), []).append(name)
        ordered = sorted(spoken, key=len, reverse=True)
        named = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, ordered))})(?:e?s)?(?!\w)")
        found: dict[str, list[str]] = {name: [] for name in phrases}
        for line in self.plain:
            for phrase in dict.fromkeys(named.findall(line.lower())):
                for name in spoken[phrase]:
                    found[name].append(line)
        without = [name for name, several in found.items() if not several]
        if without:
            raise PromptError(f"{self.name}: no line names {_listing(without)}: add sentences that do, such as a photo "
                              "of each, or say what they are called there with --class-names")
        return found


def load_descriptions(path: Path, form: str | None = None) -> Descriptions:
    """Read a JSON object that has a list of texts for every class; or a .txt file of sentences, one a line.

    form: one of FORMS, or None where the lines name their class, which tells that they are sentences.
    Raises PromptError if it is something else, or names a class twice.
    """
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".txt":
            return _sentences(path, content, form)
        values = read_json(content.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not a file of prompts ({error}): write JSON {_SHAPE}") from error
    if not isinstance(values, dict) or not values:
        raise PromptError(f"{path} is not a JSON object of classes: write {_SHAPE}")
    return Descriptions(path.name, digest(content).hex(), {name: _lines(path, name, values[name]) for name in values},
                        form)


def _sentences(path: Path, content: bytes, form: str | None) -> Sentences:
    lines = tuple(" ".join(line.split()) for line in content.decode("utf-8-sig").splitlines() if line.strip())
    if not lines or form == "descriptors":
        raise ValueError("a .txt file holds sentences, one a line")
    return Sentences(path.name, digest(content).hex(), {}, "sentences", lines)


def describe(phrase: str, descriptor: str) -> str:
    """A descriptor as a sentence about a class: "a photo of a hen, which has two legs.".

    Source: Visual Classification via Description (Menon and Vondrick, ICLR 2023), with the first word taken whole:
    "antlers" do not begin with an article.
    """
    text = descriptor.strip().rstrip(".")
    first = text.split(" ", 1)[0].lower()
    if first in ("has", "have", "is", "are", "often", "typically", "usually", "may", "can"):
        clause = text
    elif first in ("a", "an", "used"):
        clause = f"is {text}"
    else:
        clause = f"has {text}"
    return f"a photo of a {phrase}, which {clause}."


def _lines(path: Path, name: str, value: Any) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) and line.strip() for line in lines):
        raise PromptError(f"{path}: class {name!r} has {value!r:.60} instead of a list of sentences: write {_SHAPE}")
    return tuple(" ".join(line.split()) for line in lines)


def _names(phrase: str, line: str) -> bool:
    return "{}" in line or phrase.lower() in line.lower()


def _nearest(names: list[str], others: Iterable[str], most: int = 4) -> str:
    """Names, each with the one that it may stand for."""
    others = list(others)
    shown = []
    for name in names[:most]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
        form = same_but_for_form(name, others)
        shown.append(f"{name!r}" + (f" ({form})" if form else f" (nearest: {near[0]!r})" if near else ""))
    return (", ".join(shown) or "none") + (f" and {len(names) - most} more" if len(names) > most else "")


def _listing(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
