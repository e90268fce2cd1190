"""Options that are not given on the command line: from a TOML file, or from environment variables."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import ConfigurationError

_OPTION = "config"
_FILE = "onceclip.configuration"
_CATALOGUE = Path(__file__).parents[1] / "api" / "methods.json"


def configurable(command: click.Command) -> click.Command:
    """Let a command take its options from `--config FILE.toml` and from variables such as ONCECLIP_FIT_SHOTS."""
    command.params.append(click.Option(
        [f"--{_OPTION}"], type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE.toml",
        callback=_apply, is_eager=True, expose_value=False,
        help="Take what is not given here from this file (docs/configuration.md)."))
    if isinstance(command, click.Group):
        command.params[-1].envvar = "ONCECLIP_CONFIG"
        return command
    for name, parameter in _keys(command).items():
        if isinstance(parameter, click.Option):
            parameter.envvar = _variable(str(command.name), name)
    return command


def read_configuration(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Read a TOML file with a table per command, as click takes defaults: by command, then by parameter.

    Raises ConfigurationError, which names the file and the place, for what is no TOML, and for tables, keys and kinds
    of values that no command has.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not a TOML file: {error}") from error
    result: dict[str, dict[str, Any]] = {}
    for command, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: {command} stands in no table: put it below a line such as [sweep]")
        if command not in commands:
            raise ConfigurationError(unknown("table", f"[{command}]", [f"[{each}]" for each in commands],
                                             f" in {path}"))
        keys, values = _keys(commands[command]), {}
        for key, value in table.items():
            name = key.replace("_", "-")
            if name not in keys:
                raise ConfigurationError(unknown("key", key, keys, f" in {path}, table [{command}]"))
            values[str(keys[name].name)] = _given(keys[name], value, f"{path}: {key} in [{command}]")
        result[command] = values
    return result


def unknown_variables(environment: Iterable[str], commands: Mapping[str, click.Command]) -> list[str]:
    """Names of variables that begin like those of a command's options and belong to none of them."""
    known = {str(option.envvar) for command in commands.values() for option in command.params}
    starts = tuple(_variable(name, "") for name in commands)
    return sorted(name for name in environment if name.startswith(starts) and name not in known)


def origin(error: click.BadParameter) -> str:
    """Where a bad value came from, in words to put behind the failure; empty if from the command line."""
    if error.ctx is None or error.param is None:
        return ""
    source = error.ctx.get_parameter_source(str(error.param.name))
    if source is ParameterSource.ENVIRONMENT:
        return f" (from the variable {error.param.envvar})"
    return f" (from {error.ctx.meta[_FILE]})" if source is ParameterSource.DEFAULT_MAP else ""


def _apply(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    root = context.find_root().command
    if path is None or context.resilient_parsing or not isinstance(root, click.Group):
        return  # a shell that completes a line wants no complaints
    tables = read_configuration(path, root.commands)
    context.meta[_FILE] = path
    context.default_map = tables if context.parent is None else tables.get(str(context.info_name), {})


def _keys(command: click.Command) -> dict[str, click.Parameter]:
    """A command's parameters by what they are called in a file: options as on the command line, arguments by name."""
    return {(max(each.opts, key=len).lstrip("-") if isinstance(each, click.Option) else str(each.name)): each
            for each in command.params if each.name != _OPTION}


def _variable(command: str, option: str) -> str:
    return f"onceclip_{command}_{option}".replace("-", "_").upper()


def _given(parameter: click.Parameter, value: Any, place: str) -> Any:
    """What click would have got from the command line."""
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    if flag or isinstance(value, bool):
        if not flag or not isinstance(value, bool):
            raise ConfigurationError(f"{place} is {_text(value)}: give "
                                     f"{'true or false' if flag else 'a text, a number or a list of them'}")
        return value
    if isinstance(value, dict):
        if not parameter.multiple:
            raise ConfigurationError(f"{place} is a table: give a text, a number or a list of them")
        return [f"{name}={each}" for name, each in _settings(value)]
    if parameter.multiple or parameter.nargs != 1:
        return [_text(each) for each in (value if isinstance(value, list) else [value])]
    return _text(value)


def _settings(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """NAME and VALUE of a table; `tip-adapter.beta = 2` is a table in a table in TOML."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in _settings(value))
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(map(_text, value))
        return text.getvalue()
    return str(value).lower() if isinstance(value, bool) else str(value)


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


def completing_names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes names that `onceclip methods` lists, also behind a comma. kind: "methods" or "inferences"."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        # From a file: to import the methods is to import torch, too slow for a key press.
        names = json.loads(_CATALOGUE.read_text(encoding="utf-8"))[kind]
        return [",".join([*before, name]) for name in names if name.startswith(last)]

    return complete


complete_methods, complete_inferences = completing_names("methods"), completing_names("inferences")
