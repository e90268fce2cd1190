"""Real rows to compare a written file on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onceclip.adapters import Classifier
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.errors import BadImage, ExportError
from onceclip.pipeline.preparation import decoding
from onceclip.pipeline.sources.folder import list_images
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.stores import open_store

_ROWS, _IMAGES = 1024, 16


def stored_rows(classifier: Classifier, place: str) -> np.ndarray:
    """Raw rows of a store, spread over it: what the classifier takes (rows, dim).

    Raises StoreMismatch if another encoder made the store, ExportError if it has no rows.
    """
    store = open_store(place)
    check_encoder(classifier, store)
    rows = store.rows(labelled=False)
    if not len(rows):
        raise ExportError(f"{place} has no rows to compare on: give another --check, or none")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int))]
    return np.concatenate([np.asarray(values, np.float32) for values in inputs_of(classifier, store, chosen)])


def prepared_images(encoder: Encoder, folder: Path) -> np.ndarray:
    """Pixels of the first images of a folder, as an exported file takes them: float32 (images, 3, height, width).

    Raises ExportError if none of them can be read.
    """
    if not folder.is_dir():
        raise ExportError(f"--check {folder} is no folder: with --with-encoder give a folder of images")
    found: list[np.ndarray] = []
    with decoding():
        for record in list_images(folder):
            try:
                found.append(encoder.preparation.pixels(record.content.read()))
            except BadImage:
                continue
            if len(found) == _IMAGES:
                break
    if not found:
        raise ExportError(f"no image of {folder} can be read: give another --check, or none")
    pixels = np.stack(found)
    return pixels if encoder.preparation.custom else pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
