"""Every function of `onceclip` takes paths or what is open, and says in one line what is wrong with anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onceclip
from onceclip.adapters import GDA, TaskRes, TipAdapter, ZeroShot


@pytest.fixture
def here(place: Path) -> Path:
    """The working directory, with good/ (4 images), store.zarr and adapter/, and arrays of features."""
    random = np.random.default_rng(1)
    np.savez("features.npz", embedding=random.normal(size=(12, 8)).astype(np.float32), label=np.arange(12) % 3,
             text=random.normal(size=(3, 8)).astype(np.float32))
    return place


def test_a_store_is_meant_by_its_path_as_text_or_as_a_path_or_is_open(here: Path) -> None:
    found = [onceclip.make_task(store, shots=2, seed=3) for store in
             ("store.zarr", Path("store.zarr"), onceclip.open_store(Path("store.zarr")))]
    assert [task.support.embedding.tolist() for task in found[1:]] == [found[0].support.embedding.tolist()] * 2


def test_shots_are_a_number_or_all(here: Path) -> None:
    everything = len(onceclip.open_store("store.zarr").rows("train"))
    assert [len(onceclip.make_task("store.zarr", shots).support) for shots in ("all", None, 1, np.int64(2))] == [
        everything, everything, 4, 8]


def test_fit_takes_a_name_a_class_an_object_or_a_spec(here: Path) -> None:
    ways = [("tip-adapter", {"values": {"beta": 2.0}, "select": "fixed"}),
            (TipAdapter, {"values": {"beta": 2}, "select": "fixed"}), (TipAdapter(beta=2.0), {})]
    rows = [onceclip.fit("store.zarr", method, shots=2, seed=3, **further).row for method, further in ways]
    rows.append(onceclip.fit("store.zarr", onceclip.RunSpec("tip-adapter", 2, 3, {"beta": 2.0}, select="fixed")).row)
    assert {json.dumps([row["hyperparameters"], row["nll"], row["shots"], row["seed"]]) for row in rows} == {
        json.dumps([rows[0]["hyperparameters"], rows[0]["nll"], 2, 3])}
    assert rows[0]["hyperparameters"]["beta"] == 2.0
    assert onceclip.fit("store.zarr", onceclip.RunSpec("gda", shots="all")).row["shots"] == "all"  # type: ignore[arg-type]


def test_an_object_is_fitted_as_it_is_with_the_defaults_that_a_task_asks_for(here: Path) -> None:
    """As `TaskRes().fit(task)` does: its share grows with the images of a class."""
    fitted = onceclip.fit("store.zarr", TaskRes(epochs=2), shots=4)
    alone = TaskRes(epochs=2).fit(onceclip.make_task("store.zarr", shots=4), seed=1)
    assert fitted.row["hyperparameters"] == alone.hyperparameters
    assert fitted.row["asked"]["values"] == {"epochs": 2}


def test_an_adapter_that_fit_saves_is_scored_compared_and_written_by_its_folder(here: Path) -> None:
    onceclip.fit("store.zarr", "gda", shots=2, out="gda")
    assert (here / "gda" / "results.jsonl").is_file()
    classifier, store = onceclip.load_classifier("gda"), onceclip.open_store("store.zarr")
    assert onceclip.evaluate("gda", "store.zarr")["nll"] == onceclip.evaluate(classifier, store)["nll"]
    scores = onceclip.evaluate(Path("gda"), ["store.zarr", store], against="adapter", classes=["disc", "ring"])
    assert [each["against"]["adapter"] for each in scores["stores"]] == ["adapter", "adapter"]
    onceclip.evaluate("gda", "store.zarr", confusion="matrix.csv")
    assert (here / "matrix.csv").read_text().startswith("true / predicted,bar,cross,disc,ring")
    assert onceclip.export("gda", to="safetensors", out="gda.safetensors", check="store.zarr").rows == 60
    assert onceclip.report("gda", store, out="mistakes.html")["accuracy"] == onceclip.evaluate("gda", store)["accuracy"]


def test_a_sweep_takes_methods_shots_and_seeds_or_specs(here: Path) -> None:
    rows = onceclip.sweep("store.zarr", methods=["zero-shot", GDA], shots=[1, "all"], seeds=range(1, 3), out="results")
    assert [(row["method"], row["shots"]) for row in rows] == [
        ("zero-shot", 1), ("zero-shot", 1), ("zero-shot", "all"), ("zero-shot", "all"), ("gda", 1), ("gda", 1),
        ("gda", "all"), ("gda", "all")]
    specs = [onceclip.RunSpec("gda", 1, 1)]
    assert onceclip.sweep(["store.zarr"], specs, "results")[0]["run"] == rows[4]["run"]
    tried = onceclip.sweep("store.zarr", methods="tip-adapter", shots=1, seeds=1, grids={"beta": [1, 5]}, out="grid")
    assert [row["hyperparameters"]["beta"] for row in tried] == [1.0, 5.0]
    assert onceclip.report("results", out="page.html")["rows"] == 8


def test_images_are_labelled_by_path_folder_store_pixels_or_embeddings(here: Path) -> None:
    (here / "good" / "disc" / "bad.png").write_bytes(b"no image")
    found = onceclip.predict("adapter", "good", top_k=2)
    assert [each.key for each in found] == ["disc/00.png", "disc/01.png", "disc/bad.png", "ring/00.png", "ring/01.png"]
    assert [each.state for each in found] == ["ok", "ok", "bad", "ok", "ok"]
    assert "not an image" in found[2].reason
    assert (found[2].class_name, found[2].probability) == (None, None)
    assert found[0].class_name == found[0].top[0][0]
    picture = Image.open("good/disc/00.png")
    for given in ("good/disc/00.png", [Path("good/disc/00.png")], picture, np.asarray(picture.convert("RGB"))):
        answer, = onceclip.predict("adapter", given)
        assert (answer.class_name, answer.probability) == (found[0].class_name, pytest.approx(found[0].probability))
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 256 + 7
    Image.fromarray(deep).save("deep.png")
    answers = [onceclip.predict("adapter", given)[0] for given in ("deep.png", Image.open("deep.png"))]
    assert answers[0].logits is not None
    np.testing.assert_allclose(answers[1].logits, answers[0].logits, atol=1e-4)  # 16 bits, which Pillow makes white
    store = onceclip.open_store("store.zarr")
    stored = onceclip.predict("adapter", "store.zarr", split="test")
    rows = store.rows("test")
    embedded = onceclip.predict(onceclip.load_classifier("adapter"), store.embeddings(rows))
    assert [each.class_name for each in embedded] == [each.class_name for each in stored]
    assert [each.key for each in embedded] == list(map(str, range(len(rows))))
    assert [each.key for each in onceclip.predict("adapter", store, split="test")] == [each.key for each in stored]
    assert {each.state for each in onceclip.predict("adapter", "good/disc/00.png", min_probability=1)} == {"unsure"}


def test_stores_are_made_checked_and_given_text_by_paths(here: Path) -> None:
    done = onceclip.extract("good", "new.zarr", "demo")
    assert (done.images, done.bad) == (4, 0)
    assert onceclip.extract(Path("good"), Path("new.zarr"), onceclip.EncoderSpec("demo")).encoded == 0
    assert onceclip.add_text("new.zarr", "drawings", ["a drawing of a {}.", "photo"])["prompts"] == 4
    named = onceclip.ExtractOptions("imagenet-7", workers=1)
    assert onceclip.extract("good", "named.zarr", "demo", named).text["prompts"] == 14
    assert onceclip.extract("good", "named.zarr", "demo", onceclip.ExtractOptions("a {}.")).text["prompts"] == 2
    assert onceclip.verify("new.zarr", repair=True).faults == []
    store = onceclip.open_store("new.zarr")
    assert (store.texts, store.tower_attributes) == (["default", "drawings"], {})
    onceclip.add_text(store, "sketches", "a sketch of a {}.")
    onceclip.add_tower(store)
    assert store.text("sketches").prompts == ("a sketch of a disc.", "a sketch of a ring.")
    assert store.tower().spec["names"].keys() == {"disc", "ring"}
    assert onceclip.import_arrays("features.npz", "my.zarr", "mine")["images"] == 12
    assert onceclip.methods("gda") == onceclip.methods(GDA)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: onceclip.open_store(None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.make_task(None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.make_task("missing.zarr"), "missing.zarr is not a store"),
    (lambda: onceclip.make_task("good"), "good is not a store"),
    (lambda: onceclip.make_task(3), "3 is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.make_task("store.zarr", 0), "shots 0: give a whole number from 1 up, or \"all\""),
    (lambda: onceclip.make_task("store.zarr", "many"), "shots 'many'"),
    (lambda: onceclip.make_task("store.zarr", True), "shots True"),
    (lambda: onceclip.make_task("store.zarr", 1.5), "shots 1.5"),  # type: ignore[arg-type]
    (lambda: onceclip.make_task("store.zarr", 1, seed="one"), "seed 'one'"),  # type: ignore[arg-type]
    (lambda: onceclip.make_task("store.zarr", 1, seed=-1), "seed -1"),
    (lambda: onceclip.make_task("store.zarr", 1, select="vall"), "did you mean 'val'"),
    (lambda: onceclip.make_task("store.zarr", 1, text="nice"), "there are: default"),
    (lambda: onceclip.make_task("store.zarr", 1, text=None), "text None"),  # type: ignore[arg-type]
    (lambda: onceclip.fit("store.zarr", "gda", text=None), "text None"),
    (lambda: onceclip.make_task("store.zarr", 1, classes="old"), "classes"),
    (lambda: onceclip.make_task("store.zarr", 1, class_weights="mean"), "class_weights"),
    (lambda: onceclip.fit("store.zarr", "tip-adaptor"), "did you mean 'tip-adapter'"),
    (lambda: onceclip.fit("store.zarr", None), "None is no method"),  # type: ignore[arg-type]
    (lambda: onceclip.fit("store.zarr", dict), "is no method"),  # type: ignore[arg-type]
    (lambda: onceclip.fit("store.zarr", "gda", shots=0), "shots 0"),
    (lambda: onceclip.fit("store.zarr", "gda", selct="val"), "did you mean 'select'"),
    (lambda: onceclip.fit("store.zarr", "gda", select="best"), "no select 'best'"),
    (lambda: onceclip.fit("store.zarr", "gda", values={"alfa": 1}), "did you mean 'alpha'"),
    (lambda: onceclip.fit("store.zarr", "gda", values=["alpha"]), "give hyperparameters by name"),  # type: ignore[arg-type]
    (lambda: onceclip.fit("store.zarr", "gda", values={"alpha": "much"}), "alpha=much is not a number"),
    (lambda: onceclip.fit("store.zarr", "gda", join={"big": "big.zarr"}), "NAME=STORE of join"),
    (lambda: onceclip.fit("store.zarr", "gda", coverage="0.9"), "coverage '0.9'"),
    (lambda: onceclip.fit("store.zarr", "gda", device="gpu"), "gpu"),
    (lambda: onceclip.fit("store.zarr", "gda", compile="yes"), "compile=yes"),
    (lambda: onceclip.fit("store.zarr", "gda", out="adapter"), "holds an adapter already"),
    (lambda: onceclip.fit("store.zarr", onceclip.RunSpec("gda", 1), shots=2), "leave shots, seed"),
    (lambda: onceclip.fit("store.zarr", onceclip.RunSpec("gda", 0)), "shots 0"),
    (lambda: onceclip.sweep("store.zarr", methods=[], out="r"), "methods is empty"),
    (lambda: onceclip.sweep([], methods="gda", out="r"), "no store"),
    (lambda: onceclip.sweep("store.zarr", ["gda"], "r"), "give a list of RunSpec"),  # type: ignore[list-item]
    (lambda: onceclip.sweep("store.zarr", methods=["gdaa"], out="r"), "did you mean 'gda'"),
    (lambda: onceclip.sweep("store.zarr", methods="gda", seeds="1-5", out="r"), "seed '1-5'"),  # type: ignore[arg-type]
    (lambda: onceclip.sweep("store.zarr", methods="gda", out=None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.sweep("store.zarr", methods="gda", grids={"bta": [1]}, out="r"), "bta"),
    (lambda: onceclip.sweep("store.zarr", methods="gda", grids="all", out="r"), "grids 'all'"),
    (lambda: onceclip.evaluate("missing", "store.zarr"), "missing is not a saved adapter"),
    (lambda: onceclip.evaluate(None, "store.zarr"), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.evaluate("adapter", None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.evaluate("adapter", "good"), "good is not a store"),
    (lambda: onceclip.evaluate("adapter", "store.zarr", split="dev"), "there are: train, val, test"),
    (lambda: onceclip.evaluate("adapter", "store.zarr", classes=["disk"]), "did you mean 'disc'"),
    (lambda: onceclip.evaluate("adapter", "store.zarr", against="good"), "good is not a saved adapter"),
    (lambda: onceclip.evaluate("adapter", "other.zarr"), "other.zarr"),
    (lambda: onceclip.load_classifier(None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.predict("adapter", "missing"), "missing does not exist"),
    (lambda: onceclip.predict("adapter", None), "cannot label NoneType"),
    (lambda: onceclip.predict("adapter", []), "nothing to label"),
    (lambda: onceclip.predict("adapter", ["good", 3]), "cannot label int"),
    (lambda: onceclip.predict("adapter", np.zeros((2, 3), np.float32)), "(rows, 64)"),
    (lambda: onceclip.predict("adapter", "good", split="test"), "--split is for a store"),
    (lambda: onceclip.predict("adapter", np.zeros((2, 64), np.float32), split="test"), "--split is for a store"),
    (lambda: onceclip.predict("adapter", Image.new("F", (4, 4))), "a Pillow image of mode F"),
    (lambda: onceclip.predict("adapter", "good", top_k=0), "top_k 0"),
    (lambda: onceclip.predict("adapter", "good", min_probability=2), "min_probability 2"),
    (lambda: onceclip.predict("adapter", "empty"), "empty is empty"),
    (lambda: onceclip.report("good", out="p.html"), "good"),
    (lambda: onceclip.report("good", "store.zarr", out="p.html"), "good is not a saved adapter"),
    (lambda: onceclip.report(None, out="p.html"), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.export("adapter", "onyx", "a.onnx"), "did you mean 'onnx'"),
    (lambda: onceclip.export("adapter", "torch", None), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.export("adapter", "torch", "a.pt"), ".pt2"),
    (lambda: onceclip.export("adapter", "torch", "a.pt2", check="good"), "good is not a store"),
    (lambda: onceclip.search("store.zarr", "a cat", images="good"), "give page"),
    (lambda: onceclip.search("store.zarr", ["a", "b"]), "give a sentence"),  # type: ignore[arg-type]
    (lambda: onceclip.sweep("store.zarr", methods="gda", out="r", part="3/2"), "part '3/2' is not one of N parts"),
    (lambda: onceclip.load_classifier("adapter", modules=json), "is no name of a module"),  # type: ignore[arg-type]
    (lambda: onceclip.search("store.zarr", "a cat", split="dev"), "there are: train, val, test"),
    (lambda: onceclip.verify("missing.zarr"), "missing.zarr is not a store"),
    (lambda: onceclip.extract("missing", "n.zarr", "demo"), "missing does not exist"),
    (lambda: onceclip.extract(None, "n.zarr", "demo"), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.extract("good", "n.zarr", None), "encoder None"),  # type: ignore[arg-type]
    (lambda: onceclip.extract("good", "n.zarr", "ViT-B-32"), "--pretrained"),
    (lambda: onceclip.extract("good", "n.zarr", "demo", {}), "give ExtractOptions"),  # type: ignore[arg-type]
    (lambda: onceclip.ExtractOptions("imagnet"), "did you mean 'imagenet'"),
    (lambda: onceclip.ExtractOptions(dtype="fp16"), "there are float16 and float32"),
    (lambda: onceclip.ExtractOptions(workers=-1), "workers -1: give a whole number from 0 up"),
    (lambda: onceclip.ExtractOptions(unit_rows=0), "unit_rows 0: give a whole number from 1 up"),
    (lambda: onceclip.add_text("store.zarr", "a b"), "'a b'"),
    (lambda: onceclip.add_text("store.zarr", None), "name None"),  # type: ignore[arg-type]
    (lambda: onceclip.add_text("store.zarr", "new", "imagnet"), "did you mean 'imagenet'"),
    (lambda: onceclip.add_text("store.zarr", "new", prompts="missing.json"), "missing.json"),
    (lambda: onceclip.add_text("store.zarr", "new", waffle=-1), "waffle -1"),
    (lambda: onceclip.import_arrays("missing.npz", "n.zarr"), "missing.npz"),
    (lambda: onceclip.import_arrays(None, "n.zarr"), "None is no path"),  # type: ignore[arg-type]
    (lambda: onceclip.import_arrays("store.zarr", "n.zarr"), "is a store already"),
    (lambda: onceclip.evaluate(ZeroShot(), "store.zarr"), "is no path: give a classifier"),  # type: ignore[arg-type]
    (lambda: onceclip.RunSpec(TipAdapter()), "is no method: give a name"),  # type: ignore[arg-type]
    (lambda: onceclip.RunSpec("gda", inference=dict), "is no inference strategy"),  # type: ignore[arg-type]
    (lambda: onceclip.load_classifier("hf://me/adapter"), "hf://me/adapter is a URL"),
    (lambda: onceclip.load_classifier("adapter", modules="no_module"), "cannot import 'no_module'"),
    (lambda: onceclip.predict("adapter", "store.zarr", join="other"), "--join other: give NAME=STORE"),
    (lambda: onceclip.predict("adapter", "store.zarr", every=5), "--every and --frames are for images"),
    (lambda: onceclip.predict("adapter", "good", set_kind="aps"), "add --coverage"),
    (lambda: onceclip.add_text("store.zarr", "new", names="disc,ring"), "leave --names out"),
    (lambda: onceclip.methods("gdaa"), "did you mean 'gda'"),
    (lambda: onceclip.methods(3), "3 is no method"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_natural_mistake_is_one_line(here: Path, number: int) -> None:
    call, text = WRONG[number]
    before = sorted(os.listdir())
    with pytest.raises(onceclip.OnceclipError) as caught:
        call()
    line, = str(caught.value).splitlines()
    assert text in line
    assert sorted(os.listdir()) == before, "a mistake left something behind"


def test_an_adapter_without_a_store_has_a_page_of_its_row(here: Path) -> None:
    onceclip.fit("store.zarr", "gda", shots=2, out="gda")
    assert onceclip.report("gda", out="page.html")["rows"] == 1
