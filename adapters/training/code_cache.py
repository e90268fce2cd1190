"""Compiled computations in a folder: what one process had torch make code of, all later ones load in milliseconds."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

Code = Callable[[list[Tensor]], Any]
_PACKAGE = __name__.partition(".")[0]
_OF_ALL_CLASSES = {*vars(type("", (), {})), "__annotations__", "__abstractmethods__", "_abc_impl", "__firstlineno__",
                   "__slotnames__", "__static_attributes__"}
_loaded: dict[str, Code] = {}


def folder() -> Path:
    """Where code is kept: beside torch's other caches, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()).parent / _PACKAGE


def digest(*parts: Any) -> str | None:
    """A name for what code is made of, on this processor; None if part of it is known to this process alone.

    parts: plain values, types of this package, and tuples of such.
    """
    try:
        written = json.dumps([*map(_written, parts), torch.__version__, torch.get_num_threads(), _processor()])
    except TypeError:
        return None
    return hashlib.sha256(written.encode()).hexdigest()[:32]


@cache
def sources() -> str:
    """A digest of all that the steps of this package's methods are written in."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def note(name: str, value: Any) -> None:
    """Keep a plain value by a name; where the folder cannot be written to, do nothing."""
    _put(f"{name}.json", json.dumps(value).encode())


def noted(name: str) -> Any:
    """The value kept by a name, None if there is none."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(_read(f"{name}.json"))
    return None


def load(name: str) -> Code | None:
    """The code kept by a name, None if there is none that can be used."""
    if name not in _loaded:
        file = f"{name}.so"
        with suppress(OSError, RuntimeError):  # it is not there, or for another machine
            if _checksum(_read(file)) == noted(file):  # code that is damaged would end the process
                _loaded[name] = _open(folder() / file)
    return _loaded.get(name)


def make(name: str, graph: GraphModule, example: Sequence[Tensor], free: Sequence[Mapping[int, str]]) -> Code:
    """Have torch make code of a graph, and keep it by a name.

    example: its inputs, on a CPU. free: names of the sizes of each that may be others later, by dimension; above one.
    What torch raises, of any kind, is not caught.
    """
    sizes = {size: torch.export.Dim(size, min=2) for sizes in free for size in sizes.values()}
    shapes = tuple({place: sizes[size] for place, size in each.items()} for each in free)
    program = torch.export.export(graph, tuple(example), dynamic_shapes=shapes)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        package, file = Path(temporary) / "step.pt2", Path(temporary) / f"{name}.so"
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        with zipfile.ZipFile(package) as parts:
            library, = (part for part in parts.namelist() if part.endswith((".so", ".pyd", ".dll")))
            content = parts.read(library)
        file.write_bytes(content)
        _loaded[name] = _open(file)
        _put(file.name, content)
        note(file.name, _checksum(content))
    return _loaded[name]


def _open(file: Path) -> Code:
    """The code in a library, for a CPU: opened where it is, by what torch opens packages of such code with."""
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(file), 1).run


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _require_own() -> None:
    """Raise OSError unless the folder, and the one around it, are the user's, and nobody else can write to them."""
    if folder().parts[0] == "~":  # nobody knows where the user's home is
        raise FileNotFoundError(folder())
    for about in (folder().parent.stat(), folder().lstat()):
        _require_own_mode(about)


def _require_own_mode(about: os.stat_result) -> None:
    shared = about.st_mode & 0o002 or (about.st_mode & 0o020 and about.st_gid != about.st_uid)  # else their own group
    if hasattr(os, "getuid") and (shared or about.st_uid != os.getuid() or stat.S_ISLNK(about.st_mode)):
        raise PermissionError("others can write here")


def _read(name: str) -> bytes:
    """A file of the folder. Raises OSError if it is not there, or somebody else may have written it."""
    _require_own()
    with open(os.open(folder() / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        _require_own_mode(os.fstat(file.fileno()))
        return file.read()


def _put(name: str, content: bytes) -> None:
    with suppress(OSError):
        if folder().parts[0] != "~":
            folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own()
        handle, temporary = tempfile.mkstemp(dir=folder())
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, folder() / name)
        except OSError:  # as where the disk is full
            os.unlink(temporary)
            raise


def _written(part: Any) -> Any:
    """A part as JSON. Raises TypeError for what has no name that it has in other processes too."""
    if isinstance(part, (str, int, float, type(None))):
        return part
    if isinstance(part, tuple):
        return [*map(_written, part)]
    if isinstance(part, (torch.dtype, torch.device)):
        return str(part)
    if isinstance(part, type) and all(map(_named, part.__mro__)):
        return f"{part.__module__}.{part.__qualname__}"
    raise TypeError(part)


def _named(kind: type) -> bool:
    """Whether all that a class does is written in this package or in Python itself."""
    inside = kind.__module__.partition(".")[0] in (_PACKAGE, "builtins", "abc", "typing")
    return inside or {name for name in vars(kind) if name not in _OF_ALL_CLASSES} <= {"hyperparameters"}


@cache
def _processor() -> str:
    """What code for this processor may make use of."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
