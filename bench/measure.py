"""Timing two or more ways of one thing in turn, and writing down what came out."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def in_turn(ways: Mapping[str, Callable[[], object]], repeats: int = 5, warm: int = 1) -> dict[str, float]:
    """Median seconds of each way, run A B A B ... after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + warm):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn >= warm:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def record(out: Path | None, bench: str, **figures: Any) -> None:
    """Append figures with the machine and versions to a file of JSON lines."""
    if out is None:
        return
    import torch
    import zarr

    import onceclip

    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
               "torch": torch.__version__, "zarr": zarr.__version__, "onceclip": onceclip.__version__,
               "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    with out.open("a", encoding="ascii") as file:
        file.write(json.dumps({"bench": bench, **machine, **figures}) + "\n")
