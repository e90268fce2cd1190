"""Glyph classes, the things that can be said of a picture of one, and the captions that say them."""

from __future__ import annotations

import string
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Words in the name of a font or of its family that tell its style.
FONT_STYLES = {
    "handwritten": "hand breip bwht femke humor rufscript kristi dancing kaushan isabella klee joscelyn "
    "ecolier tomson seto nanumpen nanumbrush nanumbarunpen nanum_pen nanum_brush yozfont kiloji purisa "
    "chilanka karumbi comic script aoyagi kouzan brush rampart yusei cherry andika lobster leckerli "
    "fifthhorseman chancery wenkai delphine steve sjfonts",
    "bold": "bold black heavy",
    "italic": "italic oblique slanted",
    "serif": "serif roman times garamond baskervil bodoni didot schola bookman palladio charis gentium "
    "termes pagella bonum century libertine fanwood linden prociono quattrocento caladea vollkorn stix",
    "sans serif": "sans helvet gillius lato roboto inter arial heros adventor karla manrope cabin cantarell "
    "jura quicksand dosis comfortaa clear carlito",
    "monospaced": "mono courier typist cursor code hack cousine consolata typewriter",
}
PICTURE_STYLES = ("blurry", "low resolution", "noisy", "dark on light", "light on dark")
COLOURS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.15),
    "blue": (0.12, 0.2, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "orange": (0.95, 0.5, 0.05),
    "purple": (0.5, 0.1, 0.6),
    "brown": (0.45, 0.25, 0.1),
}
STYLES = (*FONT_STYLES, *PICTURE_STYLES, *COLOURS)

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of the {}.",
    "a scan of a {}.",
    "a drawing of a {}.",
    "a rendering of the {}.",
    "a close-up photo of a {}.",
    "this is a {}.",
    "the {}",
    "a {}",
    "{}",
)


@dataclass(frozen=True)
class Captions:
    """All captions, tokenized once: `tokens` [N, L], the classes each is true of `classes` [N, 62],
    and the style each names `style` [N] (-1 for none)."""

    texts: list[str]
    tokens: Tensor
    classes: Tensor
    style: Tensor


def nouns() -> dict[str, str]:
    """Map every noun phrase to the classes it is true of, for example "letter a" to "Aa"."""
    phrases: dict[str, str] = {}
    for digit, word in zip(string.digits, DIGIT_WORDS, strict=True):
        for name in (digit, word):
            phrases |= {name: digit, f"digit {name}": digit, f"number {name}": digit}
    for lower, upper in zip(string.ascii_lowercase, string.ascii_uppercase, strict=True):
        phrases |= {f"letter {lower}": lower + upper}
        phrases |= {f"{case} letter {lower}": lower for case in ("lowercase", "small")}
        phrases |= {f"{case} letter {lower}": upper for case in ("uppercase", "capital")}
    return phrases


def build_captions(tokenizer: SimpleTokenizer) -> Captions:
    """Write every caption (noun x template x style or none) and tokenise it with an open_clip `tokenizer`."""
    texts, classes, style = [], [], []
    for noun, true_of in nouns().items():
        for index, name in enumerate((None, *STYLES), start=-1):
            phrase = noun if name is None else f"{name} {noun}"
            texts += [template.format(phrase) for template in TEMPLATES]
            classes += [[glyph in true_of for glyph in CLASSES]] * len(TEMPLATES)
            style += [index] * len(TEMPLATES)
    return Captions(texts, tokenizer(texts), torch.tensor(classes), torch.tensor(style))
