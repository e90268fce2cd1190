"""What is done with a fitted adapter: scores, pages, files for other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.adapters import Classifier
from onceclip.adapters.inference import Inference
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.api.arguments import (
    free_folder,
    inference_of,
    listed,
    loaded,
    one_of,
    opened,
    opened_all,
    optional,
    output_of,
    path_of,
    place_of,
    refuse,
    require_alone,
    spec_of,
    split_of,
)
from onceclip.pipeline.errors import ArgumentError, ResultError
from onceclip.pipeline.files import RESULTS
from onceclip.pipeline.tasks.draws import CHOICES
from onceclip.stores import Store

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.evaluation.batches import Batches

Adapter = str | Path | Classifier


def evaluate(adapter: Adapter, stores: str | Path | Store | Sequence[str | Path | Store], split: str = "test", *,
             classes: str | Sequence[str] = "all", text: str | None = None, only_its_classes: bool = False,
             coverage: float | None = None, against: Adapter | None = None, confusion: str | Path | None = None,
             modules: Sequence[str] = (), inference: str | type[Inference] | Inference | None = None,
             inference_values: Mapping[str, Any] | None = None, batches: Mapping[str, Any] | Batches | None = None,
             orders: Sequence[int] | str | None = None, masks: str | Path | None = None, save: str | Path | None = None,
             overwrite: bool = False, join: Sequence[str] = (), multi_label: str | Path | None = None,
             progress: Callable[[str], AbstractContextManager[Progress]] = lambda path: nullcontext(no_progress)
             ) -> dict[str, Any]:
    """Score an adapter on a split of a store, or of several: accuracy with its interval, NLL, ECE, counts and more.

    adapter: a classifier, or the folder of a saved one. stores: of several the first is what the others are compared
        with, in `stores` and `mean_of_others`. classes: "all", "base", "new", or names of classes whose images are
        scored. text: name of a text set whose classes compete. only_its_classes: the scored classes alone compete.
        coverage: count prediction sets that hold the true class with this probability, in `sets`, by both kinds.
        against: another adapter, to be compared on the same images. confusion: a CSV file for the confusion matrix.
        modules: that saved heads and methods may come from. join: NAME=STORE of other encoders' stores of the same
        images, for an adapter that takes their outputs. progress: of a store's path, a context that gives
        a function for the fraction done.
    inference: a strategy by which the adapter reads the rows, without their labels; the scores are then those with it,
        and `inference` among them says what was done and what the adapter reaches alone. inference_values: its
        hyperparameters. batches: have it see one batch at a time, `Batches` or its fields by name. orders: seeds of the
        orders in which a stream is read, such as (1, 2, 3), the default, or "1-5". masks: a folder of masks, or a .csv
        file that names them, by which anovl and patch-knn also have `pixel_auroc` and `pro`. save: a folder for the
        adapter that the strategy leaves behind; overwrite: replace one that is there.
    multi_label: a CSV file with the columns key and label, a line for every class of an image. The listed images are
        then ranked by every class of the adapter: `map` is the mean average precision, `per_class` that of each.
    Raises StoreMismatch if another encoder made a store, TaskError if there is no labelled image, ArgumentError.

    Example:
        >>> scores = onceclip.evaluate(onceclip.adapters.ZeroShot().fit(task), "pets.zarr", split="test")
        >>> scores["n"], 0 <= scores["accuracy"] <= 1
        (48, True)
        >>> found = onceclip.evaluate("pets-adapter", "pets.zarr", inference="stata", inference_values={"alpha": 2})
        >>> found["inference"]["transductive"], 0 <= found["inference"]["alone"]["accuracy"] <= 1
        (True, True)
    """
    from onceclip.pipeline.evaluation.batches import Batches, orders_for
    from onceclip.pipeline.evaluation.evaluate import score, shift
    from onceclip.pipeline.evaluation.inference import read
    from onceclip.pipeline.evaluation.metrics import write_matrix
    from onceclip.pipeline.evaluation.statistics import compare
    from onceclip.pipeline.prediction.masks import masks_of
    from onceclip.pipeline.retrieval import multi_label as scoring
    from onceclip.pipeline.tasks.encoders import joined_store

    chosen = classes if isinstance(classes, str) and classes in CHOICES else tuple(listed(classes, "classes"))
    split = split_of(split)
    classifier, other = loaded(adapter, modules), optional(loaded, against, modules)
    several = [joined_store(store, join, *(each for each in (classifier, other) if each))
               for store in opened_all(stores)]
    strategy = optional(inference_of, inference, inference_values)
    if multi_label is not None:
        others = (text, only_its_classes, coverage, against, confusion, strategy, inference_values, batches, orders,
                  save)
        refuse((len(several) > 1 or chosen != CHOICES[0] or any(each not in (None, False, {}) for each in others),
                "a file of labels is scored for one adapter on one store, among all its classes and without a "
                "strategy: give no other options with it but the split"))
        labels = scoring.read_labels(str(path_of(multi_label, "multi_label: a CSV file")))
        with progress(several[0].path) as told:
            return scoring.evaluate(classifier, several[0], labels, split, told)
    if coverage is not None:
        require_alone(strategy)
    dealt = Batches.of(batches) if isinstance(batches, Mapping) else batches
    of_strategy = inference_values or any(each is not None for each in (dealt, save, orders, masks))
    refuse((overwrite and save is None,
            "--overwrite replaces an adapter in the folder of --save: add --save FOLDER, or leave it out"),
           (strategy is None and of_strategy,
            "inference_values, batches, orders, masks and save are for a strategy: add inference (--inference)"),
           (masks is not None and dealt is not None,
            "masks are of images that are read all together: leave out the batches, or --masks"))
    seeds = orders_for(strategy, orders, dealt is not None)
    folder = None if save is None else free_folder(path_of(save, "save: a folder"), overwrite, "--save")
    if strategy and folder and not strategy.leaves_classifier:
        raise ArgumentError(f"{strategy.name} leaves no adapter behind that reads rows one by one: leave --save out, "
                            "or take a strategy that does (`onceclip methods` says which)")
    refuse((dealt is not None and other,
            "--against compares on one set of rows: leave out the batches, or --against"),
           (folder and (len(several) > 1 or dealt is not None),
            "what is saved is left behind by one set of rows: give one store, and no batches"),
           (confusion is not None and len(several) > 1, "the confusion matrix is that of one store: give one"))
    found = []
    for store in several:
        with progress(store.path) as told:
            done = score(classifier, store, split, chosen, text, only_its_classes, coverage,
                         no_progress if strategy else told)
            values = done.as_values()
            if strategy:
                marks = None if masks is None else masks_of(place_of(masks, "masks: a folder, or a .csv file"), done,
                                                            strategy)
                reading = read(done, strategy, dealt, seeds or None, told, marks)
                done, values = reading.evaluation, reading.values
                if folder and reading.classifier:
                    reading.classifier.save(folder)
        if other:
            values["against"] = {"adapter": str(other.method if isinstance(against, Classifier) else against),
                                 **compare(done.right, score(other, store, split, chosen, text,
                                                             only_its_classes).right, done.unit)}
        found.append(values)
    if confusion is not None:
        write_matrix(output_of(confusion, "confusion: a CSV file"), done.candidates, done.tally.right.numpy(),
                     done.tally.wrong.counted())
    return found[0] if len(found) == 1 else shift(found)


def report(results: str | Path | Sequence[str | Path], store: str | Path | Store | None = None, *, out: str | Path,
           split: str | None = None, images: str | None = None, modules: Sequence[str] = (),
           join: Sequence[str] = ()) -> dict[str, Any]:
    """Write one HTML page of results folders, or of a saved adapter on a store.

    results: one or several folders of results; or the folder of a saved adapter, with `store`. split, images: of an
        adapter's page, what is scored ("test" by default) and where the store's images are. join: NAME=STORE to be
        joined to the store, as of `evaluate`.
    An adapter without a store has a page of its result row alone.
    Raises ResultError if there are no result rows.

    Example:
        >>> onceclip.report("pets-adapter", "pets.zarr", out="mistakes.html")["report"]
        'mistakes.html'
    """
    from onceclip.adapters.saving import CONFIG, file_of
    from onceclip.pipeline.api.tables import local_folders
    from onceclip.pipeline.reporting.pages import write_adapter_report, write_results_report

    page, places = output_of(out, "out: an .html file"), list(map(str, listed(results, "results")))
    with local_folders(results) as folders:
        adapters = [folder for folder in folders if file_of(folder, CONFIG).is_file()]
        if store is not None:
            if len(folders) > 1 or not adapters:
                raise ArgumentError(f"{folders[0]} is not a saved adapter: the page of an adapter takes its folder and "
                                    "a STORE, that of results one or more results folders")
            return write_adapter_report(folders[0], opened(store).path, page,
                                        "test" if split is None else split_of(split), images, modules, join)
        if split or images or join:
            raise ArgumentError("--split, --images and --join are for the page of an adapter: give ADAPTER STORE")
        for folder in adapters:
            if not (folder / RESULTS).is_file():
                raise ResultError(f"{folder} is an adapter without a result row, as it is uploaded or saved from "
                                  "Python: give a STORE to score it on, for the page of an adapter")
        return write_results_report(folders, page, places)


def export(adapter: Adapter | Store, to: str, out: str | Path, *, with_encoder: bool = False,
           check: str | Path | None = None, encoder: str | EncoderSpec | None = None, modules: Sequence[str] = (),
           progress: Progress = no_progress) -> Any:
    """Write an adapter, or a store, for other programs; the file appears when it is whole.

    adapter: a classifier, or the folder of a saved one; or a store. to: "safetensors" (one linear map), "torch" (a
        program of torch.export) or "onnx", which are run and must give the same answers; of a store "parquet" or "npz":
        key, label, split and embedding of its images, with text sets in files beside it; "folder": the adapter as it
        is, to a URL such as hf://ORG/NAME. with_encoder: put the image encoder into the file too, so that pixels go in
        instead of embeddings. check: a store to compare on, or with the
        encoder a folder of images; random rows by default. encoder: where it is, if the adapter cannot say. progress:
        of a store, gets the fraction done.
    Raises ExportError if the format cannot hold the adapter, a package is missing, or the answers differ.

    Example:
        >>> made = onceclip.export(onceclip.adapters.TipAdapter().fit(task), "torch", "pets.pt2")
        >>> made.rows, made.difference < 1e-4
        (64, True)
        >>> onceclip.export("pets.zarr", "npz", "pets.npz").rows
        160
    """
    from onceclip.pipeline.encoders.opening import recorded_encoder
    from onceclip.pipeline.export import FORMATS
    from onceclip.pipeline.export import export as write
    from onceclip.pipeline.export.export import prepared_images, stored_rows
    from onceclip.pipeline.export.publish import FOLDER, publish_adapter
    from onceclip.pipeline.export.store_file import FORMATS as OF_STORES
    from onceclip.pipeline.export.store_file import export_store

    kind = one_of(to, "format", [*FORMATS, *OF_STORES, FOLDER])
    if kind in (*OF_STORES, FOLDER) and (with_encoder or check is not None or encoder is not None or modules):
        raise ArgumentError(f"{kind} runs nothing: leave out --with-encoder, --check, --import and encoder (--model)")
    if kind == FOLDER:
        if isinstance(adapter, Store):
            raise ArgumentError("a store is published by onceclip.compact(store, URL)")
        return publish_adapter(adapter, place_of(out, "out: a URL"))
    file = output_of(out, "out: a file")
    if kind in OF_STORES:
        return export_store(opened(adapter), kind, file, progress)
    classifier = loaded(adapter, modules)
    if encoder is not None and not with_encoder:
        raise ArgumentError("encoder says what goes into the file: add with_encoder=True, or leave it out")
    opened_encoder, rows = None, None
    if with_encoder:
        given = optional(spec_of, encoder, device="cpu")
        opened_encoder = recorded_encoder(classifier.provenance.get("encoder", {}), "the adapter", given, "cpu",
                                          ", or leave --with-encoder away")
    if check is not None:
        place = place_of(check, "check: a store, or with_encoder a folder of images")
        rows = prepared_images(opened_encoder, Path(place)) if opened_encoder else stored_rows(classifier, place)
    return write(classifier, kind, file, opened_encoder, rows)
