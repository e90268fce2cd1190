"""`onceclip compact`: a copy of a store with few large files."""

from __future__ import annotations

from dataclasses import asdict

import click

from onceclip.pipeline.commands.options import KEEPS_NOTHING, json_option, percentage, show


@click.command()
@click.argument("store")
@click.argument("new")
@click.option("--shard-rows", type=click.IntRange(1), metavar="N",
              help="Rows per shard of embeddings.  [default: 262144, fewer where rows are large or few]")
@json_option
def compact(store: str, new: str, shard_rows: int | None, as_json: bool) -> None:
    """Copy a store into few large files.

    Joins the chunks of STORE into shards, each checked on the way, for very large stores and for object storage.
    Every command works on NEW as on STORE. Run the same command again to go on with a copy that was cut short.
    hf://datasets/ORG/NAME publishes the copy on Hugging Face's hub, with its card, as one commit, which a command that
    was cut short begins anew (docs/sharing.md).

    \b
    Examples:
        onceclip compact pets.zarr s3://my-bucket/pets.zarr
        onceclip compact pets.zarr hf://datasets/my-name/pets
    """
    from onceclip.pipeline.api.stores import compact as run

    click.get_current_context().meta[KEEPS_NOTHING] = new.startswith("hf://")
    with percentage("compact") as progress:
        done = run(store, new, shard_rows, progress)
    show(as_json, asdict(done), lambda: [
        f"{done.store}: {done.images:,} images, {done.bytes / 1e6:.1f} MB in shards of {done.shard_rows:,} rows",
        f"  shards written {done.units:,}, reused {done.reused:,}"])
