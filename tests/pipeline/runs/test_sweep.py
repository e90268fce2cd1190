"""Sweeps: the runs one by one, in groups and processes; nothing twice, nothing lost, and every row repeatable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS, cpu
from onceclip.adapters.training import code_cache, compile
from onceclip.errors import OnceclipError
from onceclip.pipeline.commands.sweep import table_lines
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.runs.fit import fit, fit_group
from onceclip.pipeline.runs.replay import compare, compiling_of, read_row, spec_of
from onceclip.pipeline.runs.results import NAME, append_rows, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.summary import tables
from onceclip.pipeline.runs.sweep import known, make_plan, sweep
from onceclip.stores import Store, StoreError, write_lock

SPECS = make_specs(["zero-shot", "tip-adapter"], [1, 2], [1, 2], select="fixed")


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The runs that a sweep carries out in this process."""
    done: list[RunSpec] = []

    def recording(store: Store, specs: Sequence[RunSpec], **more: Any) -> object:
        done.extend(specs)
        return fit_group(store, specs, **more)

    monkeypatch.setattr("onceclip.pipeline.runs.sweep.fit_group", recording)
    return done


def test_a_sweep_gives_a_row_per_run_in_order(imported: Store, tmp_path: Path) -> None:
    rows = sweep([imported], SPECS, tmp_path)
    assert [(row["method"], row["shots"], row["seed"]) for row in rows] == [
        (spec.method, spec.shots, spec.seed) for spec in SPECS]
    assert sorted(read_rows(tmp_path), key=str) == sorted(rows, key=str)


def test_workers_get_the_runs_with_the_most_shots_first(imported: Store, tmp_path: Path) -> None:
    shots = []

    class InThisProcess:
        per_machine = 1

        def work(self, function: Callable[[Any], Any], tasks: Any) -> Any:
            for task in tasks:
                shots.append(task.specs[0].shots)
                yield function(task)

    specs = make_specs(["zero-shot"], [2, 1, None, 4], [1], select="fixed")
    rows = sweep([imported], specs, tmp_path, workers=InThisProcess())  # type: ignore[arg-type]
    assert shots == [None, 4, 2, 1]
    assert [row["shots"] for row in rows] == [spec.shots_word for spec in specs]


@pytest.mark.parametrize("method", [
    name for name, method in METHODS.items()
    if method.inputs == ("embedding",) and not (method.wants_tower or method.from_bank)])
def test_runs_in_a_group_equal_the_runs_one_by_one(imported: Store, method: str) -> None:
    """Same draws, same start, same accuracy, whatever is trained and scored together."""
    cls = METHODS[method]
    quick = {key: value for key, value in {"epochs": 3, "features": 100}.items() if key in cls.hyperparameters}
    name = next((name for name, setting in cls.hyperparameters.items()
                 if isinstance(setting.default, float) and (setting.retrain or name == cls.mixing)), None)
    values = [{**quick, **({name: cls.hyperparameters[name].default * factor} if name else {})}
              for factor in (1.0, 0.7, 0.5)]
    specs = [RunSpec(method, 4, 2, each, select="fixed", validated=True) for each in values]
    for together, spec in zip(fit_group(imported, specs), specs, strict=True):
        alone = fit(imported, spec)
        assert together.row["fingerprints"] == alone.row["fingerprints"]
        assert together.row["hyperparameters"] == alone.row["hyperparameters"]
        for score in ("accuracy", "accuracy_val", "macro_recall"):
            assert together.row[score] == alone.row[score], score
        assert together.row["nll"] == pytest.approx(alone.row["nll"], rel=1e-4)


def test_a_run_that_is_asked_for_twice_is_made_once(imported: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    done = run("sweep", imported.path, "--methods", "gda,zero-shot,gda", "--shots", "1", "--seeds", "1", "--out",
               tmp_path)
    assert done.exit_code == 0, done.stderr
    assert [row["method"] for row in read_rows(tmp_path)] == ["gda", "zero-shot"]
    assert "1 run asked for more than once" in done.stderr


def test_a_sweep_repeats_nothing_that_it_has(imported: Store, tmp_path: Path, carried_out: list[RunSpec]) -> None:
    first = sweep([imported], SPECS, tmp_path)
    before = (tmp_path / NAME).read_bytes()
    assert sweep([imported], SPECS, tmp_path) == first
    assert len(carried_out) == len(SPECS)
    assert (tmp_path / NAME).read_bytes() == before
    sweep([imported], make_specs(["tip-adapter"], [1, 4], [2], select="fixed"), tmp_path)
    assert carried_out[len(SPECS):] == [RunSpec("tip-adapter", 4, 2, select="fixed")]


def test_rows_of_other_content_do_not_count_as_done(imported: Store, arrays: dict[str, np.ndarray], tmp_path: Path,
                                                    import_of: Callable[..., Store],
                                                    carried_out: list[RunSpec]) -> None:
    """Tip-Adapter's cache is named by data set and shots alone: another model's features are reused (lessons, C)."""
    other = import_of({**arrays, "embedding": arrays["embedding"] + 1}, "other")
    for store in (imported, other):
        sweep([store], SPECS[:2], tmp_path)
    assert len(carried_out) == 4


def test_one_sweep_over_two_stores_keeps_them_apart(imported: Store, arrays: dict[str, np.ndarray], tmp_path: Path,
                                                    import_of: Callable[..., Store]) -> None:
    other = import_of({**arrays, "embedding": arrays["embedding"] + 1}, "other")
    rows = sweep([imported, other], SPECS, tmp_path)
    assert [row["store"] for row in rows] == [imported.path] * len(SPECS) + [other.path] * len(SPECS)
    assert [table.title.split(",")[0] for table in tables(rows)] == [imported.path, other.path]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_sweep_killed_in_the_middle_of_a_line_goes_on(imported: Store, tmp_path: Path, cut: int,
                                                        carried_out: list[RunSpec]) -> None:
    rows = sweep([imported], SPECS[:4], tmp_path)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    sweep([imported], SPECS, tmp_path)
    assert len(carried_out) <= 4 + 1 + 4
    assert {row["run"] for row in rows} <= set(known(tmp_path))
    assert len(known(tmp_path)) == len(SPECS)


def test_two_sweeps_never_write_one_folder(imported: Store, tmp_path: Path) -> None:
    with write_lock(str(tmp_path / NAME)), pytest.raises(StoreError, match="is being written by another process"):
        sweep([imported], SPECS, tmp_path)
    assert len(sweep([imported], SPECS, tmp_path)) == len(SPECS)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".lock"] == []


def test_rows_of_one_sweep_are_multiplied_in_one_way(imported: Store, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The way is chosen by time, so two processes may choose differently; a sweep that goes on keeps what it has."""
    monkeypatch.setattr(cpu, "_exact", lambda: True)
    for specs, fastest in ((SPECS[:3], "onednn"), (SPECS, "default")):
        monkeypatch.setattr(cpu, "_fastest", lambda fastest=fastest: fastest)
        assert {row["products"] for row in sweep([imported], specs, tmp_path)} == {"onednn"}
    assert cpu.fast_products() == "default"
    monkeypatch.setattr(cpu, "_exact", lambda: False)  # as on another machine
    more = make_specs(["zero-shot"], [1], [1, 2, 3], select="fixed")
    assert sweep([imported], more, tmp_path)[-1]["products"] == "default"


def test_a_run_that_diverges_is_a_row_and_stops_no_other(imported: Store, tmp_path: Path) -> None:
    specs = make_specs(["clip-adapter"], [2], [1], [("learning_rate", ["0.0001", "1000"]), ("epochs", ["40"]),
                                                    ("weight_decay", ["100"])], select="fixed", validated=True)
    good, bad = sweep([imported], specs, tmp_path)
    assert 0 <= good["accuracy"] <= 1
    assert bad["accuracy"] is None
    assert "diverged" in bad["error"]
    table, = tables([good, bad])
    assert table.failed == 1
    assert table_lines(table)[-1].startswith("  clip-adapter (1 run): training of clip-adapter diverged")


def test_the_plan_counts_what_is_left(imported: Store, tmp_path: Path) -> None:
    sweep([imported], SPECS[:3], tmp_path)
    plan = make_plan([imported], SPECS, known(tmp_path))
    assert (len(plan.runs), plan.todo) == (8, 5)
    assert sorted(str(spec) for group in plan.groups for spec in group.specs) == sorted(map(str, SPECS[3:]))


def test_a_plan_says_which_classes_and_banks_do_not_go_with_a_store(
        imported: Store, arrays: dict[str, np.ndarray], import_of: Callable[..., Store], tmp_path: Path,
        run: Callable[..., Any]) -> None:
    foreign = import_of(arrays, "foreign", encoder="another").path
    for asked, words in (({"missing": ("cat",)}, "no class 'cat'"), ({"missing": 3}, "leaves 1 of 4"),
                         ({"support": "retrieve:4", "bank": foreign}, "use a store made by the same encoder")):
        with pytest.raises(OnceclipError, match=words):
            make_plan([imported], [RunSpec("gda", 2, **asked)], {})
    done = run("sweep", imported.path, "--missing", "cat", "--dry-run", "--out", tmp_path / "results")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "no class 'cat'" in done.stderr


def row_of(method: str, seed: int, accuracy: float | None, accuracy_val: float | None = None,
           **values: Any) -> dict[str, Any]:
    """A result row as far as summaries read it."""
    return {"method": method, "shots": 4, "seed": seed, "accuracy": accuracy, "accuracy_val": accuracy_val,
            "store": "a.zarr", "asked": {"values": values, "text": "default", "select": "fixed"}}


def test_the_summary_chooses_settings_on_validation_rows_and_never_on_test_rows() -> None:
    """Seed 1 is best at beta 2 on validation rows, though beta 1 is better on test rows."""
    rows = [row_of("tip-adapter", 1, 0.9, 0.5, beta=1), row_of("tip-adapter", 1, 0.6, 0.7, beta=2),
            row_of("tip-adapter", 2, 0.8, 0.9, beta=1), row_of("tip-adapter", 2, 0.95, 0.2, beta=2)]
    table, = tables(rows)
    assert table.accuracy["tip-adapter", 4].value == pytest.approx(0.7)


def test_the_summary_gives_student_intervals_and_paired_differences() -> None:
    rows = [row_of("zero-shot", seed, 0.5) for seed in (1, 2, 3)]
    rows += [row_of("gda", seed, value) for seed, value in ((1, 0.6), (2, 0.7), (3, 0.8))]
    table, = tables(rows)
    assert table.accuracy["gda", 4].half_width == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert table.to_baseline["gda", 4].value == pytest.approx(0.2)
    assert table.to_best["zero-shot", 4].value == pytest.approx(-0.2)
    assert ["gda", "70.0", "±", "24.8"] in [line.split() for line in table_lines(table)]


def test_a_row_is_replayed_to_the_same_accuracy(imported: Store, tmp_path: Path) -> None:
    sweep([imported], SPECS, tmp_path)
    for number in (3, 8):
        row = read_row(f"{tmp_path}:{number}")
        again = fit(imported, spec_of(row, imported))
        assert compare(row, again) == "the same accuracy as the row"


def test_what_has_nothing_left_to_choose_is_fitted_together_and_as_alone(imported: Store) -> None:
    specs = [RunSpec("zs-lp", 2, 1, {"epochs": 30, "learning_rate": rate, "share": 1.0}, select="val")
             for rate in (0.01, 0.1)]
    together = fit_group(imported, specs)
    for spec, each in zip(specs, together, strict=True):
        alone = fit(imported, spec).row
        assert each.row["nll"] == pytest.approx(alone["nll"], rel=1e-5)
        assert (each.row["accuracy_val"], each.row["select"]) == (alone["accuracy_val"], "val") == (None, "val")


def test_a_compiled_row_is_replayed_compiled(imported: Store, tmp_path: Path, uncompiled: list[Any],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled steps round elsewhere: a row says whether its own were, whatever else is asked for now."""
    spec = RunSpec("zs-lp", 2, 1, {"epochs": 30, "learning_rate": 0.01, "share": 1.0}, select="fixed")
    for number, choice in enumerate(("off", "on")):
        row, = sweep([imported], [spec], tmp_path / choice, compile=choice)
        assert len(uncompiled) == number
        uncompiled.clear()
        monkeypatch.setattr(code_cache, "_loaded", {})
        monkeypatch.setattr(compile, "_known", {})
        again = fit(imported, spec_of(row, imported), compile=compiling_of(row)).row
        assert len(uncompiled) == number
        assert again["nll"] == pytest.approx(row["nll"], rel=1e-9)
        uncompiled.clear()


def test_a_row_whose_store_has_changed_is_refused(imported: Store, arrays: dict[str, np.ndarray], tmp_path: Path,
                                                  import_of: Callable[..., Store]) -> None:
    sweep([imported], SPECS[:1], tmp_path)
    row = read_row(f"{tmp_path}:1")
    other = import_of({**arrays, "embedding": arrays["embedding"][::-1].copy()}, "other")
    with pytest.raises(ResultError, match=r"made of another .*store.* than"):
        spec_of(row, other)
    again = fit(imported, spec_of(row, imported))
    with pytest.raises(ResultError, match="drew other support images"):
        compare({**row, "fingerprints": {**row["fingerprints"], "support": "0" * 32}}, again)
    with pytest.raises(ResultError, match="the replay reached"):
        compare({**row, "accuracy": row["accuracy"] - 0.1}, again)


@pytest.mark.parametrize(("reference", "message"), [
    ("nowhere:1", "give FILE:N"), ("{}", "give FILE:N"), ("{}/notes.txt:1", "give FILE:N"), ("{}:9", "has 1 row: give"),
    ("{}:0", "has 1 row: give"), ("{}:99aaaa", "has 1 row: give"), ("{}:", "has 1 row: give")])
def test_a_row_that_is_not_there_is_named(tmp_path: Path, reference: str, message: str) -> None:
    append_rows(tmp_path, [{"run": "99aaaa", "asked": {}, "accuracy": 0.5}])
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ResultError, match=message):
        read_row(reference.format(tmp_path))


def test_rows_are_numbered_over_all_files_of_a_results_folder(tmp_path: Path) -> None:
    rows = [{"run": str(number), "asked": {}, "accuracy": 0.5} for number in range(12)]
    append_rows(tmp_path, rows[:7])
    append_rows(tmp_path, rows[7:], "results.1-of-2.jsonl")
    for number, row in enumerate(rows, 1):
        assert read_row(f"{tmp_path}:{number}") == read_row(f"{tmp_path / NAME}:{number}") == row


@pytest.mark.parametrize("damage", ["null", "3", "[1]", '"run"', "{}"])
def test_a_line_that_is_no_row_does_not_stop_a_sweep(damage: str, imported: Store, tmp_path: Path,
                                                     carried_out: list[RunSpec]) -> None:
    first = sweep([imported], SPECS[:2], tmp_path)
    with (tmp_path / NAME).open("a") as file:
        file.write(f"{damage}\n")
    assert sweep([imported], SPECS[:3], tmp_path)[:2] == first
    assert len(carried_out) == 3


DIVERGING = {"learning_rate": 1000.0, "epochs": 40, "weight_decay": 100.0}


def test_failed_runs_stay_as_they_are_until_they_are_asked_for(imported: Store, tmp_path: Path,
                                                               carried_out: list[RunSpec]) -> None:
    """The row of a failure says on which content; one with a result goes before it, wherever it stands."""
    specs = [RunSpec("clip-adapter", 2, 1, DIVERGING, select="fixed"), *SPECS[:2]]
    failed = sweep([imported], specs, tmp_path)[0]
    assert "diverged" in failed["error"]
    assert failed["fingerprints"] == {"encoder": imported.encoder["fingerprint"], "store": imported.fingerprint,
                                      "text": imported.text_fingerprint()}
    assert sweep([imported], specs, tmp_path)[0] == failed
    assert len(carried_out) == 3
    sweep([imported], specs, tmp_path, retry_failed=True)
    assert carried_out[3:] == specs[:1]
    mended = {**failed, "accuracy": 0.5, "seed": 1}
    del mended["error"]
    append_rows(tmp_path, [mended])
    append_rows(tmp_path, [failed], "results.1-of-2.jsonl")
    assert sweep([imported], specs, tmp_path, retry_failed=True)[0] == mended
    assert len(carried_out) == 4


def test_a_sweep_without_any_result_exits_with_1_and_keeps_its_rows(
        imported: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    grids = [part for name, value in DIVERGING.items() for part in ("--grid", f"{name}={value}")]
    command = ["sweep", imported.path, "--shots", "2", "--seeds", "1,2", "--select", "fixed", "--out", tmp_path / "out"]
    failing = [*command, "--methods", "clip-adapter", *grids]
    for more in ([], ["--json"], ["--retry-failed"]):
        refused = run(*failing, *more)
        assert refused.exit_code == 1
        assert refused.stderr.splitlines()[-1].startswith("Error: none of 2 runs has a result; most often: training of")
    assert len(read_rows(tmp_path / "out")) == 4
    assert run(*failing, "--dry-run").stdout.startswith("2 runs, 0 to be done")
    assert "2 to be done" in run(*failing, "--dry-run", "--retry-failed").stdout
    assert run(*command, "--methods", "zero-shot,clip-adapter", *grids).exit_code == 0
