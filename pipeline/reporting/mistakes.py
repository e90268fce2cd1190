"""The mistakes that an adapter is most sure of; and small pictures of rows of a store, where the images still are."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from onceclip.adapters import Classifier
from onceclip.pipeline.decoding.preparation import Preparation, decoding
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import VIDEOS, LocalFile, suffix
from onceclip.pipeline.sources import Content, Record, open_source
from onceclip.pipeline.sources.videos import Frame, close_video
from onceclip.pipeline.tasks.tasks import inputs_of
from onceclip.stores import Store
from onceclip.stores.identity import decode_key, digest

MOST = 48
SIDE = 160  # pixels
QUALITY = 82
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
    rows = store.rows(split)
    place = {name: number for number, name in enumerate(classifier.class_names)}
    true = np.array([place[store.classes[label]] for label in store.column("label")[rows]], dtype=np.int64)
    found: list[tuple[float, int, int, int, float]] = []
    done = 0
    for values in inputs_of(classifier, store, rows):
        probabilities = classifier.probabilities(values).numpy()
        predicted, here = probabilities.argmax(axis=1), np.arange(len(probabilities))
        own, confidence = probabilities[here, true[done:done + len(here)]], probabilities[here, predicted]
        wrong = here[predicted != true[done:done + len(here)]]
        found += [(float(confidence[index]), int(rows[done + index]), int(true[done + index]), int(predicted[index]),
                   float(own[index])) for index in wrong]
        found = heapq.nsmallest(most, found, key=lambda each: (-each[0], str(store.column("key")[each[1]])))
        done += len(here)
    return [Mistake(row, str(store.column("key")[row]), classifier.class_names[label], classifier.class_names[guess],
                    confidence, own) for confidence, row, label, guess, own in found]


Each = TypeVar("Each")  # a dataclass with the fields row, key, picture and why of `Mistake`


def with_pictures(shown: Sequence[Each], store: Store, images: str | None) -> tuple[list[Each], str]:
    """Rows with pictures as far as there are any, and one sentence on where they come from.

    images: the source of the store's images. Without it a folder that has the store's name without its suffix is looked
        at. A picture whose content is not what the store was made of is never shown.
    Raises SourceError if `images` is given and cannot be read.
    """
    given = images
    if images is None:
        guess = Path(store.path).with_suffix("") if store.path.endswith(".zarr") and "://" not in store.path else None
        images = str(guess) if guess and guess.is_dir() else None
    rows: Sequence[Any] = shown
    if images is None or not shown:
        return list(shown), "Give --images FOLDER for pictures." if shown else ""
    try:
        contents = {record.key: record.content for record in open_source(images).records}
    except SourceError:
        films = any(_FRAME in each.key for each in rows)
        if given and not films:
            raise
        if not films:
            return list(shown), "Give --images FOLDER for pictures."
        contents = {}
    found: list[Any] = []
    for each in rows:
        try:
            content = contents.get(each.key) or _frame(images, each.key)
            picture = _picture(content, bytes(store.column("digest")[each.row]), given is not None)
            found.append(replace(each, picture=picture))
        except BadImage as error:
            found.append(replace(each, why=str(error)))
    close_video()
    return found, f"Pictures from {images}."


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
        raise BadImage("frames of videos need PyAV: pip install onceclip[video]") from None
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


def with_thumbnails(found: Sequence[Any], store: Store | None, images: str | None,
                    records: Sequence[Record]) -> list[Any]:
    """Suggestions with pictures as far as there are any. records: the images, where they are not those of a store."""
    if store is not None:
        return with_pictures(found, store, images)[0]
    shown = []
    for each in found:
        try:
            shown.append(replace(each, picture=thumbnail(records[each.row].content.read())))
        except BadImage as error:
            shown.append(replace(each, why=str(error)))
    return shown
