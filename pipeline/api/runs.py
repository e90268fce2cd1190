"""Stage 2: tasks, runs and sweeps on stores, and what methods there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from onceclip.adapters import METHODS, POLICIES, Method, Task
from onceclip.adapters.errors import unknown
from onceclip.adapters.inference import Inference
from onceclip.adapters.plugin import full_name
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.selection.search import GRID, Search
from onceclip.adapters.text import RULES
from onceclip.adapters.training.compile import AUTO, Compiling
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.api.arguments import (
    free_folder,
    inference_of,
    listed,
    method_of,
    one_of,
    opened,
    opened_all,
    optional,
    output_of,
    part_of,
    path_of,
    shots_of,
    text_of,
    whole,
)
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.evaluation.statistics import count_interval, units_of
from onceclip.pipeline.runs import sweep as runs
from onceclip.pipeline.runs.automatic import is_average
from onceclip.pipeline.runs.fit import Fitted
from onceclip.pipeline.runs.fit import fit as run
from onceclip.pipeline.runs.incremental import Sessions
from onceclip.pipeline.runs.incremental import incremental as arrive
from onceclip.pipeline.runs.keep import Keep, write_kept
from onceclip.pipeline.runs.results import append_row, record_stores
from onceclip.pipeline.runs.run import NO_INFERENCE, REFITS, RunSpec
from onceclip.pipeline.runs.specs import OWN, make_specs
from onceclip.pipeline.runs.trackers import Log
from onceclip.pipeline.tasks.draw_files import DrawFile, only_draw
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.draws import ALL, BASE
from onceclip.pipeline.tasks.encoders import named_store, require_read
from onceclip.pipeline.tasks.tasks import Inputs, draw_task
from onceclip.pipeline.words import counted, percent
from onceclip.pipeline.words import shots_of as words_of_shots
from onceclip.pipeline.workers import Part
from onceclip.pipeline.workers.devices import CPU
from onceclip.stores import Store

if TYPE_CHECKING:
    from onceclip.pipeline.workers.cluster import Workers

SWEPT = ("zero-shot", "linear-probe", "clip-adapter", "tip-adapter", "tip-adapter-f", "gda")


def make_task(store: str | Path | Store, shots: int | str | None = "all", seed: int = 1, text: str = "default",
              select: str = "fixed", class_weights: str = RULES[0], classes: str = ALL, outputs: Sequence[str] = (),
              unlabelled: bool = False, tower: bool = False) -> Task:
    """Draw the task of one run: all that a method may look at; test rows are not part of it.

    store: an open one or its path. shots: labelled rows per class, or "all" of the train split. text: name of the text
        set. select: "val" adds min(shots, 4) validation rows per class, "val-full" the whole validation split.
        class_weights: how a class vector is made of the prompts; see `Text`. classes: "all", or "base" for the first
        half alone. outputs: what else of every row a method takes (its `inputs`), such as "preproj". unlabelled: add
        train rows outside the draw, without their labels. tower: add the encoder's text tower, for methods that learn
        prompts.
    Raises TaskError if the store has too few classes, StoreIncomplete if it is unfinished, ArgumentError.

    Example:
        >>> task = onceclip.make_task("pets.zarr", shots=4, seed=1, select="val")
        >>> task.support.embedding.shape, task.val.embedding.shape
        (torch.Size([16, 64]), torch.Size([16, 64]))
    """
    spec = DrawSpec(shots_of(shots), whole(seed, "seed", 0), classes=one_of(classes, "classes", (ALL, BASE)))
    inputs = Inputs(listed(outputs, "outputs") if outputs else (), unlabelled, tower)
    return draw_task(opened(store), spec, one_of(select, "select", POLICIES), text_of(text),
                     one_of(class_weights, "class_weights", RULES), inputs).task


def fit(store: str | Path | Store, method: str | type[Method] | Method | RunSpec = AUTOMATIC,
        shots: int | str | None = None, seed: int | None = None, *, values: Mapping[str, Any] | None = None,
        device: str = CPU, compile: str | Compiling = AUTO, out: str | Path | None = None, overwrite: bool = False,
        curves: bool = False, coverage: float | None = None, progress: Progress = no_progress,
        **further: Any) -> Fitted:
    """Draw a task, choose hyperparameters, fit, and score on the test split: a classifier and its result row.

    store: an open one or its path. method: a name, a class, an object whose hyperparameters are taken as they are, or a
        RunSpec, which says all that follows up to `further`; by default the average of several methods. shots: labelled
        rows per class, "all" by default; none with support="upl:16" or the like, so that no label is read. seed: of the
        draw and of the training, 1 by default. values: hyperparameters that no search changes. further: other fields of
        RunSpec, such as select="val". device: "cpu", "cuda", "cuda:1", or "auto". compile: "auto", "on" or "off". out:
        a folder that gets the adapter and its row; overwrite: replace an adapter there. curves: put the losses of every
        epoch there too. coverage: count prediction sets of this probability, as `evaluate` does, in the row's `sets`.
        progress: gets the fraction done.
    Raises MethodError, TaskError, StoreError, DeviceError or ArgumentError, each with one line on how to mend it.

    Example:
        >>> fitted = onceclip.fit("pets.zarr", "tip-adapter", shots=4, select="val")
        >>> fitted.row["shots"], fitted.row["n_support"], 0 <= fitted.row["accuracy"] <= 1
        (4, 16, True)
    """
    if isinstance(method, RunSpec):
        if further or (shots, seed, values) != (None, None, None):
            raise ArgumentError("a RunSpec says by itself what is run: leave shots, seed and the like out, or change "
                                "it with dataclasses.replace")
        spec = method
    else:
        spec = spec_for(method, shots, seed, values, **further)
    if overwrite and out is None:
        raise ArgumentError("--overwrite replaces an adapter in the folder of --out: add --out FOLDER, or leave it out")
    folder = None if out is None else free_folder(path_of(out, "out: a folder"), overwrite)
    target = opened(store)
    fitted = run(target, spec, progress, compile if isinstance(compile, Compiling) else Compiling(compile), device,
                 Keep(curves, coverage=coverage))
    if folder:
        fitted.classifier.save(folder, _facts(fitted.row, target))
        write_kept(folder, [{**fitted.row, **fitted.kept}], None)
        append_row(folder, fitted.row)
        record_stores(folder, [target])
    return fitted


def spec_for(method: str | type[Method] | Method, shots: int | str | None = None, seed: int | None = None,
             values: Mapping[str, Any] | None = None, **further: Any) -> RunSpec:
    """One run, with every argument checked; arguments as of `fit`. draws: a file or folder of them.

    Of a file with one draw, that draw's shots and seed are taken where none are given.
    """
    kind, own = method_of(method)
    if own is not None:
        further, values = {"select": "fixed", **further}, {**own, **(values or {})}
    if not isinstance(values or {}, Mapping):
        raise ArgumentError(f"values {values!r}: give hyperparameters by name, such as {{'alpha': 1.0}}")
    further = _checked([_name(kind)], further)
    if isinstance(draws := further.get("draws"), Path) and (only := only_draw(draws)):
        shots, seed = shots or only.shots, only.seed if seed is None else seed
    number = 0 if shots is None and further.get("support") else shots_of(shots)
    return RunSpec(_name(kind), number, 1 if seed is None else whole(seed, "seed", 0), values or {}, **further)


def _facts(row: Mapping[str, Any], store: Store) -> dict[str, str]:
    """What the card of a saved adapter says of its run; no path of this machine but the store's name."""
    again = f", then on all {row['n_refit']:,} of {', '.join(REFITS[row['refit']])}" if "n_refit" in row else ""
    facts = {"fitted on": f"{counted(row['n_support'], 'training image')}, {words_of_shots(row['shots'])}, seed "
                          f"{row['seed']}{again}",
             "store": f"{store.path.rstrip('/').rpartition('/')[2]}, fingerprint {store.fingerprint}",
             "date": datetime.now(UTC).date().isoformat()}
    if row["accuracy"] is None:
        before = row.get("accuracy_before_refit")
        told = "" if before is None else f"; {percent(before)} before they were fitted on"
        return {"test accuracy": f"not measured: no test images were left to score{told}", **facts}
    rows = store.rows("test")
    unit = units_of(store.column("group")[rows])
    found = row.get("inference") or {}
    accuracy = found["alone"]["accuracy"] if found else row["accuracy"]
    told = f"{percent(accuracy)} of {counted(row['n_test'], 'image')}"
    # Images of a group are not independent, and the row says not which of them were right.
    if unit is None and not found.get("batches"):
        low, high = count_interval(round(accuracy * row["n_test"]), row["n_test"])
        told += f" (95 % interval {percent(low)} to {percent(high)})"
    if found:
        told += f"; {percent(row['accuracy'])} with {found['name']}, which is no part of the adapter"
    return {"test accuracy": told, **facts}


def every_method(bank: str | None = None) -> list[str]:
    """Names of all methods, of those that cannot do without a bank only where there is one."""
    return [name for name, method in METHODS.items() if bank or not method.from_bank]


def specs_of(methods: Sequence[Any], shots: Sequence[Any], seeds: Sequence[Any], grids: Sequence[Any] = (),
             own: bool = False, inference: Any = NO_INFERENCE, inference_values: Mapping[str, Any] | None = None,
             batches: Mapping[str, Any] | None = None, **further: Any) -> list[RunSpec]:
    """Runs of all combinations, with every argument checked; see `make_specs`. draws: a file or folder of them.

    class_weights may be several: all runs are made with each. join: a store is joined for the methods that read it.
    """
    given = listed(inference, "inference")
    if any(isinstance(each, Inference) for each in given):
        raise ArgumentError("a sweep makes its strategies itself: give names or classes, and inference_values")
    strategies = [each if each == NO_INFERENCE else full_name(type(inference_of(each))) for each in given]
    join = listed(further.pop("join"), "join") if further.get("join") else []
    rules = listed(further.pop("class_weights", RULES[0]), "class_weights")
    numbers = [0 if each == 0 and further.get("support") else shots_of(each) for each in shots]
    names = [_name(method_of(each)[0]) for each in listed(methods, "methods")]
    specs = [spec for rule in rules for spec in make_specs(
        names, numbers, [whole(each, "seed", 0) for each in seeds], grids, own, strategies,
        [*(inference_values or {}).items()], batches, **_checked(names, {**further, "class_weights": rule}))]
    require_read(join, [each for spec in specs for each in spec.reads], "the sweep")
    return [replace(spec, join=[each for each in join if any(name.startswith(f"{named_store(each)[0]}/")
                                                             for name in spec.reads)]) for spec in specs]


def _name(method: str | type[Method]) -> str:
    return method if isinstance(method, str) else full_name(method)


def _checked(methods: Sequence[str], further: dict[str, Any]) -> dict[str, Any]:
    """The fields of RunSpec beside method, shots, seed and values.

    Raises ArgumentError for one that is none, and for a search where nothing is searched.
    """
    known = [each.name for each in fields(RunSpec) if each.name not in ("method", "shots", "seed", "values")]
    for name in further:
        if name not in known:
            raise ArgumentError(unknown("argument", name, known))
    search, narrow = Search.parse(str(further.get("search", GRID.kind))), further.get("narrow", False)
    if search != GRID or narrow:
        given = " and ".join(["--search"] * (search != GRID) + ["--narrow"] * bool(narrow))
        if further.get("select") == "fixed":
            raise ArgumentError(f"{given}: nothing is searched where --select is fixed, as it is with --grid: leave "
                                "one of them out")
        if all(map(is_average, methods)):
            raise ArgumentError(f"{given}: an average of several methods searches in its own way: leave it out, or "
                                "give one --method")
    draws = further.get("draws")
    if draws is not None and not isinstance(draws, DrawFile):
        further = {**further, "draws": path_of(draws, "draws: a file or folder")}
    return further


def sweep(stores: str | Path | Store | Sequence[str | Path | Store], specs: Sequence[RunSpec] | None = None,
          out: str | Path = "results", *, methods: Sequence[str | type[Method]] | str = SWEPT,
          shots: Sequence[int | str] | int | str | None = None, seeds: Sequence[int] | int = (1, 2, 3, 4, 5),
          grids: Mapping[str, Sequence[Any]] | str | None = None, local_workers: int = 0,
          workers: Workers | None = None, part: Part | str | None = None, compile: str = AUTO,
          retry_failed: bool = False, device: str = CPU, progress: bool = False, curves: bool = False,
          keep_predictions: bool = False, coverage: float | None = None, log: Sequence[str] | str = (), **further: Any
          ) -> list[dict[str, Any]]:
    """Carry out many runs on one store or several and give their rows; runs that have a row already are not repeated.

    specs: the runs, or None for every method at every number of shots with every seed; shots are 1, 2, 4, 8 and 16 by
        default, and none with support="upl:16" or the like. out: the folder whose
        `results.jsonl` gets a row per run. methods: names or classes, or "all". grids: values to try by
        hyperparameter, as in {"beta": [1, 5]} or {"clip-adapter.ratio": [0.2]}, or "own" for each method's search
        values. local_workers: processes; 0 for one per core where there are many runs. workers: what carries out the
        runs, in place of such processes. part: of the runs, as "2/8".
        retry_failed: repeat runs whose row has an error. further: other fields of RunSpec; select is as for `fit` by
        default, with grids "fixed". compile, device: as for `fit`. curves: keep losses of every epoch in
        `curves.jsonl`. keep_predictions: keep what each run takes every test row for in `predictions.zarr`. coverage:
        as for `fit`; rows without such sets are made again. log: "mlflow:URI" or "wandb-offline:DIR", trackers that
        get a run for every row that they lack.
    Raises WorkerError for runs that ended every process that took them, StoreError if another sweep writes to the file.

    Example:
        >>> rows = onceclip.sweep("pets.zarr", methods=["zero-shot", "gda"], shots=4, seeds=[1, 2, 3], out="results")
        >>> [row["method"] for row in rows]
        ['zero-shot', 'zero-shot', 'zero-shot', 'gda', 'gda', 'gda']
    """
    if specs is None:
        further = {"select": "fixed" if grids else None, "validated": bool(grids), **further}
        if not isinstance(grids or {}, Mapping) and grids != OWN:
            raise ArgumentError(f"grids {grids!r}: give values by hyperparameter, such as {{'beta': [1, 5]}}, or 'own'")
        pairs = [(name, listed(tried, f"grid {name}")) for name, tried in grids.items()] if isinstance(
            grids, Mapping) else []
        if shots is None:
            shots = (0,) if further.get("support") else (1, 2, 4, 8, 16)
        specs = specs_of(every_method(further.get("bank")) if isinstance(methods, str) and methods == ALL
                         else listed(methods, "methods"),
                         listed(shots, "shots"), listed(seeds, "seeds"), pairs, grids == OWN, **further)
    elif further or grids:
        raise ArgumentError(f"specs say by themselves what is run: leave {', '.join(further) or 'grids'} out")
    specs = listed(specs, "specs")
    wrong = [each for each in specs if not isinstance(each, RunSpec)]
    if wrong:
        raise ArgumentError(f"specs has {short(wrong[0])}: give a list of RunSpec, or methods=, shots= and seeds=")
    target, folder = opened_all(stores), output_of(out, "out: a folder")
    return runs.sweep(target, specs, folder, local_workers, progress, workers, optional(part_of, part), compile,
                      retry_failed, device, Keep(curves, keep_predictions, coverage),
                      Log(listed(log, "log")) if log else None)


def incremental(store: str | Path | Store, method: str | type[Method] | Method = "gda", *, sessions: int = 10,
                orders: Sequence[int] | int = (1, 2, 3), shots: int | str | None = None, seed: int = 1,
                values: Mapping[str, Any] | None = None, text: str = "default", joint: bool = False,
                out: str | Path | None = None, progress: Progress = no_progress) -> list[dict[str, Any]]:
    """Let classes arrive in sessions: a row for every order of classes, with the accuracy after each session.

    store: an open one or its path. method: a name, a class, or an object whose hyperparameters are taken as they are.
        sessions: number of them. orders: seeds of the orders of classes. shots, seed, values, text: as for `fit`.
        joint: fit on the rows of all sessions so far. out: a folder whose `incremental.jsonl` gets the rows; runs that
        have one are not repeated. progress: gets the fraction done.
    Raises TaskError for more sessions than the classes allow, MethodError, StoreError or ArgumentError.

    Example:
        >>> rows = onceclip.incremental("pets.zarr", "gda", sessions=2, orders=[1])
        >>> [len(session) for session in rows[0]["sessions"]], rows[0]["reads_old_rows"]
        ([2, 2], False)
    """
    kind, own = method_of(method)
    given = {**(own or {}), **(values or {})}
    asked = Sessions(_name(kind), whole(sessions, "sessions", 1), shots_of(shots), whole(seed, "seed", 0),
                     tuple(given.items()), text, joint)
    asked.built()
    folder = None if out is None else output_of(out, "out: a folder")
    numbers = [whole(each, "order", 0) for each in listed(orders, "orders")]
    return arrive(opened(store), asked, numbers, folder, progress)
