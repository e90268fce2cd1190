"""Shares of work done by processes that know nothing of each other: one store, one table of results.

To start three extractions at the same time without loading torch three times, this file is also a program: one process
forks a child per part.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import sweep
from onceclip.pipeline.workers import Part
from onceclip.stores import Store

SPECS = make_specs(["zero-shot", "tip-adapter"], [1, 2], [1, 2], select="fixed")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/3/5", "a/b", "-1/3", ""])
def test_what_is_no_part_is_wrong_usage(run: Callable[..., Any], text: str) -> None:
    result = run("extract", "images", "store.zarr", "--model", "demo", "--part", text)
    assert result.exit_code == 2
    assert "is not one of N parts, such as 2/8" in result.stderr


def test_the_shares_are_the_whole_and_nothing_twice() -> None:
    shares = [list(Part(number, 3).share(range(10))) for number in (1, 2, 3)]
    assert sorted(chain(*shares)) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_parts_at_the_same_time_make_the_store_of_one_process(
        folder_of: Callable[..., Path], tmp_path: Path, forked: Callable[..., Any],
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    """Views of images whose splits are known are made by the parts, others by the last one."""
    roots = []
    for name, tops in (("drawn", [""]), ("folders", ["train/", "test/"])):
        roots.append(folder_of({f"{top}{kind}": 12 for top in tops for kind in ("disc", "ring")}, name))
        (roots[-1] / tops[0] / "ring" / "bad.png").write_bytes(b"no image")
    done = forked(__file__, "together", tmp_path, *roots)
    assert done.returncode == 0, done.stderr
    parts = [json.loads(line) for line in done.stdout.splitlines()]
    for root, images in zip(roots, (25, 49), strict=True):
        mine = [part for part in parts if Path(part["store"]).name == f"{root.name}.zarr"]
        assert sorted(part["part"] for part in mine) == ["1/3", "2/3", "3/3"]
        assert [sum(part[name] for part in mine) for name in ("images", "encoded", "reused", "bad")] == [
            images, images - 1, 0, 1]
        assert any(part["complete"] for part in mine)
        assert contents(tmp_path / f"{root.name}.zarr") == contents(tmp_path / f"{root.name}-one.zarr")
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.slow
def test_a_part_that_is_missing_leaves_an_unfinished_store_that_it_or_a_plain_extraction_finishes(
        pictures: Path, tmp_path: Path, forked: Callable[..., Any],
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    fewer = Path(shutil.copytree(pictures, tmp_path / "fewer"))
    (fewer / "disc" / "03.png").unlink()
    done = forked(__file__, "one after the other", tmp_path, pictures, fewer)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["complete"] for line in done.stdout.splitlines()] == [False, False, True, True]
    assert done.stderr.count("images.zarr is being made of other images: give all parts the same source") == 1
    assert contents(tmp_path / "images.zarr") == contents(tmp_path / "images-one.zarr")
    assert contents(tmp_path / "plain.zarr") == contents(tmp_path / "images-one.zarr")


def test_the_part_that_finishes_the_store_leaves_alone_what_another_is_writing(
        folder_of: Callable[..., Path], tmp_path: Path) -> None:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.extraction.extract import extract_part
    from onceclip.pipeline.extraction.survey import ExtractOptions

    def part(number: int) -> bool:
        return extract_part(folder, path, EncoderSpec("demo"), ExtractOptions(workers=1, unit_rows=4, progress=False),
                            Part(number, 2)).complete

    folder, path = folder_of({"disc": 5, "ring": 5}), tmp_path / "s.zarr"
    assert not part(1)
    writing, left = (path / "image" / f"{name}.partial" for name in ("writing", "left"))
    for file in (writing, left):
        file.touch()
    os.utime(left, (0, 0))  # by a process that was killed long ago
    assert part(2)
    assert (writing.exists(), left.exists()) == (True, False)


def test_parts_of_a_sweep_make_the_rows_of_one_process_and_each_goes_on_where_it_was(imported: Store,
                                                                                    tmp_path: Path) -> None:
    whole = sweep([imported], SPECS, tmp_path / "one")
    given = [sweep([imported], SPECS, tmp_path / "parts", part=Part(number, 3)) for number in (3, 1, 2, 1)]
    names = sorted(path.name for path in (tmp_path / "parts").glob("*.jsonl"))
    assert names == ["results.1-of-3.jsonl", "results.2-of-3.jsonl", "results.3-of-3.jsonl"]
    assert [len(rows) for rows in given] == sorted(len(rows) for rows in given)
    assert 0 < len(given[0]) < len(SPECS)
    assert given[2] == given[3]
    rows = read_rows(tmp_path / "parts")
    assert len(rows) == len({row["run"] for row in rows}) == len(SPECS)
    assert [(row["run"], row["accuracy"]) for row in given[-1]] == [(row["run"], row["accuracy"]) for row in whole]
    assert sweep([imported], SPECS, tmp_path / "parts") == given[-1]
    assert not (tmp_path / "parts" / "results.jsonl").exists()


def test_a_part_of_a_sweep_without_a_run_is_no_failure(imported: Store, tmp_path: Path,
                                                       run: Callable[..., Any]) -> None:
    result = run("sweep", imported.path, "--methods", "zero-shot", "--shots", "1", "--seeds", "1", "--select", "fixed",
                 "--part", "5/5", "--out", tmp_path / "results", "--json")
    assert (result.exit_code, json.loads(result.stdout)["tables"]) == (0, []), result.stderr


# From here on: what runs in the other process.

def main(how: str, work: Path, *roots: Path) -> None:
    """Print a JSON object per part."""
    import onceclip.pipeline.extraction.processes as module
    from onceclip.pipeline.decoding.views import Views
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder
    from onceclip.pipeline.extraction.extract import extract, extract_part
    from onceclip.pipeline.extraction.outputs import OutputOptions
    from onceclip.pipeline.extraction.survey import ExtractOptions

    spec, outputs = EncoderSpec("demo"), OutputOptions(views=Views(number=3), preproj=True)
    options = ExtractOptions(batch_size=1, unit_rows=8, workers=1, outputs=outputs)
    encoder = open_encoder(spec)
    module.open_encoder = lambda spec: encoder

    def part(number: int, source: Path, store: str) -> int:
        child = os.fork()
        if child:
            return child
        try:
            done = extract_part(source, work / store, spec, options, Part(number, 3))
            os.write(1, json.dumps(asdict(done)).encode() + b"\n")
        except BaseException:
            traceback.print_exc()
        os._exit(0)

    if how == "together":
        for root in roots:
            extract(root, work / f"{root.name}-one.zarr", spec, options)
            for child in [part(number, root, f"{root.name}.zarr") for number in (1, 2, 3)]:
                os.waitpid(child, 0)
        return
    root, fewer = roots
    extract(root, work / f"{root.name}-one.zarr", spec, options)
    for number, source in ((1, root), (3, root), (2, fewer)):
        os.waitpid(part(number, source, f"{root.name}.zarr"), 0)
    shutil.copytree(work / f"{root.name}.zarr", work / "plain.zarr")
    for number in (2, 1):
        os.waitpid(part(number, root, f"{root.name}.zarr"), 0)
    extract(root, work / "plain.zarr", spec, options)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
