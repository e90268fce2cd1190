"""`onceclip import`: features made elsewhere into a store."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, json_option, show


@click.command("import")
@click.argument("arrays", type=LocalPath(path_type=Path, exists=True))
@click.argument("store")
@click.option("--encoder", metavar="NAME", help="Name of the encoder that made them, e.g. ViT-B-32/openai.")
@json_option
def import_(arrays: Path, store: str, encoder: str | None, as_json: bool) -> None:
    """Make a store from features made elsewhere.

    ARRAYS is an .npz file, or a folder of .npy files, with embedding (n, d), label (n,) and split (n,); optionally
    key (n,), view (n, v, d), text (c, d) or (c, p, d), class_names (c,), logit_scale.

    \b
    Example:
        onceclip import features.npz imagenet.zarr --encoder ViT-B-32/openai
    """
    from onceclip.pipeline.importing import import_arrays
    from onceclip.pipeline.wording import import_lines

    done = import_arrays(arrays, store, encoder)
    show(as_json, done, lambda: import_lines(done))
