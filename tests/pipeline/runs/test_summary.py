"""What a sweep tells at its end, beside the means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.commands.sweep import table_lines
from onceclip.pipeline.runs.summary import tables
from onceclip.stores import Store


def test_a_sweep_says_why_runs_have_no_result(without_val: Store, tmp_path: Path, run: Callable[..., Any],
                                              run_json: Callable[..., Any]) -> None:
    """A folder with train/ and test/ alone has nothing for a selection on validation rows: that is no divergence."""
    sweep = ("sweep", without_val.path, "--methods", "zero-shot,tip-adapter,gda", "--shots", "1,2", "--seeds", "1",
             "--select", "val", "--out", tmp_path / "results")
    *said, empty, following = run(*sweep).stdout.rstrip().splitlines()
    assert (empty, following) == ("", f"Next: onceclip report {tmp_path / 'results'} --out results.html")
    assert "interval of up to 1 seed" in said[0]
    assert said[-2] == "left out, for they have no result:"
    assert said[-1].startswith("  tip-adapter (2 runs), gda (2 runs): --select val needs validation rows")
    assert "--select fixed" in said[-1]
    table, = run_json(*sweep)["tables"]
    assert (table["failed"], list(table["reasons"].values())) == (4, [{"tip-adapter": 2, "gda": 2}])


def test_a_sweep_says_where_classes_have_fewer_images_than_shots(imported: Store, tmp_path: Path,
                                                                 run_json: Callable[..., Any]) -> None:
    made = run_json("sweep", imported.path, "--methods", "gda", "--shots", "1,500", "--seeds", "1", "--select", "fixed",
                    "--out", tmp_path / "results")
    table, = made["tables"]
    assert list(table["short"]) == ["500"]
    had, asked = table["short"]["500"]
    assert had < asked == 500 * len(imported.classes)


def test_what_has_no_test_images_has_no_result_either() -> None:
    table, = tables([{"method": "gda", "shots": 4, "seed": 1, "accuracy": None, "accuracy_val": None, "n_support": 8,
                      "classes": 2, "store": "pets.zarr"}])
    assert table_lines(table)[-1] == "  gda (1 run): no test images"


def row(accuracy: float = 0.5, method: str = "gda", shots: Any = 4, seed: int = 1, select: str = "val",
        **further: Any) -> dict[str, Any]:
    """A result row as far as summaries read it; what RunSpec knows goes to what was asked for."""
    fields = ("values", "class_weights", "search", "narrow", "stream", "classes", "bank", "inference", "refit",
              "inputs")
    return {"method": method, "shots": shots, "seed": seed, "accuracy": accuracy, "store": "pets.zarr",
            "accuracy_val": None if select == "fixed" else 0.5, "select": select,
            "fingerprints": {"support": f"draw {shots} {seed}"},
            "asked": {"text": "default", "select": select,
                      **{key: further.pop(key) for key in fields if key in further}}, **further}


@pytest.mark.parametrize(("values", "name"), [
    ({"search": "random:30"}, "gda search random:30"), ({"narrow": True}, "gda narrow"),
    ({"stream": True}, "gda stream"),
    ({"inference": "stata"}, "gda + stata"),
    ({"values": {"alpha": 2.0}}, "gda alpha=2.0"), ({"device": "NVIDIA H200"}, "gda on NVIDIA H200"),
    ({"refit": "val"}, "gda refit on val"), ({"inputs": ["dino/embedding"]}, "gda from dino/embedding")], ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_runs_that_differ_in_more_than_method_shots_and_seed_are_lines_of_their_own(
        values: dict[str, Any], name: str, order: int) -> None:
    """Else the better on validation rows would stand for both, and the other would be gone without a word."""
    table, = tables([row(0.5), row(0.7, **values)][::order])
    assert {key: mean.value for key, mean in table.accuracy.items()} == {("gda", 4): 0.5, (name, 4): 0.7}


def test_a_store_that_was_moved_or_named_from_another_folder_has_one_table() -> None:
    first, second, other = (row(accuracy, seed=seed, fingerprints={"store": content}, store=path) for
                            accuracy, seed, content, path in ((0.5, 1, "a", "pets.zarr"), (0.7, 2, "a", "../pets.zarr"),
                                                              (0.9, 1, "b", "birds.zarr")))
    table, alone = tables([first, second, other])
    assert table.title.startswith("../pets.zarr,")
    assert (table.accuracy["gda", 4].value, table.accuracy["gda", 4].runs) == (pytest.approx(0.6), 2)
    assert alone.accuracy["gda", 4].runs == 1


def test_other_class_weights_are_a_table_with_its_own_zero_shot() -> None:
    first, second = tables([row(0.5, "zero-shot"), row(0.6), row(0.4, "zero-shot", class_weights="raw-mean"),
                            row(0.7, class_weights="raw-mean")])
    assert second.title == f"{first.title}, class weights raw-mean"
    assert [table.to_baseline["gda", 4].value for table in (first, second)] == pytest.approx([0.1, 0.3])


def test_a_run_at_its_defaults_is_no_setting_of_a_grid() -> None:
    grid = [row(0.6, select="fixed", accuracy_val=value / 10, values={"alpha": value}) for value in (1, 2)]
    table, = tables([row(0.5, select="fixed"), *grid])
    assert {key: mean.value for key, mean in table.accuracy.items()} == {
        ("gda", 4): 0.5, ("gda best of its grid", 4): 0.6}
    assert set(tables(grid)[0].accuracy) == {("gda", 4)}


def test_a_device_is_named_only_where_two_have_the_same_run() -> None:
    """The other seeds of a sweep may have been made elsewhere."""
    table, = tables([row(0.5, seed=1), row(0.7, seed=2, device="NVIDIA H200")])
    assert table.accuracy["gda", 4].runs == 2


def test_seeds_that_share_their_images_have_no_interval_of_draws() -> None:
    rows = [row(value, shots=shots, seed=seed, fingerprints={"support": "all of them"} if shots == 16 else {})
            for shots in (16, "all") for seed, value in enumerate((0.5, 0.6, 0.7), 1)]
    table, = tables([*rows, *(row(value, seed=seed) for seed, value in enumerate((0.5, 0.6, 0.7), 1))])
    assert [table.accuracy["gda", shots].half_width is None for shots in (4, 16, "all")] == [False, True, True]
    said = table_lines(table)[-1]
    assert said.startswith("at 16 shots, all shots all seeds have the same training images")


def test_a_row_that_gives_way_to_a_later_one_is_counted() -> None:
    table, = tables([row(0.5, version="1"), row(0.7, version="2")])
    assert table.accuracy["gda", 4].value == 0.7
    assert table_lines(table)[-1] == "1 row left out: of the same line, shots and seed the last counts"


def test_runs_with_two_banks_are_two_lines_by_what_the_banks_hold() -> None:
    rows = [row(value, bank=f"{place}/bank.zarr", fingerprints={"bank": bank, "support": "none"})
            for value, place, bank in ((0.5, "a", "1234567"), (0.7, "b", "7654321"))]
    assert {name for name, _ in tables(rows)[0].accuracy} == {"gda of bank bank.zarr 123456",
                                                             "gda of bank bank.zarr 765432"}
    assert {name for name, _ in tables(rows[:1])[0].accuracy} == {"gda"}


def test_a_strategy_is_named_once() -> None:
    table, = tables([row(inference="stata") | {"inference": {"name": "stata", "transductive": True}}])
    assert set(table.accuracy) == {("gda + stata (transductive)", 4)}


def test_a_row_without_its_number_of_classes_is_told_all_the_same() -> None:
    """Fuzzing left the key out, and the report ended in a KeyError."""
    row = {"method": "gda", "shots": 4, "seed": 1, "accuracy": 0.5, "store": "a.zarr", "n_support": 3}
    table, = tables([row])
    assert table.short == {}
