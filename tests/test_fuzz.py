"""Files that a stranger changed: every command that reads them ends with exit code 0 or 1 and one line.

`FUZZ_SECONDS=600 FUZZ_SEED=7 python -m pytest tests/test_fuzz.py` looks longer and elsewhere; a failure names its
round, and FUZZ_ROUND starts there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
import numpy as np
import pytest

from onceclip.stores.schema import seal

SEED, FIRST = int(os.environ.get("FUZZ_SEED", "1")), int(os.environ.get("FUZZ_ROUND", "0"))
SECONDS, ROUNDS = float(os.environ.get("FUZZ_SECONDS", "0")), 10  # rounds of a door where no time is asked for
STRANGE: tuple[Any, ...] = (None, True, -1, 0, 3, 2**40, 0.5, -1e308, float("nan"), "", "0.5", "../../x", "\udcff",
                            "a\nb", "all", [], [[]], [1, "x"], {}, {"name": "os:system"}, {"": None})

Command = tuple[Any, ...]
Change = Callable[[Random], list[Command]]


def changed(value: Any, random: Random) -> Any:
    """JSON values with one of them, somewhere, replaced or taken away."""
    if isinstance(value, dict | list) and value and random.random() < 0.85:
        copy: Any = value.copy()
        place = random.choice([*value] if isinstance(value, dict) else range(len(value)))
        if random.random() < 0.12:
            del copy[place]
        else:
            copy[place] = changed(value[place], random)
        return copy
    return random.choice(STRANGE)


def spoiled(content: bytes, random: Random) -> bytes:
    """Bytes with one of them flipped, cut short, or followed by others."""
    place = random.randrange(len(content) or 1)
    flipped = bytearray(content)
    flipped[place:place + 1] = bytes(each ^ 1 << random.randrange(8) for each in content[place:place + 1])
    return random.choice([bytes(flipped), bytes(flipped), content[:place], content + content[:place], b"[" * 50_000])


def rewrite(path: Path, random: Random) -> None:
    """Change a file as what it is: JSON, lines of JSON, a sealed root, a chunk with a checksum that fits, or bytes."""
    content = path.read_bytes()
    if random.random() < 0.2:
        path.write_bytes(spoiled(content, random))
    elif path.suffix == ".json":
        values = changed(json.loads(content), random)
        if isinstance(values, dict) and isinstance(values.get("attributes"), dict):
            with suppress(ValueError):  # NaN, which a seal does not take
                values["attributes"] = {name: seal(each) if isinstance(each, dict) and "checksum" in each else each
                                        for name, each in values["attributes"].items()}
        path.write_text(json.dumps(values))
    elif path.suffix == ".jsonl":
        lines = content.splitlines()
        place = random.randrange(len(lines))
        lines[place] = json.dumps(changed(json.loads(lines[place]), random)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(changed(json.loads(content[8:8 + size]), random)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size:])
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        name = random.choice([*arrays])
        own = arrays[name]
        arrays[name] = random.choice([own[:1], own.T, own.astype(str), np.zeros(0), np.array(2**40), np.array("x"),
                                      np.full(3, np.nan)])
        np.savez(path, **arrays)
    else:
        body = spoiled(content[:-4], random)
        path.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))


@pytest.fixture(scope="module")
def originals(store_path: Path, adapter_path: Path, image_folder: Path,
              tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    from onceclip.pipeline.runs.specs import make_specs
    from onceclip.pipeline.runs.sweep import sweep
    from onceclip.stores import open_store

    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    shutil.copytree(store_path, folder / "store.zarr")
    shutil.copytree(adapter_path, folder / "adapter")
    store = open_store(str(folder / "store.zarr"))
    sweep([store], make_specs(["zero-shot", "gda"], [1, 2], [1], select="val"), folder / "results")
    images = sorted(image_folder.rglob("*.png"))[:3]
    entries = [{"path": str(each), "label": each.parent.name, "split": "test"} for each in images]
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in entries))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{each},{each.parent.name}\n" for each in images))
    rows = store.rows()
    np.savez(folder / "arrays.npz", embedding=store.embeddings(rows), label=store.column("label")[rows],
             split=np.array(["train", "test"])[np.arange(len(rows)) % 2], class_names=np.array(store.classes))
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")


def of_adapter(work: Path, random: Random) -> list[Command]:
    rewrite(random.choice(files_of(work / "adapter")), random)
    store, adapter = work / "store.zarr", work / "adapter"
    return [("info", adapter), ("predict", adapter, store, "--split", "test"),
            ("evaluate", adapter, store, "--per-class"), ("report", adapter, store, "--out", work / "page.html")]


def of_store(work: Path, random: Random) -> list[Command]:
    files = files_of(work / "store.zarr")
    rewrite(random.choice([random.choice(files), random.choice([each for each in files if each.suffix == ".json"]),
                           work / "store.zarr" / "zarr.json"]), random)
    store, adapter = work / "store.zarr", work / "adapter"
    return [("info", store), ("info", store, "--card"), ("verify", store), ("evaluate", adapter, store),
            ("fit", store, "--method", "gda", "--shots", 1, "--out", work / "fitted"),
            ("predict", adapter, store), ("compact", store, work / "compact.zarr")]


def of_results(work: Path, random: Random) -> list[Command]:
    results = work / "results"
    rewrite(results / "results.jsonl", random)
    return [("report", results, "--out", work / "page.html"), ("table", results), ("compare", results),
            ("fit", "--from-row", f"{results}:1"),
            ("sweep", work / "store.zarr", "--methods", "zero-shot,gda", "--shots", 1, "--seeds", 1, "--out", results)]


def of_stores_json(work: Path, random: Random) -> list[Command]:
    rewrite(work / "results" / "stores.json", random)
    return [("report", work / "results", "--out", work / "page.html"),
            ("sweep", work / "store.zarr", "--methods", "gda", "--shots", 1, "--seeds", 1, "--out", work / "results")]


def of_manifest(work: Path, random: Random) -> list[Command]:
    path = work / random.choice(["list.jsonl", "list.csv"])
    path.write_bytes(spoiled(path.read_bytes(), random)) if path.suffix == ".csv" else rewrite(path, random)
    return [("extract", path, work / "new.zarr", "--model", "demo", "--workers", 1)]


def of_arrays(work: Path, random: Random) -> list[Command]:
    rewrite(work / "arrays.npz", random)
    return [("import", work / "arrays.npz", work / "new.zarr", "--encoder", "x")]


DOORS = {"adapter": of_adapter, "store": of_store, "results": of_results, "stores.json": of_stores_json,
         "manifest": of_manifest, "arrays": of_arrays}



def rounds() -> Iterator[int]:
    """Numbers of rounds: some, or until the time of a door is over."""
    end = time.monotonic() + SECONDS / len(DOORS)
    for number in count(FIRST):
        yield number
        if time.monotonic() > end if SECONDS else number >= FIRST + ROUNDS - 1:
            return


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_whatever_a_file_says_a_command_ends_with_one_line(door: str, originals: Path, tmp_path: Path,
                                                           run: Callable[..., Any]) -> None:
    for number in rounds():
        work, random = tmp_path / str(number), Random(f"{SEED} {door} {number}")
        shutil.copytree(originals, work)
        for command in DOORS[door](work, random):
            done = run(*command)
            told = f"FUZZ_SEED={SEED} FUZZ_ROUND={number} {door}: {' '.join(map(str, command))}\n{done.output}"
            assert done.exception is None or isinstance(done.exception, SystemExit), told
            assert done.exit_code in (0, 1), told
            assert "Traceback" not in done.output, told
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
            assert len(errors) == done.exit_code, told
            assert not errors or done.stderr.splitlines()[-1] == errors[0], told
        assert not (tmp_path.parent / "x").exists()
        shutil.rmtree(work)
