"""`onceclip demo`: everything once, on real images."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath


@click.command()
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), default="onceclip-demo", show_default=True,
              metavar="FOLDER", help="Where everything is written.")
def demo(out: Path) -> None:
    """Run everything once, on real images that come along.

    Uses 1,797 handwritten digits and a small CLIP model that ships with onceclip.
    Writes the digits as an image folder, encodes them, fits every method with 1 to 16 labelled images per class and
    5 seeds, prints the table of accuracies and writes a report with learning curves. Takes a minute or two.
    """
    from onceclip.pipeline.demo.tour import run_tour
    from onceclip.pipeline.wording import tour_lines

    tour = run_tour(out, click.echo)
    click.echo("\n".join(tour_lines(tour)))
