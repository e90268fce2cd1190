"""What `onceclip methods` tells of every registered method."""

import json

import pytest

from onceclip.adapters import METHODS, Method
from onceclip.errors import OnceclipError
from onceclip.pipeline.api import catalogue
from onceclip.pipeline.api.catalogue import FILE, catalogue_text
from onceclip.pipeline.api.catalogue import methods as describe
from onceclip.pipeline.commands.methods import method_lines


def test_the_list_has_a_line_for_every_method_with_family_cost_transfer_and_needs():
    values = describe()
    text = method_lines(values)
    json.dumps(values, allow_nan=False)
    for each, line in zip(values["methods"], text[1:], strict=False):
        name, family, cost, transfers = line.split("  ")[0], each["family"], each["cost"], each["transfers"]
        assert name.strip() == each["name"]
        assert family in line
        assert cost in line
        assert ("  yes  " in line) == transfers
        assert ("(needs " in line) == bool(each["needs"])
    assert [each["name"] for each in values["methods"]] == list(METHODS)


def test_the_file_from_which_methods_are_listed_says_what_the_classes_say():
    written = json.loads(FILE.read_text(encoding="utf-8"))
    assert written == json.loads(catalogue_text()), "run `python docs/catalogue_file.py`, as `make docs` does"


def test_methods_are_told_from_their_classes_where_the_file_is_of_other_code(tmp_path, monkeypatch):
    expected = describe()
    stale = json.loads(FILE.read_text(encoding="utf-8"))
    stale["methods"]["gda"]["summary"] = "of before"
    for text in (json.dumps({**stale, "code": "0" * 32}), "", "[]", '{"code": 1}', None):
        path = tmp_path / "methods.json"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(catalogue, "FILE", path)
        assert json.loads(json.dumps(describe())) == json.loads(json.dumps(expected))


def test_sources_are_told_where_python_has_stripped_the_docstrings_that_they_stand_in(process):
    done = process("-OO", "-m", "onceclip", "methods", "gda")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == "\n".join(method_lines(describe("gda"))).splitlines()


def test_a_method_that_says_nothing_of_itself_has_a_page_without_empty_places():
    class Silent(Method):
        """One of a user's own."""

    first, *others = method_lines(describe(Silent))
    assert first == "Silent"
    assert not any(line.endswith(": ") or line.strip() == "" for line in [first, *others])


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_has_its_equation_every_setting_every_preset_and_its_source(name):
    method, text = METHODS[name], "\n".join(method_lines(describe(name)))
    assert method.equation in text
    assert method.source in text
    for setting in method.hyperparameters:
        assert f"\n  {setting} " in text
    for preset in method.presets:
        assert f"\n  {preset} " in text
    assert ("without another training" in text) == (method.mixing is not None)


@pytest.mark.parametrize(("name", "cost", "compared"), [
    ("zero-shot", "no fit", 1), ("tip-adapter", "no fit", 16), ("gda", "one solve", 1), ("proker", "one solve", 35),
    ("linear-probe", "L-BFGS to convergence", 8), ("tip-adapter-f", "20 epochs", 1)])
def test_the_cost_of_a_method_follows_from_what_it_does(name, cost, compared):
    """`--select val` of tip-adapter-f trains once: the sharpness is chosen afterwards."""
    values = describe(name)
    assert (values["cost"], values["trainings_of_val"]) == (cost, compared)


def test_what_is_tried_is_told_with_its_default_and_limits():
    beta = describe("tip-adapter")["hyperparameters"]["beta"]
    assert beta["default"] == 5.5
    assert beta["high"] == 1000.0
    assert 8.0 in beta["search"]
    assert describe("tip-x")["presets"]["reference"]["sums"] is True


@pytest.mark.parametrize(("name", "texts"), [
    ("retrieve", ("retrieve: the k images of a bank", "--bank STORE", "exclusive", "Udandarao")),
    ("upl:16", ("--support upl:K", "training images, labels unread")), ("upl", ("contexts learned",)),
    ("A+B", ("an ensemble", "gda+lp++")), ("merge:A+B", ("WiSE-FT", "merge:gda+lp++")),
    ("synergy:gda+dino/lp++", ("a small network", "Members: gda, dino/lp++", "--join NAME=STORE"))])
def test_sources_and_averages_are_listed_and_explained(name, texts):
    page, whole = "\n".join(method_lines(describe(name))), "\n".join(method_lines(describe()))
    for text in texts:
        assert text in page
    assert f"\n{name.partition(':')[0]}" in whole


@pytest.mark.parametrize("name", ["gda+gad", "merge:gda", "mean:gda", "nothing", "gda:16"])
def test_what_is_none_of_them_is_refused(name):
    with pytest.raises(OnceclipError):
        describe(name)
