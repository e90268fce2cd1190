"""What one run is: a value that a user can write down, repeat, and find again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onceclip.adapters.inference import Inference, inference_class
from onceclip.adapters.plugin import full_name
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.runs.automatic import run_method
from onceclip.pipeline.tasks.classes import ALL
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint

NO_REFIT = NO_INFERENCE = "none"
REFITS = {NO_REFIT: (), "val": ("train", "val"), ALL: ("train", "val", "test")}  # and the splits that are fitted on


@dataclass(frozen=True)
class RunSpec:
    """One run.

    method: its name, or of one of your own MODULE:CLASS or the class; "automatic" averages several, see
        `fit_automatically`. shots: labelled rows per class, None for all.
    seed: of the draw and of the training.
    values: hyperparameters set by the user, which no search changes. text: name of the text set.
    select: the selection policy; None takes the default one, see `default_policy`.
    class_weights: how a class vector is made of the prompts; see `Text.class_weights`.
    search: "grid", "random:N", "halving[:N]" or "halves[:N]". narrow: search with products in bfloat16.
    stream: read the support rows anew in every epoch instead of holding them in memory.
    validated: score the run on validation rows too where the policy is "fixed", so that runs can be compared there.
    classes: "all", or "base" to fit the first half of the classes alone and to score the other half too.
    refit: "val" or "all" to fit once more, with what was chosen, on all labelled rows of train and val, or of test too,
        which leaves no test accuracy; only for shots=None.
    inference: the strategy by which test rows are read, a name or MODULE:CLASS; "none" reads each by itself.
        inference_values: its hyperparameters. batches: fields of `Batches`, where it sees one batch at a time.

    Example:
        >>> onceclip.RunSpec("tip-adapter", shots=4, values={"beta": "2"}).values
        {'beta': 2.0}
    """

    method: str
    shots: int | None = None
    seed: int = 1
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = "default"
    select: str | None = None
    class_weights: str = RULES[0]
    search: str = "grid"
    narrow: bool = False
    validated: bool = False
    stream: bool = False
    classes: str = ALL
    refit: str = NO_REFIT
    inference: str = NO_INFERENCE
    inference_values: Mapping[str, Any] = field(default_factory=dict)
    batches: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        method = run_method(self.method)
        object.__setattr__(self, "method", full_name(method))
        known = method.hyperparameters
        values = {name: known[name].parse(name, value) if name in known else value
                  for name, value in self.values.items()}
        object.__setattr__(self, "values", values)  # so that 2 and 2.0, typed or not, are one run
        if self.method == AUTOMATIC and (values or self.select not in (None, "val", "val-full")):
            raise TaskError("without a method, validation images choose hyperparameters: leave --set and --select out, "
                            "or name a --method")
        if self.refit not in REFITS:
            raise TaskError(f"no refit {self.refit!r}: there are: {', '.join(REFITS)}")
        if self.refit != NO_REFIT and self.shots is not None:
            raise TaskError(f"--refit {self.refit} fits on all labelled images, and --shots {self.shots} asks for few: "
                            "leave one of them out")
        if self.refit == ALL and self.classes != ALL:
            raise TaskError(f"--refit {ALL} leaves no test images for --classes {self.classes}: use --refit val")
        self._parse_inference()

    def _parse_inference(self) -> None:
        if self.inference == NO_INFERENCE:
            if self.inference_values or self.batches:
                raise TaskError("hyperparameters and batches of inference are for a strategy: add --inference")
            return
        strategy = inference_class(self.inference)
        values = strategy(**self.inference_values).values
        object.__setattr__(self, "inference", full_name(strategy))
        object.__setattr__(self, "inference_values", {name: values[name] for name in self.inference_values})
        if self.batches:
            object.__setattr__(self, "batches", Batches.of(self.batches).as_values())
        if self.classes != ALL or self.refit == ALL:
            raise TaskError("--inference reads the test images among all classes: leave --classes and --refit all out")

    @property
    def alone(self) -> RunSpec:
        """The run without inference, whose classifier this one has."""
        return replace(self, inference=NO_INFERENCE, inference_values={}, batches={})

    @property
    def strategy(self) -> Inference | None:
        """The strategy by which test rows are read, if there is one."""
        if self.inference == NO_INFERENCE:
            return None
        return inference_class(self.inference)(**self.inference_values)

    @property
    def common(self) -> tuple[Any, ...]:
        """What runs that differ in hyperparameter values and seeds alone have in common."""
        return (self.method, self.shots, self.text, self.select, self.class_weights, self.search,
                self.narrow, self.validated, self.stream, self.classes, self.refit)

    def as_values(self) -> dict[str, Any]:
        """As JSON values, from which `RunSpec(**values)` makes it again."""
        values = {**asdict(self), "values": dict(self.values)}
        for name, usual in (("classes", ALL), ("refit", NO_REFIT), ("inference", NO_INFERENCE),
                            ("inference_values", {}), ("batches", {})):
            if values[name] == usual:
                del values[name]  # rows of before there was a choice keep their identity
        return values

    def without_text(self, store: Store) -> bool:
        """Whether the run is one of class names alone: the store has no text, and the method looks at none."""
        return not (store.texts or run_method(self.method).needs_text)

    def contents(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the run is made of; that of the text is empty for a run of class names alone.

        Raises StoreIncomplete if the store lacks the text set.
        """
        text = "" if self.without_text(store) else store.text_fingerprint(self.text)
        tower = ({"tower": str(store.tower_attributes.get("fingerprint", ""))}
                 if run_method(self.method).wants_tower else {})
        return {"encoder": store.encoder["fingerprint"], "store": store.fingerprint, "text": text, **tower}

    def identity(self, store: Store) -> str:
        """Name of the run: what was asked for, of which content."""
        contents = self.contents(store)
        del contents["encoder"]
        return fingerprint({**self.as_values(), **contents})
