"""Captions of a store's items from a file: sentences that belong to one image or one group, not to a class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.files import key_of, read_json
from onceclip.pipeline.prompts.descriptions import nearest
from onceclip.pipeline.prompts.prompts import Prompts
from onceclip.stores import Store
from onceclip.stores.identity import digest
from onceclip.stores.schema import REMOVED
from onceclip.stores.text import CAPTION

NAMES = ("key", "path", "image", "image_name", "file_name", "filename", "file", "group", "video", "video_id", "name")
SENTENCES = ("caption", "text", "sentence", "comment")
_SHAPES = 'write CSV with the columns path,caption or JSON {"path": ["caption", ...], ...}'

Pair = tuple[int, str, str]  # where in the file, the item's name, a caption


@dataclass(frozen=True)
class Captions:
    """What a file says of items. name, digest: of the file. lines: captions by the item's name in the file.

    repeated: captions that an item had already and that are left out.
    """

    name: str
    digest: str
    lines: Mapping[str, tuple[str, ...]]
    repeated: int


def load_captions(path: Path) -> Captions:
    """Read captions: CSV or TSV with a column of paths and one of captions, JSON lists by path, JSON lines, or COCO's.

    An item may have several captions: lists in JSON, lines in CSV.
    Raises PromptError if the file is something else, or a name or a caption is empty.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
        pairs = (_of_json(read_json(text)) if path.suffix.lower() == ".json" else
                 _of_records([read_json(line) for line in text.split("\n") if line.strip()])
                 if path.suffix.lower() == ".jsonl" else _of_table(text, path.suffix.lower()))
        lines: dict[str, dict[str, None]] = {}
        count = 0
        for where, name, caption in pairs:
            if not (isinstance(name, str) and isinstance(caption, str) and name.strip() and caption.strip()):
                raise ValueError(f"entry {where} has the name {name!r:.60} and the caption {caption!r:.60}")
            lines.setdefault(name, {})[" ".join(caption.split())] = None
            count += 1
        if not lines:
            raise ValueError("nothing in it")
    except (OSError, ValueError, csv.Error) as error:
        raise PromptError(f"{path} is not a file of captions ({error}): {_SHAPES}") from error
    return Captions(path.name, digest(content).hex(), {name: tuple(each) for name, each in lines.items()},
                    count - sum(map(len, lines.values())))


def _of_table(text: str, ending: str) -> Iterator[Pair]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if ending == ".tsv" else ",",
                        skipinitialspace=True)
    rows = [(reader.line_num, row) for row in reader if row]
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    columns = _columns(head)
    for number, row in rows[1:] if columns else rows:
        if len(row) != (len(head) if columns else 2):
            raise ValueError(f"line {number} has {len(row)} cells, not {len(head) if columns else 2}: a caption with "
                             "a comma needs quotes")
        name, caption = columns or (0, 1)
        yield number, row[name].strip(), row[caption]


def _columns(head: Sequence[str]) -> tuple[Any, Any] | None:
    """Which columns or keys are the name and the caption: the first known one of each."""
    name = next((index for index, each in enumerate(head) if each in NAMES), None)
    caption = next((index for index, each in enumerate(head) if each in SENTENCES), None)
    return None if name is None or caption is None else (name, caption)


def _of_json(values: Any) -> Iterator[Pair]:
    if isinstance(values, list):
        yield from _of_records(values)
    elif isinstance(values, dict) and all(isinstance(values.get(each), list) for each in ("images", "annotations")):
        yield from _of_coco(values)
    elif isinstance(values, dict):
        for number, (name, value) in enumerate(values.items(), 1):
            for caption in value if isinstance(value, list) and value else [value]:
                yield number, name, caption
    else:
        raise ValueError("neither an object nor a list")


def _of_records(values: Sequence[Any]) -> Iterator[Pair]:
    for number, value in enumerate(values, 1):
        keys = list(value) if isinstance(value, dict) else []
        columns = _columns([each.lower() for each in keys])
        if columns is None:
            raise ValueError(f"entry {number} is {json.dumps(value)[:60]}, without a path and a caption")
        name, captions = (value[keys[each]] for each in columns)
        for caption in captions if isinstance(captions, list) else [captions]:
            yield number, name, caption


def _of_coco(values: Mapping[str, Any]) -> Iterator[Pair]:
    """COCO's captions: `images` with id and file_name, `annotations` with image_id and caption."""
    try:
        names = {image["id"]: image["file_name"] for image in values["images"]}
        for number, each in enumerate(values["annotations"], 1):
            yield number, names[each["image_id"]], each["caption"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"an entry lacks {error}, which COCO's captions have") from None


def captions_for(store: Store, captions: Captions) -> Prompts:
    """The captions of a store's items, in the order of the file, with the keys or groups that they belong to.

    If every name is the key of an image, items are images. Otherwise they are groups, such as videos, and images that
    are in none.
    Raises PromptError if a name is no item's.
    """
    there = store.column("state") != REMOVED
    keys, groups = store.column("key")[there], store.column("group")[there]
    rows, items = set(keys.tolist()), set(np.where(groups == "", keys, groups).tolist())
    named = {name: _key(name) for name in captions.lines}
    by = "key" if all(name in rows or key in rows for name, key in named.items()) else "group"
    known = rows if by == "key" else items
    strange = [name for name, key in named.items() if name not in known and key not in known]
    if strange:
        raise PromptError(f"{captions.name} has captions for {len(strange):,} of {len(named):,} names that are not in "
                          f"{store.path}: {nearest(strange, sorted(rows | items))}: name images by their keys "
                          "(paths in the folder that was extracted) and videos by theirs")
    found: dict[str, list[str]] = {}
    for name, key in named.items():
        found.setdefault(name if name in known else key, []).extend(captions.lines[name])
    merged = {key: tuple(dict.fromkeys(lines)) for key, lines in found.items()}
    repeated = captions.repeated + sum(map(len, found.values())) - sum(map(len, merged.values()))
    sentences = tuple(line for lines in merged.values() for line in lines)
    pointer = np.concatenate([[0], np.cumsum([len(lines) for lines in merged.values()])]).astype(np.int64)
    source = {"kind": CAPTION, "by": by, "file": {"name": captions.name, "digest": captions.digest, "form": CAPTION,
                                                  "repeated": repeated}}
    return Prompts(tuple(merged), sentences, pointer, np.full(len(sentences), -1, np.int32), source)


def _key(name: str) -> str:
    try:
        return key_of(name.removeprefix("./"))
    except UnicodeEncodeError:
        return name
