"""Several methods as one run of a sweep: ensembles and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onceclip
from onceclip.adapters import GDA, MethodError, TipAdapter, ZeroShot, best_merge, fit_selected, merge
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.automatic import is_average, member_names, run_method
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.replay import compare, spec_of
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store


def test_an_ensemble_is_the_weighted_sum_of_its_members_calibrated_logits(imported: Store) -> None:
    fitted = fit(imported, RunSpec("gda+tip-adapter", 4, 1))
    task = onceclip.make_task(imported, 4, 1, select="val")
    alone = [fit_selected(method, task, "val", seed=1).classifier for method in (GDA(), TipAdapter())]
    values = fitted.classifier.hyperparameters
    rows = torch.from_numpy(imported.embeddings(imported.rows("test")))
    expected = sum(values[f"{each.method} weight"] / values[f"{each.method} temperature"] * each.logits(rows)
                   for each in alone)
    assert torch.allclose(fitted.classifier.logits(rows), expected, atol=1e-4)
    assert values["gda weight"] + values["tip-adapter weight"] == pytest.approx(1.0)
    assert [each["method"] for each in fitted.row["reached"]] == ["gda", "tip-adapter", "ensemble"]
    assert fitted.row["method"] == "gda+tip-adapter"


def test_several_methods_get_the_text_tower_where_one_of_them_wants_it() -> None:
    wants = {name: run_method(name).wants_tower for name in ("gda+coop", "merge:coop+kgcoop", "gda+tip-adapter")}
    assert list(wants.values()) == [True, True, False]


def test_a_merge_has_the_weight_that_validation_rows_choose(imported: Store) -> None:
    fitted = fit(imported, RunSpec("merge:gda+zero-shot", 4, 1))
    task = onceclip.make_task(imported, 4, 1, select="val")
    alone = [fit_selected(method, task, "val", seed=1).classifier for method in (GDA(), ZeroShot())]
    expected, weighed = best_merge(*alone, task.val)
    rows = torch.from_numpy(imported.embeddings(imported.rows("test")))
    assert torch.allclose(fitted.classifier.logits(rows), expected.logits(rows), atol=1e-4)
    assert fitted.row["hyperparameters"]["merge_weight"] == weighed.weight
    assert fitted.row["select"] == "val"
    found = onceclip.evaluate(fitted.classifier, imported, coverage=0.9)
    assert (found["calibrated_on"], {each["kind"] for each in found["sets"]}) == ("val", {"lac", "aps"})
    with pytest.raises(MethodError, match="a merge without validation images"):
        onceclip.evaluate(merge(*alone), imported, coverage=0.9)


def test_without_labelled_rows_to_compare_on_members_weigh_the_same(arrays: dict[str, np.ndarray],
                                                                    import_of: Callable[..., Store]) -> None:
    store = import_of({**arrays, "split": np.where(arrays["split"] == "val", "test", arrays["split"])})
    rows = torch.from_numpy(store.embeddings(store.rows("test")))
    task = onceclip.make_task(store, 1, 1)
    alone = [method.fit(task, 1) for method in (GDA(), TipAdapter())]
    ensemble = fit(store, RunSpec("gda+tip-adapter", 1, 1)).classifier
    assert torch.allclose(ensemble.logits(rows), sum(each.logits(rows) for each in alone) / 2, atol=1e-4)
    merged = fit(store, RunSpec("merge:gda+zero-shot", 1, 1)).classifier
    half = merge(alone[0], ZeroShot().fit(task, 1))
    assert torch.allclose(merged.logits(rows), half.logits(rows), atol=1e-4)


def test_a_sweep_has_them_as_lines_and_their_rows_are_repeated(imported: Store, tmp_path: Path,
                                                               run: Callable[..., Any]) -> None:
    names = "zero-shot,gda,gda+tip-adapter,merge:gda+zero-shot"
    done = run("sweep", imported.path, "--methods", names, "--shots", "2", "--seeds", "1-2", "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == set(names.split(","))
    for row in rows:
        assert compare(row, fit(imported, spec_of(row, imported))) == "the same accuracy as the row"
    assert run("report", tmp_path / "r", "--out", tmp_path / "page.html").exit_code == 0
    shown = run("fit", imported.path, "--method", "gda+zero-shot", "--shots", "2", "--out", tmp_path / "adapter")
    assert "their average" in shown.stdout
    assert run("evaluate", tmp_path / "adapter", imported.path).exit_code == 0


@pytest.mark.parametrize(("name", "members"), [
    ("lp++", []), ("gda", []), ("gda+lp++", ["gda", "lp++"]), ("lp+++gda", ["lp++", "gda"]),
    ("merge:lp+++zero-shot", ["lp++", "zero-shot"])])
def test_a_method_whose_name_has_the_sign_is_one(name: str, members: list[str]) -> None:
    assert member_names(name) == members
    assert is_average(name) == bool(members)
    assert RunSpec(name, 2).method == name


@pytest.mark.parametrize(("name", "message"), [
    ("gda+gad", "'gad'"), ("gda+gda", "a method twice"), ("merge:gda", "such as merge:"),
    ("merge:gda+zero-shot+tip-adapter", "merge is of two methods"), ("weight:gda+lp+++tip-adapter", "weight is of two"),
    ("gda+dino/gda", "answer by a rule: write mean or"), ("merge:gda+dino/gda", "answer by a rule"),
    ("mean:gda", "such as mean:gda"), ("gda+linear-probe-preproj", "needs"),
    ("gda+", "no method ''")])
def test_members_that_cannot_be_averaged_are_refused(name: str, message: str) -> None:
    with pytest.raises((MethodError, onceclip.OnceclipError), match=message):
        RunSpec(name, 2)


@pytest.mark.parametrize("options", [{"values": {"alpha": 1.0}}, {"select": "fixed"}, {"refit": "val"}])
def test_what_an_ensemble_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="chooses for its methods"):
        RunSpec("gda+tip-adapter", None if "refit" in options else 2, **options)


def test_a_row_never_imports_the_module_of_a_member(imported: Store, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_member.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    row = fit(imported, RunSpec("gda+zero-shot", 2)).row
    row = {**row, "asked": {**row["asked"], "method": "gda+evil_member:Evil"}}
    with pytest.raises(MethodError, match="no part of onceclip"):
        spec_of(row, imported)
    assert not (tmp_path / "ran").exists()
