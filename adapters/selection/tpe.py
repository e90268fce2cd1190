"""Settings drawn where earlier ones did well: optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any

from onceclip.adapters.training.trainable import Value

Setting = dict[str, Value]
Free = Mapping[str, tuple[Value, ...]]
Cost = tuple[float, float]  # what the rule charges, or less for one that cannot win; then the departure, of equals
Proposals = Generator[list[Setting], list[Cost], None]
RANDOM = 10  # settings before the first that the estimator draws, as is optuna's default
TOGETHER = 4  # that it draws at once, so that they are trained together


def span_of(values: tuple[Value, ...]) -> tuple[float, float] | None:
    """The least and the greatest of search values that are numbers; None for others."""
    numbers = [value for value in values if isinstance(value, float)]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) and len(numbers) > 1 else None


def proposals(free: Free, count: int, seed: int) -> Proposals:
    """As many settings, each once, the defaults first; see `Search.proposals`.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011, section 4, as optuna carries it out:
    ten settings are random, then four at a time are drawn. Numbers come from the range that search values span, on a
    logarithmic scale where it is above zero; other values are among those given.
    """
    import optuna  # an extra, and slow to import

    spans = {name: span_of(values) for name, values in free.items()}
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
