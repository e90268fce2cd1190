"""Supports that are not balanced and clean: the asked numbers, the same everywhere, and never the test rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.cli import main
from onceclip.pipeline.commands.parameter_types import Missing
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.replay import compare, spec_of
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import draw_task
from onceclip.stores import Store

CLASSES = tuple(f"class {number}" for number in range(10))
LABEL = np.repeat(np.arange(10), 100)
KEYS = [f"{number}.png" for number in range(1000)]


def support(shots: int | None = 20, seed: int = 1, **shape: Any) -> Any:
    return DrawSpec(shots, seed, **shape).choose(np.arange(1000), KEYS, LABEL, CLASSES)


def counts(drawn: Any) -> list[int]:
    return np.bincount(LABEL[drawn.rows], minlength=10).tolist()


def test_a_long_tail_falls_exponentially_from_k_to_k_over_the_ratio() -> None:
    found = sorted(counts(support(long_tail=10)), reverse=True)
    assert found == [round(20 * 10 ** (-place / 9)) for place in range(10)]
    assert (found[0], found[-1]) == (20, 2)
    assert counts(support(long_tail=10)) != counts(support(long_tail=10, seed=2))  # other classes lead
    assert min(counts(support(long_tail=1000))) == 1  # no class is lost
    assert max(counts(support(long_tail=10, shots=None))) == 100


def test_a_long_tail_is_part_of_the_balanced_draw_and_fewer_shots_of_more() -> None:
    balanced, tail, less = (set(support(shots, long_tail=ratio).keys) for ratio, shots in ((1, 20), (5, 20), (5, 10)))
    assert less < tail < balanced


def test_a_natural_prior_draws_as_many_in_all_without_regard_to_class() -> None:
    drawn = support(natural_prior=True)
    assert len(drawn.rows) == 200
    assert len(set(counts(drawn))) > 2
    assert (np.diff(LABEL[drawn.rows]) >= 0).all()  # class by class
    label = np.where(np.arange(1000) < 900, 0, 1)
    uneven = DrawSpec(100, natural_prior=True).choose(np.arange(1000), KEYS, label, ("a", "b"))
    assert 160 < (label[uneven.rows] == 0).sum() < 198  # 180 are expected of 200


def test_noise_replaces_that_share_of_labels_by_other_classes_evenly() -> None:
    drawn = support(label_noise=0.3, shots=100)
    true = LABEL[drawn.rows]
    told = drawn.told(true)
    assert 0.25 < (told != true).mean() < 0.35
    assert (told != true).sum() == len(drawn.wrong)
    assert set(told.tolist()) == set(range(10))
    steps = np.bincount((told - true)[told != true] % 10, minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 15  # about 33 each
    assert set(drawn.wrong) < set(support(label_noise=0.5, shots=100).wrong)  # more noise adds to less


def test_missing_classes_have_no_image_in_support_or_validation(imported: Store) -> None:
    drawn = draw_task(imported, DrawSpec(4, missing=("bee",)), "val")
    assert set(drawn.task.support.label.tolist()) == set(drawn.task.val.label.tolist()) == {0, 2, 3}
    assert drawn.task.classes == 4
    assert not any("no train image" in remark for remark in drawn.remarks)
    first, again, other = (DrawSpec(4, seed, missing=2).absent(CLASSES) for seed in (1, 1, 2))
    assert len(first) == 2
    assert first == again != other


def test_a_missing_class_is_not_said_to_lack_images_where_others_are_short_of_them(imported: Store) -> None:
    drawn = draw_task(imported, DrawSpec(40, missing=("bee",)))
    assert any("fewer than 40 train images" in remark for remark in drawn.remarks)
    assert not any("no train image" in remark for remark in drawn.remarks)


def test_labels_in_a_task_are_the_noisy_ones_also_where_rows_are_streamed(imported: Store) -> None:
    drawn = draw_task(imported, DrawSpec(label_noise=0.5))
    true = imported.column("label")[drawn.support.rows]
    assert drawn.task.support.label.tolist() == drawn.support.told(true).tolist() != true.tolist()
    streamed = draw_task(imported, DrawSpec(label_noise=0.5, stream=True))
    by_row = dict(zip(drawn.support.rows.tolist(), drawn.task.support.label.tolist(), strict=True))
    assert streamed.task.support.label.tolist() == [by_row[row] for row in sorted(by_row)]


def test_a_row_says_what_was_drawn_and_is_repeated(imported: Store) -> None:
    spec = RunSpec("gda", 8, 1, long_tail=4, label_noise=0.2, missing=["dog"])  # type: ignore[arg-type]
    fitted = fit(imported, spec)
    row = json.loads(json.dumps(fitted.row))
    assert sorted(row["support_counts"]) == [0, 2, 5, 8] or sum(row["support_counts"]) == row["n_support"]
    assert row["missing_classes"] == ["dog"]
    assert row["n_wrong_labels"] > 0
    assert (row["asked"]["long_tail"], row["asked"]["label_noise"], row["asked"]["missing"]) == (4.0, 0.2, ["dog"])
    again = fit(imported, spec_of(row, imported))
    assert compare(row, again) == "the same accuracy as the row"
    assert again.row["fingerprints"] == row["fingerprints"]
    assert fitted.classifier.provenance["shape"]["label_noise"] == 0.2


def test_an_adapter_of_all_images_of_some_classes_says_which_they_were(imported: Store) -> None:
    """Only the keys "all" are those of the train split."""
    made = fit(imported, RunSpec("gda", missing=("bee",))).classifier.provenance
    assert len(made["support"]["keys"]) == 90
    assert not any(key.startswith("b/") for key in made["support"]["keys"])
    assert fit(imported, RunSpec("gda")).classifier.provenance["support"]["keys"] == "all"


@pytest.mark.parametrize(("text", "missing"), [("2", 2), ("ant,bee", ("ant", "bee")), ("3,", ("3",)),
                                               ("3,7", ("3", "7"))])
def test_a_comma_makes_names_of_numbers(text: str, missing: Any) -> None:
    assert Missing().convert(text, None, None) == missing


def test_rows_without_a_shape_keep_their_identity_and_others_have_one_of_their_own(imported: Store) -> None:
    plain = RunSpec("gda", 2)
    assert not {"long_tail", "natural_prior", "label_noise", "missing", "draws"} & set(plain.as_values())
    # What the identity was before there were shapes.
    assert set(plain.as_values()) == {"method", "shots", "seed", "values", "text", "select", "class_weights", "search",
                                      "narrow", "validated", "stream"}
    others = [RunSpec("gda", 2, **more) for more in ({"long_tail": 3}, {"natural_prior": True}, {"label_noise": 0.1},
                                                      {"missing": 1}, {"missing": ("ant",)})]
    assert len({each.identity(imported) for each in (plain, *others)}) == 6
    assert RunSpec("gda", 2, long_tail=3).identity(imported) == RunSpec("gda", 2, long_tail=3.0).identity(imported)
    assert RunSpec("gda", 2, missing=()).identity(imported) == plain.identity(imported)
    assert RunSpec("gda", 2, missing=("ant", "ant")) == RunSpec("gda", 2, missing=("ant",))
    assert RunSpec("gda", 2, missing="ant") == RunSpec("gda", 2, missing=("ant",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "message"), [
    ({"long_tail": 0.5}, "--long-tail 0.5"), ({"long_tail": float("nan")}, "--long-tail nan"),
    ({"label_noise": 1}, "--label-noise 1"), ({"missing": -1}, "--missing -1"),
    ({"missing": 2.5}, "--missing 2.5"), ({"natural_prior": "no"}, "give True or False"),
    ({"missing": 3}, "leaves 1 of 4"),
    ({"missing": ("cat",)}, "no class 'cat'"), ({"long_tail": 2, "natural_prior": True}, "give one of them"),
    ({"label_noise": 0.1, "refit": "val"}, "--refit val fits on all")])
def test_what_means_nothing_is_refused(imported: Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        fit(imported, RunSpec("gda", None if "refit" in options else 2, **options))


def test_a_sweep_with_noise_is_a_table_of_its_own(imported: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    for more in ([], ["--label-noise", "0.4"], ["--long-tail", "4", "--missing", "ant"]):
        done = run("sweep", imported.path, "--methods", "zero-shot,gda", "--shots", "4", "--seeds", "1-2", *more,
                   "--out", tmp_path)
        assert done.exit_code == 0, done.output
    assert "selection default, long tail 4, missing ant: test accuracy" in done.stdout
    draws = ("", ", label noise 0.4", ", long tail 4, missing ant")
    assert set(onceclip.results(tmp_path)["method"]) == {name + draw for name in ("zero-shot", "gda") for draw in draws}
    assert run("report", tmp_path, "--out", tmp_path / "page.html").exit_code == 0


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_all_that_a_draw_can_be_asked_to_be_is_an_option(command: str) -> None:
    options = {parameter.name for parameter in main.commands[command].params}
    assert {each.name for each in fields(DrawSpec)} - {"shots", "seed"} <= options
