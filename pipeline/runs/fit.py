"""Stage 2: draw a task from a store, choose hyperparameters, fit, score on the test split, make the result row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onceclip.adapters import Classifier, Method, MethodError, Selection, Task, set_rule
from onceclip.adapters.classifier import to_device
from onceclip.adapters.cpu import fast_products
from onceclip.adapters.inference.base import INFERENCE
from onceclip.adapters.selection.automatic import AUTOMATIC, fit_again
from onceclip.adapters.selection.calibration import KINDS, calibrated
from onceclip.adapters.selection.rule import RULE
from onceclip.adapters.selection.search import Search
from onceclip.adapters.selection.selection import choices, default_policy, fit_all, fit_selected, remarks_on
from onceclip.adapters.training.compile import USUAL, Compiling, compiling
from onceclip.adapters.training.history import Recorder, recording
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.evaluate import NEW_SCORES, Evaluation, base_to_new, score, score_together
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.evaluation.metrics import CALIBRATED, DETECTION, SCORES
from onceclip.pipeline.runs.automatic import Automatic, Average, average_of, is_average
from onceclip.pipeline.runs.keep import NOTHING, Keep, rows_scored
from onceclip.pipeline.runs.run import NO_REFIT, REFITS, RunSpec
from onceclip.pipeline.tasks.draws import ALL, GENERATOR, LISTED, Draw
from onceclip.pipeline.tasks.encoders import task_of_encoder
from onceclip.pipeline.tasks.support import bank_of, with_support
from onceclip.pipeline.tasks.tasks import Drawn, Inputs, draw_labelled, draw_task, names_for
from onceclip.pipeline.words import version
from onceclip.pipeline.workers.devices import CPU, name_of, training_device, within_memory
from onceclip.stores import Store, StoreError, open_store
from onceclip.stores.store import JoinedStore

NO_ACCURACY = "no test accuracy: the test images were fitted on"


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
    names_for(store, specs[0])  # complains of a store without classes before one without their prompts
    runs = {spec.alone.identity(store): spec.alone for spec in specs}
    fitted = dict(zip(runs, _fit_alone(store, [*runs.values()], progress, calibrate, compile, device, keep),
                      strict=True))
    return [_with_inference(store, spec, fitted[spec.alone.identity(store)]) for spec in specs]


def _with_inference(store: Store, spec: RunSpec, fitted: Fitted | MethodError) -> Fitted | MethodError:
    """A run with its strategy, if it has one, beside what its classifier reaches alone."""
    strategy = spec.strategy
    if isinstance(fitted, MethodError) or strategy is None:
        return fitted
    try:
        store = spec.opened(store)
        row = {**fitted.row, "run": spec.identity(store), "asked": spec.as_values(),
               "fingerprints": {**fitted.row["fingerprints"], **spec.contents(store)}}
        if row["n_test"]:
            found = read(score(fitted.classifier, store), strategy,
                         Batches.of(spec.batches) if spec.batches else None).values
            row |= {name: found[name] for name in (*SCORES, *CALIBRATED, *DETECTION) if name in found}
            row |= {"n_test": found["n"], "details": found["details"], INFERENCE: found[INFERENCE],
                    "seconds_total": row["seconds_total"] + found["seconds"]}
        return replace(fitted, row=row)
    except MethodError as error:
        return error
    except StoreError as error:  # such as a store without the views that the strategy reads
        return MethodError(str(error))


def _fit_alone(store: Store, specs: Sequence[RunSpec], progress: Callable[[float], None], calibrate: bool,
               compile: Compiling, device: str, keep: Keep) -> list[Fitted | MethodError]:
    """Carry out runs without inference; arguments as for `fit_group`."""
    begun, where = time.perf_counter(), training_device(device)
    first, products = specs[0], fast_products()
    store, average = first.opened(store), is_average(first.method)
    methods = [spec.built() for spec in specs]
    drawn = _drawn(store, first, methods[0])
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
        selections = _selections(specs, methods, policies, tasks, progress)
        found = {place: each for place, each in enumerate(selections) if isinstance(each, Selection)}
        fitted = [each.classifier for each in found.values()]
        fitted = fitted if where.type == CPU else to_device(fitted, CPU)
        if average and fitted:
            policies = [first.select or fitted[0].calibrated_on or (
                "fixed" if drawn.task.val is None else "val")] * len(specs)
        seconds = (time.perf_counter() - fitting) / len(specs)
        chosen = {place: replace(each, provenance=_provenance(store, specs[place], drawn, policies[place]))
                  for place, each in zip(found, fitted, strict=True)}
        guessed = drawn.sourced and drawn.task.val is None
        if (calibrate or keep.coverage is not None) and not (average or guessed):
            chosen = {place: calibrated(each, methods[0], drawn.task) for place, each in chosen.items()}
        given: dict[int, Classifier | MethodError] = {
            place: each if isinstance(each, MethodError) else chosen[place] for place, each in enumerate(selections)}
        refit: Draw | None = None
        if first.refit != NO_REFIT:
            refit, task = draw_labelled(store, drawn, REFITS[first.refit])
            task = task if where.type == CPU else task.to(where)
            given |= {place: _fitted_again(each, methods[0], first, refit, task) for place, each in chosen.items()}
    # No classifier is scored on rows that it was fitted on.
    scored = {place: chosen[place] if first.refit == ALL else each for place, each in given.items()
              if isinstance(each, Classifier)}
    scores = dict(zip(scored, _scores([*scored.values()], store, first, keep), strict=True))
    tested = rows_scored(next(iter(scores.values()))[0]) if keep.predictions and scores else {}
    common = {"seconds": seconds, "seconds_total": (time.perf_counter() - begun) / len(specs), "products": products,
              "compiling": asdict(compile), "device": name_of(where), "version": version()}
    results: list[Fitted | MethodError] = []
    for place, classifier in given.items():
        if isinstance(classifier, MethodError):
            results.append(classifier)
            continue
        evaluation, further = scores[place]
        row = _row(store, specs[place], drawn, policies[place], found[place], {**evaluation.scores(), **further})
        row |= common
        kept = {"predicted": evaluation.predicted, **tested} if keep.predictions else {}
        kept |= {"curve": _curve(recorder, methods[0], found[place])} if keep.curves else {}
        results.append(Fitted(classifier, _row_of_refit(row, first, refit) if refit else row, drawn.remarks, kept))
    return results


def _drawn(store: Store, spec: RunSpec, method: Method) -> Drawn:
    """The task of a run; with validation rows where they may choose, if the store has any."""
    select = "val" if spec.select is None or (spec.validated and spec.select == "fixed") else spec.select
    select = "fixed" if spec.shots == 0 else select
    drawn = draw_task(store, spec, select, None if spec.without_text(store) else spec.text, spec.class_weights,
                      Inputs.of(method))
    if spec.support or spec.bank:
        bank = bank_of(store, open_store(spec.bank), spec.captions_name) if spec.bank else None
        drawn = with_support(store, drawn, bank, bool(method.needs_bank))
        if is_average(spec.method) and drawn.sourced.get("source") and drawn.task.val is None:
            raise MethodError(f"{spec.method} weighs its methods on labelled images, and guessed labels are none: add "
                              "--shots K, with a store that has validation images, or give one method")
        return drawn
    if method.needs_support and not len(drawn.support.rows) and drawn.remarks:
        raise TaskError(f"{store.path} has no train image to learn from ({'; '.join(drawn.remarks)}): take images for "
                        "test that are not in train too, and extract again")
    return drawn if drawn.task.val is not None or spec.select else replace(drawn, val=None)


def _tasks(store: Store, spec: RunSpec, method: Method, drawn: Drawn) -> dict[str, Task]:
    """The task, and beside it that of each joined encoder that methods of an average are of."""
    encoders = method.encoders if isinstance(method, Automatic) else ()
    return {"": drawn.task, **{name: task_of_encoder(drawn.task, store, name, spec.text, spec.class_weights,
                                                     method.wants_tower) for name in encoders}}


def _policy(method: Method, drawn: Drawn) -> str:
    """How a method's hyperparameters are chosen by default; guessed labels choose none."""
    policy = default_policy(method, drawn.task)
    return "fixed" if policy == "loo" and drawn.sourced.get("source") else policy


def _selections(specs: Sequence[RunSpec], methods: Sequence[Method], policies: Sequence[str],
                tasks: Mapping[str, Task], progress: Callable[[float], None]) -> list[Selection | MethodError]:
    """The selection of each run, or its failure. tasks: one draw, by names of encoders; that of the store under ""."""
    first, runs = specs[0], list(zip(specs, methods, policies, strict=True))
    if not is_average(first.method) and not any(policy != "fixed" and choices(method, frozenset(spec.values))
                                                for spec, method, policy in runs):
        # Rows that might have chosen, and had nothing to choose from, say no accuracy.
        results = fit_all(methods, tasks[""], first.seed, progress, scored="fixed" in policies)
        return [replace(each, accuracy=None) if isinstance(each, Selection) and policy != "fixed" else each
                for each, policy in zip(results, policies, strict=True)]
    found: list[Selection | MethodError] = []
    for spec, method, policy in runs:
        try:
            found.append(average_of(method, tasks, spec.seed, progress) if is_average(spec.method) else
                         fit_selected(method, tasks[""], policy, frozenset(spec.values), spec.seed, progress,
                                      Search.parse(spec.search, spec.narrow)))
        except MethodError as error:
            found.append(error)
    return found


def _fitted_again(classifier: Classifier, method: Method, spec: RunSpec, draw: Draw,
                  task: Task) -> Classifier | MethodError:
    """A classifier fitted on all labelled rows; it keeps its temperature, for no row is left to find another one on."""
    try:
        if classifier.method == AUTOMATIC:
            again = fit_again(classifier, task, spec.seed)
        else:
            values = {name: classifier.hyperparameters[name] for name in method.values}
            again = method.with_values(**values).fit(task, spec.seed)
        again, = to_device([again], CPU)
    except MethodError as error:
        return error
    provenance = {**classifier.provenance, "refit": {"splits": list(REFITS[spec.refit]),
                                                     "fingerprint": draw.fingerprint}}
    return replace(classifier, head=again.head, parameters=again.parameters, provenance=provenance)


def _row_of_refit(row: dict[str, Any], spec: RunSpec, draw: Draw) -> dict[str, Any]:
    """The row of a run that was fitted again; of one on test rows it says that there is no accuracy."""
    row = {**row, "refit": spec.refit, "n_refit": len(draw.rows),
           "fingerprints": {**row["fingerprints"], "refit": draw.fingerprint}}
    if spec.refit != ALL:
        return row
    return {**row, **dict.fromkeys((*SCORES, *CALIBRATED[1:], "details")), "n_test": 0, "remark": NO_ACCURACY,
            "accuracy_before_refit": row["accuracy"]}


def _curve(recorder: Recorder, method: Method, selection: Selection) -> dict[str, Any] | None:
    """The history of the training that was chosen; None for a method without epochs."""
    values = selection.classifier.hyperparameters
    return recorder.history(method, values) if set(method.values) <= values.keys() else None


def _scores(classifiers: Sequence[Classifier], store: Store, spec: RunSpec,
            keep: Keep) -> list[tuple[Evaluation, dict[str, Any]]]:
    """What each reaches on the test split, and what the row says beside it: of new classes, and of prediction sets."""
    if not classifiers:
        return []
    rules = () if keep.coverage is None else [
        [set_rule(each, keep.coverage, kind) for kind in KINDS] if each.conformity else [] for each in classifiers]
    found = (base_to_new(classifiers, store, spec.text, keep.predictions, rules) if spec.classes != ALL else
             [(each, {}) for each in score_together(classifiers, store, keep=keep.predictions, rules=rules)])
    return [(each, further if keep.coverage is None else {**further, **each.counted_sets()}) for each, further in found]


def _provenance(store: Store, spec: RunSpec, drawn: Drawn, policy: str) -> dict[str, Any]:
    return {
        "version": version(),
        "encoder": store.encoder,
        "store": store.fingerprint,
        **({"encoders": {name: each.encoder for name, each in store.joined.items()}}
           if isinstance(store, JoinedStore) else {}),
        "outputs": {name: output.spec for name, output in store.outputs.items()
                    if name in {*spec.reads, "view", "token"}},
        "text": {"name": spec.text, "fingerprint": spec.contents(store)["text"], "class_weights": spec.class_weights,
                 **drawn.text.source},
        "shots": spec.shots_word, "seed": spec.seed, "select": policy,
        "classes": spec.classes, **({"shape": spec.shape} if spec.shape else {}),
        "support": _draw(drawn.support, spec), "val": drawn.val and _draw(drawn.val, spec),
        **({"support_source": drawn.sourced} if drawn.sourced else {}),
    }


def _draw(draw: Draw, spec: RunSpec) -> dict[str, Any]:
    """A draw as data; one of all rows is the store's split itself, which may have millions of keys."""
    whole = spec.shots is None and not (spec.draws or spec.shape)
    return {"fingerprint": draw.fingerprint, "generator": LISTED if spec.draws else GENERATOR,
            "keys": "all" if whole else list(draw.keys)}


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
