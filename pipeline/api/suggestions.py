"""Which images a person should look at: to label them, or because their label is likely wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import listed, loaded, path_of, place_of, whole
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.words import csv_cell
from onceclip.stores import Store

if TYPE_CHECKING:
    from onceclip.adapters import Classifier
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.prediction.label_next import Suggestion


def suggest(adapter: str | Path | Classifier, inputs: str | Path | Store | Sequence[str | Path], *,
            label_next: int | None = None, label_errors: bool = False, most: int = 100, out: str | Path | None = None,
            page: str | Path | None = None, images: str | None = None, encoder: str | EncoderSpec | None = None,
            device: str = "auto", modules: Sequence[str] = (), join: Sequence[str] = (),
            progress: Callable[[float], None] = lambda fraction: None) -> list[dict[str, Any]]:
    """Name images to label next, or labelled images whose label is likely wrong.

    adapter: a classifier, or the folder of a saved one. inputs: a store, or for label_next also images, folders and
        other sources. label_next: how many to choose, least sure first. label_errors: look through all labelled images
        of the store; most: how many to give. out: a CSV file. page: an HTML file with small pictures; images: where the
        store's images are. encoder: where it is, if the adapter cannot say. join: NAME=STORE to be joined to
        the store, as of `evaluate`. progress: gets the fraction done.
    Raises ArgumentError unless one of label_next and label_errors is given, PredictionError if there is nothing to
    choose from, StoreMismatch for another encoder.

    Example:
        >>> len(onceclip.suggest("pets-adapter", "pets/cat", label_next=3))
        3
        >>> wrong = onceclip.suggest("pets-adapter", "pets.zarr", label_errors=True)
        >>> all(each["suggested"] != each["label"] for each in wrong)
        True
    """
    from onceclip.pipeline.api.stores import spec_of
    from onceclip.pipeline.encoders.spec import clip_of
    from onceclip.pipeline.prediction import label_errors as errors
    from onceclip.pipeline.prediction import label_next as active
    from onceclip.pipeline.prediction.inputs import list_inputs, store_among
    from onceclip.pipeline.prediction.predict import encoder_of
    from onceclip.pipeline.sources import SourceOptions
    from onceclip.pipeline.tasks.encoders import joined_store, require_store

    if (label_next is None) == (not label_errors):
        raise ArgumentError("give one of label_next (--label-next N) and label_errors (--label-errors)")
    for path, ending, name in ((out, ".csv", "--out"), (page, ".html", "--page")):
        if path is not None and path_of(path, name).suffix.lower() != ending:
            raise ArgumentError(f"{path} does not end in {ending}: {name} writes such a file")
    number = 1 if label_next is None else whole(label_next, "label_next", 1)
    classifier = loaded(adapter, modules)
    paths = [] if isinstance(inputs, Store) else [place_of(each, "a store, images or a folder")
                                                  for each in listed(inputs, "inputs")]
    store = inputs if isinstance(inputs, Store) else store_among(paths)
    require_store(join, store)
    store = store and joined_store(store, join, classifier)
    records = [] if store else list_inputs(paths, SourceOptions(clip=clip_of(classifier.encoder))).records
    if store and label_errors:
        found = errors.label_errors(classifier, store, whole(most, "most", 1), progress)
    elif store:
        found = active.label_next(classifier, active.pieces_of_store(classifier, store), number)
    elif label_errors:
        raise ArgumentError("label_errors compares labels, which are in a STORE: extract the folder first")
    else:
        given = None if encoder is None else spec_of(encoder, device=device)
        opened = encoder_of(classifier, given, device)
        found = active.label_next(classifier, active.pieces_of_images(classifier, records, opened), number)
    if page is not None:
        from onceclip.pipeline.reporting.mistakes import with_thumbnails
        from onceclip.pipeline.reporting.pages import write_suggestions_page

        write_suggestions_page(path_of(page, "page"), with_thumbnails(found, store, images, records),
                               classifier.method, store.path if store else ", ".join(paths), label_errors)
    values = [_values(each) for each in found]
    if out is not None:
        _write(path_of(out, "out"), values, list(_values(active.Suggestion("", 0, "", 0, "", 0, "x" * label_errors))))
    return values


def _values(found: Suggestion) -> dict[str, Any]:
    """A suggestion as JSON values."""
    if found.label:
        return {"image": found.key, "label": found.label, "suggested": found.predicted,
                "probability": found.probability, "probability_of_label": found.other}
    return {"image": found.key, "class": found.predicted, "probability": found.probability, "second": found.second,
            "probability_of_second": found.other}


def _write(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    from onceclip.stores.location import whole_file

    with whole_file(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([csv_cell(value) for value in row.values()] for row in rows)
