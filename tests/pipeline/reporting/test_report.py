"""`onceclip report RESULTS`: what rows become on the page of results folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onceclip.pipeline.reporting.pages import write_incremental_report, write_results_report
from onceclip.pipeline.reporting.provenance import replays
from onceclip.pipeline.runs.results import append_rows
from onceclip.pipeline.runs.summary import BASELINE


def row(method: str = "tip-adapter", shots: Any = 1, seed: int = 1, accuracy: float | None = 0.5,
        **further: Any) -> dict[str, Any]:
    """A result row as `sweep` writes it, as far as the report reads it."""
    store = further.get("store", "pets.zarr")
    return {"method": method, "shots": shots, "seed": seed, "accuracy": accuracy, "accuracy_val": None, "ece": 0.1,
            "nll": 1.0, "hyperparameters": {}, "select": "fixed", "encoder": "demo", "text": "default", "store": store,
            "seconds": 0.01, "fingerprints": {"store": f"print of {store}", "support": f"draw {shots} {seed}"},
            "run": f"{method} {shots} {seed} {store} {further.get('asked')}", "version": "0.1.0",
            "asked": {"text": "default", "select": "fixed", "values": {}}, **further}


def failed(method: str, shots: int, seed: int, error: str) -> dict[str, Any]:
    """The row of a run that diverged."""
    return {name: value for name, value in row(method, shots, seed, None, error=error).items()
            if name in ("method", "shots", "seed", "accuracy", "error", "store", "run", "asked")}


def test_names_are_text_whatever_they_look_like(page_of: Callable[..., Any]) -> None:
    method, classes = "<script>alert('ö')</script>", ["<b>Ångström & \"co\"", "猫", "</td>"]
    details = {"right": [3, 1, 0], "reliability": [[4, 3.0, 4]] * 15, "confusions": [[2, 0, 4], [1, 2, 2]]}
    page = page_of([row(name, number, details=details,
                        text="</style><img src=x>")
                    for name in (method, BASELINE) for number in (1, 2)], classes, [5, 3, 4])
    assert method in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert set(page.table("Change of recall")) == {"class", *classes}
    assert page.table("Most frequent confusions")["</td>"][0] == classes[0]


def test_best_and_ties_are_marked_in_words_and_not_by_colour_alone(page_of: Callable[..., Any]) -> None:
    values = {"good": (0.9, 0.91, 0.92), "even": (0.91, 0.9, 0.915), "bad": (0.5, 0.52, 0.51)}
    page = page_of([row(name, 4, seed, value) for name, found in values.items() for seed, value in enumerate(found, 1)])
    cells = {cells[0]: cells[1] for label, rows in page.tables if label.startswith("Test accuracy") for cells in rows}
    assert "(best)" in cells["good"]
    assert cells["even"].startswith("≈")
    assert not re.search("≈|best", cells["bad"])


def test_changes_per_class_are_means_over_seeds_of_the_rows_details(page_of: Callable[..., Any]) -> None:
    def details(*right: int) -> dict[str, Any]:
        return {"right": list(right), "reliability": [[10, 5.0, sum(right)]] + [[0, 0.0, 0]] * 14, "confusions": []}

    page = page_of([row("gda", 2, 1, 0.6, details=details(4, 8)), row("gda", 2, 2, 0.6, details=details(4, 6)),
                    row(BASELINE, 2, 1, 0.5, details=details(2, 8)), row(BASELINE, 2, 2, 0.5, details=details(2, 8))],
                   ["ant", "bee"], [4, 10])
    found = page.table("Change of recall")
    assert [found["ant"][place] for place in (0, 2, 3, 4)] == ["+50.0", "50.0", "100.0", "4"]
    assert [found["bee"][place] for place in (0, 2, 3, 4)] == ["−10.0", "80.0", "70.0", "10"]


def test_of_many_classes_the_best_and_the_worst_are_listed(page_of: Callable[..., Any]) -> None:
    names = [f"class {number:03d}" for number in range(100)]
    after = {"right": list(range(100)), "reliability": [[1, 1.0, 1]] * 15, "confusions": []}
    before = {**after, "right": [50] * 100}
    page = page_of([row("gda", details=after), row(BASELINE, details=before)], names, [100] * 100)
    listed = [name for name in page.table("Change of recall") if name != "class"]
    assert listed == [*reversed(names[85:]), *reversed(names[:15])]
    assert "70 classes between them left out" in page.text


def test_hyperparameters_show_median_and_range_and_how_often_a_search_ended_at_its_end(
        page_of: Callable[..., Any]) -> None:
    from onceclip.adapters import method_class

    search = method_class("tip-adapter").hyperparameters["beta"].search
    page = page_of([row("tip-adapter", 4, seed, settings_tried=5, select="val",
                        hyperparameters={"alpha": 1.0, "beta": search[place]})
                    for seed, place in enumerate((0, 1, 2, -1), 1)])
    rows = next(rows for label, rows in page.tables if label == "Selected hyperparameters")
    beta = next(cells for cells in rows if cells[1] == "beta")
    assert beta[2] == "50 %"
    assert beta[3] == f"{(search[1] + search[2]) / 2:.3g}{search[0]:.3g}…{search[-1]:.3g}"


def test_searches_and_ways_of_training_are_lines_and_class_weights_are_sections(page_of: Callable[..., Any]) -> None:
    asked = {"text": "default", "select": "val", "values": {}}
    page = page_of([row("gda", 4, seed, accuracy, select="val", accuracy_val=0.5, asked={**asked, **more})
                    for seed in (1, 2) for accuracy, more in ((0.5, {}), (0.6, {"search": "halves"}),
                                                              (0.7, {"class_weights": "raw-mean"}))])
    first, second = (page.table("Test accuracy", number) for number in (0, 1))
    assert {name: cells[0].split()[0] for name, cells in first.items() if name != "shots"} == {
        "gda": "50.0", "gda search halves": "60.0"}
    assert second["gda"][0].startswith("70.0")
    assert "pets.zarr, class weights raw-mean" in page.text


def test_a_run_on_two_devices_is_two_lines(tmp_path: Path, read_page: Callable[[Path], Any]) -> None:
    for name, accuracy in (("cpu", 0.5), ("NVIDIA H200", 0.6)):
        append_rows(tmp_path / name, [row("gda", 4, seed, accuracy, device=name) for seed in (1, 2)])
    write_results_report([tmp_path / "cpu", tmp_path / "NVIDIA H200"], tmp_path / "page.html")
    assert set(read_page(tmp_path / "page.html").table("Test accuracy")) == {"shots", "gda", "gda on NVIDIA H200"}


def test_all_rows_have_no_interval_over_draws_and_the_page_says_so(page_of: Callable[..., Any]) -> None:
    page = page_of([row("gda", "all", seed, 0.5 + seed / 10) for seed in (1, 2, 3)])
    assert page.table("Test accuracy")["gda"] == ["70.0"]
    assert "all seeds have the same training images" in page.text


def test_details_that_do_not_fit_the_classes_are_said_to_be_so(page_of: Callable[..., Any]) -> None:
    for classes in (["ant"], ["ant", "bee", "cow", "dog"]):
        details = {"right": [1, 1, 1], "reliability": [[1, 1.0, 1]] * 15, "confusions": [[2, 0, 1]]}
        page = page_of([row("gda", details=details), row(BASELINE, details=details)], classes, [1] * len(classes))
        assert "different numbers of classes" in page.text


def test_a_single_row_is_a_page(page_of: Callable[..., Any]) -> None:
    page = page_of([row("gda", 16, 1, 0.875)])
    assert page.table("Test accuracy") == {"shots": ["16"], "gda": ["87.5"]}
    assert "The rows have no details per class" in page.text
    assert not [label for label, _ in page.tables if label.startswith("Difference")]


def test_rows_without_seconds_details_or_fingerprints_are_a_page(page_of: Callable[..., Any]) -> None:
    bare = [{"method": name, "shots": "all", "seed": 1, "accuracy": 0.5, "accuracy_val": None, "store": "s.zarr"}
            for name in ("gda", BASELINE)]
    page = page_of(bare)
    assert page.table("Test accuracy")["gda"] == ["50.0"]
    assert "The rows say nothing of time." in page.text


def test_details_without_names_of_classes_are_said_to_be_so(page_of: Callable[..., Any]) -> None:
    details = {"right": [1], "reliability": [[1, 1.0, 1]] * 15, "confusions": []}
    assert "has no stores.json" in page_of([row("gda", details=details), row(BASELINE, details=details)]).text


def test_failed_runs_are_told_and_left_out(page_of: Callable[..., Any]) -> None:
    page = page_of([row("gda", 1, seed, 0.5) for seed in (1, 2)]
                   + [failed("clip-adapter", 1, seed, "training diverged: lower lr") for seed in (1, 2)])
    assert page.table("Runs without a result")["clip-adapter"] == ["2", "training diverged: lower lr",
                                                                   "1 shot, seed 1; 1 shot, seed 2"]
    assert "2 without a result" in page.text
    assert set(page.table("Test accuracy")) == {"shots", "gda"}


def test_nothing_but_failed_runs_is_a_page_too(page_of: Callable[..., Any]) -> None:
    assert "No run of this setting has a result." in page_of([failed("gda", 1, 1, "diverged")]).text


def test_several_stores_have_a_section_each_and_a_mean(page_of: Callable[..., Any]) -> None:
    rows = [row(name, 1, seed, base + seed / 100 + (0.1 if name == "gda" else 0), store=store)
            for store, base in (("a/pets.zarr", 0.2), ("b/cars.zarr", 0.6)) for name in (BASELINE, "gda")
            for seed in (1, 2)]
    page = page_of([*rows, row("tip-adapter", 1, 1, 0.9, store="a/pets.zarr")])
    mean, first, second = (page.table("Test accuracy", number) for number in range(3))
    assert "mean over 2 stores" in page.text
    assert set(mean) == {"shots", "zero-shot", "gda"}
    assert mean["gda"][0].startswith("51.5")
    assert first["gda"][0].startswith("31.5")
    assert second["gda"][0].startswith("71.5")
    assert [values["href"] for tag, values in page.tags if tag == "a"][:3] == ["#mean1", "#setting1", "#setting2"]


def again(content: str, accuracy: float, accuracy_val: float, store: str = "pets.zarr", text: str = "t") -> list[Any]:
    """Rows of two seeds on some content of a store."""
    return [row("gda", 4, seed, accuracy, store=store, accuracy_val=accuracy_val, run=f"{content} {text} {seed}",
                fingerprints={"store": content, "text": text, "support": f"draw {seed}"}) for seed in (1, 2)]


def test_runs_on_a_store_whose_images_changed_are_never_mixed(page_of: Callable[..., Any]) -> None:
    """Of the same seed, the better on validation rows would stand for both: a number of images that are gone."""
    page = page_of([*again("0ld", 0.9, 0.95), failed("taskres", 4, 1, "diverged"), *again("new", 0.5, 0.6)])
    assert [page.table("Test accuracy", number)["gda"] for number in (0, 1)] == [["90.0 ± 0.0"], ["50.0 ± 0.0"]]
    assert [values["href"] for tag, values in page.tags if tag == "a"][:2] == ["#setting1", "#setting2"]
    assert "pets.zarr, content 0ld" in page.text
    assert "pets.zarr, content new" in page.text


def test_runs_on_prompts_that_changed_under_their_name_are_never_mixed(page_of: Callable[..., Any]) -> None:
    page = page_of([*again("same", 0.9, 0.95, text="first"), *again("same", 0.5, 0.6, text="second")])
    assert [page.table("Test accuracy", number)["gda"] for number in (0, 1)] == [["90.0 ± 0.0"], ["50.0 ± 0.0"]]
    assert "pets.zarr, prompts first" in page.text


def test_a_mean_over_stores_takes_the_last_content_of_each(page_of: Callable[..., Any]) -> None:
    page = page_of([*again("0ld", 0.9, 0.95), *again("new", 0.5, 0.6), *again("other", 0.7, 0.6, "cars.zarr")])
    assert "mean over 2 stores" in page.text
    assert page.table("Test accuracy")["gda"] == ["60.0 ± 0.0"]


def test_a_draw_that_is_smaller_than_its_name_is_said_to_be_so(page_of: Callable[..., Any]) -> None:
    page = page_of([row("gda", shots, 1, 0.5, n_support=min(shots, 10) * 3, classes=3) for shots in (8, 16)])
    assert "Some classes have fewer training images than shots: 30 of 48 images at 16 shots." in page.text


def test_zero_shot_alone_has_no_changes_per_class(page_of: Callable[..., Any]) -> None:
    details = {"right": [1], "reliability": [[1, 1.0, 1]] * 15, "confusions": []}
    page = page_of([row(BASELINE, details=details)], ["ant"], [1])
    assert "nothing to compare it with" in page.text
    assert "no details" not in page.text


def test_base_to_new_has_three_tables(page_of: Callable[..., Any]) -> None:
    page = page_of([row(name, 4, seed, 0.8, accuracy_new=0.6, harmonic_mean=0.96 / 1.4, class_set="base",
                        asked={"text": "default", "select": "fixed", "values": {}, "classes": "base"})
                    for name in (BASELINE, "gda") for seed in (1, 2)])
    assert [page.table("Test accuracy", number)["gda"][0].split()[0] for number in range(3)] == ["80.0", "60.0", "68.6"]


def test_of_many_methods_eight_have_colours_and_all_are_in_the_table(page_of: Callable[..., Any]) -> None:
    names = [f"method-{number:02d}" for number in range(20)]
    page = page_of([row(name, shots, seed, 0.5 + number / 100 + shots / 1000 + seed / 10000)
                    for number, name in enumerate(names) for shots in (1, 2) for seed in (1, 2)])
    assert [name for name in page.table("Test accuracy") if name != "shots"] == list(reversed(names))
    drawing = page.html.partition('<div class="drawing"')[2].partition("</div>")[0]
    assert set(re.findall(r'class="series s(\d+)"', drawing)) == set("01234567")
    assert len(re.findall('class="faint"', drawing)) == 12
    assert "grey: the other 12 methods" in page.text


def test_a_big_sweep_gives_a_small_file(page_of: Callable[..., Any]) -> None:
    details = {"right": [50] * 1000, "reliability": [[10, 5.0, 4]] * 15, "confusions": [[7, 0, 9]] * 20}
    page = page_of([row(name, shots, seed, 0.5 + seed / 1000, details=details) for name in
                    (BASELINE, "gda", "proker", "tip-x", "tip-adapter", "taskres") for shots in (1, 2, 4, 8, 16)
                    for seed in range(1, 31)], [f"class {number}" for number in range(1000)], [50] * 1000)
    assert len(page.html) < 600_000


def test_runs_that_stand_in_several_folders_count_once(tmp_path: Path, run_json: Callable[..., Any]) -> None:
    for name in ("first", "second"):
        append_rows(tmp_path / name, [row("gda", 1, 1), row("gda", 1, 2, store=name)])
    found = run_json("report", tmp_path / "first", tmp_path / "second" / "results.jsonl", "--out", tmp_path / "p.html")
    assert found["rows"] == 3
    assert Path(found["report"]).stat().st_size == found["bytes"]


@pytest.mark.parametrize(("content", "said"), [
    (None, "holds no result rows"), ("", "holds no result rows"), ('{"a": 1}\n', "row 1 has no 'method'"),
    ("[1]\nnull\n", "holds no result rows")])
def test_what_holds_no_results_is_one_clear_line(tmp_path: Path, run: Callable[..., Any], content: str | None,
                                                 said: str) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / "folder" / "results.jsonl").write_text(content)
    done = run("report", tmp_path / "folder", "--out", tmp_path / "page.html")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_names_beside_the_curves_of_sessions_have_the_colours_of_their_lines(tmp_path: Path) -> None:
    append_rows(tmp_path, [{
        "method": method, "joint": False, "store": "pets.zarr", "sessions": [2, 2], "shots": 4, "text": "default",
        "classes_seen": [2, 4], "accuracies": [0.8, accuracy], "forgetting": None, "bytes_kept": 1,
        "reads_old_rows": False, "average_incremental_accuracy": accuracy, "accuracy": accuracy}
        for method, accuracy in ((BASELINE, 0.4), ("gda", 0.5), ("ranpac", 0.6))], "incremental.jsonl")
    html = write_incremental_report(tmp_path).read_text(encoding="utf-8")
    lines = dict(re.findall(r'class="series (s\d)"><title>([^<]+)', html))
    assert lines == {"s0": "gda", "s1": "ranpac"}
    assert dict(re.findall(r'class="label (\w+)"><tspan>([^<]+)', html)) == {**lines, "zero": BASELINE}


def test_a_run_of_code_of_ones_own_is_repeated_with_its_modules() -> None:
    asked = {"method": "zero-shot+mine:Cubes", "inference": "ours:Read", "support": "mine:Pick:4"}
    setting: Any = SimpleNamespace(chosen={("cubes", 4): {1: {"run": "r", "asked": asked}}})
    results: Any = SimpleNamespace(places={"r": "results:3"})
    best: Any = SimpleNamespace(name="cubes", shots=4)
    (_, command), = replays(setting, [best], results)
    assert command == "onceclip fit --from-row results:3 --import mine --import ours"
