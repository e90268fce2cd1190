"""APE: a cache of the support images on the channels that tell the classes apart, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from onceclip.adapters.heads import Columns, Head, Kernel
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.methods.tip_adapter import SHARPNESS
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, Value

TEXT, FULL = CRITERIA = ("text", "full")
_LEAST = 1e-6  # added to probabilities in the divergence, as published
# Channels kept, weight of the similarity, alpha: what the authors' configurations hold for ResNet-50, which has 1,024.
_PUBLISHED = {
    "caltech101": (800, 0.5, 1.0), "dtd": (400, 0.5, 3.0), "eurosat": (700, 0.9, 1.0), "fgvc": (800, 0.1, 5.0),
    "food101": (700, 0.3, 0.8), "imagenet": (500, 0.7, 2.0), "oxford-flowers": (700, 0.4, 3.0),
    "oxford-pets": (800, 0.7, 2.0), "stanford-cars": (500, 0.6, 1.0), "sun397": (800, 0.7, 1.0),
    "ucf101": (700, 0.3, 2.0)}


@dataclass(frozen=True)
class Channels:
    """Channels scored by `-w sim + (1 - w) var`: alike across classes is bad, spread over the class vectors is good.

    sim is the mean product of a channel's values over all pairs of different classes, var its variance over the class
    vectors. By the criterion "text" a class stands for its text vector alone, by "full" for the mean of that vector
    and its keys, so that classes count the same whatever their shots. With equal shots this is the published mean over
    all pairs of rows. No loop over pairs is needed: it is `((sum_c m_c)^2 - sum_c m_c^2) / (C (C - 1))`,
    channel by channel.

    Source: APE (Zhu et al., ICCV 2023), section 3.1.
    """

    task: Task

    def best(self, criterion: str, weight: float | Tensor, per_1024: int) -> Tensor:
        """Positions of the channels with the best scores, best first.

        criterion: one of CRITERIA. weight: of the similarity, from 0 to 1. per_1024: how many of every 1,024.
        """
        score = (1 - weight) * self._variance - weight * self._similarity[criterion]
        return score.topk(max(1, round(self.task.dim * per_1024 / 1024))).indices

    @cached_property
    def _variance(self) -> Tensor:
        return self.task.text.class_weights.var(dim=0)

    @cached_property
    def _similarity(self) -> dict[str, Tensor]:
        text, support = self.task.text.class_weights, self.task.support
        rows = 1 + torch.bincount(support.label, minlength=len(text)).unsqueeze(1)
        return {TEXT: _between(text), FULL: _between(text.index_add(0, support.label, support.keys) / rows)}


def _between(mean: Tensor) -> Tensor:
    """Mean product of class means (classes, dim) over all pairs of different classes: (dim,)."""
    classes = len(mean)
    return (mean.sum(dim=0).square() - mean.square().sum(dim=0)) / (classes * (classes - 1))


@dataclass(frozen=True)
class Caches:
    """What the support says on chosen channels, worked out once for every choice."""

    channels: Channels
    known: dict[tuple[Value, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def get(self, similarity: float, per_1024: int, softmax: str) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen channels (k,), unit keys on them (rows, k), divergence of each key (rows,) in bits."""
        choice = (similarity, per_1024, softmax)
        if choice not in self.known:
            task = self.channels.task
            index = self.channels.best(FULL, similarity, per_1024)
            keys, text = (unit(rows[:, index]) for rows in (task.support.keys, task.text.class_weights))
            scale = task.logit_scale if softmax == "scaled" else 1.0
            own = (scale * keys @ text.T).log_softmax(dim=1).gather(1, task.support.label.unsqueeze(1)).squeeze(1).exp()
            self.known[choice] = index, keys, torch.log2((1 + _LEAST) / (own + _LEAST))
        return self.known[choice]


class APE(Method):
    """Zero-shot logits on all channels, plus a cache on chosen ones whose images weigh by what the text misses.

    `logits = s x W^T + alpha exp(-beta (1 - x' K'^T)) (L exp(gamma kl))`: x' and K' are queries and keys on the best
    channels by the full criterion (see `Channels`), scaled to unit length there; kl_i is the divergence, in
    bits, of key i's label from `softmax(k'_i W'^T)`. Without the logit scale in that softmax, as published, kl is
    nearly log2 of the number of classes for every image and gamma acts as a second alpha; `softmax=scaled` makes it
    tell images apart. The published script reuses one stored criterion for other seeds and texts, takes only equal
    shots in class order, and adds language model sentences to the text; none of it holds here.

    Source: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement (Zhu et al., ICCV 2023),
    sections 3.1 and 3.2; presets from the authors' configurations.
    """

    name = "ape"
    summary = "training-free cache on the channels that tell classes apart"
    family = "cache"
    equation = "logits = s x.W' + alpha exp(-beta (1 - x'.K'')) (L exp(gamma kl)), x' and K' on chosen channels"
    hyperparameters = {
        "alpha": Hyperparameter(1.0, "weight of the cache", high=100.0),
        "beta": Hyperparameter(5.5, "sharpness of the cache; Tip-Adapter's value", search=SHARPNESS, high=1000.0),
        "gamma": Hyperparameter(0.1, "how much images count for which the text is wrong; the authors' start value",
                                search=(0.0, 0.1, 0.3), high=10.0),
        "similarity": Hyperparameter(0.5, "weight of the similarity against the variance; the middle of the authors'",
                                     high=1.0),
        "channels": Hyperparameter(700, "kept of every 1,024 channels; the middle of the authors'", low=1, high=1024),
        "softmax": Hyperparameter("plain", "logits of the divergence: cosines, or times the logit scale",
                                  choices=("plain", "scaled")),
    }
    presets = {name: {"channels": kept, "similarity": weight, "alpha": alpha, "beta": 1.0}
               for name, (kept, weight, alpha) in _PUBLISHED.items()}
    mixing = "alpha"

    def prepare(self, task: Task) -> Caches:
        return Caches(Channels(task))

    def terms(self, prepared: Caches, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        task = prepared.channels.task
        index, keys, divergence = prepared.get(self.similarity, self.channels, self.softmax)
        cache = Kernel(keys, task.support.label, task.classes, self.beta, torch.exp(self.gamma * divergence))
        return zero_shot_head(task), Columns(index, cache)
