"""`onceclip retrieve` as it is typed: real short videos and the shipped encoder, from the folder to the page."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.stores import open_store

Json = Callable[..., dict[str, Any]]
KINDS = ("ring", "cross", "bar")


def film(path: Path, glyph: Callable[..., Path], kind: str, seed: int) -> None:
    """A video of six drawings of one kind."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(6):
            picture = glyph(path.with_suffix(".png"), kind, 10 * seed + number)
            pixels = np.asarray(Image.open(picture).convert("RGB").resize((64, 64)))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    path.with_suffix(".png").unlink()


@pytest.fixture(scope="module")
def films(glyph: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films/, films.zarr with 3 frames of each, and captions of the videos in it."""
    from click.testing import CliRunner

    from onceclip.cli import main

    root = tmp_path_factory.mktemp("films")
    captions = {}
    for kind in KINDS:
        for seed in range(2):
            film(root / "films" / f"{kind}{seed}.mp4", glyph, kind, seed)
            captions[f"{kind}{seed}.mp4"] = [f"a {kind}", f"a drawing of a {kind}, number {seed}"]
    (root / "captions.json").write_text(json.dumps(captions))
    for words in (["extract", "films", "films.zarr", "--model", "demo", "--frames", "3", "--unlabelled"],
                  ["text", "films.zarr", "--captions", "captions.json"]):
        done = CliRunner().invoke(main, [str(root / word) if (root / word).exists() or word.endswith(".zarr") else word
                                         for word in words])
        assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def path(films: Path) -> Path:
    return films / "films.zarr"


def test_captions_and_videos_rank_each_other_and_the_page_shows_frames(path: Path, run: Callable[..., Any],
                                                                       tmp_path: Path) -> None:
    done = run("retrieve", path, "--pooling", "hitchhiker", "--page", tmp_path / "p.html", "--out", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    assert "12 captions of 6 groups of 18 rows (2 to 2 each)" in done.stdout
    row = json.loads((tmp_path / "r.json").read_text())
    assert (row["items"], row["by"], row["pooling"], row["split"]) == (6, "group", "hitchhiker:0.1", "all")
    page = (tmp_path / "p.html").read_text()
    # Of 12 texts, each with its video and four found; of 6 videos each.
    assert page.count('<img src="data:image/jpeg') == 12 * 5 + 6
    assert "a drawing of a ring, number 1" in page
    assert "no picture" not in page


def test_a_person_finds_videos_and_frames(path: Path, films: Path, run: Callable[..., Any], run_json: Json,
                                          glyph: Callable[..., Path], tmp_path: Path) -> None:
    glyph(tmp_path / "cross.png", "cross", 99)
    by_image = run_json("retrieve", path, "--image", tmp_path / "cross.png", "--by", "group", "--top", 2)
    assert {hit["name"] for hit in by_image["hits"]} == {"cross0.mp4", "cross1.mp4"}
    frames = run_json("retrieve", path, "--image", tmp_path / "cross.png", "--top", 100)["hits"]
    assert len(frames) == 18
    assert [hit["score"] for hit in frames] == sorted((hit["score"] for hit in frames), reverse=True)
    done = run("retrieve", path, "--query", "a ring", "--top", 3, "--page", tmp_path / "s.html")
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == 3
    page = (tmp_path / "s.html").read_text()
    assert page.count("<img ") == 3
    assert all(name in page for _, name in lines)
    moved = Path(shutil.copytree(path, tmp_path / "elsewhere.zarr"))
    run_json("retrieve", moved, "--query", "a ring", "--page", tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text().count("<img ") == 0
    run_json("retrieve", moved, "--query", "a ring", "--page", tmp_path / "t.html", "--images", films / "films")
    assert (tmp_path / "t.html").read_text().count("<img ") == 18


def test_an_image_of_the_store_finds_itself(store_path: Path, image_folder: Path, run_json: Json) -> None:
    store = open_store(str(store_path))
    key = str(store.column("key")[7])
    found = run_json("retrieve", store_path, "--image", image_folder / key, "--top", 1)["hits"]
    assert found[0]["name"] == key
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)


def test_duplicates_are_listed_and_written(films: Path, folder_of: Callable[..., Path], run_json: Json,
                                           extract_demo: Callable[..., Any], tmp_path: Path) -> None:
    folder = folder_of({"disc": 5, "ring": 5})
    first = min(folder.rglob("*.png"))
    shutil.copy(first, first.with_name("again.png"))
    extract_demo(folder, tmp_path / "s.zarr")
    done = run_json("retrieve", tmp_path / "s.zarr", "--duplicates", 0.9999, "--out", tmp_path / "pairs.csv")
    assert done["same_file"] == 1
    assert done["nearest"][0]["same"]
    with (tmp_path / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == done["pairs"]
    equal, = ({row["first"], row["second"]} for row in rows if row["same_file"] == "1")
    assert equal == {str(each.relative_to(folder)) for each in (first, first.with_name("again.png"))}


def test_questions_about_videos_are_scored(path: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([
        {"path": f"{kind}{seed}.mp4", "question": "a drawing of", "answers": [f"a {other}" for other in KINDS],
         "right": KINDS.index(kind)} for kind in KINDS for seed in range(2)]))
    done = run("retrieve", path, "--answers", tmp_path / "q.json", "--out", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "r.json").read_text())
    assert (row["questions"], row["chance"]) == (6, pytest.approx(1 / 3))
    assert "6 questions about 6 items" in done.stdout
    assert run("retrieve", path, "--answers", tmp_path / "q.json", "--train", "tem-adapter").exit_code == 1
    assert run("retrieve", path, "--answers", tmp_path / "q.json", "--train", "labclip").exit_code == 2


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--query", "a", "--image", "x.png"], 2, "do not go together"), (["--query", " "], 1, "the query is empty"),
    (["--query", "a", "--normalize", "qb"], 2, "scoring"), (["--by", "key"], 2, "--by is not for"),
    (["--image", "nothing.png"], 1, "cannot be used"),
    (["--query", "a", "--split", "test"], 1, "no embedding in its test"),
    (["--text", "default"], 1, "no text set 'default'"), (["--normalize", "qb"], 1, "--bank names the split"),
    (["--duplicates", "0.9", "--page", "p.html"], 2, "--page is not for"), (["--duplicates", "2"], 2, "range"),
    (["--query", "a", "--out", "o.json"], 2, "use --json or --page"),
    (["--query", "a", "--text", "other"], 2, "--text is not for"), (["--top", "3"], 2, "--top is not for"),
    (["--seed", "3"], 2, "add --train"), (["--images", "films"], 2, "add --page"),
    (["--duplicates", "0.9", "--model", "demo"], 2, "--model is not for"), (["--device", "cpu"], 2, "--phrases alone"),
    (["--query", "a", "--pooling", "last"], 1, "no pooling 'last'")])
def test_what_cannot_be_done_is_one_line(path: Path, run: Callable[..., Any], words: list[str], code: int,
                                         said: str) -> None:
    failed = run("retrieve", path, *words)
    assert failed.exit_code == code
    assert said in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == (1 if code == 1 else 4)


def test_an_encoder_that_is_not_the_stores_is_refused(path: Path, other_encoder: str, run: Callable[..., Any]) -> None:
    failed = run("retrieve", path, "--query", "a ring", "--model", other_encoder)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "belongs to encoder" in failed.stderr


def test_a_key_of_a_strangers_store_leads_nowhere_else(glyph: Callable[..., Path], tmp_path: Path) -> None:
    from onceclip.pipeline.reporting.mistakes import _frame

    film(tmp_path / "outside.mp4", glyph, "ring", 0)
    (tmp_path / "images").mkdir()
    for key in ("../outside.mp4#frame=000001", f"{tmp_path}/outside.mp4#frame=1", "..%2Foutside.mp4#frame=1",
                "outside.txt#frame=1", "outside.mp4", "a%00.mp4#frame=1", f"a.mp4#frame={'1' * 5000}"):
        assert _frame(str(tmp_path / "images"), key) is None
