"""How long a person waits for a command to begin: processor seconds of whole processes, imports included."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from PIL import Image

from bench.measure import Row, bench, make_row
from bench.processes import used

_GOALS = {"help": "22 help", "info": "22 info", "methods": "22 methods", "fit": "22 fit", "predict": "22 predict",
          "extract": "22 extract"}


def images(root: Path, classes: int, each: int) -> None:
    """A folder of small pictures, no two alike."""
    for number in range(classes * each):
        folder = root / f"class-{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (32, 32), (number + 1).to_bytes(4, "big") * 768).save(folder / f"{number}.png")


@bench("start", small={"repeats": 1})
@click.option("--repeats", default=5)
def command(repeats: int) -> Iterator[Row]:
    """What each command takes before and while it does next to nothing."""
    with tempfile.TemporaryDirectory() as place:
        root, store, adapter = (os.path.join(place, name) for name in ("images", "images.zarr", "adapter"))
        images(Path(root), 4, 16)
        extract = ["extract", root, store, "--model", "demo"]
        fit = ["fit", store, "--method", "gda", "--shots", "4"]
        for once in (extract, [*fit, "--out", adapter]):
            used(once)
        commands = {"help": ["--help"], "info": ["info", store], "methods": ["methods"], "fit": fit,
                    "predict": ["predict", adapter, store, "--out", os.path.join(place, "labels.csv")],
                    "extract": extract}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, arguments in commands.items():
                seconds[name].append(used(arguments).processor)
    yield make_row("processor seconds of a command from its start to its end", {"images": 64}, seconds, list(commands),
                   goals={_GOALS[name]: statistics.median(each) for name, each in seconds.items()})
