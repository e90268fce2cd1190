"""Draws from files: those of other code are the draws of a run, and ours are what other code reads."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onceclip
from onceclip.pipeline.api.runs import spec_for
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.tasks import draw_files
from onceclip.pipeline.tasks.coop_pickles import read_datums
from onceclip.pipeline.tasks.draw_files import draw_file, listed_draw
from onceclip.stores import Store

ROOT = "/data/caltech-101/101_ObjectCategories"


@pytest.fixture(scope="module")
def imported(imported_path: Path) -> Store:
    """A store for all tests of this file."""
    return onceclip.open_store(imported_path)


@pytest.fixture
def dassl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Dassl's class under its real name, for real pickles."""
    for name in ("dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    class Datum:
        def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    Datum.__module__, Datum.__qualname__ = "dassl.data.datasets.base_dataset", "Datum"
    sys.modules[Datum.__module__].Datum = Datum  # type: ignore[attr-defined]
    return Datum


@pytest.fixture
def chosen(imported: Store) -> dict[str, list[str]]:
    """Two training images per class and one validation image, none of those that seed 1 would draw."""
    of_seed = {*fit(imported, onceclip.RunSpec("zero-shot", 2)).classifier.provenance["support"]["keys"]}
    found: dict[str, list[str]] = {"train": [], "val": []}
    for split, count in (("train", 2), ("val", 1)):
        for number in range(4):
            rows = [row for row in imported.rows(split) if imported.column("label")[row] == number]
            keys = [str(key) for key in imported.column("key")[rows] if key not in of_seed]
            found[split] += keys[:count]
    return found


def pickled(datum: Any, images: dict[str, list[str]], protocol: int = pickle.HIGHEST_PROTOCOL) -> bytes:
    return pickle.dumps({split: [datum(f"{ROOT}/{key}", "abcd".index(key[0]), 0, f"class {key[0]}") for key in keys]
                         for split, keys in images.items()}, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_coop_is_the_draw_of_a_run(imported: Store, chosen: dict[str, list[str]], dassl: Any,
                                               tmp_path: Path, protocol: int) -> None:
    (tmp_path / "shot_2-seed_7.pkl").write_bytes(pickled(dassl, chosen, protocol))
    fitted = onceclip.fit(imported, "gda", draws=tmp_path / "shot_2-seed_7.pkl")
    assert (fitted.row["shots"], fitted.row["seed"], fitted.row["n_support"], fitted.row["n_val"]) == (2, 7, 8, 4)
    made = fitted.classifier.provenance
    assert set(made["support"]["keys"]) == set(chosen["train"])
    assert set(made["val"]["keys"]) == set(chosen["val"])
    assert fitted.row["asked"]["draws"]["digest"] == draw_file(tmp_path, 2, 7).digest


def test_all_forms_of_one_draw_are_one_draw(imported: Store, chosen: dict[str, list[str]], dassl: Any,
                                            tmp_path: Path) -> None:
    forms: dict[str, Any] = {
        "a.pkl": pickled(dassl, chosen), "b.json": json.dumps({"shots": 2, "seed": 1, **chosen}),
        "c.json": json.dumps({"draws": [{"shots": 2, "seed": 1, **chosen}, {"shots": 1, "seed": 1, "train": ["x"]}]}),
        "d.json": json.dumps({split: [[key, "abcd".index(key[0]), key[0]] for key in keys]
                              for split, keys in chosen.items()}),
        "e.csv": "key,split,shots,seed\n" + "".join(f"{key},{split},2,1\n" for split, keys in chosen.items()
                                                    for key in reversed(keys))}
    prints = set()
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        row = fit(imported, spec_for("tip-adapter", 2, 1, draws=tmp_path / name)).row
        prints.add((row["fingerprints"]["support"], row["fingerprints"]["val"], row["accuracy"]))
    assert len(prints) == 1


@pytest.mark.parametrize("form", ["json", "csv", "coop", "tip-adapter"])
def test_what_is_written_gives_the_draw_of_the_seed_again(imported: Store, tmp_path: Path, form: str) -> None:
    files = onceclip.write_draws(imported, [1, 4], [2, 3], out=tmp_path, form=form,
                                 root=None if form in ("json", "csv") else ROOT)
    assert [file.stem for file in files] == [f"shot_{shots}-seed_{seed}" for shots in (1, 4) for seed in (2, 3)]
    for shots, seed in ((1, 3), (4, 2)):
        listed = fit(imported, spec_for("gda", shots, seed, draws=tmp_path)).row
        drawn = fit(imported, onceclip.RunSpec("gda", shots, seed)).row
        for name in ("support", "val"):
            assert listed["fingerprints"][name] == drawn["fingerprints"][name]
        assert listed["accuracy"] == drawn["accuracy"]
        assert listed["run"] != drawn["run"]


def test_coop_reads_what_is_written(imported: Store, dassl: Any, tmp_path: Path) -> None:
    file, = onceclip.write_draws(imported, 2, 1, out=tmp_path, form="coop", root=ROOT)
    data = pickle.loads(file.read_bytes())
    assert {type(each) for each in data["train"] + data["val"]} == {dassl}
    first = data["train"][0]
    assert first._impath.startswith(f"{ROOT}/a/")
    assert (first._classname, first._label) == ("ant", 0)
    assert [len(data[split]) for split in ("train", "val")] == [8, 8]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_code_in_a_pickle_ever_runs(imported: Store, tmp_path: Path, protocol: int) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"train": [Evil(tmp_path / "ran")], "val": []}, protocol=protocol))
    with pytest.raises(TaskError, match=r"bad\.pkl is no list of draws: it (names .*system|has the operation)"):
        draw_file(tmp_path / "bad.pkl", 2, 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [
    b"", b"\x80\x04", b"\x80\x02}q\x00.", b"\x80\x02]a.", b"\x80\x02h\x05.", b"e.", b"\x80\x02(}e.", b"text",
    b"\x80\x02X\xff\xff\xff\x7fabc.", b"\x80\x02cbuiltins\neval\n.", b"\x80\x02cx\nDatum\n}b.", b"\x80\x02}]]s.",
    b"\x80\x02cx\nDatum\nX\x01\x00\x00\x00aR.", pickle.dumps({"train": ["a"], "val": []}),
    pickle.dumps({"train": 3}), pickle.dumps([1])])
def test_damaged_and_foreign_pickles_are_value_errors(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any, and never another kind of error
        read_datums(content)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", '{"train": ["a/00.png", "nowhere/1.png"]}', r"1 train image of 2 not in .*nowhere/1\.png"),
    ("a.json", '{"train": ["00.png"]}', r"00\.png may be several images"),
    ("a.json", '{"train": ["a/00.png", "x/a/00.png"]}', "listed twice"),
    ("a.json", '{"train": ["a/40.png"]}', "a/40.png, of the test split"),
    ("a.json", '{"train": [["a/00.png", 0], ["b/00.png", 0]]}', "its class 0 has images of two classes"),
    ("a.json", '{"train": [1]}', "1 is no image"), ("a.json", '["a"]', "is no list of draws"),
    ("a.json", "{", "is no list of draws"), ("a.json", '{"train": "a"}', "is no list of draws"),
    ("a.json", '{"shots": -1, "train": []}', "whole numbers"), ("a.json", '{"train": []}', "has no training image"),
    ("a.json", '{"shots": 4, "train": []}', "no draw of 2 shots, seed 1 .there are: 4 shots, seed any"),
    ("shot_2-seed_1.json", '{"shots": 4, "seed": 1, "train": []}', "lists another draw: rename it"),
    ("a.csv", "name\nx\n", "has the columns key"), ("a.csv", "key,split\nx,test\n", "line 2: a row has a key"),
    ("a.csv", "key,shots\nx,many\n", "line 2: shots and seed"),
    ("a.csv", "key\n" + "x" * 200_000, "is no list of draws"),
    ("a.txt", "x", r"ends with \.pkl, \.json, \.csv"),
])
def test_files_that_are_no_draw_are_refused_in_one_line(imported: Store, tmp_path: Path, name: str, content: str,
                                                        message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message) as failure:
        fit(imported, spec_for("gda", 2, 1, draws=tmp_path / name))
    assert "\n" not in str(failure.value)


def test_a_folder_without_the_draw_says_which_there_are(imported: Store, tmp_path: Path) -> None:
    onceclip.write_draws(imported, [1, 2], 1, out=tmp_path)
    with pytest.raises(TaskError, match=r"no draw of 4 shots, seed 1 .there are: 1 shot, seed 1, 2 shots, seed 1"):
        spec_for("gda", 4, draws=tmp_path)
    onceclip.write_draws(imported, 1, 1, out=tmp_path, form="csv")
    with pytest.raises(TaskError, match=r"shot_1-seed_1\.csv and shot_1-seed_1\.json: one draw has one file"):
        spec_for("gda", 1, draws=tmp_path)


def test_a_file_of_all_images_is_no_draw_of_few(imported: Store, tmp_path: Path) -> None:
    file, = onceclip.write_draws(imported, "all", 1, out=tmp_path / "draws")
    assert spec_for("gda", draws=file).shots is None
    with pytest.raises(TaskError, match=r"no draw of 1 shot, seed 1 \(there are: all shots, seed 1\)"):
        spec_for("gda", 1, draws=file)


def test_a_file_that_changed_is_another_run_and_never_the_old_one(imported: Store, chosen: dict[str, list[str]],
                                                                  tmp_path: Path) -> None:
    path = tmp_path / "draw.json"
    path.write_text(json.dumps(chosen))
    spec = spec_for("gda", 2, draws=path)
    path.write_text(json.dumps({**chosen, "val": []}))
    draw_files._draws.cache_clear()  # as in another process
    with pytest.raises(TaskError, match="has changed since"):
        listed_draw(spec.draws, 2, 1)  # type: ignore[arg-type]
    assert spec_for("gda", 2, draws=path).identity(imported) != spec.identity(imported)


def test_the_place_of_a_file_is_no_part_of_a_run(imported: Store, chosen: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "a.json", tmp_path / "other" / "b.json"):
        path.write_text(json.dumps(chosen))
    one, other = (spec_for("gda", 2, draws=each) for each in (tmp_path / "a.json", tmp_path / "other" / "b.json"))
    assert one.identity(imported) == other.identity(imported)
    assert one.identity(imported) != onceclip.RunSpec("gda", 2).identity(imported)


def test_a_draw_is_found_again_from_another_folder(imported: Store, chosen: dict[str, list[str]], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as by a worker, or by the row that names it."""
    (tmp_path / "draw.json").write_text(json.dumps(chosen))
    monkeypatch.chdir(tmp_path)
    spec = spec_for("gda", 2, draws="draw.json")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    draw_files._draws.cache_clear()  # as in another process
    assert fit(imported, spec).row["n_support"] == 8


def test_images_of_a_draw_that_stand_in_a_later_split_too_are_left_out(imported: Store, tmp_path: Path) -> None:
    """Equal pictures never stand on both sides, whoever drew them."""
    (tmp_path / "draw.json").write_text(json.dumps({"train": ["a/00.png", "b/00.png"], "val": ["a/00.png"]}))
    fitted = fit(imported, spec_for("tip-adapter", draws=tmp_path / "draw.json", select="val"))
    assert fitted.row["n_support"] == 1
    assert any("same picture stands in a later split" in remark for remark in fitted.remarks)


def test_commands_write_and_read_draws_and_replay_them(imported: Store, tmp_path: Path, run_json: Callable[..., Any],
                                                       run: Callable[..., Any]) -> None:
    out = tmp_path / "draws"
    assert len(run_json("draws", imported.path, "--shots", "1,2", "--seeds", "1-2", "--format", "coop", "--out",
                        out)["files"]) == 4
    run_json("sweep", imported.path, "--methods", "gda", "--shots", "1,2", "--seeds", "1-2", "--draws", out, "--out",
             tmp_path / "results")
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert [(row["shots"], row["seed"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)] or len(rows) == 4
    reference = f"{tmp_path / 'results'}:1"
    assert run("fit", "--from-row", reference).exit_code == 0
    out.rename(tmp_path / "elsewhere")
    lost = run("fit", "--from-row", reference)
    assert lost.exit_code == 1
    assert "say where it is now with --draws FILE|FOLDER" in lost.stderr
    (tmp_path / "empty").mkdir()
    lacking = run("fit", "--from-row", reference, "--draws", tmp_path / "empty")
    assert "has no draw of 1 shot, seed 1" in lacking.stderr
    assert "--shots" not in lacking.stderr  # which --from-row does not go with
    assert run("fit", "--from-row", reference, "--draws", tmp_path / "elsewhere").exit_code == 0
    other = run("fit", "--from-row", reference, "--draws", tmp_path / "elsewhere" / "shot_1-seed_2.pkl")
    assert other.exit_code == 1
    (tmp_path / "elsewhere" / "shot_1-seed_1.pkl").write_bytes(
        (tmp_path / "elsewhere" / "shot_1-seed_2.pkl").read_bytes())
    changed = run("fit", "--from-row", reference, "--draws", tmp_path / "elsewhere")
    assert changed.exit_code == 1
    assert "is not what listed the row's draw" in changed.stderr
    (tmp_path / "elsewhere").rename(out)
    alone = run_json("fit", imported.path, "--method", "gda", "--draws", out / "shot_2-seed_2.pkl")
    assert alone["accuracy"] == next(row["accuracy"] for row in rows if (row["shots"], row["seed"]) == (2, 2))
    refused = run("fit", imported.path, "--method", "gda", "--shots", 8, "--draws", out)
    assert refused.exit_code == 1
    assert "no draw of 8 shots" in refused.stderr
