"""Words that several commands use: numbers of things, shares, lists, names that may be meant as one, the version."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

FEW = 30  # images of which an interval says little: of none wrong it has no width
MOST_LABELS = 100  # likely wrong ones that are shown, where nobody says how many
_ALIKE = 4  # groups of names that are shown
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?")
_RANGE, _LONGEST_RANGE = re.compile(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*"), 10_000
_LONG = 40  # characters of what is no number any more
_MISSING = {"nan", "none", "null", "<na>", "n/a"}  # as pandas, Python, SQL and Excel write it


@cache
def version() -> str:
    """The version of this package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of_package

    try:
        return of_package("onceclip")
    except PackageNotFoundError:
        return "0+checkout"  # a source tree that was never installed


def counted(number: int, what: str, many: str = "") -> str:
    """A number and what is counted, in the plural but for one. many: the plural, where it is not just with an s."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def counts(numbers: Mapping[str, int]) -> str:
    """Numbers by name, such as "train 70, val 70, test 50"."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def shots_of(number: int | str) -> str:
    """A number of shots, or all of them."""
    return f"{number} {'shot' if number == 1 else 'shots'}"


def percent(value: float | None) -> str:
    """A fraction as per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"


def few_words(images: int) -> str:
    """A remark behind scores of very few images; else nothing."""
    return "" if images >= FEW else f"; too few images to tell methods apart (under {FEW})"


def numbers_in(text: str) -> list[int]:
    """The whole numbers that a list such as "1,4-6" names, in its order.

    Empty for what is no such list, or has a range of more than 10,000 numbers.
    """
    numbers: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + _LONGEST_RANGE:
            return []
        numbers += range(first, last + 1)
    return numbers


def listed_names(text: str) -> list[str]:
    """The names in a list with commas; quotes hold together one that has a comma, as in CSV: 'cat,"dog, small"'.

    Raises ValueError for what is none, such as the lines of a file.
    """
    try:
        return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error as error:
        raise ValueError(f"{text[:40]!r} is no list of names with commas between: write it in one line") from error


def listing(names: Sequence[str], most: int = 8) -> str:
    """The first names, and a sign that there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would run as a formula has its first sign as %XX, as keys have.

    Numbers stay, also those below zero.
    """
    if isinstance(value, str) and value[:1] in _FORMULA and not re.fullmatch(r"[+-][\d.]+", value):
        return f"%{ord(value[0]):02X}{value[1:]}"
    return value


def class_remarks(classes: Mapping[str, Hashable]) -> list[str]:
    """What is odd about classes: some that may be meant as one, prompts that say the same, names that say nothing.

    classes: by name, what text says of each: its name in prompts, all its sentences, or their embeddings as bytes; None
        where there is no text.
    """
    remarks = []
    meant_as_one, same_text = defaultdict(list), defaultdict(list)
    for name, said in classes.items():
        meant_as_one[_folded(name)].append(name)
        if said is not None:
            same_text[said].append(name)
    if slips := [names for names in meant_as_one.values() if len(names) > 1]:
        forms = sum(len({unicodedata.normalize("NFC", name) for name in names}) < len(names) for names in slips)
        remarks.append("names that differ in Unicode form, case, spaces, underscores or the spelling of a number alone "
                       f"are different classes: {_groups(slips)}"
                       + (" (in Unicode form, é as one character or as two)" if forms else "")
                       + "; if they are one, give them one name")
    if twins := [names for names in same_text.values() if len(names) > 1]:
        said = classes[twins[0][0]]
        what = f" ({said!r})" if isinstance(said, str) else ""
        remarks.append(f"classes with the same prompts{what}, which text cannot tell apart: {_groups(twins)}; give "
                       "each its own, as with --class-names")
    if missing := [name for name in classes if name.lower() in _MISSING]:
        remarks.append(f"{listing([repr(name) for name in missing])} is a class, though programs write it for a label "
                       "that is missing: if so, leave that empty")
    said_names = [said for said in classes.values() if isinstance(said, str)]
    if said_names and all(_NUMBER.fullmatch(said) for said in said_names):
        remarks.append(f"the prompts call all classes by numbers, such as {said_names[0]!r}: say what they are with "
                       "--class-names FILE (lines folder,name)")
    return remarks


def _folded(name: str) -> str:
    """What names have in common that may be meant as one."""
    if _NUMBER.fullmatch(name):
        return f"{Decimal(name).normalize():f}" if len(name) < _LONG else name
    return re.sub(r"[\s_]+", "", unicodedata.normalize("NFC", name)).casefold()


def _groups(groups: Sequence[Sequence[str]]) -> str:
    shown = [", ".join(map(repr, names)) for names in groups[:_ALIKE]]
    return "; ".join(shown) + (" ..." if len(groups) > _ALIKE else "")
