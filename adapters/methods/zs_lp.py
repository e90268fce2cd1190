"""ZS-LP: a linear probe on cosines that starts from the zero-shot class vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Shared, class_head, share_setting
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, kaiming_normal, recipe

BASES = ("zero-shot", "raw")

DROP_LAST = {"drop_last": Hyperparameter(False, "leave out the last batch of an epoch where it is not full, as Dassl's "
                                         "loader does")}


def base_settings(length: float) -> dict[str, Hyperparameter]:
    """The hyperparameters that say what training starts from, with this length by default.

    A cosine does not see the length of a class vector, but a step of a given size turns a long one less: the length is
    a step size in disguise, and differs between encoders.
    """
    return {
        "base": Hyperparameter("zero-shot", "what training starts from: the zero-shot class vectors with `length`, or "
                               "the mean raw prompt vectors as they are (the papers' code)", choices=BASES),
        "length": Hyperparameter(length, "length of the class vectors at the start; longer ones turn less in a step",
                                 low=1e-3, high=1e4),
    }


def base_vectors(task: Task, base: str, length: float) -> Tensor:
    """Class vectors (classes, dim) before training, by the values of `base_settings`."""
    return task.text.raw_mean if base == "raw" else length * unit(task.text.class_weights)


def cosine_head(task: Task, vectors: Tensor) -> Linear:
    """Logits `s x . unit(v_c) + b` for class vectors (classes, dim) of any length."""
    return class_head(task, unit(vectors))


class ZeroShotLinearProbe(Shared):
    """One trained vector per class, compared with images by its cosine; training starts at zero-shot.

    `logits = s x . unit(p_c)`, `p_c = t_c` at the start. Views take turns over epochs: the published loader shuffles
    all views and then takes as many rows as there are images, which sees as much. The preset `reference` starts from
    raw prompt vectors and needs raw ones in the store: where an import holds unit vectors, the published step size is
    far too large for them, and the result falls below zero-shot. With `start=random`, the authors' comparison, the
    vectors start as Kaiming-normal noise, and with share=1 the text has no part in it.

    Source: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models (Silva-Rodriguez et al., CVPR
    2024); step size, momentum, epochs and schedule from the authors' code.
    """

    name = "zs-lp"
    summary = "linear probe on cosines, started at zero-shot"
    family = "linear"
    equation = "logits_c = s x.unit(p_c),  p_c from t_c by cross-entropy"
    hyperparameters = {
        **share_setting(0.25, by_images=True),
        "start": Hyperparameter("text", "start values of the class vectors: those that `base` names, or random ones",
                                choices=("text", "random")),
        **base_settings(length=10.0),
        **recipe(learning_rate=0.03, epochs=300, batch_size=256, weight_decay=0.0, optimizer="sgd", schedule="dassl",
                 rates=(0.01, 0.03, 0.1)),
        **DROP_LAST,
    }
    presets = {"reference": {"share": 1.0, "base": "raw", "learning_rate": 0.1, "drop_last": True}}
    weighs = True
    by_images = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        vectors = base_vectors(prepared, self.base, self.length)
        return {"prototype": kaiming_normal((prepared.classes, prepared.dim), generator, vectors)
                if self.start == "random" else vectors}

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return cosine_head(prepared, parameters["prototype"])
