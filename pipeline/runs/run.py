"""What one run is: a value that a user can write down, repeat, and find again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onceclip.adapters import method_class
from onceclip.adapters.plugin import full_name
from onceclip.adapters.text import RULES
from onceclip.pipeline.tasks.classes import ALL
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint


@dataclass(frozen=True)
class RunSpec:
    """One run.

    method: its name, or of one of your own MODULE:CLASS or the class. shots: labelled rows per class, None for all.
    seed: of the draw and of the training.
    values: hyperparameters set by the user, which no search changes. text: name of the text set.
    select: the selection policy; None takes the method's own, as far as the store has the rows for it.
    class_weights: how a class vector is made of the prompts; see `Text.class_weights`.
    search: "grid", "random:N", "halving[:N]" or "halves[:N]". narrow: search with products in bfloat16.
    stream: read the support rows anew in every epoch instead of holding them in memory.
    validated: score the run on validation rows too where the policy is "fixed", so that runs can be compared there.
    classes: "all", or "base" to fit the first half of the classes alone and to score the other half too.

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

    def __post_init__(self) -> None:
        method = method_class(self.method)
        object.__setattr__(self, "method", full_name(method))
        known = method.hyperparameters
        values = {name: known[name].parse(name, value) if name in known else value
                  for name, value in self.values.items()}
        object.__setattr__(self, "values", values)  # so that 2 and 2.0, typed or not, are one run

    @property
    def common(self) -> tuple[Any, ...]:
        """What runs that differ in hyperparameter values and seeds alone have in common."""
        return (self.method, self.shots, self.text, self.select, self.class_weights, self.search,
                self.narrow, self.validated, self.stream, self.classes)

    def as_values(self) -> dict[str, Any]:
        """As JSON values, from which `RunSpec(**values)` makes it again."""
        values = {**asdict(self), "values": dict(self.values)}
        if self.classes == ALL:
            del values["classes"]  # rows of before there was a choice keep their identity
        return values

    def without_text(self, store: Store) -> bool:
        """Whether the run is one of class names alone: the store has no text, and the method looks at none."""
        return not (store.texts or method_class(self.method).needs_text)

    def contents(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the run is made of; that of the text is empty for a run of class names alone.

        Raises StoreIncomplete if the store lacks the text set.
        """
        text = "" if self.without_text(store) else store.text_fingerprint(self.text)
        return {"encoder": store.encoder["fingerprint"], "store": store.fingerprint, "text": text}

    def identity(self, store: Store) -> str:
        """Name of the run: what was asked for, of which content."""
        contents = self.contents(store)
        return fingerprint({**self.as_values(), "text": contents["text"], "store": contents["store"]})
