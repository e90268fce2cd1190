"""A strategy on the rows of a store: what it sees, what the record says, batches, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

import onceclip
from onceclip.adapters import Classifier, MethodError, load_classifier
from onceclip.adapters.inference import INFERENCES, Inference, Inferred
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.evaluate import score
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store

SETS = [name for name, kind in INFERENCES.items() if kind.sees == "set"]
QUICK = {"inmap": {"iterations": 20}}
Run = Callable[..., Result]
RunJson = Callable[..., dict[str, Any]]


@pytest.fixture
def gda(imported: Store) -> Classifier:
    return fit(imported, RunSpec("gda", 8)).classifier


@pytest.fixture
def adapter(gda: Classifier, tmp_path: Path) -> Path:
    gda.save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("batches", [None, Batches(20, 3, (1, 2)), Batches(20, dirichlet=0.2)],
                         ids=["whole", "drawn", "stream"])
def test_labels_never_reach_a_strategy(name: str, batches: Batches | None, imported: Store, gda: Classifier,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split with its labels turned round gives the same logits, whatever is made of them after that."""
    strategy, seen = INFERENCES[name](**QUICK.get(name, {})), []
    infer = type(strategy).infer

    def watched(self: Inference, *given: Any) -> Inferred:
        found = infer(self, *given)
        seen.append(found.logits)
        return found

    monkeypatch.setattr(type(strategy), "infer", watched)
    alone = score(gda, imported)
    dealt = [np.arange(len(alone.rows))] if batches is None else batches.deal(alone.label)
    monkeypatch.setattr(Batches, "deal", lambda self, label: dealt)
    first = read(alone, strategy, batches)
    again = read(replace(alone, label=3 - alone.label), strategy, batches)
    half = len(seen) // 2
    assert half == len(dealt)
    assert all(torch.equal(one, other) for one, other in zip(seen[:half], seen[half:], strict=True))
    assert first.values["accuracy"] != again.values["accuracy"]


def test_the_record_says_what_was_seen_fitted_and_assumed(imported: Store, adapter: Path) -> None:
    found = onceclip.evaluate(adapter, imported, inference="prior-bias", inference_values={"steps": "50"})
    record = found["inference"]
    assert {name: record[name] for name in ("name", "sees", "prior", "fitted_on", "transductive")} == {
        "name": "prior-bias", "sees": "set", "prior": "uniform", "fitted_on": "train", "transductive": False}
    assert record["hyperparameters"] == {"marginal": "uniform", "prior": "", "temperature": 1.0, "steps": 50,
                                         "fit_on": "train"}
    assert {**record["query"], "keys": ""} == {"store": imported.fingerprint, "split": "test", "n": 48, "keys": ""}
    assert (record["fit"]["split"], record["fit"]["n"]) == ("train", 120)
    assert record["alone"]["accuracy"] == onceclip.evaluate(adapter, imported)["accuracy"]
    assert record["query"]["keys"] != record["fit"]["keys"]
    transductive = onceclip.evaluate(adapter, imported, inference="stata")["inference"]
    assert (transductive["transductive"], transductive["fitted_on"], transductive["fit"]) == (True, "query", None)
    json.dumps(found, allow_nan=False)


def test_a_prior_from_a_file_is_what_the_rows_then_have_by_name(run: Run, run_json: RunJson, imported: Store,
                                                                adapter: Path, tmp_path: Path) -> None:
    lines = tmp_path / "shares.csv"
    names = imported.classes
    lines.write_text("class,share\n" + "\n".join(f"{name},{number + 1}" for number, name in enumerate(names[::-1])))
    asked = ["evaluate", adapter, imported.path, "--inference", "prior-bias", "--inference-set"]
    found = run_json(*asked, f"prior={lines}", "--save", tmp_path / "left")
    assert json.loads(found["inference"]["hyperparameters"]["prior"]) == {
        name: float(len(names) - number) for number, name in enumerate(names)}
    assert found["inference"]["prior"] == "given"
    left, fitted = load_classifier(tmp_path / "left"), imported.embeddings(imported.rows("train"))
    expected = torch.arange(len(names), 0, -1) / sum(range(len(names) + 1))
    assert torch.allclose(left.logits(fitted).softmax(dim=1).mean(dim=0), expected, atol=1e-3)
    for change, message in ((f"{names[0]},0\n", "give numbers above 0"), ("ghost,1\n", "'ghost'"),
                            (f"{names[0]},1\n", "has no share of"), (f"{names[0]},1\n{names[0]},1\n", "named twice"),
                            ("a\n", "line 1 has 1 cell, not a class and its share: give lines CLASS,SHARE"),
                            (f"class,share\n\n{names[0]},x\n", "line 3 has 'x', which is no number"),
                            ("", "has no shares by class")):
        lines.write_text(change)
        result = run(*asked, f"prior={lines}")
        assert result.exit_code != 0
        assert message in result.stderr


@pytest.mark.parametrize("shots", [8, None])
def test_a_memory_of_the_support_is_read_from_the_store_that_the_adapter_was_fitted_on(
        shots: int | None, imported: Store) -> None:
    fitted = fit(imported, RunSpec("gda", shots)).classifier
    found = onceclip.evaluate(fitted, imported, inference="dmn", inference_values={"static": 1}, orders="1")
    assert found["inference"]["diagnostics"]["static"] == len(fitted.provenance["support"]["keys"]
                                                              if shots else imported.rows("train"))
    noisy = replace(fitted, provenance={**fitted.provenance, "support": {
        **fitted.provenance["support"], "fingerprint": "0" * 32}})
    with pytest.raises(MethodError, match="are others"):
        onceclip.evaluate(noisy, imported, inference="dmn", inference_values={"static": 1})


@pytest.mark.parametrize("name", [name for name in SETS if INFERENCES[name].leaves_classifier])
def test_an_adapter_that_is_left_behind_is_an_adapter_like_any_other(name: str, imported: Store, adapter: Path,
                                                                     tmp_path: Path) -> None:
    values = {**QUICK.get(name, {}), "fit_on": "train"}
    found = onceclip.evaluate(adapter, imported, inference=name, inference_values=values, save=tmp_path / "left")
    left = load_classifier(tmp_path / "left")
    again = onceclip.evaluate(left, imported)
    assert (again["accuracy"], again["nll"]) == pytest.approx((found["accuracy"], found["nll"]), abs=1e-6)
    assert again["left_by"]["name"] == name
    assert again["left_by"]["query"] == found["inference"]["query"]
    if name in ("stata", "zlap"):  # whose heads no method has; the others are linear
        assert onceclip.export(left, "torch", tmp_path / "left.pt2").difference < 1e-4
    with pytest.raises(MethodError, match="belongs to its classes"):
        onceclip.evaluate(left, imported, text="default")


@pytest.mark.parametrize("record", [3, [], {"name": 1}, {"name": "stata"}, {"name": "stata", "fitted_on": "query",
                                    "query": 5}, {"name": "stata", "fitted_on": "query", "on": "dn"}])
def test_a_saved_record_that_is_none_is_passed_over(record: Any, run: Run, imported: Store, gda: Classifier,
                                                    tmp_path: Path) -> None:
    replace(gda, provenance={**gda.provenance, "inference": record}).save(tmp_path / "odd")
    result = run("evaluate", tmp_path / "odd", imported.path, "--inference", "dn")
    assert result.exit_code == 0, result.stderr
    assert "(gda + dn)" in result.stdout


def test_strategies_on_what_strategies_left_behind_are_all_named(run: Run, imported: Store, adapter: Path,
                                                                 tmp_path: Path) -> None:
    onceclip.evaluate(adapter, imported, inference="stata", save=tmp_path / "one")
    result = run("evaluate", tmp_path / "one", imported.path, "--inference", "dn", "--save", tmp_path / "two")
    assert "gda + stata alone:" in result.stdout
    assert "stata was fitted on these very images" in result.stdout
    assert "(gda + stata + dn)" in run("evaluate", tmp_path / "two", imported.path).stdout


def test_drawn_batches_have_few_classes_and_are_the_same_again() -> None:
    label = np.repeat(np.arange(10), 30)
    batches = Batches(64, 50, (2, 3), seed=5)
    dealt = batches.deal(label)
    assert [each.tolist() for each in dealt] == [each.tolist() for each in batches.deal(label)]
    assert {len(np.unique(label[each])) for each in dealt} == {2, 3}
    assert all(len(each) == min(64, 30 * len(np.unique(label[each]))) == len(np.unique(each)) for each in dealt)
    assert dealt[0].tolist() != replace(batches, seed=6).deal(label)[0].tolist()


def test_balanced_batches_have_as_many_rows_of_each_class_as_the_rarest_allows() -> None:
    label = np.repeat(np.arange(4), [5, 40, 40, 40])
    for batch in Batches(30, 20, (2, 4), balanced=True).deal(label):
        number = np.unique(label[batch], return_counts=True)[1]
        assert len({*number.tolist()}) == 1
        assert number[0] == (5 if 0 in label[batch] else 30 // len(number))
    with pytest.raises(TaskError, match="add --batches"):
        Batches(30, balanced=True)


@pytest.mark.parametrize("gamma", [0.01, 0.3, 100.0])
def test_a_stream_has_every_row_once_and_its_classes_come_in_turn_the_more_so_the_smaller_gamma(gamma: float) -> None:
    label = np.repeat(np.arange(10), 40)
    dealt = Batches(50, dirichlet=gamma).deal(label)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(400))
    assert [len(each) for each in dealt] == [50] * 8
    classes = np.mean([len(np.unique(label[each])) for each in dealt])
    low, high = {0.01: (1, 4), 0.3: (3, 9), 100.0: (9.9, 10)}[gamma]
    assert low <= classes <= high


@pytest.mark.parametrize(("values", "words"), [
    ({"size": 0}, "from 1 up"), ({"classes": [3, 2]}, "such as 1-4"), ({"classes": [0, 2]}, "such as 1-4"),
    ({"number": 2, "dirichlet": 0.1}, "give one of them"), ({"slots": 3}, "there are: size, number"),
    ({"dirichlet": float("inf")}, "finite numbers from 0 up")])
def test_batches_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        Batches.of(values)


def test_batches_of_more_classes_than_there_are_images_of_are_refused() -> None:
    with pytest.raises(MethodError, match=r"no batch has 4-9 classes, for the images are of 3: .* such as 1-3"):
        Batches(8, 2, (4, 9)).deal(np.arange(30) % 3)
    with pytest.raises(MethodError, match=r"no batch has 1-9 classes, for the images are of 3"):
        Batches(8, 2, (1, 9)).deal(np.arange(30) % 3)
    assert len(Batches(8, 2).deal(np.arange(30) % 3)) == 2  # 1 to 4 by default, as many as there are


def test_of_batches_the_accuracy_is_the_mean_and_the_classifier_alone_stands_beside(imported: Store,
                                                                                   gda: Classifier) -> None:
    batches = {"number": 12, "size": 16, "classes": [1, 2], "seed": 3}
    found = onceclip.evaluate(gda, imported, inference="stata", batches=batches)
    alone = score(gda, imported)
    dealt = Batches(16, 12, (1, 2), seed=3).deal(alone.label)
    record = found["inference"]
    assert record["alone"]["accuracy"] == pytest.approx(np.mean([alone.right[each].mean() for each in dealt]))
    assert record["batches"] == {"size": 16, "number": 12, "classes": [1, 2], "dirichlet": 0.0, "seed": 3,
                                 "balanced": False, "dealt": 12}
    assert record["difference"]["mean"] == pytest.approx(found["accuracy"] - record["alone"]["accuracy"])
    assert found["n"] == sum(map(len, dealt))


def test_the_command_prints_the_adapter_alone_and_with_the_strategy(run: Run, imported: Store, adapter: Path) -> None:
    result = run("evaluate", adapter, imported.path, "--inference", "zlap", "--inference-set", "alpha=0.2")
    assert result.exit_code == 0, result.stderr
    assert "(gda + zlap)" in result.stdout
    assert "gda alone:" in result.stdout
    assert "alpha=0.2" in result.stdout
    assert "transductive: an image's class depends on the others" in result.stdout
    result = run("evaluate", adapter, imported.path, "--inference", "stata", "--batches", 5, "--batch-size", 8)
    assert "5 batches of up to 8 images of 1 to 4 classes, seed 1" in result.stdout


@pytest.mark.parametrize(("options", "words"), [
    (["--inference", "stat"], "did you mean 'stata'?"),
    (["--inference", "stata", "--inference-set", "alpha=-1"], "alpha=-1 is not between 0"),
    (["--inference", "stata", "--inference-set", "beta=1"], "no hyperparameter 'beta' of stata"),
    (["--inference-set", "alpha=1"], "add inference (--inference)"),
    (["--inference", "reclip", "--save", "x"], "leaves no adapter behind"),
    (["--inference", "stata", "--save", "x", "--batches", "2"], "no batches"),
    (["--inference", "stata", "--effective-classes", "1-2"], "add --batches N"),
    (["--inference", "stata", "--batches", "2", "--effective-classes", "a"], "is no range"),
    (["--inference", "stata", "--inference-seed", "2"], "is for batches"),
    (["--inference", "stata", "--batches", "2", "--dirichlet", "1"], "give one of them"),
    (["--inference", "nowhere:Mine"], "cannot import 'nowhere'"),
])
def test_what_cannot_be_is_one_line(run: Run, imported: Store, adapter: Path, options: list[str], words: str) -> None:
    result = run("evaluate", adapter, imported.path, *options)
    assert result.exit_code != 0
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_store_without_train_rows_says_what_to_do(import_of: Any, arrays: dict[str, np.ndarray],
                                                    gda: Classifier) -> None:
    store = import_of({**arrays, "split": np.full(200, "test")}, "test-alone")
    with pytest.raises(MethodError, match="fit_on=query"):
        onceclip.evaluate(gda, store, inference="dn")
    assert onceclip.evaluate(gda, store, inference="dn", inference_values={"fit_on": "query"})["n"] == 200


def test_a_store_with_some_of_the_adapters_classes_is_read(import_of: Any, arrays: dict[str, np.ndarray]) -> None:
    gda = fit(import_of(arrays, "all", encoder="one"), RunSpec("gda", 8)).classifier
    chosen = arrays["label"] < 3
    few = {name: arrays[name][chosen] for name in ("embedding", "label", "split", "key")}
    store = import_of({**few, "text": arrays["text"][:3], "class_names": arrays["class_names"][:3],
                       "logit_scale": arrays["logit_scale"]}, "three", encoder="one")
    found = onceclip.evaluate(gda, store, inference="transclip")
    assert (found["classes"], found["among"]) == (3, 4)
    with pytest.raises(MethodError, match="name a store with a text set"):
        onceclip.evaluate(gda, store, inference="stata")


def test_methods_explain_a_strategy(run: Run) -> None:
    listing = run("methods").stdout
    assert all(f"\n{name} " in listing for name in INFERENCES)
    found = run("methods", "prior-bias").stdout
    assert "assumes that all classes are equally frequent" in found
    assert "--inference-set" in found
    assert "did you mean 'stata'" in run("methods", "statta").stderr
