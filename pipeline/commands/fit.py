"""`onceclip fit`: one run on a store."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, Shots, json_option, show


@click.command()
@click.argument("store")
@click.option("--method", required=True, metavar="M", help="Name of a method; `onceclip methods` lists them.")
@click.option("--shots", type=Shots(), default="all", show_default=True, help="Labelled training images per class.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the draw and of the training.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a hyperparameter (repeatable).")
@click.option("--text", default="default", show_default=True, metavar="NAME", help="Text set to use.")
@click.option("--select", type=click.Choice(["fixed", "val", "val-full", "loo"]),
              help="How hyperparameters are chosen: not at all, on min(shots, 4) validation images per class, on the "
              "whole val split, or by leave-one-image-out.  [default: fixed; val for linear-probe]")
@click.option("--out", type=LocalPath(path_type=Path), metavar="FOLDER", help="Save the adapter and its result row.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that --out holds already.")
@json_option
def fit(store: str, method: str, shots: int, seed: int, settings: tuple[str, ...], text: str, select: str | None,
        out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Fit a few-shot classifier on a store and score it.

    Hyperparameters given by --set are never searched. Test images are not reachable while fitting.

    \b
    Example:
        onceclip fit pets.zarr --method tip-adapter --shots 16 --select val --out pets-adapter
    """
    from onceclip.adapters.classifier import CONFIG
    from onceclip.pipeline.fit import RunSpec
    from onceclip.pipeline.fit import fit as run
    from onceclip.pipeline.progress import percentage
    from onceclip.pipeline.results import append_row
    from onceclip.pipeline.wording import fit_lines
    from onceclip.stores import open_store

    if out and (out / CONFIG).exists() and not overwrite:
        raise click.ClickException(f"{out} holds an adapter already: give another --out, or add --overwrite")
    spec = RunSpec(method, shots or None, seed, dict(map(_setting, settings)), text, select)
    with percentage(f"fit {method}") as progress:
        fitted = run(open_store(store), spec, progress)
    for remark in fitted.remarks:
        click.echo(f"Note: {remark}", err=True)
    if out:
        fitted.classifier.save(out)
        append_row(out, fitted.row)
    show(as_json, fitted.row, lambda: fit_lines(fitted.row, out))


def _setting(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    return name.strip().replace("-", "_"), value.strip()
