"""The notebook of the documentation: it runs from its first cell to its last, and is stored as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
pytestmark = pytest.mark.checkout


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    """Its cells of code, which are plain Python without a line for a shell or for Jupyter."""
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs(cells: list[dict[str, Any]]) -> None:
    assert cells
    assert [cell["source"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
def test_the_notebook_runs_and_ends_with_a_picture(cells: list[dict[str, Any]], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), PATH.name, "exec"), names)
    said = capsys.readouterr().out
    assert "1797 encoded" in said
    assert "27 runs" in said
    figure = names["plt"].gcf()
    assert len(figure.axes[0].lines) == 3
    figure.savefig(tmp_path / "picture.png")
    names["plt"].close(figure)
