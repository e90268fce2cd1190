"""Class vectors that training starts from, and the head that compares rows with trained ones."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from onceclip.adapters.heads import Linear
from onceclip.adapters.method import Hyperparameter, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.unit import unit

BASES = ("zero-shot", "raw")


def base_settings(length: float) -> dict[str, Hyperparameter]:
    """The hyperparameters that say what training starts from, with this length by default.

    A cosine does not see the length of a class vector, but a step of a given size turns a long one less: the length is
    a step size in disguise, and differs between encoders.
    """
    return {
        "base": Hyperparameter("zero-shot", "what training starts from: the zero-shot class vectors with `length`, or "
                               "the mean raw prompt vectors as they are (the papers' code)", choices=BASES,
                               retrain=True),
        "length": Hyperparameter(length, "length of the class vectors at the start; longer ones turn less in a step",
                                 low=1e-3, high=1e4, retrain=True),
    }


def base_vectors(task: Task, base: str, length: float) -> Tensor:
    """Class vectors (classes, dim) before training, by the values of `base_settings`."""
    return task.text.raw_mean if base == "raw" else length * unit(task.text.class_weights)


def cosine_head(task: Task, vectors: Tensor) -> Linear:
    """Logits `s x . unit(v_c) + b` for class vectors (classes, dim) of any length."""
    return replace(zero_shot_head(task), weight=task.logit_scale * unit(vectors))
