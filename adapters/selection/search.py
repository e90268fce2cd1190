"""Which hyperparameters a selection tries: a grid, random draws, short trainings of which the best go on, or halves."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from onceclip.adapters.errors import MethodError
from onceclip.adapters.selection.rule import halfway
from onceclip.adapters.training.trainable import Value

Setting = dict[str, Value]
Free = Mapping[str, tuple[Value, ...]]
Cost = tuple[float, float]  # what the rule charges, or less for one that cannot win; then the departure, of equals
Proposals = Generator[list[Setting], list[Cost], None]
OPTUNA = "optuna"
_ROUNDS = 4  # from the coarse to the fine grid of the published searches
_ROUNDING = 1e-9  # of logarithms
SURVIVORS = 3  # one of so many goes on to a training of so many times the epochs
RANDOM = 10  # settings before the first that optuna's estimator draws, as is its default
TOGETHER = 4  # that it draws at once, so that they are trained together


@dataclass(frozen=True)
class Search:
    """How settings are found.

    kind: "grid" tries all combinations of the methods' search values; "random" draws from their ranges; "halving"
        trains all for a few epochs, the better third for three times as many, and so on (Jamieson and Talwalkar,
        Non-stochastic Best Arm Identification, AISTATS 2016; every training has its whole schedule); "halves" goes on
        after the grid between the best value and its neighbours, as the linear probes of CLIP (Radford et al., 2021,
        A.3) and CLIP_benchmark find their decay; "optuna" draws where earlier ones did well, see `_tree_structured`.
    count: number of settings, the defaults and random draws; 0 takes the grid. Of "halves", the rounds; 0 for four,
        which turn a grid into one sixteen times as fine where it is best.
    narrow: multiply matrices in bfloat16 while searching; the winner is trained as usual.
    """

    kind: str = "grid"
    count: int = 0
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MethodError(f"no search {self.kind!r}: there are: {', '.join(KINDS)}; with a number, as in random:30")
        if self.kind == "grid" and self.count:
            raise MethodError(f"--search grid tries all combinations: write grid, or random:{self.count}")
        if self.kind in COUNTED and self.count < 1:
            raise MethodError(f"--search {self.kind} needs the number of settings: {self.kind}:30")
        if self.kind == OPTUNA and find_spec("optuna") is None:
            raise MethodError("--search optuna needs the package optuna: pip install 'onceclip[optuna]'")

    @classmethod
    def parse(cls, text: str, narrow: bool = False) -> Search:
        """Read "grid", "random:30", "halving", "halving:30", "halves", "halves:8" or "optuna:30".

        Raises MethodError for anything else.
        """
        kind, _, count = text.partition(":")
        if count and not count.isdecimal():
            raise MethodError(f"--search {text}: {count!r} is not a number of settings, as in random:30")
        return cls(kind, int(count or 0), narrow)

    def proposals(self, free: Free, seed: int) -> Proposals:
        """The settings to try, some at a time; gets what each of them costs, and goes on. The defaults come first.

        free: values of every hyperparameter that may be chosen, the default first.
        """
        return KINDS[self.kind](free, self.count, seed)

    def rungs(self, settings: int, epochs: int) -> list[int]:
        """Epochs of the trainings that follow each other, the last of them whole."""
        if self.kind != "halving" or not epochs:
            return [epochs]
        thirds = min(math.log(max(settings, 1), SURVIVORS), round(math.log(max(epochs, 1), SURVIVORS)))
        number = int(thirds + _ROUNDING) + 1
        return [max(1, round(epochs / SURVIVORS**(number - 1 - rung))) for rung in range(number)]

    def narrow_at(self, rungs: Sequence[int], rung: int) -> bool:
        """Whether a rung multiplies in bfloat16: with `narrow` all, but for the last of several, which are whole."""
        return self.narrow and (len(rungs) == 1 or rung < len(rungs) - 1)

    def alike(self, settings: int, rungs: Sequence[int], rung: int) -> int:
        """Number of trainings of one rung that all rungs together take as long as. rungs: their epochs, see `rungs`."""
        whole, going = 0, settings
        for epochs in rungs:
            whole += going * epochs
            going = -(-going // SURVIVORS)
        return -(-whole // max(rungs[rung], 1))


def _grid(free: Free, count: int, seed: int) -> Proposals:
    """All combinations, or as many random draws."""
    if count and free:
        generator = random.Random(seed)
        drawn = [{name: _draw(values, generator) for name, values in free.items()} for _ in range(count - 1)]
        yield [{name: values[0] for name, values in free.items()}, *drawn]
    else:
        yield [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]


def _halves(free: Free, count: int, seed: int) -> Proposals:
    """The grid, then as many rounds of what lies between the best one and its neighbours."""
    tried, costs = [], []
    more = next(_grid(free, 0, seed))
    for _ in range((count or _ROUNDS) + 1):
        if more:
            costs += yield more
            tried += more
            more = between(tried, tried[costs.index(min(costs))], free)


def between(tried: Sequence[Setting], best: Setting, free: Free) -> list[Setting]:
    """The settings halfway, on a logarithmic scale, from the best one to what was tried on either side of it.

    One number of `free` differs at a time; texts, whole numbers and zero have nothing between them.
    """
    found = []
    for name, values in free.items():
        if all(isinstance(value, float) for value in values):
            known = sorted({float(each[name]) for each in tried})
            found += [{**{key: best[key] for key in free}, name: value} for value in halfway(known, float(best[name]))]
    return found


def _draw(values: tuple[Value, ...], generator: random.Random) -> Value:
    """A value of the range that search values span; of texts and whole numbers one of them."""
    span = _span_of(values)
    if span is None:
        return generator.choice(values)
    if span[0] <= 0:
        return generator.uniform(*span)
    return math.exp(generator.uniform(*map(math.log, span)))


def _span_of(values: tuple[Value, ...]) -> tuple[float, float] | None:
    """The least and the greatest of search values that are numbers; None for others."""
    numbers = [value for value in values if isinstance(value, float)]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) and len(numbers) > 1 else None


def _tree_structured(free: Free, count: int, seed: int) -> Proposals:
    """As many settings, each once, the defaults first; see `Search.proposals`.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011, section 4, as optuna carries it out:
    ten settings are random, then four at a time are drawn. Numbers come from the range that search values span, on a
    logarithmic scale where it is above zero; other values are among those given.
    """
    import optuna  # an extra, and slow to import

    spans = {name: _span_of(values) for name, values in free.items()}
    space: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(*span, log=span[0] > 0) if (span := spans[name]) else
        optuna.distributions.CategoricalDistribution(values) for name, values in free.items()}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM))
    finally:
        optuna.logging.set_verbosity(before)
    study.enqueue_trial({name: values[0] for name, values in free.items()})
    known: dict[tuple[Any, ...], float] = {}
    asked = 0
    while asked < count and (free or not asked):
        trials = [study.ask(space) for _ in range(min(RANDOM if not asked else TOGETHER, count - asked))]
        asked += len(trials)
        keys = [tuple(trial.params.values()) for trial in trials]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            costs = yield [dict(zip(trials[0].params, key, strict=True)) for key in new]
            known.update(zip(new, (cost for cost, _ in costs), strict=True))
        for trial, key in zip(trials, keys, strict=True):
            failed = not math.isfinite(known[key])  # a training that diverged
            study.tell(trial, None if failed else known[key],
                       optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE)


KINDS = {"grid": _grid, "random": _grid, "halving": _grid, "halves": _halves, OPTUNA: _tree_structured}
COUNTED = ("random", OPTUNA)  # which have no number of settings of their own
GRID = Search()
