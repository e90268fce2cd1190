"""Where support rows come from that nobody labelled: the sources, one table. A new one joins by being named in it."""

from __future__ import annotations

import sys

from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.adapters.methods import stored_method_class
from onceclip.adapters.plugin import import_class, stored_class
from onceclip.adapters.support.dual_prototypes import DPA
from onceclip.adapters.support.pseudo_labels import FPL, GRIP, IFPL, UPL, NoLA
from onceclip.adapters.support.retrieval import Captions, Retrieve
from onceclip.adapters.support.source import Choice, SupportSource, rows_of

SUPPORTS: dict[str, type[SupportSource]] = {source.name: source for source in (
    UPL, FPL, IFPL, GRIP, NoLA, DPA, Retrieve, Captions,
)}

__all__ = ["DPA", "FPL", "GRIP", "IFPL", "SUPPORTS", "UPL", "Captions", "Choice", "NoLA", "Retrieve", "SupportSource",
           "outside_class", "require_stored", "rows_of", "support_source"]


def support_source(name: str | SupportSource) -> SupportSource:
    """The source that NAME[:K][,SETTING=VALUE...] names; MODULE:CLASS[:K] is one of your own, which is imported.

    name: given by the user, never by a file; a source is given back.
    Raises UnknownName with the nearest name if there is none, MethodError for a setting that is not valid.

    Example:
        >>> str(onceclip.adapters.support_source("upl:8,weighted=true"))
        'upl:8,weighted=True'
    """
    if isinstance(name, SupportSource):
        return name
    head, *settings = str(name).split(",")
    parts = [part.strip() for part in head.split(":")]
    kind: type[SupportSource]
    if outside := outside_class(name):
        kind, given = import_class(outside, SupportSource), parts[2:]  # type: ignore[type-abstract]
    elif parts[0] in SUPPORTS:
        kind, given = SUPPORTS[parts[0]], parts[1:]
    else:
        raise UnknownName(unknown("support source", parts[0], SUPPORTS))
    first = next(iter(kind.hyperparameters), None)
    if len(given) > 1 or (given and first is None):
        raise MethodError(f"--support {name}: give NAME:K and settings as NAME=VALUE, such as upl:16,weighted=true")
    values: dict[str, str] = {str(first): given[0]} if given else {}
    for setting in settings:
        key, mark, value = setting.partition("=")
        if not mark:
            raise MethodError(f"--support {name}: {setting!r} is not NAME=VALUE")
        values[key.strip()] = value.strip()
    return kind(**values)


def require_stored(name: str, where: str) -> None:
    """Raise MethodError if a file names a source, or a method that one fits, of a module that is not imported already.

    name: empty for none. where: the file.
    """
    if outside := outside_class(name):
        stored_class(outside, SupportSource, sys.modules, where)  # type: ignore[type-abstract]
    if name and (method := support_source(name).values.get("method")):
        stored_method_class(str(method), where)


def outside_class(name: str) -> str:
    """MODULE:CLASS of a name that means a source from outside, else empty."""
    parts = [part.strip() for part in str(name).partition(",")[0].split(":")]
    known = parts[0] in SUPPORTS or len(parts) == 1 or parts[1].lstrip("+-").isdigit()
    return "" if known else ":".join(parts[:2])
