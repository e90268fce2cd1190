"""torchvision's data sets by name, `torchvision:CIFAR10`: every class there whose items are (image, class number)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from onceclip.errors import one_line
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import LocalFile, Pixels, eight_bit, key_of, pnm
from onceclip.pipeline.sources.record import Content, Listing, Record, Source, SourceOptions
from onceclip.stores.identity import encode_key

PREFIX = "torchvision:"
_SPLITS = {"train": "train", "train-standard": "train", "trainval": "train", "val": "val", "valid": "val",
           "test": "test"}
# Where data sets keep their files, the class numbers of their images, and the names of their classes.
_FILES = ("_image_files", "_images", "samples", "_samples", "imgs")
_NUMBERS = ("targets", "_labels", "labels", "y", "samples", "_samples")
_NAMES = ("classes", "categories")

Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a data set that neither is a file nor lies in one array."""

    name: str
    arguments: Arguments
    number: int
    reading: ClassVar[str] = "process"

    def read(self) -> bytes:
        """The image as a PNM file, which holds the pixels as they are.

        Raises BadImage if the data set cannot give it.
        """
        try:
            return pnm(_pixels(_opened(self.name, self.arguments)[self.number][0]))
        except Exception as error:  # whatever a data set's own code raises
            raise BadImage(f"cannot be read ({one_line(error)})") from error


class TorchvisionSet(Source):
    """A data set of torchvision by its name."""

    name = "torchvision data set"
    takes = frozenset({"root", "download"})

    @staticmethod
    def recognises(text: str) -> bool:
        return text.startswith(PREFIX)

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images of a data set, split by split, in its order.

        Raises SourceError if it does not exist or is not there, or its items are not images with class numbers.
        """
        from torchvision import datasets

        name = text.removeprefix(PREFIX)
        if name not in datasets.__all__:
            near = get_close_matches(name, datasets.__all__, 1)
            raise SourceError(f"{text}: torchvision has no data set {name!r}"
                              + (f": did you mean {near[0]!r}?" if near else ": https://pytorch.org/vision lists them"))
        records: list[Record] = []
        root = options.root or "."
        for split, folder, arguments in _parts(name, root, options.download):
            dataset = _opened(name, arguments)
            labels = _label_names(dataset)
            numbers = _numbers(dataset, text)
            contents = _contents(dataset)
            for number, label in enumerate(numbers):
                content = contents[number] if contents else Item(name, arguments, number)
                key = f"{folder}/{number:06d}"
                if isinstance(content, LocalFile):
                    key = encode_key(os.path.relpath(content.path, root))
                records.append(Record(key, content, labels.get(label, str(label)), split))
        return Listing(records)


def _parts(name: str, root: str, download: bool) -> list[tuple[str | None, str, Arguments]]:
    """The splits that a data set has: each with its name here, its name there, and the arguments that open it."""
    from torchvision import datasets

    accepted = signature(getattr(datasets, name).__init__).parameters
    if download and "download" not in accepted:
        raise SourceError(f"{PREFIX}{name} cannot be downloaded by torchvision: fetch it by hand, and name its folder "
                          "with --root")
    plain = {key: value for key, value in (("root", root), ("download", download)) if key in accepted}
    choices: dict[str, dict[str, Any]] = {name: {}}
    if "train" in accepted:
        choices = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in accepted:
        choices = {there: {"split": there} for there in _SPLITS}
    found: list[tuple[str | None, str, Arguments]] = []
    refusal = ""
    for there, own in choices.items():
        arguments = tuple({**plain, **own}.items())
        if there == "trainval" and any(split == "train" for split, _, _ in found):
            continue
        if refused := _refused_split(name, arguments, root, download):
            refusal = refused
        else:
            found.append((_SPLITS.get(there), there, arguments))
    if not found:
        raise SourceError(f"{PREFIX}{name} has none of the splits {', '.join(_SPLITS)} ({refusal}): write its images "
                          "as a manifest")
    return found


def _refused_split(name: str, arguments: Arguments, root: str, download: bool) -> str:
    """What a data set says to a split that it does not have; empty if it can be opened.

    Raises SourceError if it cannot be opened for another reason.
    """
    try:
        _opened(name, arguments)
    except ValueError as error:
        if "split" in dict(arguments) and "split" in str(error):
            return str(error)
        raise SourceError(f"{PREFIX}{name}: {one_line(error)}: correct --root, {root!r} now") from error
    except (RuntimeError, OSError, ImportError) as error:
        mend = "" if download else ", or let torchvision fetch it with --download"
        raise SourceError(f"{PREFIX}{name} cannot be opened in {root!r} ({one_line(error)}): name its folder with "
                          f"--root{mend}") from error
    except TypeError as error:
        raise SourceError(f"{PREFIX}{name} needs more than a folder ({one_line(error)}): write its images as a "
                          "manifest") from error
    return ""


@lru_cache(maxsize=4)
def _opened(name: str, arguments: Arguments) -> Any:
    from torchvision import datasets

    return getattr(datasets, name)(**dict(arguments))


def _label_names(dataset: Any) -> dict[int, str]:
    """Class names by number; equal names have their number behind them."""
    given: Sequence[Any] = next((getattr(dataset, name) for name in _NAMES if hasattr(dataset, name)), [])
    names = [", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name) for name in given]
    counts = Counter(names)
    return {number: key_of(f"{name} ({number})" if counts[name] > 1 else name) for number, name in enumerate(names)}


def _numbers(dataset: Any, text: str) -> list[int]:
    """The class number of every item, without reading the images where the data set keeps a list."""
    try:
        image, number = dataset[0]
        _pixels(image), int(number)
        for name in _NUMBERS:
            if (numbers := _column(dataset, name, 1)) is not None:
                # QMNIST has further facts about an image behind its class.
                return [int(each) for each in np.reshape(numbers, (len(dataset), -1))[:, 0]]
        return [int(dataset[each][1]) for each in range(len(dataset))]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise SourceError(f"{text}: its items are not an image and a class number ({one_line(error)}): write its "
                          "images as a manifest") from error


def _contents(dataset: Any) -> Sequence[Content]:
    """The files of its images, or the images where they lie in one array; empty if it keeps neither.

    An array is (n, height, width), (n, height, width, 3) or (n, 3, height, width).
    """
    for name in _FILES:
        paths = _column(dataset, name, 0)
        if paths is not None and isinstance(paths[0], str | Path):
            return [LocalFile(os.fspath(path)) for path in paths]
    data = getattr(dataset, "data", None)
    if getattr(data, "ndim", 0) not in (3, 4):
        return []
    values = np.asarray(data)
    if values.ndim == 4 and values.shape[-1] != 3:
        values = np.moveaxis(values, 1, -1)
    return [Pixels(each) for each in values]


def _column(dataset: Any, name: str, part: int) -> Any:
    """A list with an entry per item; of pairs (file, number) the one or the other."""
    values = getattr(dataset, name, None)
    if values is None:
        return None
    return [pair[part] for pair in values] if isinstance(values[0], tuple) else values


def _pixels(image: Any) -> np.ndarray:
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(image).__name__} is not an image")
    image = eight_bit(image)
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
