"""A store's folder is for its own files: nothing else is written into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("command", [
    ("compact", "STORE", "STORE/inner"), ("extract", "IMAGES", "STORE/inner.zarr", "--model", "demo"),
    ("import", "features.npz", "STORE/image/inner.zarr"), ("fit", "STORE", "--method", "gda", "--out", "STORE/adapter"),
    ("export", "STORE", "--to", "npz", "STORE/out.npz"),
    ("sweep", "STORE", "--methods", "gda", "--out", "STORE/results"),
    ("predict", "ADAPTER", "STORE", "--out", "STORE/labels.csv"),
    ("report", "ADAPTER", "STORE", "--out", "STORE/mistakes.html"),
], ids=lambda command: command[0])
def test_what_would_be_written_into_a_store_is_refused(
        command: tuple[str, ...], store_path: Path, image_folder: Path, adapter_path: Path, tmp_path: Path,
        run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("features.npz", embedding=np.eye(8, dtype=np.float32), label=np.arange(8) % 2)
    before = sorted(store_path.rglob("*"))
    named = {"STORE": store_path, "IMAGES": image_folder, "ADAPTER": adapter_path}
    refused = run(*(named.get(each, each.replace("STORE", str(store_path))) for each in command))
    assert (refused.exit_code, sorted(store_path.rglob("*"))) == (1, before), refused.output
    assert f"lies within the store {store_path}: give a path outside of it" in refused.stderr
