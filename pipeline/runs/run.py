"""What one run is: a value that a user can write down, repeat, and find again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from onceclip.adapters.plugin import full_name
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.tasks.classes import ALL
from onceclip.pipeline.tasks.draw_files import DrawFile
from onceclip.pipeline.tasks.shapes import BALANCED, Shape
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint

NO_REFIT = "none"
REFITS = {NO_REFIT: (), "val": ("train", "val"), ALL: ("train", "val", "test")}  # and the splits that are fitted on


@dataclass(frozen=True)
class RunSpec:
    """One run.

    method: its name, or of one of your own MODULE:CLASS or the class; "automatic" averages several, see
        `fit_automatically`, A+B those of these names, and merge:A+B merges two, see `average_of`. shots: labelled rows
        per class, None for all.
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
    draws: the file that lists the images of the draw, in place of a draw by the seed; see `draw_file`.
    long_tail, natural_prior, label_noise, missing: what the support is like if not balanced and clean; see `Shape`.

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
    draws: DrawFile | None = None
    long_tail: float = 1.0
    natural_prior: bool = False
    label_noise: float = 0.0
    missing: int | tuple[str, ...] = 0

    def __post_init__(self) -> None:
        method = run_method(self.method)
        object.__setattr__(self, "method", full_name(method))
        known = method.hyperparameters
        values = {name: known[name].parse(name, value) if name in known else value
                  for name, value in self.values.items()}
        object.__setattr__(self, "values", values)  # so that 2 and 2.0, typed or not, are one run
        if isinstance(self.draws, Mapping):
            object.__setattr__(self, "draws", DrawFile(**self.draws))
        if is_average(self.method) and self.method != AUTOMATIC and (
                values or self.select not in (None, "val", "val-full") or self.refit != NO_REFIT):
            raise TaskError(f"{self.method} chooses for its methods on validation images: leave --set, --grid, --refit "
                            "and other ways to --select out")
        if self.method == AUTOMATIC and (values or self.select not in (None, "val", "val-full")):
            raise TaskError("without a method, validation images choose hyperparameters: leave --set and --select out, "
                            "or name a --method")
        if not isinstance(self.missing, int):
            object.__setattr__(self, "missing", tuple(sorted(self.missing)) or 0)
        object.__setattr__(self, "long_tail", float(self.long_tail))
        object.__setattr__(self, "label_noise", float(self.label_noise))
        if self.shape != BALANCED and self.refit != NO_REFIT:
            raise TaskError(f"--refit {self.refit} fits on all labelled images as they are: leave it out with "
                            "--long-tail, --natural-prior, --label-noise and --missing")
        if self.draws and (self.long_tail != 1 or self.natural_prior):
            raise TaskError("--draws says which images there are: leave --long-tail and --natural-prior out")
        if self.refit not in REFITS:
            raise TaskError(f"no refit {self.refit!r}: there are: {', '.join(REFITS)}")
        if self.refit != NO_REFIT and self.shots is not None:
            raise TaskError(f"--refit {self.refit} fits on all labelled images, and --shots {self.shots} asks for few: "
                            "leave one of them out")
        if self.refit == ALL and self.classes != ALL:
            raise TaskError(f"--refit {ALL} leaves no test images for --classes {self.classes}: use --refit val")

    @property
    def shape(self) -> Shape:
        """What the support is like."""
        return Shape(self.long_tail, self.natural_prior, self.label_noise, self.missing)

    @property
    def common(self) -> tuple[Any, ...]:
        """What runs that differ in hyperparameter values and seeds alone have in common."""
        return (self.method, self.shots, self.text, self.select, self.class_weights, self.search,
                self.narrow, self.validated, self.stream, self.classes, self.refit, self.draws, self.shape)

    def as_values(self) -> dict[str, Any]:
        """As JSON values, from which `RunSpec(**values)` makes it again."""
        values = {**asdict(self), "values": dict(self.values)}
        for name, usual in (("classes", ALL), ("refit", NO_REFIT), ("draws", None),
                            *((each.name, each.default) for each in fields(Shape))):
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
        return {"encoder": store.encoder["fingerprint"], "store": store.fingerprint, "text": text}

    def identity(self, store: Store) -> str:
        """Name of the run: what was asked for, of which content."""
        contents, asked = self.contents(store), self.as_values()
        if self.draws:
            asked["draws"] = self.draws.digest
        return fingerprint({**asked, "text": contents["text"], "store": contents["store"]})
