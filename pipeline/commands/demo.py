"""`onceclip demo`: everything once, on real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onceclip.pipeline.commands.options import LocalPath, json_option, show
from onceclip.pipeline.commands.sweep import accuracy_lines

if TYPE_CHECKING:
    from onceclip.pipeline.commands.demo_images import Tour


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
    from onceclip.pipeline.commands.demo_images import run_tour
    from onceclip.pipeline.runs.summary import as_values

    tour = run_tour(out, lambda line: click.echo(line, err=as_json))
    show(as_json, {"images": str(tour.images), "store": str(tour.store), "results": str(tour.results),
                   "report": str(tour.report), "runs": tour.runs, "tables": [as_values(tour.table)]},
         lambda: tour_lines(tour))


def tour_lines(tour: Tour) -> list[str]:
    """The demonstration's table and what to do next."""
    from onceclip.pipeline.commands.demo_images import SEEDS

    return [
        "", f"Test accuracy in per cent, mean ± 95 % interval of {len(SEEDS)} seeds; "
        f"{tour.extraction.seconds:.1f} s for extraction, {tour.seconds:.1f} s for {tour.runs} runs",
        "", *accuracy_lines(tour.table), "",
        "Try next, on a folder of your own with one sub-folder of images per class:",
        "    onceclip extract FOLDER my.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k",
        "    onceclip fit my.zarr --out my-adapter",
    ]
