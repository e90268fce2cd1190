"""What one run is: a value that a user can write down, repeat, and find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from onceclip.adapters import Method, support_source
from onceclip.adapters.inference import Inference, inference_class
from onceclip.adapters.plugin import full_name
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.several import OUTPUTS
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.tasks.classes import ALL
from onceclip.pipeline.tasks.draw_files import DrawFile
from onceclip.pipeline.tasks.encoders import joined_store, named_store, require_read
from onceclip.pipeline.tasks.shapes import BALANCED, Shape
from onceclip.stores import Store, open_store
from onceclip.stores.identity import fingerprint
from onceclip.stores.location import everywhere
from onceclip.stores.store import JoinedStore

NO_REFIT = NO_INFERENCE = "none"
CAPTIONS = "captions"  # name of the text set of captions that a bank has by default
REFITS = {NO_REFIT: (), "val": ("train", "val"), ALL: ("train", "val", "test")}  # and the splits that are fitted on


@dataclass(frozen=True)
class RunSpec:
    """One run.

    method: its name, or of one of your own MODULE:CLASS or the class; "automatic" averages several, see
        `fit_automatically`, and [RULE:]A+B those of these names, with NAME/METHOD for a joined encoder's, see
        `average_of`. shots: labelled rows per class, None for all.
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
    support: where further rows come from that nobody labelled, as "upl:16"; with shots=0 no label is read at all.
    join: NAME=PATH of further stores of the same images; `NAME/embedding` is then one more output. inputs: outputs that
        the method takes in the place of its own.
    bank: path of another store of the same encoder, which such rows, or the method, take images from. captions: name of
        the bank's text set of captions.
    draws: the file that lists the images of the draw, in place of a draw by the seed; see `draw_file`.
    long_tail, natural_prior, label_noise, missing: what the support is like if not balanced and clean; see `Shape`.
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
    support: str = ""
    bank: str = ""
    captions: str = ""
    join: Sequence[str] = ()
    inputs: Sequence[str] = ()
    draws: DrawFile | None = None
    long_tail: float = 1.0
    natural_prior: bool = False
    label_noise: float = 0.0
    missing: int | tuple[str, ...] = 0
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
        if self.refit != NO_REFIT and self.shots:
            raise TaskError(f"--refit {self.refit} fits on all labelled images, and --shots {self.shots} asks for few: "
                            "leave one of them out")
        if self.refit == ALL and self.classes != ALL:
            raise TaskError(f"--refit {ALL} leaves no test images for --classes {self.classes}: use --refit val")
        object.__setattr__(self, "support", str(support_source(self.support)) if self.support else "")
        object.__setattr__(self, "bank", everywhere(self.bank) if self.bank else "")
        self._require_a_source(method)
        for name in ("inputs", "join"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "join", tuple(f"{name}={everywhere(path)}" for name, path in
                                               (named_store(each) for each in self.join)))
        if self.inputs:
            method().with_inputs(tuple(self.inputs))  # complains if the method cannot
        require_read(self.join, self.reads, self.method)
        self._parse_inference()

    def _require_a_source(self, method: type[Method]) -> None:
        """Raise TaskError unless support, bank and shots go together."""
        source = support_source(self.support) if self.support else None
        if self.shots == 0 and not (source or method.needs_bank):
            raise TaskError("shots 0: give a number from 1 up, or all, or say with --support where rows come from")
        if self.shots == 0 and self.shape != BALANCED:
            raise TaskError("without --shots no label is read: add --shots K, or leave --long-tail, --natural-prior, "
                            "--label-noise and --missing out")
        if self.captions and not self.bank:
            raise TaskError(f"--captions {self.captions} names a text set of a bank: add --bank STORE")
        if self.bank and not (source or method.needs_bank):
            raise TaskError(f"{self.method} reads no bank: leave --bank out, or add --support retrieve:16")
        if (method.needs_bank or (source and source.from_bank)) and not self.bank:
            reader = method.name if method.needs_bank else source
            raise TaskError(f"{reader} takes images from a bank: add --bank STORE, a store of the same encoder")
        if not (source or self.bank):
            return
        asked = {"stream": self.stream, "refit": self.refit != NO_REFIT, "classes": self.classes != ALL}
        wrong = next((name for name, is_asked in asked.items() if is_asked), None)
        if wrong or self.method == AUTOMATIC:
            raise TaskError(f"--{wrong} does not go with --support or --bank: leave one of them out" if wrong else
                            "--support needs a --method: without one, labelled images weigh several")
        if self.select in ("val", "val-full") and self.shots == 0:
            raise TaskError(f"--select {self.select} reads labelled validation images, and without --shots nothing "
                            "labelled is read: add --shots K, or leave --select out")
        if self.select == "loo":
            raise TaskError("--select loo takes guessed labels for true ones: use --select val with --shots, or fixed")

    @property
    def shots_word(self) -> int | str:
        """The number of labelled rows per class, or "all"."""
        return "all" if self.shots is None else self.shots

    @property
    def reads(self) -> tuple[str, ...]:
        """The outputs of every image that it takes."""
        return tuple(self.inputs) or run_method(self.method).inputs

    @property
    def captions_name(self) -> str:
        """Name of the text set of captions that the run reads, or empty for none."""
        method = run_method(self.method)
        wanted = method.needs_bank == "caption" or (self.support and support_source(self.support).needs == "caption")
        return (self.captions or CAPTIONS) if wanted or self.captions else ""

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
    def shape(self) -> Shape:
        """What the support is like."""
        return Shape(self.long_tail, self.natural_prior, self.label_noise, self.missing)

    @property
    def common(self) -> tuple[Any, ...]:
        """What runs that differ in hyperparameter values and seeds alone have in common."""
        return (self.method, self.shots, self.text, self.select, self.class_weights, self.search,
                self.narrow, self.validated, self.stream, self.classes, self.refit, self.support, self.bank,
                self.captions, self.join, self.inputs, self.draws, self.shape)

    def as_values(self) -> dict[str, Any]:
        """As JSON values, from which `RunSpec(**values)` makes it again."""
        values = {**asdict(self), "values": dict(self.values)}
        names = [each.name for each in fields(self)]
        for each in fields(self)[names.index("classes"):]:
            if values[each.name] == ({} if each.default is MISSING else each.default):
                del values[each.name]  # rows of before there was a choice keep their identity
        return values

    def without_text(self, store: Store) -> bool:
        """Whether the run is one of class names alone: the store has no text, and the method looks at none."""
        return not (store.texts or run_method(self.method).needs_text)

    def contents(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the run is made of; that of the text is empty for a run of class names alone.

        Raises StoreIncomplete if the store lacks the text set.
        """
        text = "" if self.without_text(store) else store.text_fingerprint(self.text)
        found = {"encoder": store.encoder["fingerprint"], "store": store.fingerprint, "text": text}
        strategy = self.strategy
        if run_method(self.method).wants_tower or (strategy and strategy.wants_tower):
            found["tower"] = str(store.tower_attributes.get("fingerprint", ""))
        if self.bank:
            bank = open_store(self.bank)
            found["bank"] = bank.fingerprint
            if self.captions_name:
                found["captions"] = bank.text_fingerprint(self.captions_name)
        if strategy and strategy.sees in OUTPUTS:  # which are no part of the store's fingerprint
            name = OUTPUTS[strategy.sees]
            output = store.outputs.get(name)
            found[name] = "" if output is None else fingerprint([list(output.shape), output.spec])
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
