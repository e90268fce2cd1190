"""CoOp's `split_fewshot/shot_K-seed_S.pkl`, read and written without pickle: no name in a file is imported.

Source: https://github.com/KaiyangZhou/CoOp, which pickles {"train": [Datum, ...], "val": [Datum, ...]}.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

DATUM = "dassl.data.datasets.base_dataset", "Datum"
_FIELDS = ("_impath", "_label", "_domain", "_classname")
_PLAIN = frozenset(["BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "INT"])
_PLACED = frozenset(["BINPUT", "LONG_BINPUT", "PUT"])
_FETCHED = frozenset(["BINGET", "LONG_BINGET", "GET"])
_EMPTY: Mapping[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()


class Datum(dict[str, Any]):
    """The fields of one image in such a file."""


class _Name(str):
    """A class that a file names; it is text here and stays that."""


def read_datums(content: bytes) -> dict[str, list[Datum]]:
    """The images of a file by split, as {"train": [...], "val": [...]}.

    Operations that such files do not need are refused, among them every one that would call something.
    Raises ValueError for anything else than lists of images.
    """
    found = _interpreted(content)
    if not isinstance(found, dict) or not found or not all(
            name in ("train", "val", "test") and isinstance(images, list)
            and all(type(each) is Datum and isinstance(each.get("_impath"), str) for each in images)
            for name, images in found.items()):
        raise ValueError("it holds something else than lists of images under train and val")
    return found


def _interpreted(content: bytes) -> Any:
    """The value that a pickle describes, of plain values and `Datum` alone."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        place = len(stack) - 1 - next(number for number, each in enumerate(reversed(stack)) if each is _MARK)
        values = stack[place + 1:]
        del stack[place:]
        return values

    try:
        for operation, given, _ in pickletools.genops(content):
            name, argument = operation.name, cast(Any, given)
            if name in _PLAIN:
                stack.append(argument)
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _PLACED:
                memo[argument] = stack[-1]
            elif name in _FETCHED:
                stack.append(memo[argument])
            elif name == "STACK_GLOBAL":
                of, module = stack.pop(), stack.pop()
                stack.append(_named(f"{module} {of}"))
            elif name == "GLOBAL":
                stack.append(_named(argument))
            elif name == "NEWOBJ":
                if stack.pop() != () or type(stack.pop()) is not _Name:
                    raise ValueError("it makes something else than images")
                stack.append(Datum())
            elif name == "BUILD":
                state = stack.pop()
                if type(stack[-1]) is not Datum or type(state) is not dict:
                    raise ValueError("it gives state to something else than an image")
                stack[-1].update(state)
            elif name in ("APPEND", "APPENDS"):
                values = [stack.pop()] if name == "APPEND" else above_mark()
                list.extend(stack[-1], values)
            elif name in ("SETITEM", "SETITEMS"):
                pairs = [stack.pop(-2), stack.pop()] if name == "SETITEM" else above_mark()
                if type(stack[-1]) is not dict:
                    raise ValueError("it sets items of something else than a dict")
                stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"it has the operation {name}, which lists of images do not need")
    except (IndexError, KeyError, TypeError, StopIteration, UnicodeError, OverflowError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
    raise ValueError("it has no end")


def _named(name: str) -> _Name:
    if name.rpartition(" ")[2] != DATUM[1]:
        raise ValueError(f"it names {name.replace(' ', '.')}, and lists of images need Dassl's Datum alone")
    return _Name(name)


def write_datums(splits: Mapping[str, Sequence[tuple[str, int, str]]]) -> bytes:
    """A pickle that CoOp reads. splits: (path, class number, class name) of every image by split."""
    return b"".join([b"\x80\x02}(", *(part for name, images in splits.items() for part in (
        _text(name), b"](", *(_datum(*image) for image in images), b"e")), b"u."])


def _datum(path: str, number: int, name: str) -> bytes:
    values: Iterable[bytes] = (_text(path), _number(number), _number(0), _text(name))
    return b"".join([f"c{DATUM[0]}\n{DATUM[1]}\n".encode(), b")\x81}(",
                     *(_text(field) + value for field, value in zip(_FIELDS, values, strict=True)), b"ub"])


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
