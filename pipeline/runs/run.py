"""What one run is: a value that a user can write down, repeat, and find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from onceclip.adapters import POLICIES, Method
from onceclip.adapters.errors import unknown
from onceclip.adapters.inference import Inference, inference_class
from onceclip.adapters.plugin import full_name
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.selection.search import GRID, Search
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.queries import OUTPUTS
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.tasks.draw_spec import SHAPE_OPTIONS, DrawSpec
from onceclip.pipeline.tasks.draws import ALL
from onceclip.pipeline.tasks.encoders import joined_store, named_store, require_read
from onceclip.stores import Store, open_store
from onceclip.stores.identity import fingerprint
from onceclip.stores.location import everywhere
from onceclip.stores.store import JoinedStore

NO_INFERENCE = NO_REFIT = "none"
CAPTIONS = "captions"  # name of the text set of captions that a bank has by default
REFITS = {NO_REFIT: (), "val": ("train", "val"), ALL: ("train", "val", "test")}  # and the splits that are fitted on
# Fields that every row has; the others only where they are not the default, so that rows of before there was a choice
# keep their identity.
_ALWAYS = ("method", "shots", "seed", "values", "text", "select", "class_weights", "search", "narrow", "validated",
           "stream")


@dataclass(frozen=True)
class InferenceSpec:
    """How test rows are read.

    inference: the strategy, a name or MODULE:CLASS; "none" reads each row by itself. inference_values: its
        hyperparameters. batches: fields of `Batches`, where it sees one batch at a time.
    """

    _: KW_ONLY
    inference: str = NO_INFERENCE
    inference_values: Mapping[str, Any] = field(default_factory=dict)
    batches: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inference == NO_INFERENCE:
            if self.inference_values or self.batches:
                raise TaskError("hyperparameters and batches of inference are for a strategy: add --inference")
            return
        kind = inference_class(self.inference)
        values = kind(**self.inference_values).values
        object.__setattr__(self, "inference", full_name(kind))
        object.__setattr__(self, "inference_values", {name: values[name] for name in self.inference_values})
        if self.batches:
            object.__setattr__(self, "batches", Batches.of(self.batches).as_values())

    @property
    def strategy(self) -> Inference | None:
        """The strategy by which test rows are read, if there is one."""
        return None if self.inference == NO_INFERENCE else _strategy(self.inference, *self.inference_values.items())

    def read_of(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the strategy reads and the store's own fingerprint does not cover."""
        strategy, found = self.strategy, {}
        if strategy and strategy.wants_tower:
            found["tower"] = str(store.tower_attributes.get("fingerprint", ""))
        if strategy and strategy.sees in OUTPUTS:
            output = store.outputs.get(name := OUTPUTS[strategy.sees])
            found[name] = "" if output is None else fingerprint([list(output.shape), output.spec])
        return found


@lru_cache(maxsize=64)
def _strategy(name: str, *values: tuple[str, Any]) -> Inference:
    return inference_class(name)(**dict(values))


@dataclass(frozen=True)
class _OfMethod:
    method: str


@dataclass(frozen=True)
class RunSpec(InferenceSpec, DrawSpec, _OfMethod):
    """One run: a method on a draw, with all fields of `DrawSpec` (shots, seed, support ...) and `InferenceSpec`.

    method: its name, or of one of your own MODULE:CLASS or the class; "automatic" averages several, see
        `fit_automatically`, and [RULE:]A+B those of these names, with NAME/METHOD for a joined encoder's, see
        `average_of`. shots: labelled rows per class, None for all. seed: of the draw and of the training.
    values: hyperparameters set by the user, which no search changes. text: name of the text set.
    select: the selection policy; None takes the default one, see `default_policy`.
    class_weights: how a class vector is made of the prompts; see `Text.class_weights`.
    search: "grid", "random:N", "halving[:N]", "halves[:N]" or "optuna:N". narrow: search with products in bfloat16.
    validated: score the run on validation rows too where the policy is "fixed", so that runs can be compared there.
    refit: "val" or "all" to fit once more, with what was chosen, on all labelled rows of train and val, or of test too,
        which leaves no test accuracy; only for shots=None.
    join: NAME=PATH of further stores of the same images; `NAME/embedding` is then one more output. inputs: outputs that
        the method takes in the place of its own.

    Example:
        >>> onceclip.RunSpec("tip-adapter", shots=4, values={"beta": "2"}).values
        {'beta': 2.0}
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = "default"
    select: str | None = None
    class_weights: str = RULES[0]
    search: str = GRID.kind
    narrow: bool = False
    validated: bool = False
    refit: str = NO_REFIT
    join: Sequence[str] = ()
    inputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        method = run_method(self.method)
        object.__setattr__(self, "method", full_name(method))
        if not isinstance(self.values, Mapping):
            raise TaskError(f"values {self.values!r}: give hyperparameters by name, such as {{'alpha': 1.0}}")
        known = method.hyperparameters
        values = {name: known[name].parse(name, value) if name in known else value
                  for name, value in self.values.items()}
        object.__setattr__(self, "values", values)  # so that 2 and 2.0, typed or not, are one run
        DrawSpec.__post_init__(self)
        InferenceSpec.__post_init__(self)
        self._require_known_values()
        if self.method == AUTOMATIC and (values or self.select not in (None, "val", "val-full")):
            raise TaskError("without a method, validation images choose hyperparameters: leave --set and --select out, "
                            "or name a --method")
        if is_average(self.method) and self.method != AUTOMATIC and (
                values or self.select not in (None, "val", "val-full") or self.refit != NO_REFIT):
            raise TaskError(f"{self.method} chooses for its methods on validation images: leave --set, --grid, --refit "
                            "and other ways to --select out")
        self._require_a_refit()
        self._require_a_source(method)
        for name in ("inputs", "join"):
            given = getattr(self, name)
            if not isinstance(given, Sequence):
                raise TaskError(f"{name} {given!r}: give a text or a list of them, NAME=STORE of join")
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "join", tuple(f"{name}={everywhere(path)}" for name, path in
                                               (named_store(each) for each in self.join)))
        if self.inputs:
            method().with_inputs(tuple(self.inputs))  # complains if the method cannot
        require_read(self.join, self.reads, self.method)
        if self.inference != NO_INFERENCE and (self.classes != ALL or self.refit == ALL):
            raise TaskError("--inference reads the test images among all classes: leave --classes and --refit all out")

    def _require_known_values(self) -> None:
        """Raise TaskError for a value that there is not, MethodError for such a search."""
        for name, choices in (("select", (None, *POLICIES)), ("class_weights", RULES), ("refit", (*REFITS,))):
            if getattr(self, name) not in choices:
                raise TaskError(unknown(name, getattr(self, name), [each for each in choices if each]))
        if not isinstance(self.text, str):
            raise TaskError(f"text {self.text!r}: give the name of a text set")
        for name in ("narrow", "validated"):
            if type(getattr(self, name)) is not bool:
                raise TaskError(f"{name} {getattr(self, name)!r}: give True or False")
        if self.search != GRID.kind:
            Search.parse(str(self.search))

    def _require_a_refit(self) -> None:
        """Raise TaskError unless refit goes with the draw."""
        if self.refit == NO_REFIT:
            return
        if self.shape:
            raise TaskError(f"--refit {self.refit} fits on all labelled images as they are: leave it out with "
                            f"{SHAPE_OPTIONS}")
        if self.shots:
            raise TaskError(f"--refit {self.refit} fits on all labelled images, and --shots {self.shots} asks for few: "
                            "leave one of them out")
        if self.refit == ALL and self.classes != ALL:
            raise TaskError(f"--refit {ALL} leaves no test images for --classes {self.classes}: use --refit val")

    def _require_a_source(self, method: type[Method]) -> None:
        """Raise TaskError unless support and bank go with the method and with how it is fitted."""
        source = self.source
        if self.shots == 0 and not (source or method.needs_bank):
            raise TaskError("shots 0: give a number from 1 up, or all, or say with --support where rows come from")
        if self.bank and not (source or method.needs_bank):
            raise TaskError(f"{self.method} reads no bank: leave --bank out, or add --support retrieve:16")
        if (method.needs_bank or (source and source.from_bank)) and not self.bank:
            reader = method.name if method.needs_bank else source
            raise TaskError(f"{reader} takes images from a bank: add --bank STORE, a store of the same encoder")
        if not (source or self.bank):
            return
        if self.refit != NO_REFIT:
            raise TaskError("--refit does not go with --support or --bank: leave one of them out")
        if self.method == AUTOMATIC:
            raise TaskError("--support needs a --method: without one, labelled images weigh several")
        if self.select in ("val", "val-full") and self.shots == 0:
            raise TaskError(f"--select {self.select} reads labelled validation images, and without --shots nothing "
                            "labelled is read: add --shots K, or leave --select out")
        if self.select == "loo":
            raise TaskError("--select loo takes guessed labels for true ones: use --select val with --shots, or fixed")

    @property
    def reads(self) -> tuple[str, ...]:
        """The outputs of every image that it takes."""
        return tuple(self.inputs) or run_method(self.method).inputs

    @property
    def captions_name(self) -> str:
        """Name of the text set of captions that the run reads, or empty for none."""
        wanted = run_method(self.method).needs_bank == "caption" or (self.source and self.source.needs == "caption")
        return (self.captions or CAPTIONS) if wanted or self.captions else ""

    @property
    def alone(self) -> RunSpec:
        """The run without inference, whose classifier this one has."""
        return replace(self, inference=NO_INFERENCE, inference_values={}, batches={})

    @property
    def common(self) -> tuple[Any, ...]:
        """What runs that differ in hyperparameter values, seeds and inference alone have in common."""
        own = {"values", "seed", *(each.name for each in fields(InferenceSpec))}
        return tuple(getattr(self, each.name) for each in fields(self) if each.name not in own)

    def as_values(self) -> dict[str, Any]:
        """As JSON values, from which `RunSpec(**values)` makes it again."""
        values = {**asdict(self), "values": dict(self.values)}
        others = {each.name: {} if each.default is MISSING else each.default for each in fields(self)
                  if each.name not in _ALWAYS}
        return {name: values[name] for name in _ALWAYS} | {name: values[name] for name, default in others.items()
                                                           if values[name] != default}

    def without_text(self, store: Store) -> bool:
        """Whether the run is one of class names alone: the store has no text, and the method looks at none."""
        return not (store.texts or run_method(self.method).needs_text)

    def contents(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the run is made of; that of the text is empty for a run of class names alone.

        Raises StoreIncomplete if the store lacks the text set.
        """
        text = "" if self.without_text(store) else store.text_fingerprint(self.text)
        found = {"encoder": store.encoder["fingerprint"], "store": store.fingerprint, "text": text}
        if run_method(self.method).wants_tower:
            found["tower"] = str(store.tower_attributes.get("fingerprint", ""))
        if self.bank:
            bank = open_store(self.bank)
            found["bank"] = bank.fingerprint
            if self.captions_name:
                found["captions"] = bank.text_fingerprint(self.captions_name)
        found |= self.read_of(store)
        names = {each.partition("/")[0] for each in self.reads if "/" in each}
        joined = {name: open_store(other) for name, other in map(named_store, self.join)}
        joined = (dict(store.joined) if isinstance(store, JoinedStore) else {}) | joined  # from Python, without --join
        for name in names & joined.keys():
            found[f"join {name}"] = joined[name].fingerprint
            if is_average(self.method) and joined[name].texts:  # whose methods compare with the other's prompts
                found[f"join {name} text"] = joined[name].text_fingerprint(self.text)
        return found

    def opened(self, store: Store) -> Store:
        """A store with those that the run joins to it. Raises StoreMismatch if they are not of the same images."""
        return joined_store(store, self.join)

    def built(self) -> Method:
        """The method with its values and inputs."""
        method = run_method(self.method)(**self.values)
        return method.with_inputs(tuple(self.inputs)) if self.inputs else method

    def identity(self, store: Store) -> str:
        """Name of the run: what was asked for, of which content."""
        contents, asked = self.contents(store), self.as_values()
        del contents["encoder"]
        if self.draws:
            asked["draws"] = self.draws.digest
        return fingerprint({**asked, **contents})
