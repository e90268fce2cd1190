"""The simulation of very many rows, which `docs/scale.md` has the figures of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # the benches are no part of the package

from bench.measure import read_rows  # noqa: E402
from bench.scale import command  # noqa: E402
from bench.stages import STAGES  # noqa: E402

pytestmark = pytest.mark.checkout


@pytest.mark.slow
def test_a_store_goes_through_all_stages_each_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(command, ["--quick", "--rows", "10000", "--folder", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = {row.figure.partition(",")[0]: row.values for row in read_rows(out)}
    assert list(rows) == list(STAGES)
    assert all(0 < each["idle_mib"] <= each["peak_mib"] for each in rows.values())
    assert rows["resume"]["resumed"] == 10000 - 4096
    assert (rows["verify"]["faults"], rows["verify"]["remarks"]) == (0, 0)
    # Three units of five files, four columns of one file, and the descriptions of nine arrays and of their groups.
    assert rows["files"]["files"] == 3 * 5 + 4 + 9 + 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
