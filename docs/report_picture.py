"""Photographs the upper part of the demo's report: `onceclip demo`, then `python docs/report_picture.py`.

Needs Chromium or Chrome. The table of the same results is written into the picture's text, so that a test can tell
whether README.md still shows the same numbers.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onceclip.pipeline.commands.sweep import accuracy_lines
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.summary import tables

SIZE = (1120, 1300)  # pixels of the window: as far as the learning curves


@click.command(help=__doc__)
@click.option("--demo", type=click.Path(path_type=Path, exists=True), default="onceclip-demo", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="docs/report.png", show_default=True)
def main(demo: Path, out: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise click.ClickException("no browser: install chromium or google-chrome")
    table, = tables(read_rows(demo / "results"))
    text = PngInfo()
    text.add_text("Table", "\n".join(accuracy_lines(table)))
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        page = (demo / "report.html").resolve().as_uri()
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}",
                        f"--screenshot={shot}", page], check=True, capture_output=True)
        Image.open(shot).convert("RGB").quantize().save(out, pnginfo=text, optimize=True)


if __name__ == "__main__":
    main()
