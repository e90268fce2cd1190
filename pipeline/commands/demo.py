"""`onceclip demo`: the whole promise once, on real scans, with the model that the project ships."""

from __future__ import annotations

import time
from pathlib import Path

import click

from onceclip.pipeline.commands.options import json_option, show
from onceclip.pipeline.commands.parameter_types import LocalPath
from onceclip.pipeline.commands.sweep import accuracy_lines

TEMPLATE = "a photo of the digit {}."
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3, 4, 5)


@click.command()
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), default="onceclip-demo", show_default=True,
              metavar="FOLDER", help="Where everything is written.")
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Run everything once, on images that come with onceclip.

    Uses 1,797 handwritten digits and a small CLIP model that ships with onceclip.
    Writes the digits as an image folder, encodes them, fits six methods with 1 to 16 labelled images per class and
    5 seeds, prints the table of accuracies and writes a report with learning curves. Takes a minute or two.
    """
    from onceclip.pipeline.api.runs import SWEPT
    from onceclip.pipeline.encoders import DEMO, EncoderSpec
    from onceclip.pipeline.extraction.extract import extract
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.files import RESULTS
    from onceclip.pipeline.reporting.pages import write_results_report
    from onceclip.pipeline.runs.specs import make_specs
    from onceclip.pipeline.runs.summary import as_values, tables
    from onceclip.pipeline.runs.sweep import sweep
    from onceclip.stores import open_store

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    images, store, results, report = out / "digits", out / "digits.zarr", out / "results", out / "report.html"
    say(f"1. {write_digits(images):,} handwritten digits as an image folder: {images}")
    done = extract(images, store, EncoderSpec(DEMO), ExtractOptions(templates=(TEMPLATE,), progress=True))
    say(f"2. encoded {done.encoded:,} of {done.images:,} images and {done.text['encoded']} prompts in "
        f"{done.seconds:.1f} s: {store}")
    specs = make_specs(SWEPT, SHOTS, SEEDS, select="val")
    begun = time.perf_counter()
    rows = sweep([open_store(str(store))], specs, results, progress=True)
    seconds = time.perf_counter() - begun
    say(f"3. {len(specs)} runs ({len(SWEPT)} methods x {len(SHOTS)} shots x {len(SEEDS)} seeds) in {seconds:.1f} s:"
        f" {results / RESULTS}")
    write_results_report([results], report)
    say(f"4. everything with pictures, for a browser: {report}")
    table, = tables(rows)
    show(as_json, {"images": str(images), "store": str(store), "results": str(results), "report": str(report),
                   "runs": len(specs), "tables": [as_values(table)]}, lambda: [
        "", f"Test accuracy in per cent, mean ± 95 % interval of {len(SEEDS)} seeds; {done.seconds:.1f} s for "
        f"extraction, {seconds:.1f} s for {len(specs)} runs",
        "", *accuracy_lines(table), "",
        "Try next, on a folder of your own with one sub-folder of images per class:",
        "    onceclip extract FOLDER my.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k",
        "    onceclip fit my.zarr --out my-adapter"])


def write_digits(folder: Path) -> int:
    """Write the digits as a plain image folder, `folder/7/digit-0007.png`, and give their number.

    Dark ink on white paper, one pixel of the file for one of the scan.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from onceclip.stores.location import whole_file

    digits = load_digits()
    for number, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"digit-{number:04d}.png"
        if not path.exists():
            with whole_file(path) as file:
                Image.fromarray((255 - np.round(ink * 255 / 16)).astype(np.uint8)).save(file, "PNG")
    return len(digits.images)
