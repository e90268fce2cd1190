"""Base-to-new: fitted on one half of the classes, scored on each half by itself; and adapters on other text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS, MethodError
from onceclip.pipeline.api.stores import add_tower
from onceclip.pipeline.commands.sweep import table_lines
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.evaluate import evaluate, harmonic_mean
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.runs.fit import fit, fit_group
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.summary import tables
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.draws import names_of
from onceclip.pipeline.tasks.tasks import draw_task, for_text
from onceclip.stores import Store, StoreMismatch, StoreWriter, open_store
from onceclip.stores.identity import fingerprint

Arrays = dict[str, np.ndarray]
ImportOf = Callable[..., Store]
MANY = ["zero-shot", "template-selection", "taskres", "clip-adapter", "rla", "clip-a-self", "meta-adapter",
        "multi-modal-adapter", "tip-adapter", "gda", "gda-em", "proker"]
QUICK = {"epochs": 3}


def spec_of(name: str, **more: Any) -> RunSpec:
    values = {key: value for key, value in QUICK.items() if key in METHODS[name].hyperparameters}
    return RunSpec(name, 4, 1, values, classes="base", **more)


def test_the_base_is_the_first_half_of_the_stores_classes_and_the_odd_one(arrays: Arrays, import_of: ImportOf) -> None:
    label = arrays["label"].copy()
    label[::9] = 4
    text = np.concatenate([arrays["text"], arrays["text"][:1] + 1])
    store = import_of({**arrays, "label": label, "text": text, "class_names": [*arrays["class_names"], "eel"]})
    assert names_of(store, "all") == ("ant", "bee", "cow", "dog", "eel")
    assert names_of(store, "base") == ("ant", "bee", "cow")
    assert names_of(store, "new") == ("dog", "eel")
    assert names_of(store, ["dog", "ant"]) == ("dog", "ant")


def test_classes_that_a_store_does_not_have_are_one_line(imported: Store, arrays: Arrays, import_of: ImportOf) -> None:
    with pytest.raises(TaskError, match=r"no class 'cat' in .*: did you mean"):
        names_of(imported, ["bee", "cat"])
    three = np.isin(arrays["label"], (0, 1, 2))
    small = import_of({**{name: arrays[name][three] for name in ("embedding", "label", "split", "key")},
                       "text": arrays["text"][:3], "class_names": arrays["class_names"][:3]}, "small")
    with pytest.raises(TaskError, match="has 3 classes: base and new classes need two each"):
        fit(small, spec_of("zero-shot"))
    with pytest.raises(TaskError, match="no task of 'new' classes"):
        draw_task(imported, DrawSpec(2, classes="new"))


def test_scores_are_those_of_each_half_among_its_own_classes(imported: Store, arrays: Arrays) -> None:
    """Written out for zero-shot: CoCoOp's protocol, where the other half's classes never compete."""
    row = fit(imported, spec_of("zero-shot")).row
    rows = arrays["embedding"] / np.linalg.norm(arrays["embedding"], axis=1, keepdims=True)
    text = arrays["text"] / np.linalg.norm(arrays["text"], axis=1, keepdims=True)
    found = {}
    for half, numbers in (("base", (0, 1)), ("new", (2, 3))):
        chosen = (arrays["split"] == "test") & np.isin(arrays["label"], numbers)
        found[half] = np.mean((rows[chosen] @ text[list(numbers)].T).argmax(1) == arrays["label"][chosen] - numbers[0])
    assert row["accuracy"] == pytest.approx(found["base"])
    assert row["accuracy_new"] == pytest.approx(found["new"])
    assert row["harmonic_mean"] == pytest.approx(2 / (1 / found["base"] + 1 / found["new"]))
    assert (row["class_set"], row["classes"], row["classes_new"]) == ("base", 2, 2)
    assert (row["n_test"], row["n_test_new"], row["n_support"]) == (24, 24, 8)


@pytest.mark.parametrize(("first", "second", "mean"), [(0.8, 0.4, 8 / 15), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0),
                                                       (None, 0.5, None), (0.5, None, None)])
def test_the_harmonic_mean_of_two_accuracies(first: float | None, second: float | None, mean: float | None) -> None:
    assert harmonic_mean(first, second) == (mean if mean is None else pytest.approx(mean))


@pytest.mark.parametrize("name", MANY)
def test_nothing_of_the_new_classes_reaches_what_is_fitted(arrays: Arrays, import_of: ImportOf, name: str) -> None:
    """Other images and other words for them, and the same numbers chosen on the same base rows."""
    new, random = arrays["label"] >= 2, np.random.default_rng(3)
    noise = random.normal(size=arrays["embedding"].shape).astype(np.float32)
    text = arrays["text"].copy()
    text[2:] = random.normal(size=text[2:].shape)
    other = {**arrays, "embedding": np.where(new[:, None], noise, arrays["embedding"]), "text": text}
    select = None if name in ("zero-shot", "template-selection") else "val"
    first, second = (fit(import_of(each, place), spec_of(name, select=select))
                     for each, place in ((arrays, "plain"), (other, "changed")))
    assert first.classifier.class_names == ("ant", "bee")
    assert first.row["hyperparameters"] == second.row["hyperparameters"]
    np.testing.assert_array_equal(first.classifier.logits(arrays["embedding"]),
                                  second.classifier.logits(arrays["embedding"]))
    assert first.row["accuracy"] == second.row["accuracy"]
    serves = METHODS[name].transfers
    assert (first.row["accuracy_new"] is not None) == (first.row["harmonic_mean"] is not None) == serves
    if serves:
        assert first.row["accuracy_new"] > second.row["accuracy_new"]


def test_runs_of_all_classes_keep_the_identity_that_they_had(imported: Store) -> None:
    """Rows of before the choice existed are found again by their sweep."""
    spec = RunSpec("gda", 4, 2, {"alpha": 0.1}, select="fixed")
    before = {"method": "gda", "shots": 4, "seed": 2, "values": {"alpha": 0.1}, "text": imported.text().fingerprint,
              "select": "fixed", "class_weights": "unit-mean", "search": "grid", "narrow": False, "validated": False,
              "stream": False, "store": imported.fingerprint}
    assert spec.identity(imported) == fingerprint(before)
    assert "class_set" not in fit(imported, spec).row
    base = replace(spec, classes="base")
    assert base.identity(imported) != spec.identity(imported)
    assert RunSpec(**json.loads(json.dumps(base.as_values()))) == base


def test_runs_of_base_classes_in_a_group_are_those_one_by_one(imported: Store) -> None:
    specs = [RunSpec("rla", 4, 1, {**QUICK, "strength": strength}, classes="base") for strength in (0.1, 1.0)]
    for together, spec in zip(fit_group(imported, specs), specs, strict=True):
        alone = fit(imported, spec).row
        for score in ("accuracy", "accuracy_new", "harmonic_mean"):
            assert together.row[score] == alone[score]


def test_a_sweep_of_base_classes_ends_with_tables_of_base_new_and_both(
        imported: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    out = tmp_path / "results"
    arguments = ("sweep", imported.path, "--methods", "zero-shot,gda,tip-adapter", "--shots", "2,4", "--seeds", "1-3",
                 "--classes", "base", "--out", out)
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.stderr
    rows = read_rows(out)
    assert len(rows) == 18
    assert {row["class_set"] for row in rows} == {"base"}
    titles = [line.split(": test accuracy")[0].rsplit(", ", 1)[1] for line in shown.stdout.splitlines()
              if "test accuracy" in line]
    assert titles == ["base classes", "new classes", "harmonic mean of base and new"]
    base, new, mean = tables(rows)
    assert base.names == ("zero-shot", "gda", "tip-adapter")
    assert new.names == mean.names == ("zero-shot", "gda")
    assert (base.unserved, new.unserved, mean.unserved) == ((), ("tip-adapter",), ("tip-adapter",))
    assert shown.stdout.count("not served: what these learn belongs to their classes: tip-adapter\n") == 2
    assert run("report", out, "--out", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_text().count("belongs to their classes: tip-adapter.") == 2
    chosen = [row for row in rows if (row["method"], row["shots"]) == ("gda", 4)]
    assert new.accuracy["gda", 4].value == pytest.approx(np.mean([row["accuracy_new"] for row in chosen]))
    assert mean.accuracy["gda", 4].value == pytest.approx(np.mean([row["harmonic_mean"] for row in chosen]))
    again = run(*arguments, "--json")
    assert len(json.loads(again.stdout)["tables"]) == 3
    assert len(read_rows(out)) == 18
    replayed = run("fit", "--from-row", f"{out}:3")
    assert "same accuracy as the row" in replayed.stderr


def test_methods_that_serve_no_other_classes_have_a_table_of_base_classes_alone(imported: Store) -> None:
    rows = [fit(imported, spec_of("tip-adapter")).row]
    table, = tables(rows)
    assert table_lines(table)
    assert table.title.endswith("base classes")


@pytest.mark.parametrize(("method", "pattern"), [("gda", r"2 new classes +\d+\.\d\d % \(24 images\), harmonic mean \d"),
                                                 ("tip-adapter", r"2 new classes +not served: what tip-adapter")])
def test_fit_says_what_new_classes_reach(imported: Store, run: Callable[..., Any], method: str, pattern: str) -> None:
    shown = run("fit", imported.path, "--method", method, "--shots", 4, "--classes", "base")
    assert shown.exit_code == 0, shown.stderr
    assert re.search(pattern, shown.stdout)


def test_pictures_from_base_to_new_by_commands(store_path: Path, tmp_path: Path,
                                              run_json: Callable[..., dict[str, Any]]) -> None:
    """Fitted and saved; the folder, scored on each half again, gives the row's numbers."""
    adapter = tmp_path / "adapter"
    row = run_json("fit", store_path, "--method", "gda", "--classes", "base", "--out", adapter)
    assert row["class_set"] == "base"
    for half, score in (("base", "accuracy"), ("new", "accuracy_new")):
        again = run_json("evaluate", adapter, store_path, "--classes", half)
        assert again["accuracy"] == row[score]


def test_an_adapter_serves_the_classes_of_another_text_set(imported: Store, arrays: Arrays) -> None:
    """Names that the store does not even have, in the order of the text set; its rule and scale come along."""
    text = imported.text().of_classes(("dog", "ant"))
    writer = StoreWriter.open(imported.path, imported.encoder)
    writer.put_text("other", replace(text, classes=("yak", "zebra")))
    writer.put_text("short", imported.text().of_classes(("cow", "bee")))
    store = open_store(imported.path)
    fitted = fit(store, RunSpec("zero-shot", class_weights="score-mean")).classifier
    other = for_text(fitted, store, "other")
    assert other.class_names == ("yak", "zebra")
    np.testing.assert_allclose(other.logits(arrays["embedding"]), fitted.logits(arrays["embedding"])[:, [3, 0]],
                               rtol=1e-4, atol=1e-5)
    assert other.provenance["text"]["name"] == "other"
    assert other.provenance["text"]["fingerprint"] == store.text("other").fingerprint
    assert other.provenance["text"]["class_weights"] == "score-mean"
    assert other.provenance["transferred_from"] == 4
    assert for_text(fitted, store, "short").class_names == ("cow", "bee")
    assert for_text(fitted, store, "default", "new").class_names == ("cow", "dog")
    assert for_text(fitted, store, "default", ["dog", "ant", "bee"]).class_names == ("dog", "ant", "bee")
    with pytest.raises(StoreMismatch, match="no prompts for 'ant', 'dog'"):
        for_text(fitted, store, "short", "all")
    with pytest.raises(MethodError, match="what linear-probe learns belongs to the classes"):
        for_text(fit(store, RunSpec("linear-probe", 2)).classifier, store)


def test_an_adapter_serves_another_data_set_of_the_same_encoder(imported: Store, arrays: Arrays, tmp_path: Path,
                                                                import_of: ImportOf,
                                                                run_json: Callable[..., dict[str, Any]]) -> None:
    """Cross-dataset transfer: no class in common, in a store of its own."""
    other = import_of({**arrays, "class_names": np.array(["oak", "ash", "elm", "fir"])}, "trees")
    fitted = fit(imported, RunSpec("rla", 4, 1, QUICK)).classifier
    fitted.save(tmp_path / "adapter")
    found = run_json("evaluate", tmp_path / "adapter", other.path, "--text", "default")
    assert found["accuracy"] == evaluate(fitted, imported)["accuracy"]
    assert for_text(fitted, other).class_names == other.classes


def test_a_store_of_another_encoder_is_refused(imported: Store, arrays: Arrays, import_of: ImportOf) -> None:
    stranger = import_of(arrays, "stranger", encoder="someone-else")
    with pytest.raises(StoreMismatch, match="use a store made by the same encoder"):
        for_text(fit(imported, RunSpec("zero-shot")).classifier, stranger)


@pytest.mark.parametrize("name", ["prolip", "vt-clip", "stylip"])
def test_methods_of_other_outputs_serve_new_classes_too(tmp_path: Path, image_folder: Path,
                                                        extract_demo: Callable[..., Any], name: str) -> None:
    """Projection and number of tokens come from the store, whose images are not looked at."""
    outputs = {"prolip": OutputOptions(preproj=True), "vt-clip": OutputOptions(tokens="last"),
               "stylip": OutputOptions(layer_statistics=True)}[name]
    extract_demo(image_folder, tmp_path / "s.zarr", outputs=outputs)
    if name == "stylip":
        add_tower(str(tmp_path / "s.zarr"))
    fitted = fit(open_store(str(tmp_path / "s.zarr")), spec_of(name))
    new = for_text(fitted.classifier, open_store(str(tmp_path / "s.zarr")), classes="new")
    assert new.class_names == ("disc", "ring")
    assert fitted.row["accuracy_new"] == evaluate(new, open_store(str(tmp_path / "s.zarr")),
                                                  classes=("disc", "ring"))["accuracy"]
