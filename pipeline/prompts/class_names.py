"""What prompts call a class: its folder's name, or the one that a file gives."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import PromptError
from onceclip.stores.identity import decode_key


def load_phrases(path: Path) -> dict[str, str]:
    """Read `--class-names`: a CSV file of `folder,name` or a JSON object.

    Raises PromptError if it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            phrases = json.loads(text, object_pairs_hook=no_key_twice)
            if not (isinstance(phrases, dict) and all(isinstance(name, str) for name in phrases.values())):
                raise ValueError("not an object of texts")
            return phrases
        rows = [row for row in csv.reader(text.splitlines()) if row]
        if any(len(row) != 2 for row in rows):
            raise ValueError("every line must be folder,name")
        pairs = [(folder.strip(), name.strip()) for folder, name in rows]
        return no_key_twice(pairs[1:] if pairs and pairs[0] == ("folder", "name") else pairs)
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} is not a table of class names ({error}): write CSV lines `folder,name` or a JSON "
                          "object {\"folder\": \"name\"}") from error


def class_phrases(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a prompt calls each class: the given name, else the folder's with spaces for underscores.

    A folder's name of other bytes than UTF-8 stays as its key spells it.
    Raises PromptError if a name is given for a class that does not exist.
    """
    given = given or {}
    extra = [name for name in given if name not in classes]
    if extra:
        raise PromptError(f"--class-names: {unknown('class folder', extra[0], classes)}")
    return {name: given.get(name, _spoken(name).replace("_", " ").strip() or name) for name in classes}


def numbered(phrases: Mapping[str, str]) -> str:
    """A warning if every class is called by a number, which says nothing to a text encoder, else empty."""
    if not phrases or not all(phrase.isdecimal() for phrase in phrases.values()):
        return ""
    return ("the prompts call all classes by numbers, such as "
            f"{next(iter(phrases.values()))!r}: say what they are with --class-names FILE (lines folder,name)")


def _spoken(key: str) -> str:
    name = decode_key(key)
    return name if name.isprintable() else key


def no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs; raises ValueError where JSON or a table names a key twice, of which one would be lost."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice")
    return dict(pairs)
