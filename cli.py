"""The command line: the group of all commands, and how failures end them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from onceclip import OnceclipError, __version__
from onceclip.pipeline.commands import COMMANDS
from onceclip.pipeline.commands.configuration import completing, configurable, origin, unknown_variables


class Commands(click.Group):
    """Turns every failure that the user can mend into one line and exit code 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def make_context(self, *arguments: Any, **further: Any) -> click.Context:
        with _failures():
            return super().make_context(*arguments, **further)

    def invoke(self, context: click.Context) -> Any:
        with _failures():
            return super().invoke(context)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except OnceclipError as error:
        raise click.ClickException(str(error)) from error
    except click.BadParameter as error:
        if not (where := origin(error)):
            raise
        raise click.BadParameter(error.message + where, error.ctx, error.param, error.param_hint) from error
    except KeyboardInterrupt:
        _stop()
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        advice = ": make room, then run the same command again" if error.errno == errno.ENOSPC else ""
        raise click.ClickException(f"{place}{error.strerror or error}{advice}") from error
    except Exception as error:
        # While a module is being imported, its libraries turn an interrupt into errors of their own.
        if not _interrupted(error):
            raise
        _stop()


def _interrupted(error: BaseException | None) -> bool:
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _stop() -> NoReturn:
    click.echo("\nStopped. What was done is kept: run the same command again to go on.", err=True)
    sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onceclip")
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
        onceclip fit pets.zarr --method tip-adapter --shots 16 --select val --out pets-adapter
        onceclip predict pets-adapter new-photos/

    Every option may also be set in a file (onceclip --config runs.toml sweep) or by a variable
    (ONCECLIP_EXTRACT_DEVICE=cuda).
    """
    for name in unknown_variables(os.environ, main.commands):
        click.echo(f"Warning: the variable {name} belongs to no option (docs/configuration.md)", err=True)


configurable(main)
for command in COMMANDS:
    main.add_command(completing(configurable(command)))


if __name__ == "__main__":
    main()
