"""The notebook runs from top to bottom, and is stored without what it printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
pytestmark = pytest.mark.checkout


@pytest.fixture
def notebook() -> Any:
    """The notebook as it is stored."""
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(PATH, as_version=4)


def test_the_notebook_is_stored_without_outputs(notebook: Any) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
def test_the_notebook_runs_and_ends_with_a_picture(notebook: Any, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernel of the user's own
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "1797 encoded" in said
    assert "27 runs" in said
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs)
