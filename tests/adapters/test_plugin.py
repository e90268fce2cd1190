"""Methods and heads of a user's own module: fitted, swept, saved, opened again; no file has one imported."""

import json
import sys
from pathlib import Path

import pytest
import torch

import onceclip
from onceclip.adapters import (
    AdapterFileError,
    MethodError,
    UnknownName,
    fit_all,
    fit_selected,
    load_classifier,
    method_class,
)
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.plugin import full_name

MODULE = '''
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onceclip.adapters import ClipAdapter, Hyperparameter, Method
from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import zero_shot_head
from onceclip.adapters.training.trainable import recipe

with Path(__file__).with_suffix(".log").open("a") as log:
    log.write("imported\\n")


@dataclass(frozen=True)
class Cubed(Head):
    """Cosines to the third power."""

    weight: Tensor
    alone: bool = True

    def __call__(self, rows):
        logits = (rows @ self.weight.T) ** 3 * 100
        return logits if self.alone else logits - logits.mean(dim=0)

    @property
    def width(self):
        return len(self.weight)

    @property
    def dtype(self):
        return self.weight.dtype


class Cubes(Method):
    """Zero-shot with sharper cosines."""

    summary = "cosines to the third power"
    hyperparameters = {"alpha": Hyperparameter(1.0, "weight of the cubes", high=10.0)}
    mixing = "alpha"
    transfers = True

    def terms(self, prepared, parameters):
        return zero_shot_head(prepared), Cubed(prepared.text.class_weights)


class Ramp(ClipAdapter):
    """One whose loss reads how many epochs there are."""

    def penalty(self, prepared, parameters):
        return parameters["image_up"].square().sum() * self.epochs


class Centred(Method):
    """One whose head looks at the other rows."""

    def head(self, prepared, parameters):
        return Cubed(prepared.text.class_weights, alone=False)


@dataclass(frozen=True)
class Powers(Head):
    """Logarithms of scores times a number, which knows nothing of runs that are scored together."""

    weight: Tensor
    power: float

    def __call__(self, rows):
        return self.power * (rows @ self.weight.T).clamp_min(1e-3).log()

    @property
    def width(self):
        return len(self.weight)


class Power(Method):
    """One trained, with a head and a searched number of its own."""

    hyperparameters = {"power": Hyperparameter(1.0, "power", search=(1.0, 2.0, 30.0), high=99.0),
                       **recipe(learning_rate=0.05, epochs=3)}

    def initial(self, prepared, generator):
        return {"weight": prepared.text.class_weights.clone()}

    def head(self, prepared, parameters):
        return Powers(parameters["weight"], self.power)


class Plain(Method):
    """One with a head of onceclip."""

    transfers = True

    def head(self, prepared, parameters):
        return zero_shot_head(prepared)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the working directory, and its name, which no other test has."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def forget(own):
    """Function after which the module is as new to this process."""
    return lambda: sys.modules.pop(own, None)


def imports(own):
    log = Path(f"{own}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_method_is_named_by_module_and_class_or_given_as_the_class(own):
    cls = method_class(f"{own}:Cubes")
    assert cls.name == "Cubes"
    assert method_class(cls) is cls
    assert full_name(cls) == f"{own}:Cubes"
    spec = onceclip.RunSpec(cls, shots=4, values={"alpha": "2"})
    assert (spec.method, spec.values) == (f"{own}:Cubes", {"alpha": 2.0})


@pytest.mark.parametrize(("path", "message"), [
    ("{own}:Nothing", "has no class 'Nothing' that derives from Method: .*there are: .*Cubes"),
    ("{own}:Cubez", "did you mean 'Cube"),
    ("{own}:Cubed", "has no class 'Cubed' that derives from Method"),
    ("no_such_module:Cubes", "cannot import 'no_such_module' .*: name a module in this folder"),
    ("broken:Cubes", r"cannot import 'broken' \(ZeroDivisionError: division by zero in broken.py:1\)")])
def test_what_cannot_be_imported_is_one_line(own, path, message):
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(MethodError, match=message) as caught:
        method_class(path.format(own=own))
    assert "\n" not in str(caught.value)


def test_a_saved_head_is_opened_only_when_the_user_names_its_module(own, forget, make_task, tmp_path):
    task = make_task((4, 4, 4))
    fitted = method_class(f"{own}:Cubes")().fit(task)
    fitted.save("adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["method"] == f"{own}:Cubes"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"IMAGES... --import {own}`. It runs code of its author: {own}." in card
    for forgotten in (False, True):
        if forgotten:
            forget()
        with pytest.raises(AdapterFileError, match=rf"adapter needs {own}:Cubed.*--import {own} .*modules=\['{own}'\]"):
            load_classifier("adapter")
        assert imports(own) == 1
    loaded = load_classifier("adapter", modules=[own])
    assert imports(own) == 2
    rows = task.support.embedding
    assert torch.equal(loaded.logits(rows), fitted.logits(rows))
    with pytest.raises(AdapterFileError, match="needs"):
        load_classifier("adapter", modules=["json"])


def test_a_saved_method_with_a_head_of_onceclip_is_opened_and_transferred_when_its_module_is_there(
        own, forget, make_task):
    task, other = make_task((4, 4, 4)), make_task((2, 2, 2, 2))
    fitted = method_class(f"{own}:Plain")().fit(task)
    fitted.save("adapter")
    forget()
    loaded = load_classifier("adapter")
    assert torch.equal(loaded.logits(task.support.embedding), fitted.logits(task.support.embedding))
    with pytest.raises(MethodError, match=f"this adapter needs {own}:Plain.*--import {own}"):
        onceclip.adapters.transfer(loaded, other)
    assert imports(own) == 1
    loaded = load_classifier("adapter", modules=[own])
    assert onceclip.adapters.transfer(loaded, other).class_names == other.text.class_names


def test_a_file_that_names_any_other_class_of_a_module_is_refused(own, make_task, tmp_path, untie):
    method_class(f"{own}:Cubes")().fit(make_task()).save("adapter")
    untie(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(f"{own}:Cubed", f"{own}:Path"))
    with pytest.raises(AdapterFileError, match="has no class 'Path' that derives from Head"):
        load_classifier("adapter", modules=[own])


def test_a_head_that_looks_at_other_rows_is_refused_as_it_is_fitted(own, make_task):
    for task in (make_task(), make_task(dtype=torch.float64)):
        with pytest.raises(MethodError, match=f"{own}:Cubed gives a row other logits beside others than alone"):
            method_class(f"{own}:Centred")().fit(task)


def test_a_class_inside_a_function_cannot_be_saved(own, make_task, tmp_path):
    base = method_class(f"{own}:Cubes")

    class Inside(sys.modules[own].Cubed):
        pass

    class Local(base):
        def head(self, prepared, parameters):
            return Inside(prepared.text.class_weights)

    with pytest.raises(MethodError, match="Inside cannot be saved: define its class at the top of a module"):
        Local().fit(make_task()).save("adapter")
    assert not list(tmp_path.glob("adapter/*"))


def test_a_head_that_knows_nothing_of_runs_is_trained_and_scored_as_if_it_were_the_only_one(own, make_task):
    """Three classes and three values: its numbers would be taken for those of the classes."""
    task, kind = make_task((4, 4, 4), val=3), method_class(f"{own}:Power")
    values = (1.0, 2.0, 30.0)
    alone = [kind(power=each).fit(task) for each in values]
    together = fit_all([kind(power=each) for each in values], task)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.head.weight, other.classifier.head.weight)
        right = (one.logits(task.val.embedding).argmax(dim=1) == task.val.label).double().mean()
        assert other.accuracy == float(right)
    logits = [*batched_logits([each.head for each in alone], task.val.unit)]
    assert all(torch.equal(each, one.head(task.val.unit)) for each, one in zip(logits, alone, strict=True))
    assert fit_selected(kind(), task, "val").tried == 3


def test_the_module_behaves_as_any_other_torch_module(own, make_task):
    task = make_task()
    fitted = method_class(f"{own}:Cubes")().fit(task)
    logits, _ = onceclip.adapters.ClassifierModule(fitted)(task.support.embedding)
    torch.testing.assert_close(logits, fitted.logits(task.support.embedding))


def test_commands_take_a_method_of_ones_own(own, forget, store_path, adapter_path, tmp_path, run):
    """Fit, sweep with workers, methods, the reports and what opens adapters, each as if in a process of its own."""
    def said(*arguments, code=0):
        forget()
        done = run(*arguments)
        assert done.exit_code == code, done.output
        return done.stdout + done.stderr

    name, adapter, results = f"{own}:Cubes", tmp_path / "adapter", tmp_path / "results"
    assert "cosines to the third power" in said("methods", name)
    fitted = said("fit", store_path, "--method", name, "--shots", "2", "--out", adapter)
    assert f"Next: onceclip evaluate {adapter} {store_path} --import {own}" in fitted
    said("sweep", store_path, "--methods", f"zero-shot,{name}", "--shots", "1", "--seeds", "1,2", "--local-workers", 2,
         "--out", results)
    rows = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"zero-shot", name}
    assert all(row["accuracy"] is not None for row in rows)
    said("report", results, "--out", tmp_path / "page.html")
    for command in (("evaluate", adapter, store_path), ("predict", adapter, store_path), ("info", adapter),
                    ("export", adapter, "--to", "torch", tmp_path / "program.pt2"),
                    ("report", adapter, store_path, "--out", tmp_path / "adapter.html")):
        before = imports(own)
        assert f"--import {own}" in said(*command, code=1)
        assert imports(own) == before
        said(*command, "--import", own)
    assert f"{store_path} --import {own} --out mistakes" in said("evaluate", adapter, store_path, "--import", own)
    assert f"{store_path} --out mistakes" in said("evaluate", adapter_path, store_path, "--import", own)
    number = next(place for place, row in enumerate(rows, 1) if row["method"] == name)
    again = ("fit", "--from-row", f"{results}:{number}")
    assert f"the row needs {name}" in said(*again, code=1)
    assert "the same accuracy as the row" in said(*again, "--import", own)


def test_a_compiled_halving_of_a_method_of_ones_own_is_the_plain_one(own, store_path, run_json, uncompiled):
    """Its rungs differ in the number of epochs, which its loss reads: each has code of its own."""
    asked = ("fit", store_path, "--method", f"{own}:Ramp", "--shots", "4", "--set", "epochs=9", "--search", "halving")
    plain, compiled = (run_json(*asked, "--compile", choice) for choice in ("off", "on"))
    assert plain["select"] == "val"
    assert plain["settings_tried"] == compiled["settings_tried"] == 3
    assert len(uncompiled) == 2
    for name, value in plain["hyperparameters"].items():
        assert compiled["hyperparameters"][name] == (pytest.approx(value, rel=1e-3) if name == "share" else value)
    assert compiled["nll"] == pytest.approx(plain["nll"], rel=1e-4)


def test_hyperparameters_that_were_renamed_say_their_new_name_and_saved_ones_still_open(make_task, tmp_path, untie):
    with pytest.raises(UnknownName, match="the hyperparameter optimiser of clip-adapter is called optimizer: write "
                                          "optimizer=sgd"):
        onceclip.adapters.ClipAdapter(optimiser="sgd")
    task = make_task()
    fitted = onceclip.adapters.ClipAdapter(epochs=2, renormalize=False, optimizer="sgd").fit(task)
    fitted.save(tmp_path)
    untie(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("renormalize", "renormalise").replace("optimizer", "optimiser"))
    loaded = load_classifier(tmp_path)
    assert loaded.hyperparameters == fitted.hyperparameters
    assert torch.equal(loaded.logits(task.support.embedding), fitted.logits(task.support.embedding))
    assert torch.equal(onceclip.adapters.transfer(loaded, task).logits(task.support.embedding),
                       fitted.logits(task.support.embedding))
