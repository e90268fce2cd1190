"""The files of a saved adapter: configuration and weights that know each other's digest and are replaced together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, deserialize, safe_open

from onceclip.adapters.errors import AdapterFileError

if TYPE_CHECKING:
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows has no flock; there the user has to see to it
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
RETRIEVAL = "retrieval"  # the task of a folder that holds no classifier
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
UNFINISHED, WHOLE = ".saving", ".saved"  # folders within, which are gone when a save is through
_WEIGHTS_DIGEST, _CONFIG_DIGEST = "weights_sha256", "config_sha256"  # in the configuration, in the weights' metadata
_OPTIONAL = type(None)
_KINDS: dict[str, Any] = {
    "format": int, "method": str, "hyperparameters": dict, "dim": int, "class_names": list, "head": dict,
    "inputs": list, "parameters": list, "temperature": (int, float), "calibrated_on": str, "provenance": dict,
    "conformity": dict,
    "provenance.text": (dict, _OPTIONAL), "provenance.support": (dict, _OPTIONAL),
    "provenance.encoder": (dict, str, _OPTIONAL),
    "provenance.encoder.name": (str, _OPTIONAL), "provenance.encoder.fingerprint": (str, _OPTIONAL)}
_ADDED = {"inputs": ["embedding"], "parameters": [], "temperature": 1.0, "calibrated_on": "",
          "conformity": {}}  # since the first version
_WIDEST = 2**24  # of a row
_HOTTEST = 1e12  # a calibration finds a temperature between this and its inverse
_TRIES = 1000  # of a reader, where there was another save during each
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # of safetensors, as torch calls them


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], card: str) -> None:
    """Replace the files of an adapter. Whatever stops it, `read_adapter` finds what was there, or this.

    They are written into a folder of their own, which gets another name when it has all of them; then they are moved
    out of it.
    Raises AdapterFileError, which names the file, where one cannot be written.
    """
    from safetensors.torch import save_file

    text = json.dumps({**config, _WEIGHTS_DIGEST: _digest_of(tensors)}, indent=2) + "\n"
    metadata = {_CONFIG_DIGEST: _canonical_digest(json.loads(text))}
    unfinished, path = folder / UNFINISHED, folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _move_out(folder)
            _remove(unfinished)
            unfinished.mkdir()
            try:
                for name, content in ((CARD, card), (CONFIG, text), (WEIGHTS, "")):
                    path = folder / name
                    file = unfinished / name
                    file.write_text(content, encoding="utf-8")
                    mode = file.stat().st_mode
                    if name == WEIGHTS:
                        save_file(tensors, file, metadata=metadata)
                        file.chmod(mode)  # that of the umask: safetensors keeps its files from other users
                    _sync(file)
                path = folder
                _sync(unfinished)
                unfinished.rename(folder / WHOLE)
            finally:
                _remove(unfinished)
            _sync(folder)
            _move_out(folder)
            _sync(folder, folder.parent)
    except (OSError, SafetensorError) as error:
        raise AdapterFileError(f"{path} cannot be written ({error}): make room or give another folder; what was there "
                               "is as it was") from error


Check = Callable[[Any], dict[str, Any]]


def read_adapter(folder: Path, checked: Check | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration of an adapter and its tensors, both of one save, also while another process saves.

    checked: gives the configuration of something else than a classifier, or raises ValueError.
    Raises AdapterFileError, which names the file, for one that is missing, unreadable or damaged.
    """
    return _read_whole(folder, _tensors_of, checked or _checked)


def read_configuration(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter alone, checked as by `read_adapter`, without torch."""
    return _read_whole(folder, _digest_of_file, _checked)[0]


def markdown_cell(text: str) -> str:
    """A text as a cell of a table in Markdown, in which no name is markup."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def modules_outside(config: Mapping[str, Any]) -> list[str]:
    """The modules that are no part of onceclip and that the heads of a configuration need."""
    def names(value: Any) -> Iterator[str]:
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from names(each)
        if isinstance(value, dict):
            yield str(value.get("type", ""))

    return sorted({name.partition(":")[0] for name in names(config["head"]) if ":" in name})


def _read_whole(folder: Path, read: Callable[[Path], tuple[Any, str]], checked: Check) -> tuple[dict[str, Any], Any]:
    for _ in range(_TRIES):
        state = _state(folder)
        try:
            return _read(folder, read, checked)
        except AdapterFileError:
            if state == _state(folder):  # else another process has saved meanwhile
                raise
    raise AdapterFileError(f"{folder} is saved again and again: load it when that has ended")


def file_of(folder: Path, name: str) -> Path:
    """Where a file of an adapter is: a save that was killed may have left it to be moved."""
    whole = folder / WHOLE
    return whole / name if not os.path.islink(whole) and os.path.exists(whole / name) else folder / name


def damaged(path: Path, reason: str) -> AdapterFileError:
    """What to say of a damaged file."""
    return AdapterFileError(f"{path} is damaged ({' '.join(reason.split())[:200]}): fit the adapter again, or copy it "
                            "anew")


def _state(folder: Path) -> list[Any]:
    """What changes with every save."""
    found: list[Any] = []
    for path in (file_of(folder, CONFIG), file_of(folder, WEIGHTS)):
        with suppress(OSError):
            about = path.stat()
            found.append((path, about.st_ino, about.st_mtime_ns))
    return found


def _read(folder: Path, read: Callable[[Path], tuple[Any, str]], checked: Check) -> tuple[dict[str, Any], Any]:
    """Both files. read: what is wanted of the weights, and their digest."""
    config_file, weights_file = file_of(folder, CONFIG), file_of(folder, WEIGHTS)
    with _reading(config_file):
        config = json.loads(config_file.read_text(encoding="utf-8"))
        written = config.get("format") if isinstance(config, dict) else None
        if isinstance(written, int) and written > FORMAT:
            raise AdapterFileError(f"{folder} has adapter format {written}, this version reads up to {FORMAT}: install "
                                   "a newer onceclip")
        completed = checked(config)
    with _reading(weights_file):
        weights_file.open("rb").close()  # safetensors says of all files that it cannot open that there are none
        with safe_open(weights_file, "np") as file:
            metadata = file.metadata() or {}
        tensors, digest = read(weights_file)
    if _WEIGHTS_DIGEST in config or _CONFIG_DIGEST in metadata:  # older versions wrote neither
        same_config = metadata.get(_CONFIG_DIGEST) == _canonical_digest(config)
        same_weights = config.get(_WEIGHTS_DIGEST) == digest
        if not same_config and not same_weights:
            raise AdapterFileError(f"{config_file} and {WEIGHTS} beside it are not of one save: fit the adapter again, "
                                   "or copy both files")
        if not (same_config and same_weights):
            raise damaged(weights_file if same_config else config_file, "it is not as it was saved")
    return completed, tensors


def _checked(config: Any) -> dict[str, Any]:
    """A configuration with all values, of the types that they have. Raises ValueError where one has another."""
    if not isinstance(config, dict):
        raise ValueError("no JSON object")
    if config.get("task") == RETRIEVAL:
        raise AdapterFileError("this folder holds trained maps of retrieval, and no classifier: use them with "
                               "`onceclip retrieve STORE --map FOLDER`")
    config = {**_ADDED, **config}
    for name, kind in _KINDS.items():
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {'not there' if value is None else 'of another type'}")
    for scores in config["conformity"].values():
        if not isinstance(scores, list) or not all(type(each) is float and 0 <= each <= 1.001 for each in scores) or (
                scores != sorted(scores)):
            raise ValueError("conformity holds no ascending scores")
    for name in ("class_names", "inputs", "parameters"):
        if not all(isinstance(each, str) for each in config[name]):
            raise ValueError(f"{name} are no texts")
    # One slash at most, behind the name of a joined store.
    if not all(part.replace("-", "_").isidentifier() and name.count("/") < 2
               for name in config["inputs"] for part in name.split("/")):
        raise ValueError("inputs are no names of outputs")
    outputs = config["provenance"].get("outputs", {})
    if not isinstance(outputs, dict) or not all(isinstance(each, dict) for each in outputs.values()):
        raise ValueError("provenance.outputs are of another type")
    if not 1 / _HOTTEST <= config["temperature"] <= _HOTTEST or not 0 < config["dim"] <= _WIDEST:
        raise ValueError(f"temperature {config['temperature']}, dim {config['dim']}")
    return config


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AdapterFileError(f"{path.parent} is not a saved adapter (no {path.name} in it): give the folder that "
                               "`onceclip fit --out` wrote") from error
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read ({error.strerror or error}): have its owner make it readable "
                               "for you") from error
    except (ValueError, RuntimeError, SafetensorError) as error:  # a RecursionError of nested JSON among them
        raise damaged(path, str(error)) from error


def _canonical_digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], str]:
    with safe_open(path, "pt") as file:
        # In memory of their own: libraries round products by where tensors begin.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return tensors, _digest_of(tensors)


def _digest_of_file(path: Path) -> tuple[None, str]:
    found = {name: (f"torch.{_TYPES[each['dtype']]}", each["shape"], each["data"])
             for name, each in deserialize(path.read_bytes())}
    return None, _digest(found)


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    import torch

    return _digest({name: (str(value.dtype), list(value.shape),
                           value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                    for name, value in tensors.items()})


def _digest(tensors: Mapping[str, tuple[str, list[int], Any]]) -> str:
    """A digest of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, (dtype, shape, content) in sorted(tensors.items()):
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(content)
    return digest.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other saves out of a folder, where its file system has locks."""
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _move_out(folder: Path) -> None:
    whole = folder / WHOLE
    if whole.is_symlink():
        whole.unlink()
    if whole.is_dir():
        for path in sorted(whole.iterdir()):
            path.replace(folder / path.name)
        whole.rmdir()


def _remove(path: Path) -> None:
    """Remove a folder, or a link that somebody put in its place."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sync(*paths: Path) -> None:
    """Have files or folders on the disk, so that a power loss finds them there."""
    for path in paths:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot do so with folders
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
