"""From class names to sentences: templates by name, by file or as they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onceclip.adapters.method import unknown
from onceclip.pipeline.errors import PromptError

DEFAULT_TEMPLATES = ("a photo of a {}.",)
_NAMED = {"photo": None, "imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet-7": "SIMPLE_IMAGENET_TEMPLATES"}


@dataclass(frozen=True)
class Prompts:
    """The sentences of all classes.

    sentences: all of them, class by class. class_ptr: (classes + 1,) where each class begins and ends.
    template_id: (sentences,) position in `templates`.
    """

    classes: tuple[str, ...]
    sentences: tuple[str, ...]
    class_ptr: np.ndarray
    template_id: np.ndarray
    templates: tuple[str, ...]


def load_templates(choice: str) -> tuple[str, ...]:
    """Templates by name ("photo", "imagenet", "imagenet-7"), from a file with one a line, or one template itself.

    Raises PromptError if there is no such name or file, or a template has no `{}`.
    """
    if "{}" in choice:
        return (choice,)
    path = Path(choice)
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        templates = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
        bad = [template for template in templates if "{}" not in template]
        if bad or not templates:
            raise PromptError(f"{choice}: " + (f"template {bad[0]!r} has no {{}} for the class name" if bad else
                                               "no templates in it") + ": write one sentence with {} a line")
        return templates
    if choice not in _NAMED:
        raise PromptError(unknown("template set or file", choice, _NAMED) + "; a sentence with {} is taken as it is")
    if _NAMED[choice] is None:
        return DEFAULT_TEMPLATES
    import open_clip

    # open_clip keeps these as functions; what they make of a mark is the template.
    return tuple(make("{}") for make in getattr(open_clip, str(_NAMED[choice])))


def load_phrases(path: Path) -> dict[str, str]:
    """Read `--class-names`: a CSV file of `folder,name` or a JSON object.

    Raises PromptError if it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            phrases = json.loads(text)
            if not (isinstance(phrases, dict) and all(isinstance(name, str) for name in phrases.values())):
                raise ValueError("not an object of texts")
            return phrases
        rows = [row for row in csv.reader(text.splitlines()) if row]
        if any(len(row) != 2 for row in rows):
            raise ValueError("every line must be folder,name")
        pairs = [(folder.strip(), name.strip()) for folder, name in rows]
        if pairs and pairs[0] == ("folder", "name"):
            pairs = pairs[1:]
        twice = {folder for folder, _ in pairs if [each for each, _ in pairs].count(folder) > 1}
        if twice:
            raise ValueError(f"folder {min(twice)!r} is named twice")
        return dict(pairs)
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not a table of class names ({error}): write CSV lines `folder,name` or a JSON "
                          "object {\"folder\": \"name\"}") from error


def class_phrases(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a prompt calls each class: the given name, else the folder's with spaces for underscores.

    Raises PromptError if a name is given for a class that does not exist.
    """
    given = given or {}
    extra = [name for name in given if name not in classes]
    if extra:
        raise PromptError(f"--class-names: {unknown('class folder', extra[0], classes)}")
    return {name: given.get(name, name.replace("_", " ").strip() or name) for name in classes}


def build_prompts(phrases: Mapping[str, str], templates: Sequence[str]) -> Prompts:
    """Put every class's phrase into every template."""
    sentences = tuple(template.replace("{}", phrase) for phrase in phrases.values() for template in templates)
    pointer = np.arange(len(phrases) + 1, dtype=np.int64) * len(templates)
    template_id = np.tile(np.arange(len(templates), dtype=np.int32), len(phrases))
    return Prompts(tuple(phrases), sentences, pointer, template_id, tuple(templates))
