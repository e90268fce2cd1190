"""What a run is called: rows that were made before stay those of the same runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onceclip.errors import OnceclipError
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.runs.results import append_row, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.draw_files import DrawFile
from onceclip.stores.identity import fingerprint

# Made by versions that wrote each field down by itself.
KNOWN = {
    "fcd45a86d192848c97e5ee442316ac35": RunSpec("gda"),
    "8f87fc09a2cd85d4cbe1e655bfeb3458": RunSpec("gda", 4, 2, {"alpha": 2}),
    "2d99909023ea4355c9b334b6feb8e9c3": RunSpec("tip-adapter", 16, 3, {}, "ensemble", "val", "raw-mean", "random:8",
                                                True, True),
    "f40483919285c523853d5326c2ba698c": RunSpec("gda", 4, stream=True),
    "eb1a2fde2fa019be4129facbfc59379a": RunSpec("gda", 4, classes="base"),
    "e6a38da726e34cd1b42727c6e854c5bb": RunSpec("gda", refit="val"),
    "6fdd4cc3c0007432413f7fe7ac9571bf": RunSpec("gda", 4, support="upl:8"),
    "a1bbc918a8284d02595ee5ba87bd3d4d": RunSpec("gda", 0, support="upl"),
    "ee9891a4c7e651e3033cbeb004c91eaf": RunSpec("gda", 0, support="retrieve:4", bank="/b.zarr", captions="words"),
    "96e0dacd36a571d0c29db37299c36107": RunSpec("gda", 4, long_tail=3),
    "a75f7303a28012d3ea8a4f7083ee8142": RunSpec("gda", 4, natural_prior=True),
    "15aefcd9ad53e1240681896abcdd38ed": RunSpec("gda", 4, label_noise=0.25),
    "711f5b71eca7ab9c621508727ba0aaea": RunSpec("gda", 4, missing=2),
    "17f59c7418c92eab3508971cdd36ac54": RunSpec("gda", 4, missing=("b", "a")),
    "0d32590dd9ea55e1df575448510501bf": RunSpec("gda", 4, draws=DrawFile("/d.json", "ab")),
    "eba4959c3423f0f25f0a6d1b44cca72f": RunSpec("gda", 4, inference="stata", inference_values={"alpha": "2"},
                                                batches={"size": 32}),
    "6e67684596a89c38dbd1413cfa8e1460": RunSpec("labelling-network", 4, join=["dino=/dino.zarr"],
                                                inputs=["dino/embedding"]),
}


@pytest.mark.parametrize("known", KNOWN)
def test_a_run_is_written_as_before_and_made_again_of_what_is_written(known: str, tmp_path: Path) -> None:
    spec = KNOWN[known]
    assert fingerprint(json.loads(json.dumps(spec.as_values()))) == known
    append_row(tmp_path, {"asked": spec.as_values()})
    assert RunSpec(**read_rows(tmp_path)[0]["asked"]) == spec
    assert replace(spec, text="another") != spec
    assert replace(spec, text="another").common != spec.common
    assert replace(spec, seed=9).common == spec.common == spec.alone.common


@pytest.mark.parametrize("asked", [{"seed": -1}, {"stream": 1}, {"bank": 3}, {"long_tail": "3"}, {"draws": "/d.json"},
                                   {"missing": [1]}, {"label_noise": float("inf")}, {"inference_values": 1}], ids=str)
def test_a_row_with_a_draw_that_no_run_writes_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps({"asked": asked}) + "\n")
    with pytest.raises(ResultError, match=r"'asked' is .* which onceclip never writes"):
        read_rows(tmp_path)


@pytest.mark.parametrize(("asked", "words"), [
    ({"shots": 2.5}, "--shots 2.5: give a whole number"), ({"shots": "4"}, "--shots '4'"), ({"seed": -1}, "--seed -1"),
    ({"seed": 2**63}, "below 2"),
    ({"shots": True}, "--shots True"), ({"classes": "old"}, "there are: all, base"), ({"stream": 1}, "--stream 1"),
    ({"select": "vall"}, "did you mean 'val'"), ({"class_weights": "mean"}, "no class_weights 'mean'"),
    ({"text": None}, "text None"), ({"narrow": "no"}, "narrow 'no'"), ({"search": "gridd"}, "no search 'gridd'"),
    ({"values": ["alpha"]}, "give hyperparameters by name")], ids=str)
def test_a_value_that_means_nothing_is_refused_where_a_run_is_written_down(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(OnceclipError, match=words):
        RunSpec("gda", **asked)


def test_a_run_makes_its_strategy_once() -> None:
    spec = RunSpec("gda", 4, inference="stata", inference_values={"alpha": 2})
    assert spec.strategy is spec.strategy
    assert spec.strategy is not replace(spec, inference_values={"alpha": 3}).strategy
