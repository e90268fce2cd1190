"""Help that a person reads: in groups, within two screens, and nothing that cannot be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest

from onceclip.cli import main
from onceclip.pipeline.commands.help import COMMANDS, LINES, OPTIONS

NAMES = list(main.commands)


def help_of(name: str, *, whole: bool = False, run: Callable[..., Any]) -> str:
    result = run(name, "--help-all" if whole else "--help")
    assert result.exit_code == 0
    return str(result.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_fits_two_screens_and_names_every_option(name: str, run: Callable[..., Any]) -> None:
    text, whole = help_of(name, run=run), help_of(name, whole=True, run=run)
    assert text.count("\n") <= LINES
    for option in main.commands[name].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in text
            assert option.help, option.name
            assert option.help.split()[0] in whole


def test_what_few_need_is_named_in_short_and_explained_when_asked_for(run: Callable[..., Any]) -> None:
    text, whole = help_of("extract", run=run), help_of("extract", whole=True, run=run)
    assert "Images per unit of a new store" not in text
    assert "--unit-rows" in text.partition("Expert (--help-all explains them):")[2]
    assert "Images per unit of a new store" in whole
    assert text.index("--model") < text.index("What is stored:") < text.index("--views") < text.index("Speed:")


def test_every_command_stands_in_a_group_and_every_name_of_the_tables_exists(run: Callable[..., Any]) -> None:
    text = run("--help").stdout
    assert [text.index(f"\n{title}:") for title in COMMANDS] == sorted(text.index(f"\n{title}:") for title in COMMANDS)
    assert all(f"\n  {name} " in text for name in NAMES)
    assert "...\n" not in text.partition("Begin:")[2], "what a command does is cut off on a terminal of 80 columns"
    options = {option.lstrip("-") for command in main.commands.values() for param in command.params
               for option in param.opts} | {"help", "help-all"}
    assert set(OPTIONS) <= options
    assert {name for names in COMMANDS.values() for name in names} == set(NAMES)


def test_who_names_no_model_is_told_of_one(run: Callable[..., Any]) -> None:
    result = run("extract", "photos", "photos.zarr")
    assert result.exit_code == 2
    assert "--model ViT-B-32 --pretrained laion2b_s34b_b79k, or --model demo" in result.output
