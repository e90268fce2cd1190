"""The demonstration: the whole promise once, on real scans, with the model that the project ships."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from onceclip.pipeline.encoders import DEMO, EncoderSpec
from onceclip.pipeline.extraction.extract import Extraction, extract
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.reporting.pages import write_results_report
from onceclip.pipeline.runs.results import NAME
from onceclip.pipeline.runs.summary import Table, tables
from onceclip.pipeline.runs.sweep import make_specs, sweep
from onceclip.stores import open_store

TEMPLATE = "a photo of the digit {}."
METHODS = ("zero-shot", "linear-probe", "clip-adapter", "tip-adapter", "tip-adapter-f", "gda")
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3, 4, 5)
BASELINE = "zero-shot"
SELECT = "val"


@dataclass(frozen=True)
class Tour:
    """What the demonstration made. table: mean accuracies per method and shots. seconds: of all runs."""

    images: Path
    store: Path
    results: Path
    report: Path
    extraction: Extraction
    table: Table
    runs: int
    seconds: float


def run_tour(out: Path, say: Callable[[str], None], progress: bool = True) -> Tour:
    """Write the digits, extract them, fit every method at every number of shots with every seed, report.

    out: folder for everything; what an earlier tour left there is reused. say: gets one line per step.
    """
    images, store, results = out / "digits", out / "digits.zarr", out / "results"
    count = write_digits(images)
    say(f"1. {count:,} handwritten digits as an image folder: {images}")
    extraction = extract(images, store, EncoderSpec(DEMO), ExtractOptions(templates=(TEMPLATE,), progress=progress))
    say(f"2. encoded {extraction.encoded:,} of {extraction.images:,} images and "
        f"{extraction.text['encoded']} prompts in {extraction.seconds:.1f} s: {store}")
    specs = make_specs(METHODS, SHOTS, SEEDS, select=SELECT)
    begun = time.perf_counter()
    rows = sweep([open_store(str(store))], specs, results, progress=progress)
    seconds = time.perf_counter() - begun
    say(f"3. {len(specs)} runs ({len(METHODS)} methods x {len(SHOTS)} shots x {len(SEEDS)} seeds) in {seconds:.1f} s:"
        f" {results / NAME}")
    report = out / "report.html"
    write_results_report([results], report)
    say(f"4. everything with pictures, for a browser: {report}")
    table, = tables(rows)
    return Tour(images, store, results, report, extraction, table, len(specs), seconds)


def write_digits(folder: Path) -> int:
    """Write the digits as a plain image folder, `folder/7/digit-0007.png`, and give their number.

    Dark ink on white paper, one pixel of the file for one of the scan.
    """
    digits = load_digits()
    for number, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"digit-{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray((255 - np.round(ink * 255 / 16)).astype(np.uint8)).save(path)
    return len(digits.images)
