"""Rows of before the present rule and defaults: they are repeated with the values that they have."""

import sys

import pytest

from onceclip.adapters import MethodError
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.replay import compare, spec_of
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import open_store


def test_a_row_of_before_there_was_a_share_is_repeated_with_all_of_its_training(store_path):
    store = open_store(str(store_path))
    values = {"share": 1, "learning_rate": 0.1, "epochs": 30}
    now = fit(store, RunSpec("zs-lp", 2, values=values, select="fixed")).row
    assert spec_of(now, store).values == values
    old = {name: value for name, value in now.items() if name != "rule"}
    old["hyperparameters"] = {name: value for name, value in now["hyperparameters"].items()
                              if name not in ("share", "drop_last")}
    old["asked"] = {**now["asked"], "values": {"preset": "none", "epochs": 30}}  # its defaults were others
    spec = spec_of(old, store)
    assert (spec.values["share"], spec.values["drop_last"], spec.values["learning_rate"]) == (1.0, False, 0.1)
    again = fit(store, spec)
    assert again.row["accuracy"] == now["accuracy"]
    assert compare(old, again) == "the same accuracy as the row"


def test_what_another_rule_chose_is_taken_as_it_is(store_path):
    store = open_store(str(store_path))
    row = fit(store, RunSpec("gda", 4, select="val")).row
    assert row["rule"]
    del row["rule"]
    row["hyperparameters"] = {**row["hyperparameters"], "alpha": 3.25}
    assert fit(store, spec_of(row, store)).row["hyperparameters"]["alpha"] == 3.25


@pytest.mark.parametrize(("method", "support"), [
    ("gda", "planted:Source:4"), ("gda+zero-shot", "planted:Source:4"), ("gda", "ifpl:4,method=planted:Source"),
    ("gda", "grip:2,method=planted:Source")])
def test_a_row_imports_no_module_that_it_names_as_a_source_or_as_a_method_of_one(store_path, tmp_path, monkeypatch,
                                                                                 method, support):
    (tmp_path / "planted.py").write_text("class Source: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = {"asked": {"method": method, "shots": 2, "support": support}, "shots": 2, "seed": 1}
    with pytest.raises(MethodError, match="planted"):
        spec_of(row, open_store(str(store_path)))
    assert "planted" not in sys.modules


def test_a_row_whose_listed_draw_lacks_its_digest_is_one_line(store_path):
    row = {"asked": {"method": "gda", "draws": {"file": "draw.json"}}, "shots": 2, "seed": 1}
    with pytest.raises(ResultError, match="the row's 'asked' is no run"):
        spec_of(row, open_store(str(store_path)))
