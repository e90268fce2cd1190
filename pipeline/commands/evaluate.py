"""`onceclip evaluate`: a saved adapter scored on a store."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, json_option, show


@click.command()
@click.argument("adapter", type=LocalPath(path_type=Path))
@click.argument("store")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@json_option
def evaluate(adapter: Path, store: str, split: str, as_json: bool) -> None:
    """Score a saved adapter on a split of a store.

    The same encoder must have made both; classes are joined by name.

    \b
    Example:
        onceclip evaluate pets-adapter other-pets.zarr --split test
    """
    from onceclip.adapters import load_classifier
    from onceclip.pipeline.evaluate import evaluate as run
    from onceclip.pipeline.wording import evaluation_lines
    from onceclip.stores import open_store

    scores = run(load_classifier(adapter), open_store(store), split)
    show(as_json, {"adapter": str(adapter), **scores}, lambda: evaluation_lines(adapter, scores))
