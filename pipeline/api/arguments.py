"""What the functions are given, checked: a mistake is one line here, not a failure deep inside."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from onceclip.adapters.errors import unknown
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import ArgumentError, ResultError
from onceclip.pipeline.files import RESULTS, is_url, local_path
from onceclip.pipeline.words import listed_names
from onceclip.pipeline.workers import Part
from onceclip.stores import Store, open_store
from onceclip.stores.location import local_copy, require_outside
from onceclip.stores.schema import SPLITS

if TYPE_CHECKING:
    from onceclip.adapters import Classifier, Method
    from onceclip.adapters.inference import Inference

T = TypeVar("T")
P = ParamSpec("P")


def optional(check: Callable[Concatenate[Any, P], T], value: Any, *further: P.args, **named: P.kwargs) -> T | None:
    """None for None; any other value as one of the functions below checks it, with its further arguments."""
    return None if value is None else check(value, *further, **named)


def refuse(*mistakes: tuple[Any, str]) -> None:
    """Raise ArgumentError for the first mistake that is made: whether it is, and what to say of it."""
    for made, message in mistakes:
        if made:
            raise ArgumentError(message)


def require_alone(strategy: Any) -> None:
    """Raise ArgumentError for prediction sets of rows that a strategy reads."""
    refuse((strategy is not None,
            "--coverage holds for what the adapter says of each image by itself: leave --inference out"))


def path_of(value: Any, what: str) -> Path:
    """A path on this machine. what: an argument and its kind, such as "out: a folder".

    Raises ArgumentError for what is no path, and for a URL.
    """
    place = place_of(value, what)
    if is_url(place):
        raise ArgumentError(f"{place} is a URL; only stores can be written to one, and stores, adapters and results be "
                            f"read from one: give {what}, on this machine")
    return Path(local_path(place))


def output_of(value: Any, what: str) -> Path:
    """A path on this machine that something is written to. Arguments and failures as of `path_of`.

    Raises StoreError for one within a store.
    """
    path = path_of(value, what)
    require_outside(path)
    return path


def free_folder(out: Path, overwrite: bool | None = False, option: str = "--out") -> Path:
    """The folder, if an adapter may be saved in it.

    Raises ResultError if it holds one, or other things, StoreError if it lies within a store.

    overwrite: None where nothing can ask for it. option: which names the folder.
    """
    from onceclip.adapters.saving import CONFIG, UNFINISHED, WEIGHTS, WHOLE, file_of

    require_outside(out)
    if file_of(out, CONFIG).exists() and not overwrite:
        raise ResultError(f"{out} holds an adapter already: give another {option}"
                          + ("" if overwrite is None else ", or add --overwrite"))
    own = CONFIG, WEIGHTS, RESULTS, UNFINISHED, WHOLE
    if out.is_dir() and any(out.iterdir()) and not any((out / each).exists() for each in own):
        raise ResultError(f"{out} holds other things, and a saved adapter has a README.md of its own: give {option} a "
                          "folder that is new or empty")
    return out


def place_of(value: Any, what: str) -> str:
    """A path or URL as text. Raises ArgumentError for what is none."""
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return os.fspath(value)
    raise ArgumentError(f"{short(value)} is no path: give {what}")


def opened(store: Any) -> Store:
    """The store that is meant: one that is open, or the one at a path or URL."""
    return store if isinstance(store, Store) else open_store(place_of(store, "a store, or the path of one"))


def opened_all(stores: Any) -> list[Store]:
    """One store or several."""
    several = stores if isinstance(stores, Sequence) and not isinstance(stores, str) else [stores]
    if not several:
        raise ArgumentError("no store: give one or more")
    return [opened(store) for store in several]


def loaded(adapter: Any, modules: Sequence[str] = ()) -> Classifier:
    """The classifier that is meant: a fitted one, or the one that a folder or its URL holds."""
    from onceclip.adapters import Classifier, load_classifier

    if isinstance(adapter, Classifier):
        return adapter
    with local_copy(place_of(adapter, "a classifier, or the folder of a saved one")) as folder:
        return load_classifier(folder, modules)


def shots_of(value: Any) -> int | None:
    """Labelled images per class; None for "all"."""
    if value is None or value == "all":
        return None
    return whole(value, "shots", 1, ', or "all"')


def whole(value: Any, name: str, least: int, otherwise: str = "") -> int:
    """A whole number that is not below the least one."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ArgumentError(f"{name} {value!r}: give a whole number from {least} up{otherwise}")
    return number


def listed(values: Any, name: str) -> list[Any]:
    """Several values, or one of them."""
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping) else [values]
    if not found:
        raise ArgumentError(f"{name} is empty: give at least one")
    return found


def class_names_of(names: str | Iterable[Any]) -> list[str]:
    """Names of classes, or one text with commas, as on the command line."""
    try:
        return listed_names(names) if isinstance(names, str) else [str(each) for each in names]
    except ValueError as error:
        raise ArgumentError(f"names: {error}") from error


def one_of(value: Any, name: str, choices: Sequence[str]) -> str:
    """A text that is among the choices."""
    if value not in choices:
        raise ArgumentError(unknown(name, str(value), choices))
    return str(value)


def split_of(value: Any) -> str:
    """The name of a split."""
    return one_of(value, "split", SPLITS)


def part_of(value: Any) -> Part:
    """A part of several, such as "2/8"."""
    try:
        return value if isinstance(value, Part) else Part.parse(str(value))
    except ValueError as error:
        raise ArgumentError(f"part {error}") from error


def spec_of(encoder: Any, pretrained: str | None = None, device: str = "auto") -> EncoderSpec:
    """The specification of an encoder that is named, or given as one.

    Raises ArgumentError for what is neither.
    """
    if isinstance(encoder, str) and encoder:
        return EncoderSpec(encoder, pretrained, device=device)
    if isinstance(encoder, EncoderSpec) and pretrained is None:
        return encoder
    raise ArgumentError(f"encoder {encoder!r}: give a model's name (and pretrained), or an EncoderSpec that says both")


def text_of(name: Any) -> str:
    """The name of a text set."""
    if not isinstance(name, str):
        raise ArgumentError(f"text {name!r}: give the name of a text set")
    return name


def method_of(method: Any) -> tuple[str | type[Method], dict[str, Any] | None]:
    """A method by its name or class; and of an object the hyperparameters that it was given."""
    from onceclip.adapters import Method

    if isinstance(method, Method):
        return type(method), {name: method.values[name] for name in method.given}
    if isinstance(method, str) or (isinstance(method, type) and issubclass(method, Method)):
        return method, None
    raise ArgumentError(f"{short(method)} is no method: give a name (`onceclip methods` lists them), a class or an "
                        "object")


def inference_of(inference: Any, values: Mapping[str, Any] | None = None) -> Inference:
    """A strategy by its name, its class, or as it is. values: its hyperparameters."""
    from onceclip.adapters.inference import Inference, inference_class

    if not isinstance(values or {}, Mapping):
        raise ArgumentError(f"inference_values {values!r}: give hyperparameters by name, such as {{'alpha': 1.0}}")
    if isinstance(inference, Inference):
        return type(inference)(**{**inference.values, **(values or {})})
    if isinstance(inference, str) or (isinstance(inference, type) and issubclass(inference, Inference)):
        return inference_class(inference)(**(values or {}))
    raise ArgumentError(f"{short(inference)} is no inference strategy: give a name (`onceclip methods` lists them), a "
                        "class or an object")
