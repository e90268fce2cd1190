"""`onceclip verify`: a whole store checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from onceclip.pipeline.commands.options import json_option, percentage, show
from onceclip.pipeline.words import counted

if TYPE_CHECKING:
    from onceclip.stores.verification import Verification


@click.command()
@click.argument("store")
@click.option("--repair", is_flag=True, help="Mark what is damaged as to be encoded again by the next extract.")
@json_option
def verify(store: str, repair: bool, as_json: bool) -> None:
    """Read a whole store and check it.

    Checks every chunk of STORE against its checksum, rows, columns and text sets against each other, and looks for
    equal pictures in different splits or classes. Exit code 1 if anything is wrong.

    \b
    Example:
        onceclip verify pets.zarr
    """
    from onceclip.pipeline.api.stores import verify as run
    from onceclip.stores.verification import repair as mend

    with percentage("verify") as progress:
        found = run(store, progress=progress)
    show(as_json, asdict(found), lambda: verification_lines(found))
    if repair and found.faults:
        click.echo(f"{counted(mend(store, found), 'unit is', 'units are')} marked: run the `onceclip extract` or "
                   "`import` command of this store again", err=True)
    elif found.faults:
        raise click.ClickException(f"{store} has {counted(len(found.faults), 'fault')}: add --repair to have the next "
                                   "extract mend that, or take the store from a copy")


def verification_lines(found: Verification) -> Iterator[str]:
    """What is wrong with a store, or that nothing is."""
    state = counted(len(found.faults), "fault") if found.faults else "no fault"
    yield f"{found.store}: {counted(found.images, 'image')}, {counted(found.chunks, 'chunk')} read, {state}"
    yield from (f"  fault: {each.where} {each.what}" for each in found.faults)
    yield from (f"  note: {each.where} {each.what}" for each in found.remarks)
