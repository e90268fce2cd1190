"""TIP-X: Tip-Adapter plus how alike the zero-shot probabilities of two images are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, Kernel, ProbabilityBilinear, Sum
from onceclip.adapters.method import Method, require_two_images, zero_shot_head
from onceclip.adapters.methods.tip_adapter import SHARPNESS, TipAdapter
from onceclip.adapters.ops import class_sums
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_PIECE = 2**12  # rows whose pairs with all others are held at a time


@dataclass(frozen=True)
class Probabilities:
    """The support as it looks in the space of class texts.

    task: what was given. cosine: (keys, classes) of the keys with the class weights. count: (classes,) of keys.
    """

    task: Task
    cosine: Tensor
    count: Tensor


class TipX(Method):
    """Tip-Adapter less the mean divergence of a row's zero-shot probabilities from those of a class's images.

    With `p = softmax(x W^T / tau)`: `logits = s x W^T + alpha cache(x) - gamma mean_{i in c} KL(p_x || p_i)`. The
    divergence is `-H(p_x) - p_x . ln p_i`, so that the whole term is `p_x M` with one (classes, classes) matrix
    `M = mean_i ln p_i`, and what is the same for all classes drops out: no (rows, keys) matrix of divergences is ever
    built. A class without a support image stands where its text is.

    `--set preset=reference` has the sums of the authors' code, in which an affine map first takes the divergences to
    the range of the cosines; with them the number of a class's images pushes it down, and a class without any gains.
    There the ranges, and with them the logits of a row, come from all rows of the test set, and the last rows of it
    get no term at all; here the ranges are those of pairs of support images.

    Source: SuS-X: Training-Free Name-Only Transfer of Vision-Language Models (Udandarao et al., ICCV 2023), where TIP-X
    is its second part; tau from there.
    """

    name = "tip-x"
    summary = "Tip-Adapter with a term on zero-shot probabilities"
    family = "cache"
    equation = ("logits = s x.W' + alpha exp(-beta (1 - x.K')) L - gamma mean_{i in c} KL(p_x || p_i), "
                "p = softmax(x.W' / tau)")
    hyperparameters = {
        "alpha": Hyperparameter(1.0, "weight of the cache", high=50.0),
        "beta": Hyperparameter(5.5, "sharpness of the cache", search=SHARPNESS[2::2], high=1000.0),
        "gamma": Hyperparameter(1000.0, "weight of the divergence, which is a thousandth to a hundredth",
                                search=(0.0, 300.0, 1000.0, 3000.0), high=1e6),
        "tau": Hyperparameter(0.5, "temperature of the probabilities", low=1e-3, high=1000.0),
        "sums": Hyperparameter(False, "sums over images of divergences in the range of cosines, not means as they are"),
    }
    presets = {"reference": {"sums": True, "gamma": 1.0}}
    mixing = "alpha"

    def prepare(self, task: Task) -> Probabilities:
        keys, label = task.support.keys, task.support.label
        return Probabilities(task, keys @ task.text.class_weights.T, torch.bincount(label, minlength=task.classes))

    def terms(self, prepared: Probabilities, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        task = prepared.task
        support, logarithm = task.support, (prepared.cosine / self.tau).log_softmax(dim=1)
        total = class_sums(logarithm, support.label, task.classes)
        entropy = None
        if self.sums:
            slope, least, lowest = _ranges(support.keys, logarithm)
            count = prepared.count.to(logarithm)
            # A sum over n images of slope (KL - least) + lowest, where KL = -H(p) - p . ln p_i.
            matrix = slope * total - (lowest - slope * least) * count.unsqueeze(1)
            entropy = slope * count
        else:
            text = task.text.class_weights
            alone = (text @ text.T / self.tau).log_softmax(dim=1)
            count = prepared.count.unsqueeze(1)
            matrix = torch.where(count > 0, total / count.clamp(min=1), alone)
        divergence = ProbabilityBilinear(task.text.class_weights, self.tau, matrix.T.contiguous(), entropy)
        cache = Kernel(support.keys, support.label, task.classes, self.beta)
        return Sum((zero_shot_head(task), divergence), (1.0, self.gamma)), cache

    def check_left_out(self, task: Task) -> None:
        require_two_images(task)
        if self.sums:
            raise MethodError("leave-one-image-out of tip-x needs sums=false: use --select val")

    def leave_one_out(self, prepared: Probabilities) -> tuple[Tensor, Tensor]:
        task, label = prepared.task, prepared.task.support.label
        zero_shot, cache = TipAdapter(alpha=self.alpha, beta=self.beta).leave_one_out(task)
        divergence = self.terms(prepared, {})[0].heads[1]  # type: ignore[attr-defined]
        rows = task.support.unit
        own = (prepared.cosine / self.tau).log_softmax(dim=1)
        probability = (rows @ task.text.class_weights.T / self.tau).softmax(dim=1)
        # The mean of n images without one of them is (n mean - one) / (n - 1).
        logits, column, count = divergence(rows), label.unsqueeze(1), prepared.count[label].unsqueeze(1)
        without = (count * logits.gather(1, column) - (probability * own).sum(dim=1, keepdim=True)) / (count - 1)
        return zero_shot + self.gamma * logits.scatter(1, column, without), cache


def _ranges(keys: Tensor, logarithm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the map from divergences to cosines of support images, least divergence, lowest cosine."""
    entropy = -(logarithm.exp() * logarithm).sum(dim=1, keepdim=True)
    ends = []
    for start in range(0, len(keys), _PIECE):
        piece = slice(start, start + _PIECE)
        divergence = -entropy[piece] - logarithm[piece].exp() @ logarithm.T
        ends.append(torch.stack([torch.stack(each.aminmax()) for each in (divergence, keys[piece] @ keys.T)]))
    low, high = torch.stack(ends)[:, :, 0].amin(dim=0), torch.stack(ends)[:, :, 1].amax(dim=0)
    slope = (high[1] - low[1]) / (high[0] - low[0]).clamp(min=1e-12)
    return slope, low[0], low[1]
