"""The runs of a sweep: every combination of what is asked for, and nothing that does not exist."""

from __future__ import annotations

from typing import Any

import pytest

from onceclip.adapters import METHODS, UnknownName
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.specs import make_specs


def test_a_grid_makes_a_run_of_each_value_and_only_for_methods_that_have_it() -> None:
    specs = make_specs(["zero-shot", "tip-adapter", "clip-adapter"], [1], [1, 2],
                       [("beta", ["1", "2.0"]), ("clip-adapter.ratio", ["0.5"]), ("ratio", ["0.9"])])  # in any order
    assert [(spec.method, spec.seed, dict(spec.values)) for spec in specs if spec.seed == 1] == [
        ("zero-shot", 1, {}), ("tip-adapter", 1, {"beta": 1.0}), ("tip-adapter", 1, {"beta": 2.0}),
        ("clip-adapter", 1, {"ratio": 0.5})]
    assert len(specs) == 8
    own = make_specs(["tip-adapter"], [1], [1], own=True)
    assert [spec.values["beta"] for spec in own] == list(METHODS["tip-adapter"].hyperparameters["beta"].search)


@pytest.mark.parametrize(("methods", "grids", "error", "message"), [
    (["tip-adaptor"], [], UnknownName, "did you mean 'tip-adapter'"),
    (["zero-shot"], [("beta", ["1"])], TaskError, "--grid beta: none of zero-shot"),
    (["tip-adapter"], [("clip-adapter.ratio", ["1"])], TaskError, "--grid clip-adapter.ratio"),
    (["tip-adapter"], [("beta", ["1"]), ("beta", ["5"])], TaskError, "beta is given twice: give it once"),
])
def test_a_sweep_of_what_does_not_exist_is_refused_before_it_starts(methods: list[str], grids: list[Any], error: Any,
                                                                    message: str) -> None:
    with pytest.raises(error, match=message):
        make_specs(methods, [1], [1], grids)


def test_an_average_in_a_sweep_searches_in_its_own_way() -> None:
    specs = make_specs(["gda", "automatic", "gda+zero-shot"], [1], [1], search="random:3", narrow=True)
    assert [(spec.search, spec.narrow) for spec in specs] == [("random:3", True), ("grid", False), ("grid", False)]
