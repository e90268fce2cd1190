"""Prints `docs/commands.md`, the help of every command; `make docs` writes it."""

import click

from onceclip.cli import main
from onceclip.pipeline.commands.help import all_explained

click.echo("# Commands\n\nExit codes: 0 done, 1 a failure that its one line says how to mend, 2 wrong usage. "
           "`make docs` writes this page.")
width = {"terminal_width": 100, "max_content_width": 100}
context = click.Context(main, info_name="onceclip", **{**main.context_settings, **width})
click.echo(f"\n```text\n{main.get_help(context)}\n```")
for name, command in main.commands.items():
    inner = click.Context(command, parent=context, info_name=name, **width)
    click.echo(f"\n## {name}\n\n```text\n{all_explained(inner)}\n```")
