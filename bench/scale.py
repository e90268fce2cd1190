"""Time and memory of every stage of a store of very many rows with tiny embeddings, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from bench.measure import Row, bench, make_row
from bench.processes import ROOT
from bench.stages import DIM, STAGES


@bench("scale", small={"rows": 20_000, "unit_rows": 4096})
@click.option("--rows", default=1_000_000)
@click.option("--unit-rows", default=65_536)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where there is room, 80 bytes a row.")
def command(rows: int, unit_rows: int, folder: Path | None) -> Iterator[Row]:
    """Plan, fill, resume, finish, look, verify and list; the resuming process is a new one, as after a crash."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for stage in STAGES:
            words = ["-m", "bench.stages", stage, str(Path(place) / "s.zarr"), str(rows), str(unit_rows)]
            done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)})
            found = json.loads(done.stdout)
            yield make_row(f"{stage}, {rows:,} rows", {"rows": rows, "unit_rows": unit_rows, "dim": DIM},
                           {"onceclip": [found.pop("seconds")]}, ["onceclip"], **found)


if __name__ == "__main__":
    command()
