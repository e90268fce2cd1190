"""WaffleCLIP: templates with random words and characters, which often serve as well as descriptions."""

from __future__ import annotations

import string
from collections.abc import Sequence

from onceclip.stores.identity import digest

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
