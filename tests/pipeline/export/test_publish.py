"""Stores and adapters on a hub: uploaded whole as one commit, or not at all, and read back by their URL."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.stores import open_store

Run = Callable[..., Any]
STORE, ADAPTER = "hf://datasets/me/glyphs", "hf://me/glyphs-adapter"


def commits(hub: Path) -> list[str]:
    return (hub / "commits").read_text().split() if (hub / "commits").exists() else []


def test_a_published_store_is_one_commit_and_every_command_reads_it(
        hub: Path, store_path: Path, adapter_path: Path, run_json: Run, tmp_path: Path) -> None:
    done = run_json("compact", store_path, STORE)
    assert (done["store"], done["images"]) == (STORE, 60)
    assert commits(hub) == ["datasets/me/glyphs"]
    assert f"onceclip fit {STORE} --out" in (hub / "datasets/me/glyphs/README.md").read_text()
    local, found = open_store(str(store_path)), open_store(STORE)
    assert found.fingerprint == local.fingerprint
    assert found.embeddings().tobytes() == local.embeddings().tobytes()
    run_json("export", adapter_path, "--to", "folder", ADAPTER)
    assert commits(hub)[1:] == ["models/me/glyphs-adapter"]

    ignored = {"store", "path", "seconds", "adapter"}
    for words in (["predict", "ADAPTER", "STORE", "--split", "test"], ["info", "ADAPTER"],
                  ["evaluate", "ADAPTER", "STORE", "--against", "ADAPTER"]):
        both = [run_json(*[{"ADAPTER": adapter, "STORE": store}.get(str(each), each) for each in words])
                for adapter, store in ((ADAPTER, STORE), (adapter_path, store_path))]
        kept = [{name: value for name, value in each.items() if name not in ignored}
                if isinstance(each, dict) else each for each in both]
        if "against" in kept[0]:
            assert [each["against"].pop("adapter") for each in kept] == [ADAPTER, str(adapter_path)]
        assert kept[0] == kept[1], words
    assert run_json("info", STORE)["fingerprint"] == local.fingerprint
    page = run_json("report", ADAPTER, STORE, "--out", tmp_path / "mistakes.html")
    assert page["accuracy"] == onceclip.evaluate(str(adapter_path), str(store_path))["accuracy"]


def test_results_behind_a_url_are_tabled_and_repeated(hub: Path, store_path: Path, tmp_path: Path, run: Run) -> None:
    onceclip.sweep(str(store_path), methods=["zero-shot"], shots=[1], seeds=[1, 2], out=tmp_path / "results")
    shutil.copytree(tmp_path / "results", hub / "datasets/me/results")
    url = "hf://datasets/me/results"
    for words in (["table", "RESULTS"], ["fit", store_path, "--from-row", "RESULTS:1"]):
        found, expected = (run(*[str(each).replace("RESULTS", place) for each in words])
                           for place in (url, str(tmp_path / "results")))
        assert found.exit_code == 0, found.output
        assert words[0] != "table" or found.stdout == expected.stdout
    assert run("report", url, "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert f"onceclip fit --from-row {url}/results.jsonl:" in page
    assert "/onceclip-" not in page
    (hub / "datasets/me/results/results.jsonl").write_text("")
    assert f"Error: {url} holds no result rows" in run("table", url).stderr


def test_an_upload_that_fails_leaves_nothing_that_opens_and_is_done_again(
        hub: Path, store_path: Path, adapter_path: Path, run: Run) -> None:
    for refused, words, kind in (
            ("lfs", ["compact", store_path, STORE], "datasets/me/glyphs"),
            ("commit", ["compact", store_path, STORE], "datasets/me/glyphs"),
            ("commit", ["export", adapter_path, "--to", "folder", ADAPTER], "models/me/glyphs-adapter")):
        (hub / "refused").write_text(refused)
        done = run(*words)
        assert done.exit_code == 1
        assert "access was refused" in done.stderr
        assert "HF_TOKEN" in done.stderr
        assert {path.name for path in (hub / kind).iterdir()} == {".gitattributes"}
    assert "not a store" in run("info", STORE).stderr
    (hub / "refused").unlink()
    assert run("compact", store_path, STORE).exit_code == 0
    assert run("verify", STORE).exit_code == 0


def test_what_is_there_is_neither_replaced_nor_mixed(hub: Path, store_path: Path, adapter_path: Path, run: Run) -> None:
    place = hub / "datasets/me/glyphs"
    place.mkdir(parents=True)
    (place / "README.md").write_text("my own card")
    assert run("compact", store_path, STORE).exit_code == 0
    assert (place / "README.md").read_text() == "my own card"
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    again = run("compact", store_path, STORE)
    assert again.exit_code == 1
    assert "holds" in again.stderr
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert run("compact", store_path, f"{STORE}/second").exit_code == 0
    assert open_store(f"{STORE}/second").fingerprint == open_store(STORE).fingerprint


@pytest.mark.parametrize(("words", "message"), [
    (["compact", "STORE", "hf://glyphs"], "names no repository"),
    (["compact", "STORE", "hf://spaces/me/glyphs/x@y@z"], "names no repository"),
    (["extract", "IMAGES", "hf://datasets/me/new", "--model", "demo"], "publish it with `onceclip compact"),
    (["import", "FEATURES", "hf://datasets/me/new"], "publish it with `onceclip compact"),
    (["info", "hf://datasets/me/nothing"], "the repository does not exist"),
    (["evaluate", "hf://me/nothing", "STORE"], "does not exist"),
    (["export", "STORE", "--to", "folder", "hf://me/glyphs"], "is not a saved adapter"),
    (["export", "ADAPTER", "--to", "folder", "here"], "here is no URL"),
    (["export", "STORE", "--to", "npz", "s.npz", "--import", "mine"], "leave out --with-encoder, --check, --import"),
])
def test_a_wrong_place_is_one_line(hub: Path, store_path: Path, adapter_path: Path, image_folder: Path, tmp_path: Path,
                                   run: Run, words: list[str], message: str) -> None:
    np.savez(tmp_path / "features.npz", embedding=np.eye(3, dtype=np.float32))
    done = run(*[{"STORE": store_path, "ADAPTER": adapter_path, "IMAGES": image_folder,
                  "FEATURES": tmp_path / "features.npz"}.get(each, each) for each in words])
    assert done.exit_code in (1, 2)
    assert message in done.stderr, done.stderr
    usage = done.exit_code == 2  # two lines and an empty one before it
    assert len(done.stderr.splitlines()) == (4 if usage else 1)
    assert commits(hub) == []


def test_an_adapter_goes_to_other_storage_too(adapter_path: Path, run: Run) -> None:
    url = "memory://adapters/glyphs"
    assert run("export", adapter_path, "--to", "folder", url).exit_code == 0
    rows = np.ones((2, onceclip.load_classifier(adapter_path).dim), np.float32)
    from onceclip.pipeline.api.arguments import loaded

    assert loaded(url).logits(rows).tolist() == onceclip.load_classifier(adapter_path).logits(rows).tolist()
    assert "exists already" in run("export", adapter_path, "--to", "folder", url).stderr
    assert run("export", url, "--to", "folder", "memory://adapters/copy").exit_code == 0
    assert loaded("memory://adapters/copy").logits(rows).tolist() == loaded(url).logits(rows).tolist()
