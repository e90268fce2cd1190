"""What a command imports before it answers: a person waits for that. Modules are counted, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `import scipy` takes 10 ms and loads none of its parts, which take up to a second.
HEAVY = {"torch", "open_clip", "torchvision", "transformers", "scipy.ndimage", "scipy.optimize", "scipy.sparse",
         "scipy.stats", "sklearn", "pandas", "dask", "distributed", "jinja2"}
LOADED = "import sys; from onceclip.cli import main; main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"


@pytest.fixture
def imported(process: Callable[..., Any]) -> Callable[..., set[str]]:
    """Run a command in a process of its own; gives which of the heavy packages it imported."""

    def run(*arguments: Any) -> set[str]:
        done = process("-c", LOADED, *arguments)
        assert done.returncode == 0, done.stderr
        loaded = set(done.stdout.splitlines()[-1].split())
        assert "onceclip.cli" in loaded  # so the listing is what it is taken for
        return HEAVY & loaded

    return run


@pytest.mark.parametrize("command", [("info", "STORE"), ("info", "ADAPTER"), ("methods",), ("methods", "gda")],
                         ids=" ".join)
def test_what_is_only_looked_at_needs_nothing_heavy(imported: Callable[..., set[str]], store_path: Path,
                                                    adapter_path: Path, command: tuple[str, ...]) -> None:
    places = {"STORE": str(store_path), "ADAPTER": str(adapter_path)}
    assert imported(*(places.get(word, word) for word in command)) == set()


def test_an_extraction_with_nothing_new_does_not_load_the_encoder(imported: Callable[..., set[str]], image_folder: Path,
                                                                  store_path: Path) -> None:
    assert imported("extract", image_folder, store_path, "--model", "demo", "--json") == set()


def test_a_fit_and_a_prediction_from_a_store_import_torch_alone(imported: Callable[..., set[str]], store_path: Path,
                                                                adapter_path: Path, tmp_path: Path) -> None:
    assert imported("fit", store_path, "--method", "gda", "--shots", "2") == {"torch"}
    assert imported("predict", adapter_path, store_path, "--out", tmp_path / "labels.csv") == {"torch"}


REFUSED = {
    "fit STORE --method gda --out ADAPTER": "holds an adapter already", "fit none": "is not a store",
    "sweep STORE none --out results": "is not a store", "incremental none": "is not a store",
    "evaluate none STORE": "is not a saved adapter", "evaluate ADAPTER none": "is not a store",
    "predict none none": "is not a saved adapter", "suggest none STORE --label-errors": "is not a saved adapter",
    "retrieve none --query ring": "is not a store", "draws none --out draws": "is not a store",
    "report ADAPTER none --out page.html": "is not a store", "text none --name more": "is not a store",
    "export none --to onnx a.onnx": "is not a saved adapter", "verify none": "is not a store"}


def test_a_place_that_cannot_be_used_is_refused_before_torch_is_imported(
        process: Callable[..., Any], store_path: Path, adapter_path: Path) -> None:
    code = ("import sys; from onceclip.cli import main\n"
            "for line in sys.argv[1:]:\n"
            "    try: main(line.split('|'))\n"
            "    except SystemExit: pass\n"
            "print(*sys.modules)")
    places = {"STORE": str(store_path), "ADAPTER": str(adapter_path)}
    done = process("-c", code, *("|".join(places.get(word, word) for word in line.split()) for line in REFUSED))
    for said, line in zip(REFUSED.values(), done.stderr.splitlines(), strict=True):
        assert said in line
    assert HEAVY.isdisjoint(done.stdout.split())
