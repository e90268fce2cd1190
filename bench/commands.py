"""Commands at size: 20,000 classes, a million rows, and `fit` without a method; whole processes, imports included."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np

from bench.measure import Row, bench, make_row
from bench.processes import Used, spread, used
from bench.synthetic import store as make_store
from onceclip.pipeline.extraction.import_arrays import import_arrays


def many_rows(path: Path, rows: int, classes: int, dim: int) -> Path:
    """A store of which all but 20 rows of each class are test rows."""
    random = np.random.default_rng(0)
    text = random.standard_normal((classes, dim), dtype=np.float32)
    label = np.arange(rows) % classes
    embedding = np.empty((rows, dim), np.float16)
    for start in range(0, rows, 65_536):
        part = slice(start, start + 65_536)
        embedding[part] = text[label[part]] + 3 * random.standard_normal((len(label[part]), dim), dtype=np.float32)
    place = np.arange(rows) // classes
    arrays = path.with_suffix(".npz")
    np.savez(arrays, embedding=embedding, label=label, text=text,
             split=np.select([place < 16, place < 20], ["train", "val"], "test"))
    import_arrays(arrays, path, encoder="synthetic")
    return path


def stores(folder: Path, classes: int, rows: int, dim: int) -> None:
    """A store of many classes with an image in each split, and one of many rows."""
    make_store(folder / "classes.zarr", classes, 1, 1, 1, dim)
    many_rows(folder / "rows.zarr", rows, min(100, rows // 50), dim)


@bench("commands", small={"classes": 10, "rows": 500, "dim": 16, "repeats": 1})
@click.option("--classes", default=20_000)
@click.option("--rows", default=1_000_000)
@click.option("--dim", default=512)
@click.option("--repeats", default=2)
def command(classes: int, rows: int, dim: int, repeats: int) -> Iterator[Row]:
    """What commands take of the cores and of memory where there is much to do."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In another process: the largest memory of a process counts for those that it starts, too.
        spread(partial(stores, classes=classes, rows=rows, dim=dim), [folder], 2)
        many, few, single, mean = (str(folder / name) for name in ("classes.zarr", "rows.zarr", "gda", "mean"))
        ways = {"zero-shot, many classes": ["fit", many, "--method", "zero-shot"],
                "tip-adapter, many classes": ["fit", many, "--method", "tip-adapter", "--shots", "1"],
                "gda": ["fit", few, "--method", "gda", "--shots", "16", "--out", single, "--overwrite"],
                "fit": ["fit", few, "--shots", "16", "--out", mean, "--overwrite"],
                "predict, gda": ["predict", single, few, "--out", str(folder / "single.csv")],
                "predict, fit": ["predict", mean, few, "--out", str(folder / "mean.csv")]}
        taken: dict[str, list[Used]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, arguments in ways.items():
                taken[name].append(used(arguments))
    seconds = {name: [each.processor for each in all_of] for name, all_of in taken.items()}
    wall, gib = ({name: max(getattr(each, what) for each in all_of) for name, all_of in taken.items()}
                 for what in ("wall", "gib"))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    zero_shot, tip_adapter, *_ = ways
    yield make_row("processor seconds of a command from its start to its end",
                   {"classes": classes, "rows": rows, "dim": dim}, seconds, list(ways),
                   goals={"23 zero-shot": median[zero_shot], "23 memory": gib[zero_shot],
                          "23 tip-adapter": gib[tip_adapter], "24": median["predict, gda"], "29": wall["fit"]},
                   **{f"seconds of {name}, at most": each for name, each in wall.items()},
                   **{f"gib of {name}, at most": each for name, each in gib.items()})
