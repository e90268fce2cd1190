"""What each stage costs as rows become more, and the exponent of that growth.

The exponent is the slope of a straight line through the logarithms of rows and of median seconds, by least squares: 1
where a stage reads or computes every row once, 0 where it does not depend on their number. All on one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.measure import Row, Seconds, bench, in_turn, make_row
from bench.store import GATHERED, make, ready
from bench.synthetic import features, task
from bench.synthetic import store as make_store
from onceclip.adapters import GDA, LinearProbe, TipAdapter
from onceclip.pipeline.extraction.inventory import take_inventory
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import make_plan
from onceclip.pipeline.sources import Record
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.verification import verify

CLASSES, QUERIES = 10, 1000
INFO = {"name": "synthetic", "fingerprint": "0" * 32}


class Unread:
    """Content that nobody asks for: a new store has nothing to compare with."""

    def read(self) -> bytes:
        """Never called."""
        raise NotImplementedError


class Stages:
    """The stages on stores and tasks of any number of rows, made in a folder."""

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim, self.numbers = folder, dim, count()
        self.queries = torch.from_numpy(features(CLASSES, QUERIES // CLASSES, dim, seed=1)[0])

    def inventory(self, rows: int) -> Callable[[], object]:
        """Listing and planning a new store."""
        classes = [str(number) for number in range(CLASSES)]
        records = [Record(f"{row % CLASSES}/{row:08d}.jpg", Unread(), str(row % CLASSES)) for row in range(rows)]

        def plan() -> None:
            writer = StoreWriter.create(str(self.folder / f"planned-{next(self.numbers)}.zarr"), INFO, self.dim)
            writer.plan(take_inventory(records, classes, writer.store).table, classes)

        return plan

    def path(self, rows: int) -> str:
        """A store of so many rows."""
        path = self.folder / f"{rows}.zarr"
        if not path.exists():
            make(path, rows, self.dim)
        return str(path)

    def open(self, rows: int) -> Callable[[], object]:
        """Opening a store."""
        return partial(open_store, self.path(rows))

    def read(self, rows: int) -> Callable[[], object]:
        """Reading all embeddings of an opened store."""
        store = ready(Path(self.path(rows)))
        return partial(store.embeddings, store.rows())

    def gather(self, rows: int) -> Callable[[], object]:
        """Reading 1,600 single rows, or as many as there are."""
        store = ready(Path(self.path(rows)))
        chosen = np.sort(np.random.default_rng(0).choice(rows, min(GATHERED, rows), replace=False))
        return partial(store.embeddings, chosen)

    def verify(self, rows: int) -> Callable[[], object]:
        """Reading and checking everything."""
        return partial(verify, self.path(rows), workers=1)

    def tip_adapter(self, rows: int) -> Callable[[], object]:
        """Laying out the cache, and logits of 1,000 rows."""
        return self._fit(TipAdapter(), rows)

    def gda(self, rows: int) -> Callable[[], object]:
        """A closed form, and logits of 1,000 rows."""
        return self._fit(GDA(), rows)

    def linear_probe(self, rows: int) -> Callable[[], object]:
        """Logistic regression solved to convergence, and logits of 1,000 rows."""
        return self._fit(LinearProbe(l2=1e-3), rows)

    def _fit(self, method: Any, rows: int) -> Callable[[], object]:
        made = task(CLASSES, rows // CLASSES, self.dim, noise=3.0)
        return lambda: method.fit(made).logits(self.queries)

    def sweep_plan(self, runs: int) -> Callable[[], object]:
        """Planning a sweep of so many runs on a small store, and naming each."""
        path = self.folder / "small.zarr"
        if not path.exists():
            make_store(path, CLASSES, 4, 1, 1, self.dim)
        ratios = [str(number / 10) for number in range(10)]
        specs = make_specs(["clip-adapter"], [1], range(1, runs // 10 + 1), [("ratio", ratios)])
        return lambda: make_plan([open_store(str(path))], specs, {})


def exponent(seconds: Seconds) -> float:
    """Slope of log seconds over log rows."""
    rows = np.log([float(name.split()[0].replace(",", "")) for name in seconds])
    return float(np.polyfit(rows, np.log([np.median(each) for each in seconds.values()]), 1)[0])


@bench("scaling", small={"dim": 16, "rows": "1000,2000", "store_rows": "1000,2000", "runs": "10,20", "repeats": 1})
@click.option("--dim", default=512)
@click.option("--rows", default="1000,10000,100000", help="Of tasks, with commas between.")
@click.option("--store-rows", default="1000,10000,100000,1000000", help="Of stores.")
@click.option("--runs", default="100,1000", help="Of sweeps that are planned.")
@click.option("--repeats", default=2)
def command(dim: int, rows: str, store_rows: str, runs: str, repeats: int) -> Iterator[Row]:
    """What each stage costs as rows become more, on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        stages = Stages(Path(temporary), dim)
        of_stores = {"open": stages.open, "read": stages.read, "gather 1,600 rows": stages.gather,
                     "verify": stages.verify}
        of_tasks = {"inventory and plan": stages.inventory, "tip-adapter": stages.tip_adapter, "gda": stages.gda,
                    "linear-probe": stages.linear_probe}
        for listed, sizes, what in ((of_stores, store_rows, "rows"), (of_tasks, rows, "rows"),
                                    ({"plan of a sweep": stages.sweep_plan}, runs, "runs")):
            numbers = list(map(int, sizes.split(",")))
            for name, stage in listed.items():
                seconds = in_turn({f"{number:,} {what}": stage(number) for number in numbers}, repeats)
                yield make_row(name, {"dim": dim}, seconds, list(seconds), exponent=exponent(seconds),
                               exponent_of_the_last_step=exponent(dict(list(seconds.items())[-2:])))
