"""The rules of the house that a reader of the code relies on: rooms, names, sizes, and what ships."""

from __future__ import annotations

import ast
import configparser
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("stores", "adapters", "pipeline")
OUTSIDE = {"tests", "build", "dist", "bench", "docs"}

FORBIDDEN = {
    "stores": ("torch", "torchvision", "open_clip", "click", "onceclip.adapters", "onceclip.pipeline", "onceclip.cli"),
    "adapters": ("zarr", "click", "open_clip", "onceclip.stores", "onceclip.pipeline", "onceclip.cli"),
    "pipeline": ("onceclip.cli",),
}


def code_files(folder: Path = ROOT) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py"))
            if not any(part.startswith(".") or part in OUTSIDE for part in path.relative_to(ROOT).parts)]


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, with the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@pytest.mark.checkout
@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    files = code_files(ROOT / room)
    assert len(files) > 3
    found = [f"{path.relative_to(ROOT)} imports {name}" for path in files for name in imports_of(path)
             for module in FORBIDDEN[room] if inside(name, module)]
    assert found == []


@pytest.mark.checkout
def test_nothing_but_the_main_module_imports_the_command_line() -> None:
    found = [path.name for path in code_files() for name in imports_of(path) if inside(name, "onceclip.cli")]
    assert found == ["__main__.py"]


@pytest.mark.checkout
def test_the_root_holds_four_python_files_because_all_of_them_ship() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py", "errors.py"}


@pytest.mark.checkout
def test_every_package_folder_is_listed_in_setup_cfg() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = settings["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in code_files() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(".".join(["onceclip", *folder.parts]) for folder in folders)


@pytest.mark.checkout
def test_every_folder_with_code_is_a_package() -> None:
    bare = {str(path.parent) for path in code_files() if not (path.parent / "__init__.py").is_file()}
    assert bare == set()


@pytest.mark.checkout
def test_no_file_is_longer_than_400_lines() -> None:
    long = [str(path) for path in [*code_files(), *(ROOT / "tests").rglob("*.py")]
            if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert long == []


@pytest.mark.checkout
def test_every_module_and_public_name_has_a_docstring() -> None:
    bare = []
    for path in code_files():
        module = ast.parse(path.read_text(encoding="utf-8"))
        public = [node for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
                  and not node.name.startswith("_")]
        bare += [f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}" for node in [module, *public]
                 if not ast.get_docstring(node)]
    assert bare == []


def test_help_is_instant_because_it_imports_neither_torch_nor_zarr(process: Callable[..., Any]) -> None:
    done = process("-X", "importtime", "-m", "onceclip", "--help")
    assert done.returncode == 0
    assert "extract" in done.stdout
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "onceclip" in loaded  # so the listing is what it is taken for
    assert loaded.isdisjoint({"torch", "zarr", "numpy", "open_clip", "PIL"})


def test_importing_onceclip_imports_nothing_heavy_and_its_names_still_work(process: Callable[..., Any]) -> None:
    code = ("import sys, onceclip; assert {'torch', 'zarr', 'numpy'}.isdisjoint(sys.modules);"
            "assert callable(onceclip.open_store) and 'torch' not in sys.modules;"
            "assert set(onceclip.__all__) <= set(dir(onceclip));"
            "[getattr(onceclip, name) for name in onceclip.__all__]")
    done = process("-W", "error::DeprecationWarning:onceclip", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_fit_and_evaluate_never_import_open_clip(process: Callable[..., Any], store_path: Path) -> None:
    """Who fits needs no CLIP: offline machines have none (open_clip#580, pybioclip#17)."""
    code = ("import sys; from onceclip.pipeline.fit import RunSpec, fit; from onceclip.stores import open_store;"
            "from onceclip.pipeline.evaluation.evaluate import evaluate; store = open_store(sys.argv[1]);"
            "fitted = fit(store, RunSpec('tip-adapter', 2)); evaluate(fitted.classifier, store);"
            "assert fitted.row['n_test'] > 0; print('open_clip' in sys.modules, 'click' in sys.modules)")
    done = process("-c", code, store_path)
    assert (done.returncode, done.stdout.strip()) == (0, "False False"), done.stderr


@pytest.mark.checkout
@pytest.mark.slow
def test_the_wheel_puts_one_name_into_site_packages(process: Callable[..., Any], tmp_path: Path) -> None:
    """There is a well-known package called `adapters`: a second top-level name would overwrite it."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__",
                                                                "onceclip-demo", "*.zarr"))
    done = process("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names}
    assert "onceclip" in tops
    assert all(top == "onceclip" or (top.startswith("onceclip-") and top.endswith(".dist-info")) for top in tops)
    assert {"onceclip/py.typed", "onceclip/__main__.py", "onceclip/cli.py",
            "onceclip/pipeline/demo/model/open_clip_config.json",
            "onceclip/pipeline/demo/model/open_clip_model.safetensors"} <= set(names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {f"onceclip/{path.relative_to(ROOT)}" for path in code_files()}
