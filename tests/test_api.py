"""The public names: their documentation is complete, true, and runs."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import onceclip
from onceclip import adapters
from onceclip.adapters import methods
from onceclip.pipeline.words import version

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(onceclip._PUBLIC)
OF_ADAPTERS = sorted(name for name in (*adapters.__all__, *methods.__all__)
                     if ">>>" in (inspect.getdoc(getattr(adapters, name)) or ""))
PLAIN = {"BadImage", "Preparation", "Record"}  # values for sources and encoders of one's own; docs/extending.md


@pytest.fixture(scope="module")
def shelf(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pets/, and pets.zarr which has every output and a second text set."""
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder
    from onceclip.pipeline.extraction.extract import extract
    from onceclip.pipeline.extraction.outputs import OutputOptions
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.prompts import load_templates
    from onceclip.pipeline.prompts.embedding import add_text, prompts_for

    root = tmp_path_factory.mktemp("shelf")
    shutil.copytree(pets / "pets", root / "pets")
    path, encoder = root / "pets.zarr", EncoderSpec("demo")
    extract(pets / "pets", path, encoder, ExtractOptions(workers=1, outputs=OutputOptions(
        preproj=True, tokens="last", layer_statistics=True)))
    sentences = prompts_for(onceclip.open_store(str(path)), load_templates("imagenet-7"), None, None, 0, 1)
    add_text(str(path), "ensemble", sentences, open_encoder(encoder))
    onceclip.add_tower(str(path))
    return root


@pytest.fixture
def words(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What docs/python.md begins with, and examples take for granted."""
    import torch

    monkeypatch.chdir(shelf)
    store = onceclip.open_store("pets.zarr")
    task = onceclip.make_task(store, shots=4, seed=1)
    if not Path("pets-adapter").exists():
        onceclip.fit(store, "tip-adapter", shots=4, out="pets-adapter")
    return {"onceclip": onceclip, "torch": torch, "Path": Path, "store": store, "task": task,
            "tower_task": onceclip.make_task(store, shots=4, seed=1, tower=True),
            "embeddings": torch.from_numpy(store.embeddings(store.rows("test")[:5]))}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PLAIN] + OF_ADAPTERS)
def test_the_example_of_a_public_name_runs_and_says_the_truth(name: str, words: dict[str, Any],
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    value = getattr(onceclip if name in NAMES else adapters, name)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", words, name, None, 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.attempted, f"{name} has no example"
    assert not result.failed, capsys.readouterr().out


def test_a_method_that_needs_more_than_images_and_prompts_has_an_example_that_says_how_it_gets_it() -> None:
    special = {method.__name__ for method in adapters.METHODS.values()
               if method.inputs != ("embedding",) or method.from_bank or method.__name__ == "CoOp"}
    assert special <= set(OF_ADAPTERS)
    assert "Method" in OF_ADAPTERS


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_of_a_public_name_begins_with_one_sentence(name: str) -> None:
    first = (inspect.getdoc(getattr(onceclip, name)) or "").split("\n\n")[0].split("\n")
    assert first[0].endswith((".", ":")) or (len(first) > 1 and first[-1].endswith("."))


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_public_name_has_a_type(name: str) -> None:
    value = getattr(onceclip, name)
    functions = [value] if inspect.isfunction(value) else [
        function for each, function in vars(value).items()
        if inspect.isfunction(function) and (each == "__init__" or not each.startswith("_"))]
    for function in functions:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, function
        bare = [each.name for each in signature.parameters.values()
                if each.annotation is inspect.Parameter.empty and each.name not in ("self", "cls")]
        assert bare == [], function


@pytest.mark.checkout
def test_type_checkers_see_every_public_name() -> None:
    """What is imported on first use is written down again, for them alone."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block, = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom)
            for alias in node.names}
    assert seen == onceclip._PUBLIC
    assert set(onceclip.__all__) == {"OnceclipError", "__version__", *seen}
    assert (ROOT / "py.typed").is_file()


@pytest.mark.checkout
@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_stands_in_the_python_page(name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "place"), [("TipAdapter", "onceclip.adapters"), ("Task", "onceclip.adapters"),
                                             ("Store", "onceclip.stores"),
                                             ("make_specs", "onceclip.pipeline.runs.specs"),
                                             ("make_plan", "onceclip.pipeline.runs.sweep")])
def test_a_name_that_is_elsewhere_is_an_attribute_error_that_says_where(name: str, place: str) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute '{name}': it is in {place}$"):
        getattr(onceclip, name)


def test_an_unknown_name_is_an_attribute_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'TipAdaptor'$"):
        onceclip.TipAdaptor  # noqa: B018


def test_the_version_is_that_of_the_package_and_stands_for_a_checkout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    assert onceclip.__version__ == importlib.metadata.version("onceclip")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    version.cache_clear()
    try:
        assert onceclip.__version__ == "0+checkout"
    finally:
        version.cache_clear()
