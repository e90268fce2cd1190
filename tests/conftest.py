"""What the tests of all rooms share: image folders, one extracted store, the encoder, ways to run commands."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from .fork_server import ForkServer

CLASSES = ("bar", "cross", "disc", "ring")
UNIT_ROWS = 16  # of the shared store, so that its 60 rows are several units


def draw_glyph(path: Path, kind: str = "disc", seed: int = 0) -> Path:
    """Save a small picture of a shape; every (kind, seed) has content of its own."""
    random = np.random.default_rng([seed, *os.fsencode(kind)])
    left, top = random.integers(2, 8, 2).tolist()
    right, bottom = random.integers(22, 30, 2).tolist()
    width = int(random.integers(3, 6))
    image = Image.new("L", (32, 32), 255)
    pen = ImageDraw.Draw(image)
    if kind == "ring":
        pen.ellipse((left, top, right, bottom), outline=0, width=width)
    elif kind == "disc":
        pen.ellipse((left, top, right, bottom), fill=0)
    elif kind == "cross":
        pen.line((left, top, right, bottom), fill=0, width=width)
        pen.line((left, bottom, right, top), fill=0, width=width)
    else:
        pen.line((16 + left - 5, top, 16 + left - 5, bottom), fill=0, width=width)
    noisy = np.asarray(image, np.int16) - random.integers(0, 25, (32, 32), dtype=np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


def pytest_sessionstart() -> None:
    """Imports leave no garbage that is worth looking for."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at it again, and the others are seldom."""
    gc.freeze()
    gc.set_threshold(2000, 10, 20)
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the slow ones come first, so that nobody waits for them at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled steps are kept for the tests of this session alone, those of other workers too."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "torch"))
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Nobody waits for the disk to have kept a file: no test cuts the power of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def glyph() -> Callable[..., Path]:
    """The function that draws one picture."""
    return draw_glyph


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Make an image folder: folder_of({"disc": 3, "test/ring": 2}) has these numbers of pictures in these folders."""

    def make(counts: dict[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        for folder, number in counts.items():
            for seed in range(number):
                draw_glyph(root / folder / f"{seed:02d}.png", Path(folder).name, seed + 1000 * (len(folder) + 1))
        return root

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in 4 class folders, PNG and JPEG; not to be changed."""
    root = tmp_path_factory.mktemp("shared") / "glyphs"
    for kind in CLASSES:
        for seed in range(15):
            draw_glyph(root / kind / f"{kind}-{seed}{'.png' if seed % 2 else '.jpg'}", kind, seed)
    return root


@pytest.fixture(scope="session")
def encoder() -> Any:
    """The demo encoder, loaded once."""
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder

    return open_encoder(EncoderSpec("demo"))


@pytest.fixture(scope="session")
def extract_demo() -> Callable[..., Any]:
    """Extract a folder with the demo encoder: extract_demo(folder, store, model=..., unit_rows=..., ...)."""
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.extraction.extract import extract
    from onceclip.pipeline.extraction.survey import ExtractOptions

    def run(folder: Path, store: Path | str, model: str = "demo", **options: Any) -> Any:
        return extract(folder, store, EncoderSpec(model), ExtractOptions(**{"workers": 1, **options}))

    return run


@pytest.fixture(scope="session")
def store_path(image_folder: Path, extract_demo: Callable[..., Any]) -> Path:
    """A store of the shared image folder; not to be changed."""
    path = image_folder.parent / "glyphs.zarr"
    extract_demo(image_folder, path, unit_rows=UNIT_ROWS)
    return path


@pytest.fixture(scope="session")
def adapter_path(store_path: Path) -> Path:
    """A saved adapter, fitted on the shared store; not to be changed."""
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec
    from onceclip.stores import open_store

    path = store_path.parent / "adapter"
    fit(open_store(str(store_path)), RunSpec("tip-adapter", 4)).classifier.save(path)
    return path


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a store, but for what a killed process was writing."""
    return lambda path: {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*")
                         if file.is_file() and file.suffix != ".partial"}


@pytest.fixture
def store_copy(store_path: Path, tmp_path: Path) -> Path:
    """A copy of the shared store, to be damaged."""
    return Path(shutil.copytree(store_path, tmp_path / "copy.zarr"))


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`local-dir:` name of the demo model with one weight changed."""
    from importlib.resources import files

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("encoders") / "other"
    shutil.copytree(str(files("onceclip.pipeline.encoders") / "demo_model"), folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"] = weights["visual.proj"].clone()
    weights["visual.proj"][0, 0] += 1
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    return f"local-dir:{folder}"


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command in this process; standard output and standard error are kept apart."""
    from onceclip.cli import main

    return lambda *arguments: CliRunner().invoke(main, [str(each) for each in arguments], prog_name="onceclip")


@pytest.fixture
def run_json(run: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json in this process and give the one object that it prints."""

    def call(*arguments: Any) -> dict[str, Any]:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr or repr(result.exception)
        values = json.loads(result.stdout)
        assert isinstance(values, dict)
        return values

    return call


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory that has nothing to do with the checkout."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


@pytest.fixture
def process(elsewhere: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a process of its own, from another working directory."""

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=elsewhere, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)

    return call


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A Python that has imported everything and forks."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def forked(fork_server: ForkServer, tmp_path: Path,
           elsewhere: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `process`, but forked: for what does not look at imports or at memory."""
    return lambda *arguments: fork_server.run([str(each) for each in arguments], elsewhere, tmp_path)


@pytest.fixture
def run_process(forked: Callable[..., Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as `python -m onceclip ...` in a process of its own."""
    return lambda *arguments: forked("-m", "onceclip", *arguments)


@pytest.fixture
def place(tmp_path: Path, folder_of: Callable[..., Path], store_path: Path, adapter_path: Path, other_encoder: str,
          monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good things and bad things."""
    monkeypatch.chdir(tmp_path)
    folder_of({"disc": 2, "ring": 2}, "good")
    folder_of({"disc": 2}, "one-class")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-images" / "disc").mkdir(parents=True)
    (tmp_path / "no-images" / "disc" / "notes.txt").write_text("notes")
    (tmp_path / "store.zarr").symlink_to(store_path)
    (tmp_path / "adapter").symlink_to(adapter_path)
    (tmp_path / "other").symlink_to(other_encoder.removeprefix("local-dir:"))
    (tmp_path / "file").write_text("words")
    (tmp_path / "names.csv").write_text("dics,flat disc\n")
    np.savez(tmp_path / "bad.npz", label=np.zeros(3, np.int64))
    return tmp_path


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory, extract_demo: Callable[..., Any]) -> Path:
    """What the documentation calls pets: 160 pictures of 4 classes, new photos, and a store; not to be changed."""
    root = tmp_path_factory.mktemp("documentation")
    for name, kind in zip(("cat", "dog", "fox", "rabbit"), CLASSES, strict=True):
        for seed in range(40):
            draw_glyph(root / "pets" / name / f"{seed + 1}.jpg", kind, seed)
        draw_glyph(root / "new-photos" / f"of-a-{name}.jpg", kind, 99)
    extract_demo(root / "pets", root / "pets.zarr")
    return root


@pytest.fixture
def compiler(forked: Callable[..., Any]) -> None:
    """Skips where torch finds no C++ compiler."""
    if forked("-c", "from torch._inductor.cpp_builder import get_cpp_compiler; get_cpp_compiler()").returncode:
        pytest.skip("no C++ compiler")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Has graphs carried out operation by operation, and nothing known of before; gives the graphs."""
    from onceclip.adapters.training import code_cache, compile

    graphs: list[Any] = []

    def make(name: str, graph: Any, *_: Any) -> Any:
        graphs.append(graph)
        code_cache._loaded[name] = lambda tensors: graph(*tensors)
        return code_cache._loaded[name]

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(code_cache, "make", make)
    monkeypatch.setattr(code_cache, "_loaded", {})
    monkeypatch.setattr(compile, "_known", {})
    return graphs


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a hub on this machine, and the folder of its repositories."""
    root = tmp_path_factory.mktemp("hub")
    with subprocess.Popen([sys.executable, Path(__file__).with_name("hub_server.py"), root], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}", root
        server.stdin.close()


@pytest.fixture
def hub(hub_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The empty folder of the repositories of what hf:// means from here on, for this process and those it starts."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from onceclip.pipeline.files import remote_folder

    def forget() -> None:
        huggingface_hub.HfFileSystem.clear_instance_cache()
        remote_folder.cache_clear()

    address, root = hub_server
    for present in root.iterdir():
        shutil.rmtree(present) if present.is_dir() else present.unlink()
    for name, value in {"HF_ENDPOINT": address, "HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1",
                        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()
    yield root
    forget()
