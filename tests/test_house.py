"""The rules of the house that a reader of the code relies on: rooms, names, sizes, and what ships."""

from __future__ import annotations

import ast
import configparser
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
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


@cache
def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it, with the names taken from it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


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
def test_no_room_imports_the_root_which_names_them_all() -> None:
    """Errors have a base of their own in the root, and the version stands in `pipeline/words.py`."""
    found = [f"{path.relative_to(ROOT)} imports {name}" for room in ROOMS for path in code_files(ROOT / room)
             for name in imports_of(path) if name == "onceclip" or (
                 name.startswith("onceclip.") and name.split(".")[1] not in {*ROOMS, "errors"})]
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
def test_no_file_is_longer_than_350_lines() -> None:
    long = [str(path) for path in [*code_files(), *(ROOT / "tests").rglob("*.py")]
            if len(path.read_text(encoding="utf-8").splitlines()) > 350]
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


def test_reading_a_store_loads_neither_torch_nor_what_commands_need(process: Callable[..., Any],
                                                                    store_path: Path) -> None:
    """Who looks at embeddings elsewhere does not need a gigabyte of libraries for it."""
    code = ("import sys, onceclip; store = onceclip.open_store(sys.argv[1]);"
            "rows = store.rows('test'); assert len(store.embeddings(rows)) == len(rows) > 0;"
            "assert store.text('default').classes == store.classes and store.table.key[0];"
            "print(' '.join({name.partition('.')[0] for name in sys.modules}))")
    done = process("-c", code, store_path)
    loaded = set(done.stdout.split())
    assert {"onceclip", "zarr", "numpy"} <= loaded, done.stderr  # so the listing is what it is taken for
    assert loaded.isdisjoint({"torch", "torchvision", "open_clip", "transformers", "pandas", "scipy", "sklearn", "PIL",
                              "distributed", "click"})


def test_fit_and_evaluate_never_import_open_clip(process: Callable[..., Any], store_path: Path) -> None:
    """Who fits needs no CLIP: offline machines have none (open_clip#580, pybioclip#17)."""
    code = ("import sys; from onceclip.pipeline.runs.fit import RunSpec, fit; from onceclip.stores import open_store;"
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
            "onceclip/pipeline/encoders/demo_model/open_clip_config.json",
            "onceclip/pipeline/encoders/demo_model/open_clip_model.safetensors"} <= set(names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {f"onceclip/{path.relative_to(ROOT)}" for path in code_files()}


Edge = tuple[str, str]  # importing and imported module, without "onceclip."

# From the bottom up; rooms of one floor know nothing of each other. A file that is named here has a floor of its own.
PIPELINE = (("errors", "words"), ("files", "workers"), ("sources", "tasks"), ("decoding", "evaluation"),
            ("encoders", "runs", "retrieval"), ("prompts",), ("extraction",), ("prediction", "export", "reporting"),
            ("api",), ("commands",))
ADAPTERS = (("errors", "ops", "cpu"), ("plugin",), ("text", "tower"), ("task",), ("heads",),
            ("training/trainable", "saving"), ("classifier",), ("training",), ("method",), ("selection",), ("methods",),
            ("inference", "support", "selection/automatic"), ("ensembles",), ("transfer",))
STAGE_1 = {"sources", "decoding", "encoders", "prompts", "extraction"}
STAGE_2 = {"tasks", "evaluation", "runs"}

def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every product file by its module's name without "onceclip."; a package by its folder's."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if not any(part in OUTSIDE or part.startswith(".") for part in place.parts):
            found[".".join(place.with_suffix("").parts).removesuffix("__init__").rstrip(".")] = path
    return found


def imports(files: dict[str, Path]) -> Iterator[Edge]:
    """Who imports whom: at the top, within functions and under TYPE_CHECKING."""
    handed_on = {module: dict(_handed_on(path)) for module, path in files.items() if path.name == "__init__.py"}
    for module, path in files.items():
        if path.name == "__init__.py" and module.count(".") < 2:
            continue  # the face of a package hands names on
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for source, name in names:
                if source == "onceclip" or source.startswith("onceclip."):
                    source = source.removeprefix("onceclip").lstrip(".")
                    source = handed_on.get(source, {}).get(name, source)
                    inside = f"{source}.{name}".lstrip(".")
                    imported = inside if inside in files else source
                    if imported and imported != module:
                        yield module, imported


def _handed_on(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onceclip."):
            yield from ((alias.asname or alias.name, str(node.module).removeprefix("onceclip."))
                        for alias in node.names)


def against_the_order(edges: Iterable[Edge], package: str, floors: tuple[tuple[str, ...], ...]) -> list[str]:
    """Imports within a package that do not lead down to a lower floor."""
    level = {room: number for number, floor in enumerate(floors) for room in floor}

    def room(module: str) -> str | None:
        parts = module.removeprefix(f"{package}.").split(".")
        names = ("/".join(parts[:2]), parts[0])
        return next((name for name in names if name in level), None) if module.startswith(f"{package}.") else None

    return [f"{above} imports {below}" for above, below in edges
            if (first := room(above)) and (second := room(below)) and first != second
            and (level[second] >= level[first] or ({first, second} <= STAGE_1 | STAGE_2
                 and (first in STAGE_1) != (second in STAGE_1)))]


def circles(edges: Iterable[Edge]) -> list[list[str]]:
    """Groups of files that import each other, directly or not."""
    below: dict[str, set[str]] = {}
    for above, other in edges:
        below.setdefault(above, set()).add(other)
    reached = {start: _reached(start, below) for start in below}
    return sorted({tuple(sorted(other for other in reached[start] if start in reached.get(other, ())))
                   for start in below if start in reached[start]})


def _reached(start: str, below: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    going = list(below[start])
    while going:
        each = going.pop()
        if each not in found:
            found.add(each)
            going += below.get(each, ())
    return found


FILES = modules()


@cache
def edges() -> list[Edge]:
    """All imports."""
    return sorted(set(imports(FILES)))


@pytest.mark.checkout
@pytest.mark.parametrize(("package", "floors"), [("pipeline", PIPELINE), ("adapters", ADAPTERS)])
def test_imports_lead_down_and_the_two_stages_know_nothing_of_each_other(
        package: str, floors: tuple[tuple[str, ...], ...]) -> None:
    assert len(edges()) > 200
    assert against_the_order(edges(), package, floors) == []


@pytest.mark.checkout
def test_every_room_of_the_two_packages_has_its_floor() -> None:
    for package, floors in (("pipeline", PIPELINE), ("adapters", ADAPTERS)):
        placed = {room.split("/")[0] for floor in floors for room in floor}
        there = {module.split(".")[1] for module in FILES if module.startswith(f"{package}.")}
        assert there == placed


@pytest.mark.checkout
def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(edges()) == []


@pytest.mark.checkout
def test_an_import_against_the_order_would_be_found() -> None:
    for edge in [("pipeline.sources.folder", "pipeline.commands.fit"), ("pipeline.runs.fit", "pipeline.sources.record"),
                 ("pipeline.encoders.spec", "pipeline.runs.run"), ("pipeline.tasks.draws", "pipeline.sources.record")]:
        assert against_the_order([edge], "pipeline", PIPELINE) == [" imports ".join(edge)]
    edge = ("adapters.training.trainable", "adapters.training.loop")
    assert against_the_order([edge], "adapters", ADAPTERS) == [" imports ".join(edge)]
    assert circles([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]) == [("a", "b", "c")]


@pytest.mark.checkout
def test_every_command_is_one_file_of_its_room_that_is_called_as_it_is() -> None:
    from onceclip.cli import main

    shared = {"__init__", "configuration", "help", "inference", "options", "parameter_types"}
    files = {path.stem for path in (ROOT / "pipeline" / "commands").glob("*.py")} - shared
    room, names = "onceclip.pipeline.commands", {"importing": "import"}  # which is a word of Python
    assert {name: command.callback.__module__ for name, command in main.commands.items() if command.callback} == {
        names.get(file, file): f"{room}.{file}" for file in files}


@pytest.mark.checkout
def test_every_room_has_its_folder_of_tests() -> None:
    rooms = {path.parent.relative_to(ROOT) for path in FILES.values() if path.name == "__init__.py"} - {Path()}
    there = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    bare = sorted(str(room) for room in rooms if not any(room == each or room in each.parents for each in there))
    assert bare == []
