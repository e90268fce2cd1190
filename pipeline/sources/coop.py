"""CoOp's split files, `split_zhou_*.json`: images, class numbers and class names of train, val and test.

Source: https://github.com/KaiyangZhou/CoOp, DATASETS.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import parent, read_json, read_text, suffix
from onceclip.pipeline.sources.manifest import Row, check_utf8, records_of
from onceclip.pipeline.sources.record import Listing, Source, SourceOptions

SPLITS = ("train", "val", "test")
_FORM = 'give {"train": [["cat/1.jpg", 0, "cat"], ...], "val": [...], "test": [...]}, as CoOp\'s split_zhou_*.json are'


class CoopSplit(Source):
    """CoOp's split file."""

    name = "CoOp's split file"
    takes = frozenset({"root", "every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        return suffix(text) == ".json"

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images of a split file, in its order.

        Raises SourceError if the file has another form, or its class numbers and class names disagree.
        """
        try:
            values = read_json(read_text(text))
        except ValueError as error:
            raise SourceError(f"{text}: not JSON ({error}): {_FORM}") from error
        if not isinstance(values, dict) or not values or not set(values) <= set(SPLITS):
            raise SourceError(f"{text} is not a split file: {_FORM}, or a manifest as .csv or .jsonl")
        rows, numbers = [], []
        for split in (name for name in SPLITS if name in values):
            if not isinstance(values[split], list):
                raise SourceError(f"{text}: {split} is not a list: {_FORM}")
            for place, item in enumerate(values[split]):
                where = f"{split}[{place}]"
                if not _is_item(item):
                    raise SourceError(f"{text} {where}: {json.dumps(item)[:60]} is not [path, number, name]: {_FORM}")
                path, number, name = item
                check_utf8(f"{text} {where}", path, name)
                rows.append(Row(where, path, name, split))
                numbers.append((where, number, name))
        _check_numbers(text, numbers)
        return Listing(records_of(text, rows, options.root or parent(text)))


def _is_item(item: object) -> bool:
    return (isinstance(item, list) and len(item) == 3 and isinstance(item[1], int) and not isinstance(item[1], bool)
            and all(isinstance(each, str) and each and "\0" not in each for each in (item[0], item[2])))


def _check_numbers(place: str, names: Iterable[tuple[str, int, str]]) -> None:
    """Check that class numbers and class names say the same.

    names: (where, number, name).
    Raises SourceError with the first place where a number has another name than before, or a name another number.
    """
    by_number: dict[int, tuple[str, str]] = {}
    by_name: dict[str, tuple[int, str]] = {}
    for where, number, name in names:
        other, before = by_number.setdefault(number, (name, where))
        if other != name:
            raise SourceError(f"{place}: class {number} is {other!r} in {before} and {name!r} in {where}: correct the "
                              "file")
        same, before = by_name.setdefault(name, (number, where))
        if same != number:
            raise SourceError(f"{place}: class {name!r} has number {same} in {before} and {number} in {where}: correct "
                              "the file")
