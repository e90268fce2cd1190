"""The command line: the group of all commands, and how failures end them."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

import onceclip
from onceclip.errors import OnceclipError
from onceclip.pipeline.commands import COMMANDS
from onceclip.pipeline.commands.configuration import completing, configurable, origin, unknown_variables
from onceclip.pipeline.commands.help import grouped, write_commands
from onceclip.pipeline.commands.options import KEEPS_NOTHING
from onceclip.pipeline.errors import ArgumentError

GO_ON = ("extract", "sweep", "incremental", "compact", "demo")  # commands that go on where they were stopped
_EXHAUSTED = re.compile(r"can't start new thread|can(not|'t) allocate memory|failed to map segment|bad_alloc"
                        r"|out of memory", re.IGNORECASE)


class Commands(click.Group):
    """Turns every failure that the user can mend into one line and exit code 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        write_commands(self, context, formatter)

    def make_context(self, *arguments: Any, **further: Any) -> click.Context:
        with _failures():
            return super().make_context(*arguments, **further)

    def invoke(self, context: click.Context) -> Any:
        with _failures(context):
            return super().invoke(context)


@contextmanager
def _failures(context: click.Context | None = None) -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        raise click.UsageError(str(error), _of_command(context)) from error
    except OnceclipError as error:
        raise click.ClickException(str(error)) from error
    except click.BadParameter as error:
        if not (where := origin(error)):
            raise
        raise click.BadParameter(error.message + where, error.ctx, error.param, error.param_hint) from error
    except KeyboardInterrupt:
        _stop(context)
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        advice = ": make room, then run the same command again" if error.errno == errno.ENOSPC else ""
        raise click.ClickException(f"{place}{error.strerror or error}{advice}") from error
    except Exception as error:
        # While a module is being imported, its libraries turn interrupts and a lack of memory into errors of their own.
        if any(isinstance(each, KeyboardInterrupt) for each in _chain(error)):
            _stop(context)
        if any(isinstance(each, MemoryError) or _EXHAUSTED.search(str(each)) for each in _chain(error)):
            raise click.ClickException(f"out of memory or threads ({_first_line(error)}): give the process more, or "
                                       "let fewer processes run beside it") from error
        raise


def _of_command(context: click.Context | None) -> click.Context | None:
    """The context of the command that runs, whose usage a mistake is shown with."""
    name = str(context.invoked_subcommand) if context else ""
    return click.Context(main.commands[name], context, name) if name in main.commands else context


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _stop(context: click.Context | None) -> NoReturn:
    goes_on = context is not None and context.invoked_subcommand in GO_ON and not context.meta.get(KEEPS_NOTHING)
    click.echo("\nStopped. What was done is kept: run the same command again to go on." if goes_on else
               "\nStopped. Nothing was kept: the same command begins anew.", err=True)
    sys.exit(130)


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"onceclip, version {onceclip.__version__}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Show the version and exit.")
def main() -> None:
    """Encode once, adapt thousands of times.

    Stage 1 runs CLIP over a folder of images and over the class names once, and keeps the embeddings in a store.
    Stage 2 fits few-shot classifiers on the store alone: no images, no CLIP model and no GPU are needed.

    \b
    See it work (a small CLIP model and real images come with onceclip):
        onceclip demo
    \b
    Your own images, one folder per class:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
        onceclip fit pets.zarr --out pets-adapter
        onceclip evaluate pets-adapter pets.zarr
        onceclip predict pets-adapter new-photos/ --out labels.csv

    Every option may also be set in a file (onceclip --config runs.toml sweep) or by a variable
    (ONCECLIP_EXTRACT_DEVICE=cuda).
    """
    for name in unknown_variables(os.environ, main.commands):
        click.echo(f"Warning: the variable {name} belongs to no option (docs/configuration.md)", err=True)


configurable(main)
for command in COMMANDS:
    main.add_command(grouped(completing(configurable(command))))


if __name__ == "__main__":
    main()
