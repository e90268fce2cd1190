"""The mistakes that an adapter is most sure of; and small pictures of rows of a store, where the images still are."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onceclip.adapters import Classifier
from onceclip.pipeline.decoding.preparation import Preparation, decoding
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import VIDEOS, LocalFile, suffix
from onceclip.pipeline.sources import Content, Record, SourceOptions, open_source
from onceclip.pipeline.sources.videos import Frame, close_video
from onceclip.pipeline.tasks.tasks import inputs_of
from onceclip.stores import Store
from onceclip.stores.identity import decode_key, digest

MOST = 48
SIDE = 160  # pixels
QUALITY = 82
_UNLABELLED = SourceOptions(unlabelled=True)  # how the images are labelled by now says nothing of their pictures
_FRAME = "#frame="
_DIGITS = 16  # of a frame's number


@dataclass(frozen=True)
class Mistake:
    """A row taken for another class. confidence, own: probability of the predicted and of the true class.

    picture: a data URI, or empty; then `why` says what is in the way.
    """

    row: int
    key: str
    true: str
    predicted: str
    confidence: float
    own: float
    picture: str = ""
    why: str = ""


def surest_mistakes(classifier: Classifier, store: Store, split: str, most: int = MOST) -> list[Mistake]:
    """The wrong predictions of a split with the highest probability, surest first; equal ones by key."""
    rows, names, keys = store.rows(split), classifier.class_names, store.column("key")
    place = {name: number for number, name in enumerate(names)}
    true = np.array([place[store.classes[label]] for label in store.column("label")[rows]], dtype=np.int64)
    found: list[Mistake] = []
    done = 0
    for values in inputs_of(classifier, store, rows):
        probabilities = classifier.probabilities(values).numpy()
        here = np.arange(len(probabilities))
        predicted, label = probabilities.argmax(axis=1), true[done:done + len(here)]
        found += [Mistake(int(rows[done + index]), str(keys[rows[done + index]]), names[label[index]],
                          names[predicted[index]], float(probabilities[index, predicted[index]]),
                          float(probabilities[index, label[index]])) for index in here[predicted != label]]
        found = heapq.nsmallest(most, found, key=lambda each: (-each.confidence, each.key))
        done += len(here)
    return found


def with_pictures(shown: Sequence[Any], store: Store, images: str | None) -> tuple[list[Any], str]:
    """Rows with pictures as far as there are any, and one sentence on where they come from.

    shown: dataclasses with the fields row, key, picture and why of `Mistake`. images: the source of the store's images.
        Without it a folder that has the store's name without its suffix is looked at. A picture whose content is not
        what the store was made of is never shown.
    Raises SourceError if `images` is given and cannot be read.
    """
    beside = Path(store.path).with_suffix("") if store.path.endswith(".zarr") and "://" not in store.path else None
    place = images if images is not None else str(beside) if beside and beside.is_dir() else ""
    contents: dict[str, Content] = {}
    if place and shown:
        try:
            contents = {record.key: record.content for record in open_source(place, _UNLABELLED).records}
        except SourceError:
            if not any(_FRAME in each.key for each in shown):
                if images is not None:
                    raise
                place = ""
    if not place or not shown:
        return list(shown), "Give --images FOLDER for pictures." if shown else ""
    digests, trusted = store.column("digest"), images is not None
    found = _add_pictures(shown, lambda each: _picture(contents.get(each.key) or _frame(place, each.key),
                                                       bytes(digests[each.row]), trusted))
    close_video()
    return found, f"Pictures from {place}."


def with_thumbnails(found: Sequence[Any], store: Store | None, images: str | None,
                    records: Sequence[Record]) -> tuple[list[Any], str]:
    """Suggestions as of `with_pictures`. records: the images, where they are not those of a store."""
    if store is not None:
        return with_pictures(found, store, images)
    return _add_pictures(found, lambda each: thumbnail(records[each.row].content.read())), ""


def _add_pictures(shown: Sequence[Any], picture: Callable[[Any], str]) -> list[Any]:
    """Rows with their pictures. picture: gives that of a row; raises BadImage with what is in the way."""
    found = []
    for each in shown:
        try:
            found.append(replace(each, picture=picture(each)))
        except BadImage as error:
            found.append(replace(each, why=str(error)))
    return found


def _frame(images: str, key: str) -> Content | None:
    """The frame of a video in a folder that a key names, or None; no key of a store leads out of the folder."""
    name, found, number = key.rpartition(_FRAME)
    path = Path(decode_key(name))
    if not (found and number.isdecimal() and len(number) < _DIGITS and suffix(name) in VIDEOS and "\0" not in str(path)
            ) or path.is_absolute() or ".." in path.parts:
        return None
    try:
        import av  # noqa: F401 - whether it is there
    except ImportError:
        raise BadImage("frames of videos need PyAV: pip install 'onceclip[video]'") from None
    return Frame(LocalFile(Path(images) / path), int(number))


def _picture(content: Content | None, stored: bytes, trusted: bool) -> str:
    """The picture of an image whose file has the stored digest, or, where none is stored, comes from a trusted source.

    Raises BadImage with what is in the way.
    """
    if content is None:
        raise BadImage("its file is not there")
    data = content.read()
    if digest(data) != stored if any(stored) else not trusted:
        raise BadImage("its file has changed since it was encoded")
    return thumbnail(data)


def thumbnail(data: bytes) -> str:
    """A small JPEG of an image as a data URI, upright and on white.

    Raises BadImage if the bytes are no image.
    """
    with decoding():
        image = Preparation((SIDE, SIDE), decode="fast", exif=True).open(data).image
        if "A" in image.getbands() or "transparency" in image.info:
            layer = image.convert("RGBA")
            image = Image.new("RGBA", layer.size, "white")
            image.alpha_composite(layer)
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
    out = BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
