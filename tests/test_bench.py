"""The benches: all of them run, all write one form of row, and both sides of each do the same work."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # the benches and docs are no part of the package

from bench import peers, probe, selection, tables  # noqa: E402
from bench.__main__ import BENCHES, main  # noqa: E402
from bench.files import write_all  # noqa: E402
from bench.goals import GOALS  # noqa: E402
from bench.machine import this_machine  # noqa: E402
from bench.measure import Row, read_rows  # noqa: E402
from bench.synthetic import task as make_task  # noqa: E402
from docs import performance_page  # noqa: E402
from onceclip import open_store  # noqa: E402
from onceclip.adapters import METHODS, Task  # noqa: E402
from onceclip.adapters.selection.rule import best_weight  # noqa: E402

pytestmark = pytest.mark.checkout
OF_PROCESSES = {"commands", "grid", "script", "start", "workers"}  # too many to be started here


def a_row(seconds: dict[str, list[float]], **changed: Any) -> Row:
    values: dict[str, Any] = {
        "bench": "runs", "figure": "linear", "parameters": {"dim": 4}, "seconds": seconds, "own": ["ours"],
        "medians": {name: sorted(each)[len(each) // 2] for name, each in seconds.items()}, "ratios": {}, "bound": None,
        "fraction": None, "goals": {}, "values": {}}
    return Row(**{**values, **changed})


def write(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="ascii")
    return path


@pytest.mark.slow
def test_a_bench_runs_from_the_command_line(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "bench", "all", "--only", "selection", "--quick", "--out", tmp_path / "rows.jsonl"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Tip-Adapter's search" in done.stdout
    assert read_rows(tmp_path / "rows.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", [name for name in BENCHES if name not in OF_PROCESSES])
def test_every_bench_runs_and_gives_rows_of_one_form(name: str, tmp_path: Path) -> None:
    out, threads = tmp_path / "rows.jsonl", torch.get_num_threads()
    result = CliRunner().invoke(main, [name, "--quick", "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    lines = [json.loads(line) for line in out.read_text(encoding="ascii").splitlines()]
    rows = read_rows(out)
    assert len(lines) == len(rows) > 0, "two figures of one bench cannot be told apart"
    for line, row in zip(lines, rows, strict=True):
        assert line.keys() == {field.name for field in fields(Row)}
        assert (row.bench, row.quick) == (name, True)
        assert row.own
        assert set(row.own) <= row.seconds.keys() == row.medians.keys()
        times = [each for way in row.seconds.values() for each in way]
        assert times
        assert all(each > 0 and math.isfinite(each) for each in [*times, *row.ratios.values()])
        assert all(GOALS[key].bench == name for key in row.goals)
        assert row.machine.keys() == this_machine().keys() > {"cpu", "instructions", "bfloat16", "gpu"}
        assert {"python", "torch", "zarr"} <= row.versions.keys()
        assert f"\n{row.figure} (quick" in result.output
    assert torch.get_num_threads() == threads


def test_the_study_compares_rules_on_a_store(store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["study", str(store_path), "--methods", "gda,linear-probe", "--shots", "1,2", "--draws", "1"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["method"], row["shots"]) for row in rows] == [("gda", 1), ("gda", 2), ("linear-probe", 1),
                                                              ("linear-probe", 2)]
    for row in rows:
        assert {"fixed", "calibrated, prior", "zero-shot"} <= row["accuracy"].keys()
        assert max(row["accuracy"].values()) <= 100
    assert "calibrated, prior" in result.output


def test_the_table_over_stores_is_of_all_classes_each_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(14), 6)
    np.savez(tmp_path / "all.npz", embedding=random.normal(size=(84, 8)).astype(np.float32), label=label,
             split=np.tile(["train", "train", "val", "val", "test", "test"], 14), logit_scale=np.float64(20),
             text=random.normal(size=(14, 8)).astype(np.float32), class_names=[f"class {each}" for each in range(14)])
    done = CliRunner().invoke(tables.command, [str(tmp_path / "all.npz"), str(tmp_path / "out"), "--stores", "6",
                                               "--methods", "zero-shot,gda", "--shots", "1", "--seeds", "1"])
    assert done.exit_code == 0, done.output
    stores = [open_store(path) for path in sorted((tmp_path / "out").glob("*.zarr"))]
    assert [name for store in stores for name in store.classes] == [f"class {each}" for each in range(14)]
    assert sum(len(store.rows()) for store in stores) == 84
    assert "| 1 | zero-shot |" in done.output
    assert "Nemenyi's p" in done.output


def test_every_goal_belongs_to_a_bench_and_says_what_is_wanted() -> None:
    assert {goal.bench for goal in GOALS.values()} <= {*BENCHES, ""}
    assert all(math.isfinite(goal.least) != math.isfinite(goal.most) for goal in GOALS.values())


def test_the_benches_list_themselves() -> None:
    listing = CliRunner().invoke(main)
    assert all(name in listing.output for name in [*BENCHES, "all", "compare"])


@pytest.mark.parametrize(("factor", "noise", "way", "code"), [
    (1.25, 0.02, "ours", 1), (1.05, 0.02, "ours", 0), (1.25, 0.4, "ours", 0), (1.25, 0.02, "peer", 0),
    (0.5, 0.02, "ours", 0)])
def test_compare_finds_what_became_slower_by_more_than_a_fifth_and_than_the_noise(
        factor: float, noise: float, way: str, code: int, tmp_path: Path) -> None:
    times = {name: [1 - noise / 2, 1.0, 1 + noise / 2] for name in ("ours", "peer")}
    before = write(tmp_path / "before.json", a_row(times))
    after = write(tmp_path / "after.json", a_row({**times, way: [factor * each for each in times[way]]}))
    result = CliRunner().invoke(main, ["compare", str(before), str(after)])
    assert result.exit_code == code, result.output
    assert ("SLOWER" in result.output) == bool(code)
    assert f"{factor - 1:+.1%}" in result.output


def test_compare_joins_figures_by_their_parameters(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", a_row({"ours": [1.0]}))
    other = write(tmp_path / "b.json", a_row({"ours": [9.0]}, parameters={"dim": 8}))
    result = CliRunner().invoke(main, ["compare", str(first), str(other)])
    assert (result.exit_code, "no figure in common" in result.output) == (1, True)
    both = write(tmp_path / "c.json", a_row({"ours": [9.0]}, parameters={"dim": 8}), a_row({"ours": [1.0]}))
    assert CliRunner().invoke(main, ["compare", str(first), str(both)]).exit_code == 0


def starts_of_the_linear_head(start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"head.weight": start["weight"], "head.bias": start["bias"]}


def starts_of_the_adapter(start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"net.0.weight": start["image_down"], "net.2.weight": start["image_up"]}


def starts_of_the_cache(start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"adapter.weight": start["keys"]}


@pytest.fixture(scope="module")
def task() -> Task:
    """A task that no method is right about everywhere."""
    return make_task(8, 8, 32, noise=3.0)


@pytest.mark.parametrize(("peer", "name", "starts"), [
    ("linear", "linear-probe-adamw", starts_of_the_linear_head),
    ("clip-adapter", "clip-adapter", starts_of_the_adapter),
    ("tip-adapter-f", "tip-adapter-f", starts_of_the_cache)])
def test_the_peers_loop_trains_what_the_package_trains(
        peer: str, name: str, starts: Callable[[dict[str, Tensor]], dict[str, Tensor]], task: Task) -> None:
    """From one start, with all rows in a batch so that no order matters, both end in the same place."""
    values: dict[str, Any] = {"epochs": 30, "batch_size": 256, "epsilon": 1e-4, "learning_rate": 1e-2,
                              "weight_decay": 0.01}
    method = METHODS[name](**values, **{"linear": {"start": "random"}, "clip-adapter": {"share": 1.0}}.get(peer, {}))
    start = starts(method.initial(method.prepare(task), torch.Generator().manual_seed(3)))
    model = peers.train(peer, task.support.embedding, task.support.label, task.text.class_weights, 30, 1e-2,
                        start=start)
    assert task.val is not None
    ours = method.fit(task, seed=3).logits(task.val.embedding)
    with torch.no_grad():
        theirs = model(task.val.unit)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
    accuracy = float((ours.argmax(dim=1) == task.val.label).double().mean())
    assert accuracy == peers.accuracy(model, task.val.embedding, task.val.label)
    assert 1 / 8 < accuracy < 1


def test_the_double_loop_and_the_exact_search_make_one_table() -> None:
    task, rows, label = selection.make(6, 4, 32)
    cache = peers.Cache(rows, label, task.support.keys, task.support.label, task.text.class_weights)
    table = cache.kept(selection.BETAS, selection.ALPHAS)
    assert table[7, 3] == pytest.approx(cache.point(selection.BETAS[7], selection.ALPHAS[3]))
    ours = selection.table(task, rows, label)
    assert ((ours - table).abs() * len(label)).max() <= 1.001  # a tie may fall to either side
    every = selection.caches(task, rows)
    alone = [best_weight(every[0], cache, label, 1.0, high=50.0).cost for cache in every[1]]
    assert selection.ours(task, rows, label).cost == pytest.approx(min(alone), abs=1e-2)
    assert table.min() < table.max()


def test_scikit_learn_is_compared_at_an_objective_as_good_as_ours(task: Task) -> None:
    from click import Context

    with Context(probe.command, info_name="probe") as context:
        context.params["quick"] = True
        row = probe.logistic(task, 1e-3, 1)
        path = probe.ridge(task, 1)
    assert row.values["objective_of_scikit_learn"] == pytest.approx(row.values["objective"], rel=1e-5)
    assert path.values["accuracies_differ_at_most"] == 0


def test_every_format_reads_the_rows_that_were_written(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float16)
    readers = write_all(tmp_path, rows)
    assert len(readers) == 4
    for name, read in readers.items():
        np.testing.assert_array_equal(read(), rows, err_msg=name)


def test_the_page_shows_measured_goals_and_no_others() -> None:
    empty = performance_page.page(performance_page.PAGE.read_text(encoding="utf-8"), [])
    assert all(f"| {key} | {goal.text} |" in empty for key, goal in GOALS.items())
    assert "reached" not in empty.partition("<!-- goals -->")[2].partition("<!-- end of goals -->")[0]
    rows = [a_row({"ours": [0.5], "peer": [1.0]}, figure=f"at {value}", ratios={"peer / ours": 2.0},
                  goals={"4 float32": {"value": value, "wanted": "", "reached": True}}) for value in (2.0, 3.0)]
    text = performance_page.page(empty, rows)
    assert "| 4 float32 |" in text
    assert "| ≥ 2.7 | 2, **not reached** | `python -m bench runs` |" in text  # the worse of two counts
    assert "peer: 1 s (2 x)" in text
    assert performance_page.page(text, []) == empty
    assert performance_page.unexplained("## Where it is behind\n\n- **4 float32**: ...\n", rows) == []
    assert performance_page.unexplained("## Where it is behind\n\n", rows) == ["4 float32"]


def test_kinds_of_processor_stand_side_by_side_and_new_rows_replace_those_of_their_own_kind() -> None:
    def measured(instructions: list[str], value: float, bench: str = "runs") -> Row:
        return a_row({"ours": [1.0]}, bench=bench, machine={**this_machine(), "instructions": instructions},
                     goals={"4 float32": {"value": value, "wanted": "", "reached": True}} if bench == "runs" else {})

    old = [measured(["avx2"], 1.5), measured(["avx2", "avx512f"], 2.9), measured(["avx2"], 0, "store")]
    rows = performance_page.joined(old, [measured(["avx2"], 3.5)])
    assert [row.bench for row in rows] == ["runs", "store", "runs"]
    page = performance_page.page(performance_page.PAGE.read_text(encoding="utf-8"), rows)
    line, = (line for line in page.splitlines() if line.startswith("| 4 float32 |"))
    assert "| 2.9, reached | 3.5, reached |" in line
    assert page.count("<br>" + rows[0].processor) == 1


@pytest.mark.parametrize("file", [performance_page.PAGE, performance_page.README])
def test_a_page_is_what_the_rows_say(file: Path) -> None:
    text, rows = file.read_text(encoding="utf-8"), performance_page.kept()
    assert performance_page.page(text, rows) == text != performance_page.page(text, [])
    assert not any(row.quick for row in rows)
