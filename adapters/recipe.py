"""The hyperparameters that every gradient-trained method shares."""

from __future__ import annotations

from onceclip.adapters.method import Hyperparameter


def recipe(learning_rate: float, epochs: int, batch_size: int = 0, weight_decay: float = 0.01,
           epsilon: float = 1e-8) -> dict[str, Hyperparameter]:
    """AdamW with a cosine schedule per step, as named hyperparameters with these defaults."""
    return {
        "learning_rate": Hyperparameter(learning_rate, "AdamW's step size at the start of the cosine",
                                        high=10.0, retrain=True),
        "epochs": Hyperparameter(epochs, "passes over the support rows", low=0, high=1e6, retrain=True),
        "batch_size": Hyperparameter(batch_size, "rows per step; 0 takes all of them", high=2**31, retrain=True),
        "weight_decay": Hyperparameter(weight_decay, "AdamW's decoupled decay", high=100.0, retrain=True),
        "epsilon": Hyperparameter(epsilon, "AdamW's epsilon", high=1.0, retrain=True),
    }
