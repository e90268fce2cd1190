"""What a shell offers on <TAB> beside the names of commands and options; nothing heavy is imported for it."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem


class Place(click.types.StringParamType):
    """A text that mostly is a path, so that shells complete file names."""

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str
                       ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


def completing(command: click.Command) -> click.Command:
    """Let a command's arguments that may be paths or URLs complete as file names."""
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.type is click.STRING:
            parameter.type = Place()
    return command


def complete_methods(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of methods, also behind a comma."""
    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in method_names() if name.startswith(last)]


def method_names() -> list[str]:
    """Names of all methods, as their files say: to import them is to import torch, too slow for a key press."""
    folder = Path(__file__).parents[2] / "adapters" / "methods"
    found = (re.search(r'^    name = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
             for path in sorted(folder.glob("*.py")))
    return [match[1] for match in found if match]
