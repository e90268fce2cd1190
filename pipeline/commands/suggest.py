"""`onceclip suggest`: images to label next, and labels that are likely wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onceclip.pipeline.commands.options import (
    encoder_options,
    import_option,
    join_option,
    json_option,
    percentage,
    require_there,
    say_at_once,
    show,
)
from onceclip.pipeline.commands.parameter_types import LocalPath
from onceclip.pipeline.words import MOST_LABELS, counted


@click.command()
@click.argument("adapter")
@click.argument("inputs", nargs=-1, required=True, metavar="(STORE | IMAGES... | FOLDER)")
@click.option("--label-next", type=click.IntRange(1), metavar="N", help="Name N images to label: those that the "
              "adapter is least sure of, spread over clusters, so that few of them are alike.")
@click.option("--label-errors", is_flag=True, help="Look through all labelled images of a STORE for labels that are "
              "likely wrong, with classifiers that were fitted without the image.")
@click.option("--most", type=click.IntRange(1), default=MOST_LABELS, show_default=True,
              help="Of --label-errors: labels to show, at most.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Write a table instead.")
@click.option("--page", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.html",
              help="Also write a page with small pictures.")
@click.option("--images", metavar="FOLDER", help="Where the store's images are, for pictures.  "
              "[default: the store's path without .zarr, if there]")
@encoder_options(required=False)
@join_option
@import_option
@json_option
def suggest(adapter: str, inputs: tuple[str, ...], label_errors: bool, out: Path | None, page: Path | None,
            as_json: bool, **asked: Any) -> None:
    """Name images to label next, and labels that look wrong.

    Prints a line per image, separated by tabs: name, the class that it likely is and its probability, then the next
    class, or the label that it has, and that one's.

    \b
    Examples:
        onceclip suggest pets-adapter new-photos/ --label-next 50 --page next.html
        onceclip suggest pets-adapter pets.zarr --label-errors --out wrong.csv --page wrong.html
    """
    require_there([adapter])
    say_at_once(f"loading {adapter} ...")
    from onceclip.pipeline.api.predictions import suggest as run

    with percentage("suggest") as progress:
        found = run(adapter, inputs, label_errors=label_errors, out=out, page=page, progress=progress, **asked)
    what = counted(len(found), "label to check", "labels to check") if label_errors else counted(
        len(found), "image to label next", "images to label next")
    show(as_json, {"adapter": str(adapter), "images": found},
         lambda: [f"{out}: {what}"] if out else suggestion_lines(found))
    if page:
        click.echo(f"{page}: {what}", err=True)


def suggestion_lines(found: list[dict[str, Any]]) -> list[str]:
    """A line per image: its name, what it likely is, and what else it may be or is labelled as."""
    if not found:
        return ["No label is likely wrong."]
    order = (("image", "suggested", "probability", "label", "probability_of_label") if "label" in found[0] else
             ("image", "class", "probability", "second", "probability_of_second"))
    return ["\t".join(f"{each[name]:.4f}" if isinstance(each[name], float) else each[name] for name in order)
            for each in found]
