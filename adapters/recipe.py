"""The hyperparameters that every gradient-trained method shares."""

from __future__ import annotations

from onceclip.adapters.method import Hyperparameter
from onceclip.adapters.schedule import SCHEDULES

OPTIMISERS = ("adamw", "adam", "sgd", "nesterov")


def recipe(learning_rate: float, epochs: int, batch_size: int = 0, weight_decay: float = 0.01, epsilon: float = 1e-8,
           optimiser: str = "adamw", schedule: str = "cosine", momentum: float = 0.9,
           warmup: int = 0) -> dict[str, Hyperparameter]:
    """Optimiser and schedule, as named hyperparameters with these defaults."""
    return {
        "learning_rate": Hyperparameter(learning_rate, "step size at the start of the schedule", high=1000.0,
                                        retrain=True),
        "epochs": Hyperparameter(epochs, "passes over the support rows", low=0, high=1e6, retrain=True),
        "batch_size": Hyperparameter(batch_size, "rows per step; 0 takes all of them", high=2**31, retrain=True),
        "weight_decay": Hyperparameter(weight_decay, "decay of the parameters; decoupled in adamw", high=100.0,
                                       retrain=True),
        "optimiser": Hyperparameter(optimiser, "what makes steps of gradients; nesterov is sgd with Nesterov's "
                                    "momentum", choices=OPTIMISERS, retrain=True),
        "schedule": Hyperparameter(schedule, "how the step size falls", choices=SCHEDULES, retrain=True),
        "epsilon": Hyperparameter(epsilon, "epsilon of adam and adamw", high=1.0, retrain=True),
        "momentum": Hyperparameter(momentum, "momentum of sgd and nesterov", high=1.0, retrain=True),
        "warmup": Hyperparameter(warmup, "steps over which the schedule `warmup` rises", high=1e9, retrain=True),
    }


def keeping(keep: str = "last", patience: int = 0) -> dict[str, Hyperparameter]:
    """Which epoch's parameters are kept, as named hyperparameters; without validation rows it is the last."""
    return {
        "keep": Hyperparameter(keep, "the epoch whose parameters stay: the last, or the best on validation rows",
                               choices=("last", "best"), retrain=True),
        "patience": Hyperparameter(patience, "epochs without a better one after which training ends; 0 for never",
                                   high=1e6, retrain=True),
    }
