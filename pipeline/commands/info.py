"""`onceclip info`: what a store or an adapter holds."""

from __future__ import annotations

import click

from onceclip.pipeline.commands.options import import_option, json_option, show


@click.command()
@click.argument("path")
@click.option("--card", "with_card", is_flag=True, help="Also write README.md into the store, for those you share it "
              "with; one that was changed by hand is left alone.")
@import_option
@json_option
def info(path: str, with_card: bool, modules: tuple[str, ...], as_json: bool) -> None:
    """Show what a store or a saved adapter holds.

    \b
    Example:
        onceclip info pets.zarr --card
    """
    from onceclip.pipeline.card import card
    from onceclip.pipeline.info import info as describe
    from onceclip.pipeline.info import lines
    from onceclip.stores.card import write_card

    values = describe(path, modules)
    if with_card:
        if values["kind"] != "store":
            raise click.ClickException(f"{path} is an adapter, only stores have a card: leave --card out")
        write_card(path, card(values))
    show(as_json, values, lambda: lines(values))
