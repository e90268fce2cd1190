"""`onceclip info`: what a store or an adapter holds."""

from __future__ import annotations

import click

from onceclip.pipeline.commands.options import json_option, show


@click.command()
@click.argument("path")
@json_option
def info(path: str, as_json: bool) -> None:
    """Show what a store or a saved adapter holds."""
    from onceclip.pipeline.info import info as describe
    from onceclip.pipeline.info import lines

    values = describe(path)
    show(as_json, values, lambda: lines(values))
