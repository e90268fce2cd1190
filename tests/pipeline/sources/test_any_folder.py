"""Whatever is in a folder: good photographs are stored, everything else is named with its reason."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import SourceOptions, class_names, open_source
from onceclip.stores import open_store
from onceclip.stores.schema import BAD

PHOTOGRAPHS = 500


def photograph(seed: int, mode: str = "RGB", size: tuple[int, int] = (60, 45)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size).convert(mode)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_but_good() -> dict[str, bytes]:
    wide = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (20, 118))[:, :30000])
    return {
        "one-pixel.png": file_of(photograph(1, size=(1, 1)), "png"),
        "wide.jpg": file_of(wide, "jpeg"),
        "grey.jpg": file_of(photograph(2, "L"), "jpeg"),
        "cmyk.jpg": file_of(photograph(3, "CMYK"), "jpeg"),
        "palette.png": file_of(photograph(4, "P"), "png", transparency=bytes(range(256))),
        "sixteen.png": file_of(Image.fromarray(np.arange(1200).reshape(30, 40).astype(np.uint16) * 50), "png"),
        "film.gif": file_of(photograph(5, "P"), "gif", save_all=True, append_images=[photograph(6, "P")] * 3),
        "film.webp": file_of(photograph(7), "webp", save_all=True, append_images=[photograph(8)] * 3),
        "really-a-png.jpg": file_of(photograph(9), "png"),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    whole = file_of(photograph(10, size=(200, 200)), "jpeg")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)
    return {
        "truncated.jpg": (whole[:-300], "damaged"),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"<html>404 not found</html>", "not an image"),
        "bomb.png": (file_of(Image.new("1", (10000, 9500)), "png"), "too large"),
        "phone.heic": (heic, "not an image"),
        "header.png": (file_of(photograph(11), "png")[:60], "damaged|not an image"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("any") / "images"
    for number in range(PHOTOGRAPHS):
        path = root / ("cat", "dog")[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(photograph(1000 + number), "jpeg"))
    for name, content in {**odd_but_good(), **{name: content for name, (content, _) in bad().items()}}.items():
        (root / "cat" / name).write_bytes(content)
    os.mkfifo(root / "dog" / "pipe.jpg")
    (root / "dog" / "folder.jpg").mkdir()
    (root / "dog" / "gone.jpg").symlink_to(root / "nowhere")
    return root


@pytest.mark.slow
def test_all_that_is_good_is_stored_all_that_is_bad_is_named_and_the_run_ends_well(
        folder: Path, tmp_path: Path, run: Callable[..., Any], run_json: Callable[..., dict[str, Any]]) -> None:
    """clip-retrieval#13, #89, #330; yolo-scout#63; lightly-studio#1691."""
    done = run_json("extract", folder, tmp_path / "s.zarr", "--model", "demo")
    expected = {f"cat/{name}": reason for name, (_, reason) in bad().items()}
    expected |= {"dog/pipe.jpg": "not a regular file", "dog/gone.jpg": "cannot be read"}
    assert set(done["bad_images"]) == set(expected)
    for key, reason in expected.items():
        assert re.search(reason, done["bad_images"][key]), key
    assert done["encoded"] == PHOTOGRAPHS + len(odd_but_good())
    store = open_store(str(tmp_path / "s.zarr"))
    assert len(store.embeddings()) == done["encoded"]
    assert {str(key) for key in store.table.key[store.table.state == BAD]} == set(expected)
    again = run("extract", folder, tmp_path / "s.zarr", "--model", "demo", "--strict")
    assert again.exit_code == 1
    assert f"{len(expected)} of {PHOTOGRAPHS + len(odd_but_good()) + len(expected)} images are bad" in again.stderr


def processes_of(group: int) -> list[str]:
    """What runs in a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


@pytest.fixture
def running(folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An extraction in a process group of its own, with slow passes, that has begun to encode."""
    # Where the tests run in the background, processes are started deaf to Ctrl-C.
    code = ("import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from onceclip.pipeline.encoders import Encoder; encode = Encoder.encode_images\n"
            "def slow(self, pixels, *rest, **options):\n"
            "    if len(pixels) == 20: time.sleep(0.3); sys.stderr.write('pass\\n')\n"
            "    return encode(self, pixels, *rest, **options)\n"
            "Encoder.encode_images = slow\n"
            "from onceclip.cli import main; main(prog_name='onceclip')")
    with subprocess.Popen([sys.executable, "-c", code, "extract", folder, tmp_path / "s.zarr", "--model", "demo",
                           "--batch-size", "20", "--unit-rows", "64"], stderr=subprocess.PIPE, text=True,
                          process_group=0, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stderr is not None
        for _ in range(6):
            assert process.stderr.readline() == "pass\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done_says_how_to_go_on_and_leaves_no_process(
        running: subprocess.Popen[str], folder: Path, tmp_path: Path, run_json: Callable[..., dict[str, Any]],
        run: Callable[..., Any]) -> None:
    """rclip#92: resume worked, but the user thought that it had not."""
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    said = running.communicate()[1]
    assert running.returncode == 130, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert processes_of(running.pid) == []
    kept = int((open_store(str(tmp_path / "s.zarr")).table.state == 0).sum())
    assert kept >= 60
    again = run("extract", folder, tmp_path / "s.zarr", "--model", "demo", "--json")
    total = PHOTOGRAPHS + len(odd_but_good()) + len(bad()) + 2
    assert f" of {total:,} already done" in again.stderr
    values = json.loads(again.stdout)
    assert values["reused"] >= kept
    assert values["encoded"] == PHOTOGRAPHS + len(odd_but_good()) - kept


MEASURE = """
import json, resource, sys
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.survey import ExtractOptions
for root in sys.argv[1:]:
    done = extract(root, f"{root}.zarr", EncoderSpec("demo"), ExtractOptions(unit_rows=256, workers=2))
    print(json.dumps([done.encoded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, process: Callable[..., Any]) -> None:
    """thingsvision#96. The many are links to few, so that writing them takes no time."""
    roots = [tmp_path / "100", tmp_path / "800"]
    for root in roots:
        number = int(root.name)
        for index in range(number):
            path = root / ("cat", "dog")[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if index < 40:
                path.write_bytes(file_of(photograph(index, size=(400, 300)), "jpeg"))
            else:
                os.link(root / ("cat", "dog")[index % 2] / f"{index % 40}.jpg", path)
    done = process("-c", MEASURE, *roots)
    assert done.returncode == 0, done.stderr
    (few, before), (many, after) = (json.loads(line) for line in done.stdout.splitlines())
    assert (few, many) == (100, 800)
    assert after - before < 120  # MiB; 700 decoded photographs would be 240


def test_splits_beside_other_folders_are_refused(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """MVTec's folders: train, test and ground_truth became the classes."""
    root = folder_of({"train/disc": 1, "test/ring": 1, "ground_truth/ring": 1})
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(root, "mvtec")
    for place in (root, tmp_path / "a.tar"):
        with pytest.raises(SourceError, match=r"has folders of splits \(test, train\) and others \(ground_truth\)"):
            open_source(str(place))
        assert len(open_source(str(place), SourceOptions(unlabelled=True)).records) == 3
    vehicles = open_source(str(folder_of({"train": 1, "bus/old": 1}, "vehicles"))).records
    assert class_names(vehicles) == ["bus", "train"]
