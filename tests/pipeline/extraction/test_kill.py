"""SIGKILL at any moment of an extraction: the store says so, and the same command makes it what it would have been.

To kill many processes without starting as many Pythons, this file is also a program: one process loads the encoder and
forks a child per trial. Images are encoded one by one, since the demo encoder's embeddings of larger batches depend on
the batch in the last bit; so every file is compared byte by byte, the embeddings' too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from onceclip.stores import open_store
from onceclip.stores.compact import compact

pytestmark = pytest.mark.slow
KILLS = 4  # at least, of each of three kinds of extraction, of which so many are to leave an unfinished store:
UNFINISHED = 2
MOST = 100  # moments that are tried for them
FILES = 6  # that get their name or are removed: those of a new store, or those around the writing of the text
TEMPLATES = ("a drawing of a {}.", "a {}.")


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    path = folder_of({"disc": 3, "ring": 3})
    (path / "ring" / "bad.png").write_bytes(b"no image")
    return path


@pytest.fixture(params=["nothing", "a store that grows", "a compacted store that grows"])
def start(request: pytest.FixtureRequest, root: Path, tmp_path: Path, glyph: Callable[..., Path],
          extract_demo: Callable[..., Any]) -> Path:
    """What stands at the store's path when the extraction that is to be killed begins."""
    path = tmp_path / "start.zarr"
    if request.param != "nothing":
        plain = tmp_path / "plain.zarr" if "compacted" in request.param else path
        extract_demo(root, plain, unit_rows=3, batch_size=1, workers=1, templates=TEMPLATES)
        if plain != path:
            compact(str(plain), str(path), 6)
        glyph(root / "cross" / "a.png", "cross", 1)
        glyph(root / "cross" / "b.png", "cross", 2)
        glyph(root / "disc" / "00-new.png", "disc", 3)
        glyph(root / "disc" / "01.png", "cross", 4)
        (root / "ring" / "01.png").unlink()
        (root / "ring" / "02.png").rename(root / "disc" / "moved.png")
        (root / "ring" / "worse.png").write_bytes(b"no image either")
    return path


def test_an_extraction_killed_at_any_moment_ends_as_if_nothing_had_been(
        root: Path, start: Path, tmp_path: Path, forked: Callable[..., Any],
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    """clip-retrieval#368. Random moments, and those just before a file gets its name or is removed.

    The extraction that makes a store grow names no templates: those of the store have to survive.
    """
    done = forked(__file__, root, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) >= KILLS + FILES
    expected = contents(tmp_path / "expected.zarr")
    whole = [path for path in (start, tmp_path / "expected.zarr") if path.exists()]
    allowed = {"unfinished", *(f"complete {open_store(str(path)).fingerprint}" for path in whole)}
    for trial in trials:
        refused = trial["seen"].startswith("refused") and start not in whole  # there is nothing to show yet
        assert trial["end"] == "sound", f"{trial['moment']}: {trial['end']}"
        assert trial["seen"] in allowed or refused, f"{trial['moment']}: {trial['seen']}"
        found = contents(Path(trial["store"]))
        assert sorted(found) == sorted(expected), trial
        assert [name for name in found if found[name] != expected[name]] == [], trial
        assert list(Path(trial["store"]).rglob("*.partial")) == [], trial
    assert sum(trial["seen"] == "unfinished" for trial in trials) >= UNFINISHED
    assert not list(tmp_path.glob("*.lock"))


# From here on: what runs in the other process.

def look(path: Path) -> str:
    """What a user sees of a store: info works or is an error of ours, and fit refuses what is not whole."""
    from onceclip import OnceclipError
    from onceclip.pipeline.reporting.description import info
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec

    try:
        values = info(str(path))
    except OnceclipError as error:
        return f"refused: {error}"
    if values["complete"]:
        return f"complete {values['fingerprint']}"
    try:
        fit(open_store(str(path)), RunSpec("tip-adapter", 1))
    except OnceclipError as error:
        return "unfinished" if "is unfinished" in str(error) and "run the same" in str(error) else str(error)
    return "fit took an unfinished store"


def forked(*actions: Callable[[], Any], note: Path, seconds: float | None = None) -> bool:
    """Do things in a child, note as JSON what they give; gives whether SIGKILL ended the child, as it does in time."""
    child = os.fork()
    if child == 0:
        given = []
        for action in actions:
            try:
                given.append(action())
            except BaseException:
                given.append(traceback.format_exc())
        note.write_text(json.dumps(given))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(root: Path, work: Path) -> None:
    """Print a JSON object per trial."""
    import torch

    from onceclip.pipeline.encoders import EncoderSpec, open_encoder
    from onceclip.pipeline.extraction import processes, units
    from onceclip.pipeline.extraction.extract import extract as run
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.stores.verification import verify

    torch.set_num_threads(1)
    spec = EncoderSpec("demo")
    encoder = open_encoder(spec)
    assert encoder.tokenizer  # made here, and not by every child
    processes.open_encoder = lambda spec: encoder
    units.FLUSH_SECONDS = 0.0  # so that there are as many writes as there can be
    warnings.simplefilter("error")
    start, note = work / "start.zarr", work / "note"

    def extract(path: Path, last: int = -1) -> list[str]:
        """Extract, and die before the file of a number gets its name or is removed; gives what happened to files."""
        events: list[str] = []
        counting = Lock()

        def counted(action: Callable[..., Any]) -> Callable[..., Any]:
            def dying(*arguments: Any, **options: Any) -> Any:
                with counting:  # several files are written at the same time
                    if len(events) == last:
                        os.kill(os.getpid(), signal.SIGKILL)
                    events.append(str(arguments[-1]))
                return action(*arguments, **options)

            return dying

        Path.replace, os.unlink = counted(Path.replace), counted(os.unlink)
        run(root, path, spec, ExtractOptions(batch_size=1, unit_rows=3, workers=1))
        return events

    def check(path: Path) -> str:
        faults = verify(str(path)).faults
        return str(faults) if faults else "sound"

    def prepared(name: str) -> Path:
        return Path(shutil.copytree(start, work / name)) if start.exists() else work / name

    path = prepared("expected.zarr")
    begun = time.monotonic()
    forked(lambda: extract(path), note=note)
    duration = time.monotonic() - begun
    events = json.loads(note.read_text())[0]
    text = next(number for number, name in enumerate(events) if "/text/" in name)
    first = text - FILES // 2 if start.exists() else 0

    def trial(name: str, last: int = -1, seconds: float | None = None) -> str | None:
        """Kill one extraction and carry on with it; gives what the store said in between, None if it had ended."""
        path = prepared(name)
        if not forked(lambda: extract(path, last), note=note, seconds=seconds):
            assert seconds, note.read_text()
            return None
        forked(*(partial(action, path) for action in (look, extract, check)), note=note)
        seen, went, end = json.loads(note.read_text())
        end = went if isinstance(went, str) else end  # a traceback
        print(json.dumps({"store": str(path), "moment": seconds or last, "seen": seen, "end": end}))  # noqa: T201
        return str(seen)

    for number in range(first, first + FILES):
        trial(f"before-{number}.zarr", last=number)
    chance, done = random.Random(5), Counter[str | None]()
    while done.total() < MOST and (done.total() - done[None] < KILLS or done["unfinished"] < UNFINISHED):
        seen = trial(f"{done.total()}.zarr", seconds=chance.uniform(0, duration))
        done[seen] += 1
        # The machine may be busier now than when the first one was timed, or less so.
        duration *= 0.9 if seen is None else 1.0 if seen == "unfinished" else 1.05


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
