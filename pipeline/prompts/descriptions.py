"""Sentences or descriptions of every class: from a file, as a language model writes them, or of states of a thing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceclip.adapters.errors import MethodError, same_but_for_form
from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.files import read_json
from onceclip.pipeline.words import listing
from onceclip.stores.identity import canonical, digest

FORMS = ("sentences", "descriptors")
_SHAPE = '{"class": ["sentence", ...], ...}'
_COMPARED = 20_000  # names among which a near one is looked for
NORMAL = ("normal {}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
          "{} without damage")
ABNORMAL = ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}", "{} with flaw", "{} with defect",
            "{} with damage")


@dataclass(frozen=True)
class Descriptions:
    """What a file says of the classes.

    name, digest: of the file. lines: what it says of each name in it. form: "sentences" stand as they are (`{}` in one
    is the class); "descriptors" are put behind "a photo of a {}, which has ". plain: sentences of a text file, which
    has no `lines`: each is of every class that it names, and may be of none.
    """

    name: str
    digest: str
    lines: Mapping[str, tuple[str, ...]]
    form: str | None = None
    plain: tuple[str, ...] = ()

    def sentences(self, phrases: Mapping[str, str]) -> dict[str, list[str]]:
        """The sentences of every class; the file may call one by its folder or by its name in prompts.

        phrases: what prompts call each class.
        Raises PromptError if file and classes do not match one to one, if no line of a text file names a class, or if
            the form is not given and the lines look like descriptors: taken for sentences, they would leave out the
            class.
        """
        if self.plain:
            return self._by_name(phrases)
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
        spoken = _spoken(phrases)
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
                              f"{nearest(missing, strange)} and has unknown {nearest(strange, missing)}; the file "
                              f"has {_listing(self.lines)}, the store has {_listing(phrases)}: rename them in the "
                              "file, or name the store's classes with --class-names")
        return {name: self.lines[found[name]] for name in phrases}

    def _by_name(self, phrases: Mapping[str, str]) -> dict[str, list[str]]:
        """The lines of a text file that name each class.

        A class is named by what prompts call it, as whole words, in singular or plural; a name within a longer one,
        such as dog in hot dog, does not count.
        Source: the noun filter of TaI-DPT (Guo et al., CVPR 2023), section 3.2, without synonyms.
        """
        spoken = _spoken({name: phrase.lower() for name, phrase in phrases.items()})
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
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from error
    plain = path.suffix.lower() == ".txt"
    if plain and form == "descriptors":
        raise PromptError(f"{path}: a .txt file holds sentences, one a line: leave --prompts-form descriptors out, or "
                          f"write JSON {_SHAPE}")
    try:
        text = content.decode("utf-8-sig")
        if plain:
            lines = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
            if not lines:
                raise ValueError("it has no line")
            return Descriptions(path.name, digest(content).hex(), {}, "sentences", lines)
        values = read_json(text)
    except ValueError as error:
        shape = "sentences, one a line, in UTF-8" if plain else f"JSON {_SHAPE}"
        raise PromptError(f"{path} is not a file of prompts ({error}): write {shape}") from error
    if not isinstance(values, dict) or not values:
        raise PromptError(f"{path} is not a JSON object of classes: write {_SHAPE}")
    return Descriptions(path.name, digest(content).hex(), {name: _lines(path, name, values[name]) for name in values},
                        form)


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


def _spoken(phrases: Mapping[str, str]) -> dict[str, list[str]]:
    """The classes that prompts call by each phrase."""
    spoken: dict[str, list[str]] = {}
    for name, phrase in phrases.items():
        spoken.setdefault(phrase, []).append(name)
    return spoken


def _listing(names: Iterable[str]) -> str:
    return listing([repr(name) for name in names])


def nearest(names: Sequence[str], known: Sequence[str], most: int = 4) -> str:
    """Some names, each with the one that it may stand for: of the same file name, else of nearly the same letters."""
    ends: dict[str, str] = {}
    for each in known:
        ends.setdefault(each.rpartition("/")[2], each)
    shown = []
    for name in names[:most]:
        near = ends.get(name.rpartition("/")[2]) or next(iter(difflib.get_close_matches(
            name, known[:_COMPARED], n=1, cutoff=0.5)), None)
        form = same_but_for_form(name, known)
        shown.append(f"{name!r}" + (f" ({form})" if form else f" (nearest: {near!r})" if near else ""))
    return (", ".join(shown) or "none") + (f" and {len(names) - most:,} more" if len(names) > most else "")


def state_descriptions(classes: Sequence[str], thing: str, normal: str, templates: Sequence[str]) -> Descriptions:
    """The sentences of every class: normal states of a thing for the normal class, abnormal ones for all others.

    thing: what is looked at, such as "bottle". normal: name of the normal class; empty for the one that has a usual
        name. templates: sentences with `{}`, for each state.
    Raises PromptError where no class is the normal one, or the thing is empty.

    Source: WinCLIP (Jeong et al., CVPR 2023), section 4.1; AnoVL (Deng et al., 2023), section 3.1.
    """
    from onceclip.adapters.inference.anomaly import normal_class  # imports torch

    if not thing.strip():
        raise PromptError("--states is empty: say what the images show, such as bottle")
    try:
        place = normal_class(classes, normal)
    except MethodError as error:
        raise PromptError(str(error).replace("normal=NAME", "--normal NAME")) from error
    words = " ".join(thing.split())
    lines = {name: tuple(template.replace("{}", state.replace("{}", words)) for template in templates
                         for state in (NORMAL if number == place else ABNORMAL))
             for number, name in enumerate(classes)}
    return Descriptions(f"states of {words}", digest(canonical(lines)).hex(), lines, "sentences")
