"""Classes that arrive: no session reads the images of another, and gda knows as much as from all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import onceclip
from onceclip.adapters import GDA, METHODS, RanPAC, Rows, Task
from onceclip.adapters.methods.rapf import fused, hinge, shrunk
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.incremental import forgetting, order_of, session_task
from onceclip.stores import Store

KEEPING = ("gda", "ranpac")


@pytest.fixture
def sessions(imported: Store) -> list[Task]:
    """Two sessions of two classes each, and all at once."""
    task = onceclip.make_task(imported, shots=12).to(torch.float64)
    return [session_task(task, seen, now) for seen, now in (((2, 0), (2, 0)), ((2, 0, 3, 1), (3, 1)),
                                                            ((2, 0, 3, 1), (2, 0, 3, 1)))]


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_kept_is_worth_the_images_of_all_sessions(sessions: list[Task], name: str) -> None:
    method = METHODS[name](**({"features": 40, "ridge": 0.1} if name == "ranpac" else {}))
    _, state = method.update({}, sessions[0])
    fitted, _ = method.update(state, sessions[1])
    joint = method.fit(sessions[2])
    rows = sessions[2].support.embedding
    assert_close(fitted.head(joint.prepared(rows)), joint.head(joint.prepared(rows)), rtol=0, atol=1e-9)
    assert fitted.class_names == joint.class_names


def test_ranpac_on_given_features_is_ridge_regression() -> None:
    projection = _waves((8, 12), 0.6).T
    plain, common = _unit(_unit(_waves((3, 5, 8), 1.1)).mean(1)), _unit(_waves((8,), 8.0))
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    rows = _unit(common + 0.15 * plain[label] + 0.20 * _unit(_waves((6, 8), 0.3)))
    query = _unit(common + 0.15 * plain[:1] + 0.20 * _unit(_waves((12, 8), 5.1))[:1])
    text = onceclip.adapters.Text(_unit(common + 0.12 * plain), torch.arange(3), ("a", "b", "c"))
    method = RanPAC(ridge=0.1)
    head = method.head(method.sums(Task(text, Rows(rows, label)), projection), {})
    expected = torch.tensor([[0.577377, 0.135422, 0.238053]], dtype=torch.float64)
    assert_close(head(query), expected, rtol=0, atol=1e-6)


def test_rapf_keeps_close_classes_apart_shrinks_covariances_and_fuses_maps() -> None:
    plain, common = _unit(_unit(_waves((3, 5, 8), 1.1)).mean(1)), _unit(_waves((8,), 8.0))
    weights, identity = _unit(common + 0.12 * plain), torch.eye(8, dtype=torch.float64)
    rows = _unit(common + 0.15 * plain[torch.arange(12) % 3] + 0.20 * _unit(_waves((12, 8), 5.1)))
    adapted = _unit(rows[[0, 3, 6]] @ (0.1 * _waves((8, 8), 0.9) + identity).T)
    assert float(hinge(adapted, weights[0], weights[2])) == pytest.approx(0.089400, abs=1e-6)
    covariance = shrunk(torch.cov(rows.T) + 1e-4 * identity)
    expected = torch.tensor([0.01780713, 0.00547680, 0.00035936], dtype=torch.float64)
    assert_close(covariance[0, :3], expected, rtol=0, atol=1e-8)
    old = _waves((8, 8), 0.9) + 2 * identity
    found = fused(old, old + 0.1 * _waves((8, 8), 1.9), 0.6)
    expected = torch.tensor([2.878325, 0.096326, -0.436375, 0.016334, 0.955227], dtype=torch.float64)
    assert_close(found[0, :5], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", [{"optimizer": "sgd"}, {"schedule": "constant"}, {"weight_decay": 10.0},
                                     {"epsilon": 0.1}], ids=lambda setting: next(iter(setting)))
def test_rapf_trains_its_sessions_by_the_recipe_that_it_is_given(sessions: list[Task], setting: dict[str, Any]) -> None:
    plain, other = (METHODS["rapf"](epochs=3, batch_size=8, **values).update({}, sessions[0])[1]["matrix"]
                    for values in ({}, setting))
    assert not torch.equal(plain, other)


def _waves(shape: tuple[int, ...], shift: float) -> torch.Tensor:
    number = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(shift + 1.7 * number + 0.37 * number * number).reshape(shape)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("name", ["zero-shot", "clip-adapter", "rapf", *KEEPING])
def test_sessions_never_read_the_images_of_earlier_ones(imported: Store, monkeypatch: pytest.MonkeyPatch,
                                                        name: str) -> None:
    read: list[set[str]] = []
    update = METHODS[name].update

    def watched(self: Any, state: Any, task: Task, seed: int = 0) -> Any:
        read.append({task.text.class_names[label] for label in task.support.label.tolist()})
        return update(self, state, task, seed)

    monkeypatch.setattr(METHODS[name], "update", watched)
    values = {"clip-adapter": {"epochs": 2}, "rapf": {"epochs": 2}, "ranpac": {"features": 40}}.get(name)
    row, = onceclip.incremental(imported, name, sessions=2, orders=[4], values=values)
    assert read == [set(session) for session in row["sessions"]]
    assert row["reads_old_rows"] is False
    assert row["classes_seen"] == [2, 4]
    assert len(row["accuracies"]) == 2
    assert row["average_incremental_accuracy"] == sum(row["accuracies"]) / 2
    assert row["bytes_kept"] > 0


def test_zero_shot_and_gda_end_where_a_fit_on_everything_ends(imported: Store) -> None:
    for name in ("zero-shot", "gda"):
        row, = onceclip.incremental(imported, name, sessions=2, orders=[1])
        assert row["accuracy"] == pytest.approx(onceclip.fit(imported, name, select="fixed").row["accuracy"])
    joint, = onceclip.incremental(imported, "gda", sessions=2, orders=[1], joint=True)
    assert joint["accuracies"] == row["accuracies"]
    assert joint["reads_old_rows"] is True


def test_one_session_is_a_fit_and_has_nothing_to_forget(imported: Store) -> None:
    row, = onceclip.incremental(imported, GDA(alpha=0.1), sessions=1, orders=[3])
    assert row["forgetting"] is None
    assert row["accuracy"] == onceclip.fit(imported, GDA(alpha=0.1)).row["accuracy"]


def test_forgetting_is_what_was_known_best_less_what_is_known_at_the_end() -> None:
    assert forgetting([[0.9], [0.8, 0.7], [0.6, 0.75, 1.0]]) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.75)) / 2)
    assert forgetting([[None], [None, 1.0]]) is None


def test_orders_follow_from_names_and_seed_and_have_two_classes_a_session() -> None:
    names = [f"class {number}" for number in range(7)]
    assert order_of(names, 1, 3) == order_of(names[::-1], 1, 3)
    assert order_of(names, 1, 3) != order_of(names, 2, 3)
    assert [len(part) for part in order_of(names, 1, 3)] == [3, 2, 2]
    with pytest.raises(TaskError, match="give a number from 1 to 3"):
        order_of(names, 1, 4)


def test_the_command_keeps_rows_goes_on_and_draws_a_page(imported: Store, run: Callable[..., Any],
                                                         tmp_path: Path) -> None:
    out = tmp_path / "arriving"
    command = ("incremental", imported.path, "--method", "zero-shot,gda", "--sessions", "2", "--out", out)
    assert run(*command, "--orders", "1").exit_code == 0
    path = out / "incremental.jsonl"
    first = path.read_text()
    path.write_text(first + '{"method": "gd')  # killed in the middle of a line
    moved = Path(shutil.copytree(imported.path, tmp_path / "moved.zarr"))
    result = run("incremental", moved, *command[2:], "--orders", "1-3")
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith(first)
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert sorted((row["method"], row["order"]) for row in rows) == [
        (name, order) for name in ("gda", "zero-shot") for order in (1, 2, 3)]
    assert "gda: 2 sessions, 3 orders" in result.stdout
    page = (out / "incremental.html").read_text()
    assert "classes seen" in page
    assert page.count('<th scope="row">') >= 2
    for asked in (("table", out), ("compare", out), ("report", out, "--out", tmp_path / "page.html")):
        refused = run(*asked)
        assert refused.exit_code == 1
        assert str(out / "incremental.html") in refused.stderr


def test_runs_of_other_values_or_draws_are_no_further_orders(imported: Store, run: Callable[..., Any],
                                                             tmp_path: Path) -> None:
    command = ("incremental", imported.path, "--method", "gda", "--sessions", "2", "--orders", "1-2", "--shots", "4",
               "--out", tmp_path)
    for more in ((), ("--set", "alpha=1"), ("--seed", "2")):
        assert run(*command, *more).exit_code == 0
    page = (tmp_path / "incremental.html").read_text()
    assert page.count("text default, seed ") == 2
    assert "gda alpha=0.02" in page
    assert "gda alpha=1.0" in page


@pytest.mark.parametrize(("arguments", "text"), [
    (("--sessions", "3"), "give a number from 1 to 2"), (("--method", "gdaa"), "did you mean 'gda'"),
    (("--method", "x-more", "--sessions", "2"), "takes more than embeddings and prompts"),
    (("--text", "none", "--sessions", "2"), "no text set 'none'"),
    (("--method", "gda", "--sessions", "2", "--set", "alpha=x"), "alpha=x is not a number"),
    (("--method", "gda,zero-shot", "--sessions", "2", "--set", "alhpa=1"), "--set alhpa: none of gda, zero-shot has"),
    (("--method", "gda", "--sessions", "2", "--set", "covariance=class-mean"), "covariance=pooled alone")])
def test_what_cannot_arrive_is_one_line(imported: Store, run: Callable[..., Any], arguments: tuple[str, ...],
                                        text: str) -> None:
    result = run("incremental", imported.path, *arguments)
    assert result.exit_code == 1, result.output
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_method_that_looks_at_no_text_needs_none(arrays: dict[str, np.ndarray], imported: Store,
                                                   import_of: Callable[..., Store]) -> None:
    """Features of an encoder of images alone, such as DINO's, have no prompts."""
    bare = import_of({name: value for name, value in arrays.items() if name != "text"}, "bare")
    found = [onceclip.incremental(store, "ranpac", sessions=2, orders=1, values={"features": 60})[0]
             for store in (bare, imported)]
    assert found[0]["accuracies"] == found[1]["accuracies"]
    with pytest.raises(onceclip.OnceclipError, match="text"):
        onceclip.incremental(bare, "gda", sessions=2, orders=1)


def test_without_test_images_of_the_first_session_there_is_no_accuracy(
        arrays: dict[str, np.ndarray], import_of: Callable[..., Store]) -> None:
    first = order_of(list(arrays["class_names"]), 1, 2)[0]
    kept = (arrays["split"] != "test") | ~np.isin(arrays["class_names"][arrays["label"]], first)
    store = import_of({name: value[kept] if np.shape(value)[:1] == kept.shape else value
                       for name, value in arrays.items()})
    with pytest.raises(TaskError, match=r"no test image of the classes of the first session .*take fewer --sessions"):
        onceclip.incremental(store, "zero-shot", sessions=2, orders=[1])
    assert onceclip.incremental(store, "zero-shot", sessions=1, orders=[1])[0]["n_test"] == 24


def test_what_cannot_arrive_in_sessions_is_refused(imported: Store) -> None:
    for method, text in (("gda+zero-shot", "is of several methods"), ("merge:gda+zero-shot", "is of several methods"),
                         ("coop", "takes more than embeddings and prompts")):
        with pytest.raises(TaskError, match=text):
            onceclip.incremental(imported, method, sessions=2, orders=[1])
    with pytest.raises(TaskError, match="need a store with two classes"):
        order_of(["cat"], 1, 1)
