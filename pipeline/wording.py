"""What the commands tell people; scripts read `--json` instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from onceclip.pipeline.counting import counted, shots_of
from onceclip.pipeline.demo.tour import SEEDS, Tour
from onceclip.pipeline.extract import Extraction, PartDone
from onceclip.pipeline.summary import accuracy_lines
from onceclip.stores.verify import Verification


def percent(value: float | None) -> str:
    """A fraction as per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"


def extraction_lines(done: Extraction) -> list[str]:
    """What `extract` did, every bad image by name, and the next command."""
    rate = f", {done.encoded / done.seconds:.0f} images/s" if done.encoded else ""
    stored = [f"{name} {'x'.join(map(str, shape))}" for name, shape in done.outputs.items()]
    return [
        f"{done.store}: {_images(done.images - done.bad)} of {_classes(len(done.classes))} ({_splits(done.splits)})",
        f"  encoded {done.encoded:,}, reused {done.reused:,} (moved {done.moved:,}), removed {done.removed:,}, "
        f"bad {done.bad:,}; {counted(done.text['prompts'], 'prompt')}; {done.seconds:.1f} s{rate}",
        *([f"  {'; '.join(stored)}"] if stored else []),
        *(f"  bad: {key}: {reason}" for key, reason in done.bad_images.items()),
        *_next(done.store, done.splits, len(done.classes), done.text["prompts"] > 0),
    ]


def _next(store: str, splits: Mapping[str, int], classes: int, text: bool) -> list[str]:
    """The next command of somebody with a new store, as far as it has what that needs."""
    if not classes:
        return [f"Next: onceclip predict ADAPTER {quote(store)}"]
    method, choice = "tip-adapter" if text else "linear-probe", " --select val" if splits.get("val") else ""
    return [f"Next: onceclip fit {quote(store)} --method {method} --shots 16{choice}"]


def part_lines(done: PartDone) -> list[str]:
    """What one part of an extraction did, every bad image by name, and what comes next."""
    return [
        f"{done.store}, part {done.part}: encoded {done.encoded:,} of {_images(done.images)}, bad {done.bad:,}; "
        f"{done.seconds:.1f} s",
        *(f"  bad: {key}: {reason}" for key, reason in done.bad_images.items()),
        f"The store is complete. Next: onceclip fit {quote(done.store)} --method tip-adapter --shots 16 --select val"
        if done.complete else "Other parts have images to encode still; the last one to end finishes the store.",
    ]


def import_lines(done: Mapping[str, Any]) -> list[str]:
    """What `import` did, and the next command."""
    return [
        f"{done['store']}: {counted(done['images'], 'row')} of {done['dim']} dimensions, {_classes(done['classes'])} "
        f"({_splits(done['splits'])}), {'with' if done['text'] else 'without'} text",
        *_next(done["store"], done["splits"], done["classes"], done["text"]),
    ]


def fit_lines(row: Mapping[str, Any], out: Path | None) -> list[str]:
    """What a run reached and with which hyperparameters."""
    values = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                       for name, value in row["hyperparameters"].items())
    chosen = "" if row["accuracy_val"] is None else f", {percent(row['accuracy_val'])} on the rows that chose them"
    return [
        f"{row['method']}, {shots_of(row['shots'])}, seed {row['seed']}: "
        f"{counted(row['n_support'], 'training image')} of {_classes(row['classes'])}, {row['seconds']:.2f} s",
        f"  test accuracy    {percent(row['accuracy'])} ({_images(row['n_test'])}), macro recall "
        f"{percent(row['macro_recall'])}",
        *_new_classes(row),
        f"  hyperparameters  {values or 'none'} ({row['select']}{chosen})",
        *([f"Saved in {out}. Next: onceclip predict {quote(str(out))} IMAGES..."] if out else []),
    ]


def _new_classes(row: Mapping[str, Any]) -> list[str]:
    """What a run of base classes reached on the others."""
    if "class_set" not in row:
        return []
    if row["accuracy_new"] is None:
        return [f"  {row['classes_new']} new classes   not served: what {row['method']} learns belongs to its classes"]
    return [f"  {row['classes_new']} new classes   {percent(row['accuracy_new'])} ({_images(row['n_test_new'])}), "
            f"harmonic mean {percent(row['harmonic_mean'])}"]


def verification_lines(found: Verification) -> list[str]:
    """What is wrong with a store, or that nothing is."""
    state = counted(len(found.faults), "fault") if found.faults else "no fault"
    return [
        f"{found.store}: {_images(found.images)}, {counted(found.chunks, 'chunk')} read, {state}",
        *(f"  fault: {each.where} {each.what}" for each in found.faults),
        *(f"  note: {each.where} {each.what}" for each in found.remarks),
    ]


def tour_lines(tour: Tour) -> list[str]:
    """The demonstration's table and what to do next."""
    return [
        "", f"Test accuracy in per cent, mean ± 95 % interval of {len(SEEDS)} seeds; "
        f"{tour.extraction.seconds:.1f} s for extraction, {tour.seconds:.1f} s for {tour.runs} runs",
        "", *accuracy_lines(tour.table), "",
        "Try next, on a folder of your own with one sub-folder of images per class:",
        "    onceclip extract FOLDER my.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k",
        "    onceclip fit my.zarr --method tip-adapter --shots 16 --select val --out my-adapter",
    ]


def _images(number: int) -> str:
    return counted(number, "image")


def _classes(number: int) -> str:
    return counted(number, "class", "classes")


def _splits(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in splits.items())
