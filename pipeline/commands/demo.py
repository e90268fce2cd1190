"""`onceclip demo`: everything once, on real images."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, json_option, show


@click.command()
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), default="onceclip-demo", show_default=True,
              metavar="FOLDER", help="Where everything is written.")
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Run everything once, on real images that come along.

    Uses 1,797 handwritten digits and a small CLIP model that ships with onceclip.
    Writes the digits as an image folder, encodes them, fits six methods with 1 to 16 labelled images per class and
    5 seeds, prints the table of accuracies and writes a report with learning curves. Takes a minute or two.
    """
    from onceclip.pipeline.demo.tour import run_tour
    from onceclip.pipeline.summary import as_values
    from onceclip.pipeline.wording import tour_lines

    tour = run_tour(out, lambda line: click.echo(line, err=as_json))
    show(as_json, {"images": str(tour.images), "store": str(tour.store), "results": str(tour.results),
                   "report": str(tour.report), "runs": tour.runs, "tables": [as_values(tour.table)]},
         lambda: tour_lines(tour))
