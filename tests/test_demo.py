"""The demonstration that the project opens with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.api.runs import SWEPT
from onceclip.pipeline.commands.demo import SEEDS, SHOTS
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.summary import BASELINE, tables

README = Path(__file__).resolve().parent.parent / "README.md"
pytestmark = pytest.mark.slow


def test_the_demo_keeps_its_promise_and_repeats_nothing(tmp_path: Path, run: Callable[..., Any]) -> None:
    first = run("demo", "--out", tmp_path / "demo")
    assert first.exit_code == 0, first.stderr
    rows = read_rows(tmp_path / "demo" / "results")
    assert len(rows) == len(SWEPT) * len(SHOTS) * len(SEEDS) == 150
    assert "<svg" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    table, = tables(rows)
    means = {name: table.accuracy[name, 16].value for name in table.names}
    assert {name: mean for name, mean in means.items() if name != BASELINE and mean <= means[BASELINE]} == {}
    shown = {(name, shots): float(cell) for name in table.names for line in README.read_text().splitlines()
             if line.startswith(f"{name} ") and line.count("±") == len(SHOTS)
             for shots, cell in zip(SHOTS, re.findall(r"([\d.]+) ±", line), strict=True)}
    # Another processor may take a few of the 539 test images for another digit.
    assert shown == {key: pytest.approx(100 * mean.value, abs=0.5) for key, mean in table.accuracy.items()}

    content = (tmp_path / "demo" / "results" / "results.jsonl").read_bytes()
    second = run("demo", "--out", tmp_path / "demo", "--json")
    assert second.exit_code == 0, second.stderr
    assert "encoded 0 of 1,797 images and 0 prompts" in second.stderr
    assert json.loads(second.stdout)["runs"] == 150
    assert (tmp_path / "demo" / "results" / "results.jsonl").read_bytes() == content
