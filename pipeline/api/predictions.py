"""What images are by an adapter or by names of classes alone; and which of them a person should look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.adapters import Classifier, set_rule
from onceclip.adapters.inference import Inference
from onceclip.adapters.selection.calibration import KINDS
from onceclip.pipeline.api.adapters import Adapter
from onceclip.pipeline.api.arguments import (
    class_names_of,
    inference_of,
    listed,
    loaded,
    optional,
    output_of,
    place_of,
    refuse,
    require_alone,
    spec_of,
    split_of,
    whole,
)
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.files import csv_file
from onceclip.pipeline.words import MOST_LABELS, csv_cell
from onceclip.stores import Store

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import Encoder, EncoderSpec
    from onceclip.pipeline.prediction.predict import Answers, Prediction
    from onceclip.pipeline.prediction.suggestions import Suggestion
    from onceclip.pipeline.sources import SourceOptions


def zero_shot(names: str | Sequence[str], encoder: str | EncoderSpec, *, pretrained: str | None = None,
              templates: str | Sequence[str] = (), device: str = "auto") -> Classifier:
    """Make a classifier of class names alone, with no image and no store.

    names: of the classes, two or more, or one text with commas. encoder: a model's name, with `pretrained` for those of
        open_clip, or an EncoderSpec. templates: names of template sets, files, or sentences with `{}`.
    Raises PromptError for names or templates that are none, EncoderError for the encoder.

    Example:
        >>> classifier = onceclip.zero_shot(["cat", "dog"], "demo", templates="a drawing of a {}.")
        >>> found = onceclip.predict(classifier, "pets/cat")
        >>> len(found), classifier.class_names
        (40, ('cat', 'dog'))
    """
    from onceclip.pipeline.prompts.prompts import check_names

    chosen = check_names(class_names_of(names))
    given = [templates] if isinstance(templates, str) else list(templates)
    return zero_shot_of((), chosen, given, encoder=spec_of(encoder, pretrained, device))[0]


def zero_shot_of(inputs: Sequence[str], names: Sequence[str] = (), templates: Sequence[str] = (),
                 text: str | None = None, encoder: EncoderSpec | None = None, device: str = "auto"
                 ) -> tuple[Classifier, Encoder | None]:
    """The zero-shot classifier for some inputs, and its encoder if one was loaded.

    inputs: paths, as of `predict`; a store says which encoder made it. text: name of a text set of the store.
    Raises ArgumentError unless just what is needed is given.
    """
    from onceclip.pipeline.encoders import open_encoder
    from onceclip.pipeline.prediction.encoding import encoder_for
    from onceclip.pipeline.prediction.inputs import store_among
    from onceclip.pipeline.prediction.zero_shot import classifier_of_names, classifier_of_text
    from onceclip.pipeline.prompts import load_templates
    from onceclip.pipeline.prompts.prompts import check_names

    store = store_among(inputs)
    if text is not None:
        if store is None or names or templates:
            raise ArgumentError("--text names a text set of a STORE, with its classes and sentences: give a store, and "
                                "neither --names nor --templates")
        return classifier_of_text(store, text), None
    if not names:
        raise ArgumentError("--zero-shot looks for classes by their names: give --names cat,dog"
                            + (", or --text NAME" if store else ""))
    check_names(names)
    sentences = [each for choice in templates for each in load_templates(choice)]
    if store is not None:
        opened = encoder_for(store, encoder, device)
        return classifier_of_names(opened, names, sentences, store.encoder), opened
    if encoder is None:
        raise ArgumentError("--zero-shot needs an encoder: give --model (and --pretrained)")
    opened = open_encoder(encoder)
    return classifier_of_names(opened, names, sentences), opened


def predict(adapter: Adapter, inputs: Any, *, split: str | None = None, top_k: int = 1, min_probability: float = 0.0,
            coverage: float | None = None, set_kind: str = "lac", root: str | None = None, every: int | None = None,
            frames: int | None = None, encoder: str | EncoderSpec | None = None, device: str = "auto",
            modules: Sequence[str] = (), inference: str | type[Inference] | Inference | None = None,
            inference_values: Mapping[str, Any] | None = None, views: int | None = None,
            join: Sequence[str] = ()) -> list[Prediction]:
    """Label images, a folder, a store or embeddings: a prediction with `key`, `class_name` and `probability` for each.

    adapter: a classifier, or the folder of a saved one. inputs: one or several of paths of images, folders and other
        sources, Pillow images (made RGB) and arrays of pixels (uint8, height x width x 3); or a store, `split` of it;
        or raw embeddings (rows, dim). top_k: classes in `top`. min_probability: below it a prediction is "unsure".
        coverage: give each a `set` of classes that holds the true one with this probability; set_kind: "lac" or "aps".
        root, every, frames: as of `onceclip predict`. encoder: where it is, if the adapter cannot say. inference,
        inference_values: a strategy by which the adapter reads them, and its hyperparameters. views: that are made of
        each image for it. join: NAME=STORE to be joined to the store, as of `evaluate`.
    An image that cannot be read has the state "bad" and a `reason`, or "interrupted" if that is for a reason of this
    machine and not of its bytes; it ends nothing.
    Raises PredictionError or SourceError for what cannot be labelled, StoreMismatch for another encoder.

    Example:
        >>> found = onceclip.predict("pets-adapter", "pets/cat")
        >>> found[0].state, 0 < found[0].probability <= 1
        ('ok', True)
        >>> found = onceclip.predict("pets-adapter", "pets/cat", inference="mta", views=8)
        >>> len(found)
        40
    """
    from onceclip.pipeline.sources import SourceOptions

    if not (isinstance(min_probability, int | float) and 0 <= min_probability <= 1):
        raise ArgumentError(f"min_probability {min_probability!r}: give a number from 0 to 1")
    found = stream(loaded(adapter, modules), inputs, SourceOptions(root, every, frames),
                   optional(spec_of, encoder, device=device), split=optional(split_of, split),
                   top_k=whole(top_k, "top_k", 1), min_probability=min_probability, coverage=coverage,
                   set_kind=set_kind, device=device, inference=inference, inference_values=inference_values,
                   views=optional(whole, views, "views", 2), join=join)
    return list(found.predictions)


def stream(classifier: Classifier, inputs: Any, options: SourceOptions, encoder: EncoderSpec | Encoder | None, *,
           split: str | None, top_k: int, min_probability: float, coverage: float | None, set_kind: str, device: str,
           inference: str | type[Inference] | Inference | None, inference_values: Mapping[str, Any] | None,
           views: int | None, join: Sequence[str]) -> Answers:
    """What `predict` gives, each prediction as it is asked for; arguments as there, and checked.

    Raises ArgumentError for what goes with a strategy of inference, or without one, alone.
    """
    from onceclip.pipeline.prediction.predict import answers, with_sets

    strategy = optional(inference_of, inference, inference_values)
    refuse((strategy is None and inference_values,
            "--inference-set (inference_values) is for a strategy: add --inference NAME"),
           (coverage is None and set_kind != KINDS[0],
            "--set-kind (set_kind) is a kind of prediction sets: add --coverage P"))
    if coverage is not None:
        require_alone(strategy)
    rule = None if coverage is None else set_rule(classifier, coverage, set_kind)
    found = answers(classifier, inputs, split, top_k, min_probability, options, encoder, device, strategy, views, join)
    return found if rule is None else replace(found, predictions=with_sets(found.predictions, classifier, rule))


def suggest(adapter: Adapter, inputs: str | Path | Store | Sequence[str | Path], *,
            label_next: int | None = None, label_errors: bool = False, most: int = MOST_LABELS,
            out: str | Path | None = None, page: str | Path | None = None, images: str | None = None,
            encoder: str | EncoderSpec | None = None, device: str = "auto", modules: Sequence[str] = (),
            join: Sequence[str] = (),
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
    from onceclip.pipeline.encoders.spec import clip_of
    from onceclip.pipeline.prediction import suggestions
    from onceclip.pipeline.prediction.encoding import encoder_of
    from onceclip.pipeline.prediction.inputs import list_inputs, store_among
    from onceclip.pipeline.sources import SourceOptions
    from onceclip.pipeline.tasks.encoders import joined_store, require_store

    if (label_next is None) == (not label_errors):
        raise ArgumentError("give one of label_next (--label-next N) and label_errors (--label-errors)")
    refuse((label_next is not None and most != MOST_LABELS,
            "--most is for --label-errors; --label-next says its own number"),
           (images is not None and page is None,
            "--images is where a page has its pictures from: add --page FILE.html"))
    for path, ending, name in ((out, ".csv", "--out"), (page, ".html", "--page")):
        if path is not None and output_of(path, name).suffix.lower() != ending:
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
        found = suggestions.label_errors(classifier, store, whole(most, "most", 1), progress)
    elif store:
        found = suggestions.label_next(classifier, suggestions.pieces_of_store(classifier, store), number)
    elif label_errors:
        raise ArgumentError("label_errors (--label-errors) compares labels, which are in a STORE: extract the folder "
                            "first")
    else:
        opened = encoder_of(classifier, optional(spec_of, encoder, device=device), device)
        found = suggestions.label_next(classifier, suggestions.pieces_of_images(classifier, records, opened), number)
    if page is not None:
        from onceclip.pipeline.reporting.mistakes import with_thumbnails
        from onceclip.pipeline.reporting.pages import write_suggestions_page

        shown, remark = with_thumbnails(found, store, images, records)
        write_suggestions_page(output_of(page, "page"), shown, remark, classifier.method,
                               store.path if store else ", ".join(paths), label_errors)
    values = [_values(each) for each in found]
    if out is not None:
        with csv_file(output_of(out, "out")) as writer:
            columns = _values(suggestions.Suggestion("", 0, "", 0, "", 0, "x" * label_errors))
            writer.writerow(columns)
            writer.writerows([csv_cell(value) for value in row.values()] for row in values)
    return values


def _values(found: Suggestion) -> dict[str, Any]:
    """A suggestion as JSON values."""
    if found.label:
        return {"image": found.key, "label": found.label, "suggested": found.predicted,
                "probability": found.probability, "probability_of_label": found.other}
    return {"image": found.key, "class": found.predicted, "probability": found.probability, "second": found.second,
            "probability_of_second": found.other}
