"""CapS-Adapter: TIP-X whose cache compares images with support images and with their captions."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method
from onceclip.adapters.methods.tip_x import Probabilities, TipX
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class CapsAdapter(TipX):
    """TIP-X with the affinity `a = (1 - delta) x K^T + delta x Z^T` to images K and their captions Z.

    `logits = s x W^T + alpha exp(-beta (1 - a)) L - gamma mean_{i in c} KL(p_x || p_i)`, `p = softmax(x W^T / tau)`;
    what the divergences of all classes have in common is left out. The authors' code takes the softmax of p over the
    coordinates of the embedding and leaves the last rows of a test set without divergence; here it is over classes.

    The support rows must have captions: `--support captions:16 --bank STORE`.

    Source: CapS-Adapter: Caption-based MultiModal Adapter in Zero-Shot Classification (Wang et al., ACCV 2024), section
    3.3.

    Example:
        >>> bank = onceclip.adapters.Pool(torch.randn(30, 64), torch.randn(30, 64))
        >>> support = onceclip.adapters.support_source("captions:2").support(task.text, bank)
        >>> with_captions = onceclip.adapters.Task(task.text, support)
        >>> onceclip.adapters.CapsAdapter().fit(with_captions).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "caps-adapter"
    summary = "tip-x on images and captions of a bank"
    family = "retrieval"
    equation = ("logits = s x.W' + alpha exp(-beta (1 - x.((1-delta) K + delta Z)')) L - gamma mean_c KL(p_x || p_i), "
                "p = softmax(x.W' / tau)")
    hyperparameters = {
        **{name: setting for name, setting in TipX.hyperparameters.items() if name != "sums"},
        "delta": Hyperparameter(0.5, "share of the captions in the affinity", search=(0.0, 0.25, 0.5, 0.75, 1.0),
                                high=1.0),
    }
    presets = {}
    sums = False
    check_left_out = Method.check_left_out  # that of tip-x knows nothing of captions
    from_bank = True
    needs = "support rows with captions (--support captions:16 --bank STORE)"

    def check(self, task: Task) -> None:
        super().check(task)
        if "caption" not in task.support.others:
            raise MethodError("caps-adapter needs a caption of every support row: add --support captions:16 --bank "
                              "STORE, a store with a text set of captions, and leave --shots out")

    def terms(self, prepared: Probabilities, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        first, cache = super().terms(prepared, parameters)
        support = prepared.task.support
        keys = (1 - self.delta) * support.unit + self.delta * unit(support.others["caption"])
        return first, replace(cache, keys=keys)  # type: ignore[type-var]
