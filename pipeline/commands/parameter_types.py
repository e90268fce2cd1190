"""Types of arguments of commands: lists, numbers, paths, and pairs of a name and a value."""

from __future__ import annotations

from typing import Any

import click

from onceclip.pipeline.words import listed_names, numbers_in


def names_in(text: str) -> list[str]:
    """The names in a list, as of `listed_names`. Raises BadParameter for what is none."""
    try:
        return listed_names(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def pair_in(text: str, form: str, option: str | None = None) -> tuple[str, str]:
    """Both sides of NAME=VALUE. form: how it is written, for people. option: which has it, where click cannot say.

    Raises BadParameter where one of them is missing.
    """
    name, _, value = text.partition("=")
    if not name or not value:
        raise click.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return name.strip(), value


class LocalPath(click.Path):
    """A path on this machine: of what is not a store, a URL would become a folder of an odd name."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; only stores can be: give a path on this machine", param, context)
        return super().convert(value, param, context)


class Names(click.ParamType):
    """Names with commas between."""

    name = "A,B,..."

    def convert(self, value: Any, param: Any, context: Any) -> list[str]:
        return names_in(value) if isinstance(value, str) else list(value)


class NumberOr(click.ParamType):
    """A whole number from 1 up; or a word, which becomes 0."""

    def __init__(self, word: str) -> None:
        self.word, self.name = word, f"K|{word}"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if str(value).lower() == self.word:
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not a whole number from 1 up, or {self.word}", param, context)


class Numbers(click.ParamType):
    """Whole numbers and ranges: 1,2,5-8."""

    name = "1,2,5-8"

    def convert(self, value: Any, param: Any, context: Any) -> list[int]:
        numbers = numbers_in(str(value))
        if not numbers:
            self.fail(f"{value!r} is no list of whole numbers such as 1,2,5-8", param, context)
        return list(dict.fromkeys(numbers))


SHOTS = NumberOr("all")


class ShotList(click.ParamType):
    """Numbers of shots; None for all."""

    name = "1,2,4,...,all"

    def convert(self, value: Any, param: Any, context: Any) -> list[int | None]:
        return [SHOTS.convert(part.strip(), param, context) or None for part in str(value).split(",")]


class PartOf(click.ParamType):
    """One of several shares of the work."""

    name = "I/N"

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        from onceclip.pipeline.workers import Part

        try:
            return value if isinstance(value, Part) else Part.parse(value)
        except ValueError as error:
            self.fail(str(error), param, context)


class Missing(click.ParamType):
    """A number of classes, or their names; a comma makes names of numbers, as in `3,` for the class 3."""

    name = "N|A,B,..."

    def convert(self, value: Any, param: Any, context: Any) -> int | tuple[str, ...]:
        if isinstance(value, int | tuple):
            return value
        names = tuple(name for name in names_in(value) if name)
        if not names:
            self.fail("it is empty: give a number of classes, or their names", param, context)
        return int(value) if value.removeprefix("-").isdecimal() else names
