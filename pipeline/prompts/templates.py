"""Templates, sentences with `{}` for the class: by name, from a file, or one as it is."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import PromptError
from onceclip.stores.identity import digest

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
    import open_clip

    # open_clip keeps these as functions; what they make of a mark is the template.
    return tuple(make("{}") for make in getattr(open_clip, _OPEN_CLIP[choice]))


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


GENERATOR = "blake2b-index-1"
_SHORTEST = 3
_CHARACTERS = string.ascii_letters + string.digits + "!#"


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
