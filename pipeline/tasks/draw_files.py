"""Draws in files: CoOp's pickles, split files of lists, JSON and CSV of keys; read for a run, and written."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.errors import SourceError, TaskError
from onceclip.pipeline.files import read_json, read_place, suffix, text_of
from onceclip.pipeline.tasks.coop_pickles import read_datums, write_datums
from onceclip.pipeline.words import counted, listing, shots_of
from onceclip.stores import Store
from onceclip.stores.identity import digest, encode_key
from onceclip.stores.location import everywhere, whole_file

ENDINGS = (".pkl", ".json", ".csv")
FORMATS = {"json": ".json", "csv": ".csv", "coop": ".pkl", "tip-adapter": ".json"}  # and what their files end with
SPLITS = ("train", "val")
_NAMED = re.compile(r"shots?_(\d+|all)-seed_(\d+)", re.IGNORECASE)
_FORM = ('give {"shots": 4, "seed": 1, "train": [KEY, ...], "val": [KEY, ...]}, or a list of such, where a KEY may be '
         "[KEY, NUMBER, CLASS] too")
Image = tuple[str, str | None]  # key or path, and class as the file calls it, or None


@dataclass(frozen=True)
class DrawFile:
    """Where the draw of a run is listed. file: a path. digest: of the file's bytes, which must stay as they are."""

    file: str
    digest: str

    def __post_init__(self) -> None:
        if not (isinstance(self.file, str) and isinstance(self.digest, str)):
            raise TypeError("a draw's file and digest are texts")


@dataclass(frozen=True)
class Listed:
    """One draw of a file: its images by split. shots, seed: what it is the draw of, None where no file says it."""

    images: Mapping[str, tuple[Image, ...]]
    shots: int | None = None
    seed: int | None = None

    def is_of(self, shots: int | None, seed: int) -> bool:
        """Whether it may be the draw of a run."""
        return self.shots in (None, shots) and self.seed in (None, seed)


def draw_file(place: str | Path, shots: int | None, seed: int) -> DrawFile:
    """The file with the draw of a run: the one given, or of a folder the one named shot_K-seed_S.

    Raises TaskError if there is none, or it has no such draw.
    """
    path = Path(place)
    if path.is_dir():
        named = [(what, each) for each in sorted(path.iterdir())
                 if each.suffix.lower() in ENDINGS and (what := _of_name(each))]
        mine = [each for what, each in named if what == (shots, seed)]
        if not mine:
            raise _missing(str(place), shots, seed, [what for what, _ in named])
        if len(mine) > 1:
            raise TaskError(f"{place} has {' and '.join(each.name for each in mine)}: one draw has one file, give the "
                            "one that is meant")
        path = mine[0]
    found = DrawFile(everywhere(str(path)), digest(_content(path)).hex())
    listed_draw(found, shots, seed)
    return found


def listed_draw(source: DrawFile, shots: int | None, seed: int) -> Listed:
    """The draw of a run from its file.

    Raises TaskError if the file has changed or lists no draw, or none or several for these shots and this seed.
    """
    draws = _draws(source)
    named = _of_name(Path(source.file))  # of "all" no number is a part
    found = [each for each in draws if each.is_of(shots, seed) and (not named or named[0] == shots)]
    if not found:
        raise _missing(source.file, shots, seed, [(each.shots, each.seed) for each in draws])
    if len(found) > 1:
        raise TaskError(f"{source.file} has {len(found)} draws of {_what(shots, seed)}: say shots and seed of each")
    if not found[0].images.get("train"):
        raise TaskError(f"{source.file}: the draw of {_what(shots, seed)} has no training image: list some under train")
    return found[0]


def only_draw(place: str | Path) -> Listed | None:
    """The draw of a file that has one alone; None for a folder, or several."""
    if Path(place).is_dir():
        return None
    draws = _parsed(str(place), _content(Path(place)))
    return draws[0] if len(draws) == 1 else None


def _of_name(path: Path) -> tuple[int | None, int] | None:
    """Shots and seed that a file is named after."""
    found = _NAMED.fullmatch(path.stem)
    return (None if found[1].lower() == "all" else int(found[1]), int(found[2])) if found else None


def _missing(place: str, shots: int | None, seed: int, there: Sequence[tuple[Any, Any]]) -> TaskError:
    known = listing([_what(*each) for each in sorted(there, key=str)], 12) or "none named shot_K-seed_S"
    return TaskError(f"{place} has no draw of {_what(shots, seed)} (there are: {known}): give a file or folder "
                     "that has it")


def _what(shots: int | None, seed: int | None) -> str:
    return f"{shots_of('all' if shots is None else shots)}, seed {'any' if seed is None else seed}"


def _content(path: Path) -> bytes:
    if not path.is_file():  # a row may name anything
        raise TaskError(f"--draws {path} is no file: give the file that lists the draw, or a folder of such")
    try:
        return read_place(str(path))
    except SourceError as error:
        raise TaskError(f"--draws {error}") from error


@lru_cache(maxsize=32)
def _draws(source: DrawFile) -> list[Listed]:
    content = _content(Path(source.file))
    if digest(content).hex() != source.digest:
        raise TaskError(f"{source.file} has changed since the run was asked for (its digest was {source.digest}): run "
                        "the command again, or bring the old file back")
    return _parsed(source.file, content)


def _parsed(file: str, content: bytes) -> list[Listed]:
    """All draws of a file."""
    try:
        if suffix(file) == ".pkl":
            draws = [Listed({split: tuple((each["_impath"], _class(each.get("_classname"), each.get("_label")))
                                          for each in images) for split, images in read_datums(content).items()})]
        elif suffix(file) == ".csv":
            draws = _of_csv(text_of(content))
        elif suffix(file) == ".json":
            draws = _of_json(read_json(text_of(content)))
        else:
            raise ValueError(f"a list of draws ends with {', '.join(ENDINGS)}")
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{file} is no list of draws: {error}") from error
    named = _of_name(Path(file))
    if named and any(not each.is_of(*named) for each in draws):
        raise TaskError(f"{file} is named after {_what(*named)} and lists another draw: rename it")
    return [Listed(each.images, *named) for each in draws] if named else draws


def _class(name: Any, number: Any) -> str | None:
    """How a file tells classes apart: by number, which is there once per class, else by name."""
    return None if number is None and name is None else str(name if number is None else number)


def _of_json(values: Any) -> list[Listed]:
    if isinstance(values, dict) and "draws" in values:
        values = values["draws"]
    draws = []
    for each in values if isinstance(values, list) else [values]:
        if not isinstance(each, dict) or "train" not in each or not all(
                isinstance(each.get(split, []), list) for split in SPLITS):
            raise ValueError(_FORM)
        numbers = [each.get(name) for name in ("shots", "seed")]
        if any(not (number is None or (type(number) is int and number >= 0)) for number in numbers):
            raise ValueError(f"shots and seed must be whole numbers: {_FORM}")
        draws.append(Listed({split: tuple(map(_image, each.get(split, []))) for split in SPLITS}, *numbers))
    if not draws:
        raise ValueError(_FORM)
    return draws


def _image(value: Any) -> Image:
    if isinstance(value, str):
        return value, None
    if isinstance(value, list) and len(value) in (2, 3) and isinstance(value[0], str):
        return value[0], _class(value[-1], value[1])
    raise ValueError(f"{json.dumps(value)[:60]} is no image: {_FORM}")


def _of_csv(text: str) -> list[Listed]:
    table = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    if "key" not in (table.fieldnames or ()):
        raise ValueError("a CSV file of draws has the columns key and, as far as it needs them, split, shots, seed, "
                         "class")
    found: dict[tuple[int | None, int | None], dict[str, list[Image]]] = {}
    for number, row in enumerate(table, 2):
        split = row.get("split") or "train"
        if split not in SPLITS or not row["key"]:
            raise ValueError(f"line {number}: a row has a key, and its split is train or val")
        try:
            shots, seed = (int(row[name]) if row.get(name) else None for name in ("shots", "seed"))
        except ValueError:
            raise ValueError(f"line {number}: shots and seed must be whole numbers") from None
        images = found.setdefault((shots, seed), {each: [] for each in SPLITS})
        images[split].append((row["key"], row.get("class") or None))
    return [Listed({split: tuple(each) for split, each in images.items()}, *what) for what, images in found.items()]


def write_draw(path: Path, form: str, shots: int | None, seed: int,
               images: Mapping[str, Sequence[tuple[str, int, str]]]) -> None:
    """Write a draw. form: one of FORMATS. images: key or path, class number and class name by split."""
    if form == "coop":
        content = write_datums(images)
    elif form == "csv":
        lines = io.StringIO(newline="")
        table = csv.writer(lines)
        table.writerow(["key", "split", "shots", "seed", "class"])
        table.writerows([key, split, "" if shots is None else shots, seed, name]
                        for split, several in images.items() for key, _, name in several)
        content = lines.getvalue().encode("utf-8", "surrogateescape")
    elif form == "tip-adapter":
        content = json.dumps({**images, "test": []}).encode()
    else:
        content = json.dumps({"shots": shots, "seed": seed, **{
            split: [key for key, _, _ in several] for split, several in images.items()}}, indent=1).encode()
    with whole_file(path) as file:
        file.write(content)


def rows_of(store: Store, images: Sequence[Image], what: str, file: str) -> np.ndarray:
    """Rows (n,) of the images that a file lists, in its order. what: of them, such as "train", for messages.

    The name of an image is that of the row whose key it is; else of the only row whose key ends with it, or it with
    the key, by whole folders: paths of another machine fit.
    Raises TaskError for an image that is missing, means several rows, stands twice or in the test split, and for
    classes of the file that are not classes of the store.
    """
    rows = store.rows()
    place = {str(key): row for key, row in zip(store.column("key")[rows], rows.tolist(), strict=True)}
    endings: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for key, row in place.items():
        parts = tuple(key.split("/"))
        endings[parts[-1]].append((parts, row))
    found = {name: _rows_named(name, place, endings) for name, _ in images}
    if missing := [name for name, _ in images if not found[name]]:
        raise TaskError(f"{file}: {counted(len(missing), f'{what} image')} of {len(images):,} not in {store.path}: "
                        f"{listing(missing, 4)}; keys there are such as {listing(list(place)[:2])}: "
                        "give the store of the images that were drawn")
    if unclear := next((name for name in found if len(found[name]) > 1), None):
        raise TaskError(f"{file}: {unclear} may be several images of {store.path}: list more of their path")
    chosen = np.array([found[name][0] for name, _ in images], np.int64)
    if len(np.unique(chosen)) < len(chosen):
        twice = next(name for (name, _), row in zip(images, chosen, strict=True) if (chosen == row).sum() > 1)
        raise TaskError(f"{file}: {twice} is listed twice among its {what} images: list each once")
    tested = np.isin(chosen, store.rows("test"))
    if tested.any():
        raise TaskError(f"{file}: {counted(int(tested.sum()), f'{what} image')}, such as "
                        f"{images[int(tested.argmax())][0]}, of the test split of {store.path}: its splits are not "
                        "those of the draw; extract with them (docs/sources.md)")
    _require_classes(store, images, chosen, file)
    return chosen


def _rows_named(name: str, place: Mapping[str, int],
                endings: Mapping[str, Sequence[tuple[tuple[str, ...], int]]]) -> list[int]:
    """The rows that a name may mean. place: row by key. endings: parts of keys and rows, by the last part."""
    for form in dict.fromkeys((name, encode_key(name), encode_key(name.replace("\\", "/")))):
        if form in place:
            return [place[form]]
        parts = tuple(part for part in form.split("/") if part not in ("", "."))
        close = [row for key, row in (endings.get(parts[-1], ()) if parts else ())
                 if all(one == other for one, other in zip(reversed(key), reversed(parts), strict=False))]
        if close:
            return close
    return []


def _require_classes(store: Store, images: Sequence[Image], rows: np.ndarray, file: str) -> None:
    """Raise TaskError unless each class of the file is one of the store: else names were joined wrongly."""
    labels = store.column("label")[rows]
    of_file: dict[str, tuple[int, str]] = {}
    for (name, said), label in zip(images, labels.tolist(), strict=True):
        if said is not None:
            first, example = of_file.setdefault(said, (label, name))
            if first != label:
                raise TaskError(f"{file}: its class {said} has images of two classes of {store.path} ({example}: "
                                f"{store.classes[first]!r}, {name}: {store.classes[label]!r}): give the store of the "
                                "images that were drawn")
