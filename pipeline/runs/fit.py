"""Stage 2: draw a task from a store, choose hyperparameters, fit, score on the test split, make the result row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onceclip.adapters import Classifier, Method, MethodError, Selection, Task
from onceclip.adapters.classifier import to_device
from onceclip.adapters.cpu import fast_products
from onceclip.adapters.selection.calibration import calibrated
from onceclip.adapters.selection.rule import RULE
from onceclip.adapters.selection.search import Search
from onceclip.adapters.selection.selection import choices, default_policy, fit_all, fit_selected, remarks_on
from onceclip.adapters.training.compile import USUAL, Compiling, compiling
from onceclip.adapters.training.history import Recorder, recording
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.evaluate import evaluate_together
from onceclip.pipeline.evaluation.metrics import CALIBRATED, SCORES
from onceclip.pipeline.evaluation.protocols import NEW_SCORES, base_to_new
from onceclip.pipeline.runs.automatic import Automatic, Average, average_of, is_average, run_method
from onceclip.pipeline.runs.keep import NOTHING, Keep, rows_scored
from onceclip.pipeline.runs.refit import Refit
from onceclip.pipeline.runs.run import NO_REFIT, RunSpec
from onceclip.pipeline.tasks.classes import ALL
from onceclip.pipeline.tasks.draws import GENERATOR, LISTED, Draw
from onceclip.pipeline.tasks.encoders import task_of_encoder
from onceclip.pipeline.tasks.support import bank_of, with_support
from onceclip.pipeline.tasks.tasks import Drawn, Inputs, draw_task
from onceclip.pipeline.words import version
from onceclip.pipeline.workers.devices import CPU, name_of, training_device, within_memory
from onceclip.stores import Store, StoreError, open_store
from onceclip.stores.store import JoinedStore


@dataclass(frozen=True)
class Fitted:
    """A classifier, its result row, and remarks for the user. kept: what was asked for beside the row; see `Keep`."""

    classifier: Classifier
    row: dict[str, Any]
    remarks: list[str]
    kept: dict[str, Any] = field(default_factory=dict)


def fit(store: Store, spec: RunSpec, progress: Callable[[float], None] = no_progress,
        compile: Compiling = USUAL, device: str = CPU, keep: Keep = NOTHING) -> Fitted:
    """Carry out one run on a store.

    compile: whether the steps of its training are compiled. device: that trains it, "cpu", "cuda", "cuda:1", or "auto"
        for a GPU where there is one; the classifier comes back to the CPU, where it is scored. keep: what is kept
        beside the row.
    Raises MethodError, TaskError, StoreError or DeviceError, each with one line that says how to mend it.

    Example:
        >>> fitted = onceclip.fit(store, onceclip.RunSpec("tip-adapter", shots=4, seed=1, select="val"))
        >>> fitted.row["shots"], fitted.row["n_support"], 0 <= fitted.row["accuracy"] <= 1
        (4, 16, True)
    """
    fitted, = fit_group(store, [spec], progress, calibrate=True, compile=compile, device=device, keep=keep)
    if isinstance(fitted, MethodError):
        raise fitted
    return fitted


def fit_group(store: Store, specs: Sequence[RunSpec], progress: Callable[[float], None] = no_progress,
              calibrate: bool = False, compile: Compiling = USUAL,
              device: str = CPU, keep: Keep = NOTHING) -> list[Fitted | MethodError]:
    """Carry out runs that differ in hyperparameter values alone: trained and scored together.

    calibrate: give the classifiers their temperatures; see `calibrated`. compile: whether the steps of their trainings
        are compiled, and of how many like them they are some. device, keep: as for `fit`.
    Runs that differ in inference alone share their classifier.
    A run whose training diverges gives its failure; the others go on.
    Raises MethodError, TaskError, StoreError or DeviceError for what concerns all of them.
    """
    if (keep.predictions or keep.coverage is not None) and any(spec.strategy for spec in specs):
        raise TaskError("--keep-predictions and --coverage are for what classifiers say of each image by itself: leave "
                        "--inference out")
    store.require_complete()
    runs = {spec.alone.identity(store): spec.alone for spec in specs}
    fitted = dict(zip(runs, _fit_alone(store, [*runs.values()], progress, calibrate, compile, device, keep),
                      strict=True))
    return [_inferred(store, spec, fitted[spec.alone.identity(store)]) for spec in specs]


def _inferred(store: Store, spec: RunSpec, fitted: Fitted | MethodError) -> Fitted | MethodError:
    if isinstance(fitted, MethodError) or spec.strategy is None:
        return fitted
    try:
        opened = spec.opened(store)
        row = spec.inferred(opened, fitted.classifier, fitted.row)
        return replace(fitted, row={
            **row, "run": spec.identity(opened), "asked": spec.as_values(),
            "fingerprints": {**row["fingerprints"], **spec.contents(opened)}})
    except MethodError as error:
        return error
    except StoreError as error:  # such as a store without the views that the strategy reads
        return MethodError(str(error))


def _fit_alone(store: Store, specs: Sequence[RunSpec], progress: Callable[[float], None], calibrate: bool,
               compile: Compiling, device: str, keep: Keep) -> list[Fitted | MethodError]:
    """Carry out runs without inference; arguments as for `fit_group`."""
    begun, where = time.perf_counter(), training_device(device)
    first, products = specs[0], fast_products()
    store = first.opened(store)
    methods = [spec.built() for spec in specs]
    drawn = _drawn(store, first, methods[0])
    if is_average(first.method) and drawn.sourced.get("source") and drawn.task.val is None:
        raise MethodError(f"{first.method} weighs its methods on labelled images, and guessed labels are none: add "
                          "--shots K, with a store that has validation images, or give one method")
    policies = [spec.select or _policy(method, drawn) for spec, method in zip(specs, methods, strict=True)]
    drawn.remarks.extend(dict.fromkeys(
        remark for method, spec, policy in zip(methods, specs, policies, strict=True)
        if spec.select != "fixed" and spec.shots != 0
        for remark in remarks_on(method, drawn.task, policy, frozenset(spec.values))))
    fitting = time.perf_counter()
    what = f"{first.method} on {len(drawn.support.rows):,} rows"
    with recording(keep.curves) as recorder, compiling(compile), within_memory(where, what):
        tasks = {name: each if where.type == CPU else each.to(where)
                 for name, each in _tasks(store, first, methods[0], drawn).items()}
        task = tasks[""]
        as_they_are = not is_average(first.method) and not any(
            policy != "fixed" and choices(method, frozenset(spec.values))
            for method, spec, policy in zip(methods, specs, policies, strict=True))
        selections = ([_without_choice(each, policy) for each, policy in zip(
            fit_all(methods, task, first.seed, progress), policies, strict=True)] if as_they_are else
                      [_selected(method, tasks, spec, policy, progress)
                       for method, spec, policy in zip(methods, specs, policies, strict=True)])
        fitted = [each.classifier for each in selections if isinstance(each, Selection)]
        fitted = fitted if where.type == CPU else to_device(fitted, CPU)
        if is_average(first.method) and fitted:
            policies = [first.select or fitted[0].calibrated_on or (
                "fixed" if drawn.task.val is None else "val")] * len(specs)
        fine = [(spec, policy) for each, spec, policy in zip(selections, specs, policies, strict=True)
                if isinstance(each, Selection)]
        seconds = (time.perf_counter() - fitting) / len(specs)
        chosen = [replace(each, provenance=_provenance(store, spec, drawn, policy))
                  for each, (spec, policy) in zip(fitted, fine, strict=True)]
        guessed = drawn.sourced and drawn.task.val is None
        if (calibrate or keep.coverage is not None) and not (is_average(first.method) or guessed):
            chosen = [calibrated(classifier, methods[0], drawn.task) for classifier in chosen]
        refit = None if first.refit == NO_REFIT else Refit.of(store, first, drawn, methods[0], where)
        final: list[Classifier | MethodError] = [*chosen] if refit is None else [refit.fitted(each) for each in chosen]
    # No classifier is scored on rows that it was fitted on.
    good = [chosen[place] if first.refit == ALL else each for place, each in enumerate(final)
            if isinstance(each, Classifier)]
    scores = iter(_scores(good, store, first, keep) if good else ())
    tested = rows_scored(store, drawn.task.classes) if keep.predictions else {}
    total = (time.perf_counter() - begun) / len(specs)
    results: list[Fitted | MethodError] = []
    finals = iter(final)
    for spec, policy, selection in zip(specs, policies, selections, strict=True):
        if isinstance(selection, MethodError):
            results.append(selection)
            continue
        classifier = next(finals)
        if isinstance(classifier, MethodError):
            results.append(classifier)
            continue
        reached = next(scores)
        row = _row(store, spec, drawn, policy, selection, reached)
        row |= {"seconds": seconds, "seconds_total": total, "products": products, "compiling": asdict(compile),
                "device": name_of(where), "version": version()}
        results.append(Fitted(classifier, row if refit is None else refit.row(row), drawn.remarks, {
            **({"predicted": reached["predicted"], **tested} if keep.predictions else {}),
            **({"curve": _curve(recorder, methods[0], selection)} if keep.curves else {})}))
    return results


def _without_choice(selection: Selection | MethodError, policy: str) -> Selection | MethodError:
    """What was fitted as it is: rows that might have chosen, and had nothing to choose from, say no accuracy."""
    return replace(selection, accuracy=None) if isinstance(selection, Selection) and policy != "fixed" else selection


def _policy(method: Method, drawn: Drawn) -> str:
    """How a method's hyperparameters are chosen by default; guessed labels choose none."""
    policy = default_policy(method, drawn.task)
    return "fixed" if policy == "loo" and drawn.sourced.get("source") else policy


def _curve(recorder: Recorder, method: Method, selection: Selection) -> dict[str, Any] | None:
    """The history of the training that was chosen; None for a method without epochs."""
    values = selection.classifier.hyperparameters
    return recorder.history(method, values) if set(method.values) <= values.keys() else None


def _tasks(store: Store, spec: RunSpec, method: Method, drawn: Drawn) -> dict[str, Task]:
    """The task, and beside it that of each joined encoder that methods of an average are of."""
    encoders = method.encoders if isinstance(method, Automatic) else ()
    return {"": drawn.task, **{name: task_of_encoder(drawn.task, store, name, spec.text, spec.class_weights,
                                                     method.wants_tower) for name in encoders}}


def _selected(method: Method, tasks: Mapping[str, Task], spec: RunSpec, policy: str,
              progress: Callable[[float], None]) -> Selection | MethodError:
    """The selection of one run, or its failure."""
    try:
        if is_average(spec.method):
            return average_of(method, tasks, spec.seed, progress)
        return fit_selected(method, tasks[""], policy, frozenset(spec.values), spec.seed, progress,
                            Search.parse(spec.search, spec.narrow))
    except MethodError as error:
        return error


def _drawn(store: Store, spec: RunSpec, method: Method) -> Drawn:
    """The task of a run; with validation rows where they may choose, if the store has any."""
    select = "val" if spec.select is None or (spec.validated and spec.select == "fixed") else spec.select
    select = "fixed" if spec.shots == 0 else select
    drawn = draw_task(store, spec, select, None if spec.without_text(store) else spec.text, spec.class_weights,
                      Inputs.of(method))
    if spec.support or spec.bank:
        bank = bank_of(store, open_store(spec.bank), spec.captions_name) if spec.bank else None
        return with_support(store, drawn, spec.source, spec.seed, bank, method.inputs, bool(method.needs_bank))
    if method.needs_support and not len(drawn.support.rows) and drawn.remarks:
        raise TaskError(f"{store.path} has no train image to learn from ({'; '.join(drawn.remarks)}): take images for "
                        "test that are not in train too, and extract again")
    return drawn if drawn.task.val is not None or spec.select else replace(drawn, val=None)


def _scores(classifiers: Sequence[Classifier], store: Store, spec: RunSpec, keep: Keep) -> list[dict[str, Any]]:
    """What each reaches on the test split; of a run of base classes also what is said of new ones."""
    if spec.classes == ALL:
        return evaluate_together(classifiers, store, keep=keep.predictions, coverage=keep.coverage)
    return base_to_new(classifiers, store, spec.text, keep.predictions, keep.coverage)


def _provenance(store: Store, spec: RunSpec, drawn: Drawn, policy: str) -> dict[str, Any]:
    return {
        "version": version(),
        "encoder": store.encoder,
        "store": store.fingerprint,
        **({"encoders": {name: each.encoder for name, each in store.joined.items()}}
           if isinstance(store, JoinedStore) else {}),
        "outputs": {name: output.spec for name, output in store.outputs.items()
                    if name in {*(spec.inputs or run_method(spec.method).inputs), "view", "token"}},
        "text": {"name": spec.text, "fingerprint": spec.contents(store)["text"], "class_weights": spec.class_weights,
                 **drawn.text.source},
        "shots": spec.shots_word, "seed": spec.seed, "select": policy,
        "classes": spec.classes, **({"shape": spec.shape} if spec.shape else {}),
        "support": _draw(drawn.support, spec), "val": drawn.val and _draw(drawn.val, spec),
        **({"support_source": drawn.sourced} if drawn.sourced else {}),
    }


def _draw(draw: Draw, spec: RunSpec) -> dict[str, Any]:
    """A draw as data; one of all rows is the store's split itself, which may have millions of keys."""
    return {"fingerprint": draw.fingerprint, "generator": LISTED if spec.draws else GENERATOR,
            "keys": "all" if spec.shots is None and not spec.draws else list(draw.keys)}


def _row(store: Store, spec: RunSpec, drawn: Drawn, policy: str, selection: Selection,
         scores: Mapping[str, Any]) -> dict[str, Any]:
    task = drawn.task
    return {
        "method": spec.method, "shots": spec.shots_word, "seed": spec.seed,
        "hyperparameters": selection.classifier.hyperparameters, "select": policy, "rule": RULE,
        **{name: scores[name] for name in (*SCORES, *CALIBRATED)}, "accuracy_val": selection.accuracy,
        "n_support": len(task.support), "n_val": 0 if task.val is None else len(task.val), "n_test": scores["n"],
        "n_unlabelled": 0 if task.unlabelled is None else len(task.unlabelled),
        **{name: scores[name] for name in (*NEW_SCORES, "sets", "calibrated_on") if name in scores},
        "classes": task.classes, "encoder": store.encoder["name"], "text": spec.text,
        "class_weights": spec.class_weights, "store": store.path,
        "settings_tried": selection.tried, "mixing_interval": selection.interval and list(selection.interval),
        "fingerprints": {**spec.contents(store), "support": drawn.support.fingerprint,
                         "val": drawn.val and drawn.val.fingerprint,
                         "unlabelled": drawn.unlabelled and drawn.unlabelled.fingerprint},
        **spec.as_row(store.column("label")[drawn.support.rows], drawn.support, task.text.class_names),
        **({"reached": [asdict(each) for each in selection.reached]}
           if isinstance(selection, Average) and selection.reached else {}),
        **({"support_source": drawn.sourced} if drawn.sourced else {}),
        "run": spec.identity(store), "asked": spec.as_values(), "details": scores["details"],
    }
