"""Templates, sentences with `{}` for the class: by name, from a file, or one as it is."""

from __future__ import annotations

from pathlib import Path

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import PromptError

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
