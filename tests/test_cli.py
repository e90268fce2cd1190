"""The commands as scripts and people meet them: words for people, one object with --json."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.cli import main

Run = Callable[..., Any]


def test_json_prints_one_object_and_nothing_else(place: Path, run_json: Run) -> None:
    np.savez(place / "a.npz", embedding=np.eye(12, 5, dtype=np.float32) + 1, label=np.arange(12) % 2,
             text=np.eye(2, 5, dtype=np.float32))
    (place / "good" / "disc" / "bad.png").write_bytes(b"no image")
    done = run_json("extract", "good", "new.zarr", "--model", "demo")
    assert (done["images"], done["encoded"], list(done["bad_images"])) == (5, 4, ["disc/bad.png"])
    assert run_json("import", "a.npz", "imported.zarr")["images"] == 12
    row = run_json("fit", "store.zarr", "--method", "tip-adapter", "--shots", "2", "--out", "mine")
    assert [row] == [json.loads(line) for line in Path("mine/results.jsonl").read_text().splitlines()]
    assert run_json("evaluate", "mine", "store.zarr")["accuracy"] == row["accuracy"]
    found = run_json("predict", "mine", "good", "--top-k", "2", "--logits", "logits")
    assert (found["n"], found["bad"]) == (5, 1)
    assert [each["state"] for each in found["predictions"]] == ["ok", "ok", "bad", "ok", "ok"]
    logits = np.load("logits")
    assert logits.shape == (5, 4)
    assert [bool(each) for each in np.isnan(logits).all(1)] == [False, False, True, False, False]
    first = found["predictions"][0]
    assert run_json("info", "mine")["classes"][logits[0].argmax()] == first["class"] == first["top"][0]["class"]
    assert run_json("info", "store.zarr")["images"] == {"stored": 60, "bad": 0, "removed": 0, "to do": 0}
    assert {each["name"] for each in run_json("methods")["methods"]} >= {"zero-shot", "tip-adapter"}
    assert run_json("methods", "tip-adapter")["hyperparameters"]["beta"]["default"] > 0


def test_every_command_has_json() -> None:
    assert [name for name, command in main.commands.items()
            if "--json" not in [option for parameter in command.params for option in parameter.opts]] == []


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_of_every_command_has_a_sentence_and_works(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    text = main.commands[command].help or ""
    assert text.split("\n")[0].strip().endswith((".", ":")) or ". " in text
    assert re.search("Examples?:", text) or command in ("info", "methods", "demo")


def test_output_for_people_shows_rows_reasons_and_the_next_step(place: Path, run: Run) -> None:
    (place / "good" / "disc" / "bad.png").write_bytes(b"no image")
    result = run("extract", "good", "new.zarr", "--model", "demo", "--strict")
    assert result.exit_code == 1
    assert "1 of 5 images are bad" in result.stderr
    assert "disc/bad.png: not an image" in result.stdout
    assert "onceclip fit new.zarr" in result.stdout
    result = run("predict", "adapter", "good", "--top-k", "2")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [len(line) for line in lines] == [6, 6, 3, 6, 6]
    assert [line[1] for line in lines] == ["ok", "ok", "bad", "ok", "ok"]
    assert lines[2][0] == "disc/bad.png"


def test_an_adapter_is_not_overwritten_unless_asked(place: Path, run: Run) -> None:
    shutil.copytree(place / "adapter", place / "mine")
    before = (place / "mine" / "adapter_config.json").read_bytes()
    command = ("fit", "store.zarr", "--method", "zero-shot", "--out", "mine")
    assert run(*command).exit_code == 1
    assert (place / "mine" / "adapter_config.json").read_bytes() == before
    assert run(*command, "--overwrite").exit_code == 0
    assert json.loads((place / "mine" / "adapter_config.json").read_text())["method"] == "zero-shot"


@pytest.mark.parametrize("name", ["good", "store.zarr"])
def test_an_adapter_is_not_written_into_a_folder_of_other_things(place: Path, run: Run, name: str) -> None:
    """A saved adapter has a README.md, and a project has one too."""
    folder = Path(shutil.copytree(place / name, place / "mine"))
    (folder / "README.md").write_text("mine")
    refused = run("fit", "store.zarr", "--method", "zero-shot", "--out", folder)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert "new or empty" in refused.stderr
    assert (folder / "README.md").read_text() == "mine"


def test_an_adapter_may_go_where_results_are(place: Path, run: Run) -> None:
    (place / "results").mkdir()
    (place / "results" / "results.jsonl").write_text("")
    assert run("fit", "store.zarr", "--method", "zero-shot", "--out", "results").exit_code == 0


def test_a_row_that_is_carried_out_again_takes_no_other_options(place: Path, run: Run) -> None:
    assert run("fit", "store.zarr", "--method", "zero-shot", "--out", "mine").exit_code == 0
    assert run("fit", "--from-row", "mine:1").exit_code == 0
    again = json.loads(run("fit", "--from-row", "mine:1", "--compile", "off", "--json").stdout)
    assert again["compiling"]["choice"] == "off"  # how it is trained, as the device is
    refused = run("fit", "--from-row", "mine:1", "--method", "gda", "--shots", "4")
    assert refused.exit_code == 2
    assert "leave out --method, --shots" in refused.stderr


def test_a_search_that_there_is_not_is_refused_also_where_nothing_is_searched(place: Path, run: Run) -> None:
    assert run("fit", "store.zarr", "--method", "zero-shot", "--search", "foo").exit_code == 1


@pytest.mark.parametrize("error", ["raise", "cause", "context"])
def test_ctrl_c_ends_in_one_line_also_where_a_library_wraps_it(error: str, run: Run,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy, scipy and torch turn an interrupt in the middle of their import into errors of their own."""

    def interrupted(*arguments: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            if error == "raise":
                raise
            if error == "cause":
                raise ImportError("initialization failed") from interrupt
            raise RuntimeError("Error calling __set_name__")  # noqa: B904

    for name in ("extract", "fit", "predict"):
        monkeypatch.setattr(main.commands[name], "invoke", interrupted)
    done = run("extract", "good", "new.zarr", "--model", "demo")
    assert (done.exit_code, done.stderr.strip()) == (
        130, "Stopped. What was done is kept: run the same command again to go on.")
    monkeypatch.setattr("onceclip.pipeline.api.stores.compact", interrupted)
    for arguments in (("fit", "store.zarr", "--method", "gda"), ("predict", "adapter", "good"),
                      ("compact", "store.zarr", "hf://datasets/me/glyphs")):
        done = run(*arguments)
        assert (done.exit_code, done.stderr.strip()) == (
            130, "Stopped. Nothing was kept: the same command begins anew.")


@pytest.mark.parametrize(("out", "said"), [((), "Nothing was kept"), (("--out", "rows"), "What was done is kept")])
def test_rows_of_sessions_are_kept_in_a_folder_alone(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch,
                                                     out: tuple[str, ...], said: str) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onceclip.pipeline.api.runs.incremental", interrupted)
    done = run("incremental", "store.zarr", *out)
    assert (done.exit_code, said in done.stderr) == (130, True)


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 8.00 GiB"), RuntimeError("can't start new thread"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_or_threads_that_end_are_one_line(error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:

    def exhausted(context: Any) -> None:
        raise error

    monkeypatch.setattr(main.commands["methods"], "invoke", exhausted)
    done = run("methods")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert str(error) in done.stderr
    assert "out of memory" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such limit")
def test_a_process_without_address_space_ends_in_one_line(image_folder: Path, elsewhere: Path) -> None:
    line = ["bash", "-c", 'ulimit -v 700000; exec "$0" -m onceclip "$@"', sys.executable, "extract", str(image_folder),
            "new.zarr", "--model", "demo"]
    done = subprocess.run(line, cwd=elsewhere, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: out of memory or threads")


def test_the_next_command_can_be_pasted(place: Path, run: Run) -> None:
    (place / "good").rename(place / "my pets")
    done = run("extract", "my pets", "my pets.zarr", "--model", "demo")
    assert "Next: onceclip fit 'my pets.zarr' --" in done.stdout
    assert done.stdout.rstrip().endswith("--out 'my pets-adapter'")
    done = run("extract", "my pets", "more.zarr", "--model", "demo", "--unlabelled")
    assert "Next: onceclip predict ADAPTER more.zarr" in done.stdout
    assert "onceclip fit" not in done.stdout
    done = run("fit", "store.zarr", "--method", "zero-shot", "--shots", "1", "--out", "an adapter")
    assert done.stdout.startswith("zero-shot, 1 shot, seed 1")
    assert "Next: onceclip evaluate 'an adapter' store.zarr" in done.stdout
    done = run("evaluate", "an adapter", "store.zarr")
    assert "Next: onceclip report 'an adapter' store.zarr --out mistakes.html" in done.stdout
    done = run("evaluate", "an adapter", "store.zarr", "--split", "val")
    assert "Next: onceclip report 'an adapter' store.zarr --split val --out mistakes.html" in done.stdout


def test_the_next_command_of_half_of_the_classes_scores_these(place: Path, run: Run) -> None:
    """An adapter that knows half of the classes of a store is scored on these alone, and has no page of that store."""
    done = run("fit", "store.zarr", "--method", "zero-shot", "--classes", "base", "--out", "base")
    following = re.search("Next: onceclip (.*)", done.stdout)
    assert following is not None
    scored = run(*following[1].split())
    assert scored.exit_code == 0, scored.output
    assert "of 2 classes" in scored.stdout
    assert "Next:" not in scored.stdout


def test_info_shows_what_a_store_holds_and_what_made_it(place: Path, run: Run) -> None:
    """datacomp#69, clip-retrieval#290: prompts, encoder and norms are printed, not remembered."""
    text = run("info", "store.zarr").stdout
    assert all(part in text for part in ("complete store, schema 1", "60 stored", "demo", "a photo of a bar.", "median",
                                         "cross: "))


@pytest.mark.parametrize("cut", ["before the first image", "half-way"])
def test_info_of_a_half_made_store_says_unfinished(place: Path, run: Run, run_json: Run, store_copy: Path,
                                                   cut: str) -> None:
    from onceclip.stores import Store, StoreWriter
    from onceclip.stores.storage import open_group

    writer = StoreWriter(Store(str(store_copy), open_group(str(store_copy), mode="r+")))
    if cut == "half-way":
        writer.update(complete=False)
        writer.store.array("state")[16:32] = -1
    else:
        store_copy = place / "new.zarr"
        StoreWriter.create(str(store_copy), writer.store.encoder, 64)
    result = run("info", store_copy)
    assert result.exit_code == 0, result.stderr
    assert "UNFINISHED" in result.stdout
    values = run_json("info", store_copy)
    assert (values["complete"], values["images"]["to do"]) == (False, 16 if cut == "half-way" else 0)
    assert "unfinished" in run("fit", store_copy, "--method", "zero-shot").stderr


def test_the_whole_path_works_in_processes_of_its_own_from_elsewhere(image_folder: Path, elsewhere: Path,
                                                                     run_process: Run) -> None:
    """CoOp#57: how do I use my own folder? Without code."""
    for command, text in ((("extract", image_folder, "s.zarr", "--model", "demo"), "60 images of 4 classes"),
                          (("fit", "s.zarr", "--method", "tip-adapter", "--shots", "2", "--out", "a"), "Saved in a"),
                          (("evaluate", "a", "s.zarr"), "accuracy"),
                          (("predict", "a", image_folder / "disc"), "disc-0.jpg\tok\t"),
                          (("report", "a", "s.zarr", "--out", "mistakes.html"), "mistakes.html")):
        done = run_process(*command)
        assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
        assert text in done.stdout
    assert sorted(path.name for path in elsewhere.iterdir()) == ["a", "mistakes.html", "s.zarr"]
