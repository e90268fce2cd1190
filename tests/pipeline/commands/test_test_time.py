"""Views, streams and given crops from the command line: what is printed, recorded and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.extraction.outputs import OutputOptions


@pytest.fixture(scope="module")
def views_path(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, extract_demo: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("test-time") / "views.zarr"
    extract_demo(image_folder, path, outputs=OutputOptions(Views(number=4), ("test",), tokens="value"))
    return path


def test_evaluate_reads_views_and_shows_the_adapter_alone_beside(run: Callable[..., Any], adapter_path: Path,
                                                                 views_path: Path) -> None:
    result = run("evaluate", adapter_path, views_path, "--inference", "mta", "--inference-set", "spread=0.3")
    assert result.exit_code == 0, result.stderr
    assert "tip-adapter + mta" in result.stdout
    assert "tip-adapter alone: " in result.stdout
    assert "mta (spread=0.3, agreement=4.0, neighbors=0.3) sees each image's views, 4 of each" in result.stdout
    assert "inductive: every image is read by itself" in result.stdout


def test_evaluate_shows_every_order_of_a_stream(run: Callable[..., Any], run_json: Callable[..., Any],
                                                adapter_path: Path, store_path: Path) -> None:
    result = run("evaluate", adapter_path, store_path, "--inference", "tda", "--orders", "4-5")
    assert result.exit_code == 0, result.stderr
    assert "in 2 orders (seed): " in result.stdout
    assert "(4), " in result.stdout
    assert "(5), spread " in result.stdout
    assert "transductive" in result.stdout
    found = run_json("evaluate", adapter_path, store_path, "--inference", "tda")
    assert [each["seed"] for each in found["inference"]["orders"]] == [1, 2, 3]


def test_evaluate_tells_abnormal_images_from_normal_ones(run: Callable[..., Any], adapter_path: Path,
                                                         views_path: Path) -> None:
    result = run("evaluate", adapter_path, views_path, "--inference", "patch-knn", "--inference-set", "normal=disc")
    assert result.exit_code == 0, result.stderr
    assert "abnormal images told from normal ones: AUROC " in result.stdout
    assert "fitted on 8 train images of the class disc" in result.stdout
    assert "sees each image's patches of the kind value" in result.stdout


def test_predict_makes_views_of_images(run_json: Callable[..., Any], adapter_path: Path, image_folder: Path) -> None:
    folder = image_folder / "disc"
    found = run_json("predict", adapter_path, folder, "--inference", "zero", "--views", "4")
    assert (found["n"], found["bad"]) == (15, 0)
    assert {each["state"] for each in found["predictions"]} == {"ok"}


def test_a_sweep_reads_a_stream_in_several_orders(run_json: Callable[..., Any], store_path: Path,
                                                  tmp_path: Path) -> None:
    from onceclip.pipeline.runs.results import read_rows

    run_json("sweep", store_path, "--methods", "zero-shot", "--shots", "1", "--seeds", "1", "--inference", "none,tda",
             "--out", tmp_path / "results")
    rows = {row.get("inference", {}).get("name", "none"): row for row in read_rows(tmp_path / "results")}
    assert rows.keys() == {"none", "tda"}
    orders = [each["accuracy"] for each in rows["tda"]["inference"]["orders"]]
    assert rows["tda"]["accuracy"] == pytest.approx(sum(orders) / 3)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--inference", "mta"), "has none: extract into a new store with --views 64 --views-for test"),
    (("--inference", "mta", "--orders", "1-3"), "--orders is for strategies that read a stream, and mta does not"),
    (("--inference", "tda", "--orders", "x"), "give seeds of permutations, such as 1-5"),
    (("--inference", "tda", "--orders", "1", "--batch-size", "8"), "give one of them"),
    (("--orders", "1-3"), "are for a strategy: add inference"),
    (("--inference", "tda", "--inference-set", "capacity=-1"), "capacity=-1 is not between 0 and"),
    (("--inference", "tad"), "did you mean 'tda'"),
])
def test_what_cannot_be_is_one_line(run: Callable[..., Any], adapter_path: Path, store_path: Path,
                                    arguments: tuple[str, ...], message: str) -> None:
    result = run("evaluate", adapter_path, store_path, *arguments)
    assert result.exit_code != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (("--views", "8"), "--views is for a strategy that reads views"),
    (("--inference-set", "spread=1"), "add --inference NAME"),
    (("--inference", "patch-knn"), "images alone have none: predict on a store"),
    (("--inference", "mta", "--views", "1"), "1 is not in the range x>=2"),
])
def test_predict_refuses_in_one_line(run: Callable[..., Any], adapter_path: Path, image_folder: Path,
                                     arguments: tuple[str, ...], message: str) -> None:
    result = run("predict", adapter_path, image_folder, *arguments)
    assert result.exit_code != 0
    assert message in result.stderr


def test_extract_has_one_way_to_make_views(run: Callable[..., Any], image_folder: Path, tmp_path: Path) -> None:
    result = run("extract", image_folder, tmp_path / "s.zarr", "--model", "demo", "--views", "4", "--crops")
    assert (result.exit_code, "--views and --crops both make the views" in result.stderr) == (2, True)
    result = run("extract", image_folder, tmp_path / "s.zarr", "--model", "demo", "--crops")
    assert "gives no boxes for --crops" in result.stderr
    for option, value, ways in (("--views-for", "test", "--views or --ten-crop or --crops"),
                                ("--view-seed", 2, "--views")):
        result = run("extract", image_folder, tmp_path / "s.zarr", "--model", "demo", option, value)
        assert result.exit_code == 2
        assert f"{option} is of the views that an image has: add {ways}" in result.stderr
    assert not (tmp_path / "s.zarr").exists()
