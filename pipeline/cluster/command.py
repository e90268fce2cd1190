"""A whole command carried out by one worker, as if it had been typed there."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from onceclip.pipeline.errors import WorkerError


@dataclass(frozen=True)
class Command:
    """A command by its name, the values of its parameters, and the folder that relative paths start from."""

    name: str
    values: Mapping[str, Any]
    folder: str

    def __str__(self) -> str:
        return f"onceclip {self.name}"


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it failed, if it did."""

    out: str
    err: str
    failure: str = ""


def run_command(command: Command) -> Said:
    """Carry out a command here. The worker's other tasks wait, so that they never see its folder or output.

    Raises what the command raises of this project, and WorkerError where its folder is not there.
    """
    from onceclip.pipeline.commands import COMMANDS

    callback = next(each.callback for each in COMMANDS if each.name == command.name)
    assert callback is not None
    before, out, err, failure = os.getcwd(), io.StringIO(), io.StringIO(), ""
    try:
        os.chdir(command.folder)
    except OSError as error:
        raise WorkerError(f"the worker on {socket.gethostname()} has no folder {command.folder}: run the command in a "
                          "folder that all machines have") from error
    try:
        with redirect_stdout(out), redirect_stderr(err):
            callback(**command.values)
    except click.ClickException as error:  # it may hold what cannot be sent
        failure = error.format_message()
    finally:
        os.chdir(before)
    return Said(out.getvalue(), err.getvalue(), failure)
