"""Multi-Modal Adapter: class vectors and each image look at each other before they are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.heads.attention import MASKS, CrossModal
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import (
    Hyperparameter,
    keeping,
    linear_bias,
    linear_start,
    recipe,
    xavier_uniform,
)


class MultiModalAdapter(Method):
    """One masked attention layer, of low rank, over the class vectors and the image.

    All vectors go through two linear maps (to the bottleneck, then to the attention), the attention, and two linear
    maps back with a gelu between them; with a the unit result, `x' = unit(r a + (1 - r) x)`, the class vectors
    likewise, and `logits_c = s x' . w'_c`. Nothing belongs to a class, so the parameters serve other classes too.

    The attention is meant to reach the other modality alone (`mask=blocking`). The authors' code, in the state that was
    read, has ones in the mask instead, which torch adds to the scores: `mask=shipped`, preset `reference`.

    The layers start at random, not at zero-shot, and nothing pulls them back to it: with one image per class and the
    ratio of training it falls below zero-shot. So predictions take half of it, and validation rows may choose zero.

    Source: Multi-Modal Adapter for Vision-Language Models (Seputis et al., 2024), section 3; widths, ratio and recipe
    from the authors' code (clip-mma).
    """

    name = "multi-modal-adapter"
    summary = "attention between the image and all class vectors"
    family = "adapter"
    equation = "logits_c = s unit(r a_x + (1-r) x).unit(r a_c + (1-r) w_c),  (a_1 .. a_C, a_x) = attention(W, x)"
    hyperparameters = {
        "ratio": Hyperparameter(0.1, "share of the attention's result when predicting; 0 is zero-shot",
                                search=(0.0, 0.05, 0.1), high=1.0, retrain=False),
        "train_ratio": Hyperparameter(0.2, "the same in training; the authors'", high=1.0),
        "mask": Hyperparameter(MASKS[0], "what the attention may see", choices=MASKS),
        "bottleneck": Hyperparameter(32, "width of the narrowest layers", low=1, high=4096),
        "heads": Hyperparameter(4, "heads of the attention", low=1, high=256),
        "head_width": Hyperparameter(32, "width of a head", low=1, high=4096),
        **recipe(learning_rate=1e-3, epochs=20, batch_size=64, weight_decay=1e-4, optimizer="adam",
                 schedule="constant"),
        **keeping(),
    }
    presets = {"reference": {"mask": "shipped", "ratio": 0.2, "epochs": 100, "keep": "best", "patience": 20}}
    transfers = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        like, dim, narrow, wide = prepared.text.embedding, prepared.dim, self.bottleneck, self.heads * self.head_width

        def layer(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
            return {name: linear_start((outputs, inputs), generator, like),
                    f"{name}_bias": linear_bias(outputs, inputs, generator, like)}

        return {**layer("down", narrow, dim), **layer("widen", wide, narrow),
                "attend": xavier_uniform((3 * wide, wide), generator, like), "attend_bias": like.new_zeros(3 * wide),
                "join": linear_start((wide, wide), generator, like), "join_bias": like.new_zeros(wide),
                **layer("narrow", narrow, wide), **layer("up", dim, narrow)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        inward, inward_bias = _chain(parameters, "down", "widen", "attend")
        # A bias of the keys moves all scores of a query alike: nothing depends on it, and its gradient is rounding.
        felt = inward_bias.new_tensor([1.0, 0.0, 1.0]).repeat_interleave(len(inward_bias) // 3)
        return CrossModal(prepared.text.class_weights, inward, felt * inward_bias,
                          *_chain(parameters, "join", "narrow"), parameters["up"], parameters["up_bias"], self.heads,
                          self.ratio, prepared.logit_scale, prepared.logit_bias, self.mask)

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return self.with_values(ratio=self.train_ratio).head(prepared, parameters)


def _chain(parameters: dict[str, Tensor], *names: str) -> tuple[Tensor, Tensor]:
    """Linear layers that follow each other with nothing between them, as one: its weight and its bias."""
    weight, bias = parameters[names[0]], parameters[f"{names[0]}_bias"]
    for name in names[1:]:
        weight, bias = parameters[name] @ weight, parameters[name] @ bias + parameters[f"{name}_bias"]
    return weight, bias
