"""The failures of the adapters."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

from onceclip.errors import OnceclipError


class MethodError(OnceclipError):
    """A method cannot be built, fitted or chosen as asked."""


class UnknownName(MethodError):  # noqa: N818 - reads as what it is
    """A method or hyperparameter that does not exist."""


class AdapterFileError(OnceclipError):
    """A folder does not hold a saved adapter, or holds one that this version cannot read."""


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    """One line that names the nearest known name and lists all of them."""
    name, known = str(name), list(map(str, known))  # NumPy writes the type of its texts into their repr
    spelled = {each.lower(): each for each in reversed(known)}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.4)
    form = same_but_for_form(name, known)
    hint = f"{form}; " if form else f"did you mean {spelled[near[0]]!r}? " if near else ""
    listing = ", ".join(known) if known else "none"
    return f"no {what} {name!r}{where}: {hint}there are: {listing}"


def same_but_for_form(name: str, known: Iterable[str]) -> str:
    """What to say if a known name differs from this one in Unicode form alone, as names of macOS's folders do."""
    plain = unicodedata.normalize("NFC", name)
    other = next((each for each in known if each != name and unicodedata.normalize("NFC", each) == plain), None)
    return "" if other is None else f"{other!r} is there in another Unicode form (NFC or NFD): copy its name from there"
