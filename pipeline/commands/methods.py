"""`onceclip methods`: the methods listed or explained."""

from __future__ import annotations

import click

from onceclip.pipeline.commands.completion import complete_methods
from onceclip.pipeline.commands.options import json_option, show


@click.command()
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or explain one.

    The list has each method's family, what a fit costs, whether it serves classes that it was not fitted on, and what
    it needs. With a NAME, or MODULE:CLASS of your own: equation, hyperparameters with
    what is tried, presets and source."""
    from onceclip.pipeline.catalogue import describe, lines

    values = describe(name)
    show(as_json, values, lambda: lines(values))
