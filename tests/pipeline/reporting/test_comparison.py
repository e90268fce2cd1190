"""Lines of results compared: on equal draws, images and stores, with p-values that count the number of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

import onceclip
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.statistics import compare, units_of
from onceclip.pipeline.runs.keep import read_predictions
from onceclip.pipeline.runs.results import append_rows
from onceclip.stores import Store


@pytest.fixture(scope="module")
def swept(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with predictions over three stores of the same images by two encoders, and one of other images."""
    root = tmp_path_factory.mktemp("comparison")
    random, stores = np.random.default_rng(3), []
    for name, encoder, noise, keys in (("a", "one", 0.0, ""), ("b", "two", 2.0, ""), ("c", "one", 1.0, "other/")):
        embedding = arrays["embedding"] + noise * random.normal(size=arrays["embedding"].shape).astype(np.float32)
        np.savez(root / f"{name}.npz", **{**arrays, "embedding": embedding,
                                          "key": np.array([f"{keys}{key}" for key in arrays["key"]])})
        onceclip.import_arrays(root / f"{name}.npz", root / f"{name}.zarr", encoder)
        stores.append(str(root / f"{name}.zarr"))
    onceclip.sweep(stores, methods=["zero-shot", "gda", "tip-adapter"], shots=[2], seeds=[1, 2, 3],
                   out=root / "results", keep_predictions=True)
    return root / "results"


def block_of(found: dict[str, Any], store: str) -> dict[str, dict[str, Any]]:
    return {each["method"]: each for block in found["blocks"] if block["store"] == store
            for each in block["comparisons"]}


def test_over_draws_it_is_the_paired_test_corrected_by_holm(swept: Path) -> None:
    frame = onceclip.results(swept)
    frame, found = frame[frame["store"] == "b"].sort_values("seed"), block_of(onceclip.compare(swept), "b")
    for name in ("gda", "tip-adapter"):
        mine, base = (frame[frame["method"] == each]["accuracy"].to_numpy() for each in (name, "zero-shot"))
        assert found[name]["difference"] == pytest.approx((mine - base).mean())
        assert found[name]["p"] == pytest.approx(ttest_rel(mine, base).pvalue)
        assert found[name]["p"] <= found[name]["p_holm"] <= 2 * found[name]["p"]


def test_mcnemar_counts_the_rows_that_one_alone_got_right(swept: Path) -> None:
    frame = onceclip.results(swept)
    row, other = (frame[(frame["store"] == "b") & (frame["method"] == name) & (frame["seed"] == 2)].iloc[0]
                  for name in ("gda", "tip-adapter"))
    right, beside = (read_predictions(swept, {"run": each["run"]}).right for each in (row, other))
    found, = (block for block in onceclip.compare(swept, "mcnemar", baseline="tip-adapter")["blocks"]
              if block["store"] == "b" and block["seed"] == 2)
    mine = next(each for each in found["comparisons"] if each["method"] == "gda")
    assert (mine["only_this"], mine["only_other"]) == ((right & ~beside).sum(), (~right & beside).sum())
    assert mine["p"] == pytest.approx(binomtest(mine["only_this"], mine["only_this"] + mine["only_other"]).pvalue)


def test_the_bootstrap_holds_the_mean_difference(swept: Path) -> None:
    over_draws, found = (block_of(onceclip.compare(swept, test), "b") for test in ("draws", "bootstrap"))
    for name, each in found.items():
        assert each["difference"] == pytest.approx(over_draws[name]["difference"])
        assert each["interval"][0] <= each["difference"] <= each["interval"][1]


def test_two_encoders_are_compared_on_equal_draws(swept: Path) -> None:
    found = onceclip.compare(swept, by_encoder=True, baseline="gda @ two")
    block = block_of(found, "a")
    frame = onceclip.results(swept).set_index(["store", "method", "seed"])["accuracy"]
    expected = np.mean([frame["a", "gda", seed] - frame["b", "gda", seed] for seed in (1, 2, 3)])
    assert block["gda @ one"]["difference"] == pytest.approx(expected)
    assert {each["store"] for each in found["blocks"]} == {"a"}  # the third store has other images
    assert onceclip.compare(swept, "mcnemar", by_encoder=True, baseline="gda @ two", methods="gda @ one")["blocks"]


def over_stores(folder: Path, values: dict[str, list[float]]) -> Path:
    append_rows(folder, [{"method": name, "store": f"store-{number}.zarr", "shots": 4, "seed": 1, "accuracy": accuracy,
                          "accuracy_val": None, "run": f"{name}{number}"}
                         for name, several in values.items() for number, accuracy in enumerate(several)])
    return folder


def test_tests_over_stores_take_each_store_once(tmp_path: Path) -> None:
    stores = [0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80]
    folder = over_stores(tmp_path, {"zero-shot": stores, "better": [each + 0.01 * (1 + place) for place, each in
                                                                    enumerate(stores)],
                                    "same": [each + (-1) ** place * 0.01 for place, each in enumerate(stores)]})
    block, = onceclip.compare(folder, "wilcoxon")["blocks"]
    better, same = block["comparisons"]
    assert (better["n"], better["p"], better["p_holm"]) == (7, pytest.approx(2 / 2**7), pytest.approx(4 / 2**7))
    assert same["p"] > 0.5
    ranks, = onceclip.compare(folder, "friedman")["blocks"]
    assert ranks["ranks"]["better"] == pytest.approx(7.5 / 7)  # "same" is its equal once
    assert len(ranks["pairs"]) == 3


@pytest.mark.parametrize(("options", "message"), [
    ({"test": "wilcoxon"}, "compares over stores, and 3 stores of 6"), ({"baseline": "gdb"}, "no line 'gdb'"),
    ({"methods": ["gda", "gad"]}, "no line 'gad'"), ({"methods": []}, "methods is empty"),
    ({"methods": "zero-shot"}, "one line alone has the score accuracy, zero-shot"),
    ({"test": "mcnemar", "score": "nll"}, "says nothing of nll"),
    ({"shots": 16}, "no run has a accuracy at these shots"), ({"test": "anova"}, "anova")])
def test_what_cannot_be_compared_is_said_in_one_line(swept: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(onceclip.OnceclipError, match=message):
        onceclip.compare(swept, **options)


def test_without_predictions_it_says_how_to_get_them(tmp_path: Path) -> None:
    folder = over_stores(tmp_path, {"zero-shot": [0.5], "gda": [0.6]})
    with pytest.raises(ResultError, match="repeat the sweep with --keep-predictions"):
        onceclip.compare(folder, "mcnemar")


def test_the_command_prints_every_test(swept: Path, run: Callable[..., Any]) -> None:
    for test, words in (("draws", "by Holm"), ("mcnemar", "seed 3: accuracy against zero-shot (mcnemar)"),
                        ("bootstrap", "95 % interval"), ("friedman", "Nemenyi's p")):
        done = run("compare", swept, "--test", test)
        assert done.exit_code == 0, done.output
        assert words in done.stdout


def test_a_store_that_was_made_again_is_compared_with_each_content(tmp_path: Path) -> None:
    """Other images, or other prompts alone, are no further runs of the same line."""
    contents = (("old", "a", 0.1), ("new", "a", 0.2), ("new", "b", 0.3))
    append_rows(tmp_path, [{"method": name, "store": "pets.zarr", "shots": 4, "seed": seed, "accuracy_val": None,
                            "accuracy": 0.5 + gain * (name == "gda"), "run": f"{name}{seed}{store}{text}",
                            "fingerprints": {"store": store, "text": text, "support": f"{store}{seed}"}}
                           for store, text, gain in contents for name in ("zero-shot", "gda") for seed in (1, 2)])
    blocks = onceclip.compare(tmp_path)["blocks"]
    assert {block["store"]: block["comparisons"][0]["difference"] for block in blocks} == pytest.approx({
        "pets, content old, prompts a": 0.1, "pets, content new, prompts a": 0.2, "pets, content new, prompts b": 0.3})
    assert set(onceclip.results(tmp_path)["method"]) == {
        f"{name}, content {store}, prompts {text}" for store, text, _ in contents for name in ("zero-shot", "gda")}


def test_a_score_that_one_line_alone_has_is_named(tmp_path: Path) -> None:
    append_rows(tmp_path / "results", [
        {"method": method, "store": "pets.zarr", "shots": 1, "seed": 1, "accuracy": 0.5, "accuracy_val": None,
         "accuracy_new": new, "text": "default", "run": method}
        for method, new in (("zero-shot", None), ("coop", 0.4), ("gda", None))])
    with pytest.raises(ResultError, match="one line alone has the score accuracy_new, coop, and a comp"):
        onceclip.compare(tmp_path / "results", score="accuracy_new")


def test_images_of_a_group_are_drawn_together(arrays: dict[str, np.ndarray], import_of: Callable[..., Store],
                                              tmp_path: Path) -> None:
    """The frames of a video are won or lost together: an interval over frames would be too narrow."""
    group = np.array([f"{name}/{number // 6}" for name in "abcd" for number in range(50)])
    store = import_of({**arrays, "group": group})
    rows = onceclip.sweep(store, methods=["zero-shot", "lpclip"], shots=2, seeds=[1, 2], out=tmp_path / "kept",
                          keep_predictions=True)
    base, mine = (read_predictions(tmp_path / "kept", row) for row in (rows[0], rows[2]))
    unit = units_of(store.column("group")[store.rows("test")])
    assert np.array_equal(mine.unit, unit)
    found = next(block for block in onceclip.compare(tmp_path / "kept", "mcnemar")["blocks"] if block["seed"] == 1)
    expected = compare(mine.right, base.right, unit)["difference_interval"]
    assert found["comparisons"][0]["interval"] == expected != compare(mine.right, base.right)["difference_interval"]
    both, = onceclip.compare(tmp_path / "kept", "bootstrap")["blocks"]
    assert both["comparisons"][0]["interval"][0] <= both["comparisons"][0]["difference"]
