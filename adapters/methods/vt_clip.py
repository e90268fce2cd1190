"""VT-CLIP: class vectors look at the patches of each image."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.heads.attention import VisualGuide
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, recipe, xavier_uniform


class VtClip(Method):
    """Class vectors guided by the image: they move by what a cross-attention finds among its patch tokens.

    `w'_c = unit(w_c + ratio O attention(Wq w_c; Wk P, Wv P))`, `logits = s x . w'_c`; O starts at zero, so training
    starts at zero-shot, and `ratio` scales afterwards what was learnt, down to zero-shot at 0. The authors published no
    code: their block also has layer norms and a feed-forward part, which would leave no way back to zero-shot, and
    widths, start and recipe here are this project's. Its published numbers are not to be compared.

    Source: VT-CLIP: Enhancing Vision-Language Models with Visual-guided Texts (Qiu et al., 2021), section 3.2, in the
    residual form described above.

    Example:
        >>> with_outputs = onceclip.make_task(store, shots=4, outputs=["embedding", "token"])
        >>> classifier = onceclip.adapters.VtClip(epochs=5).fit(with_outputs)
        >>> classifier.logits(with_outputs.support.input(classifier.inputs)).shape
        torch.Size([16, 4])
    """

    name = "vt-clip"
    summary = "class vectors look at the image's patches"
    family = "adapter"
    equation = "logits_c = s x.unit(w_c + ratio O attention(w_c; patches of x))"
    hyperparameters = {
        "ratio": Hyperparameter(1.0, "share of what was learnt; 0 is zero-shot", search=(0.0, 0.25, 0.5, 1.0),
                                high=1.0, retrain=False),
        "heads": Hyperparameter(4, "heads of the attention", low=1, high=256),
        "head_width": Hyperparameter(32, "width of a head", low=1, high=4096),
        **recipe(learning_rate=1e-3, epochs=100, batch_size=64),
        **keeping(),
    }
    transfers = True
    inputs = ("embedding", "token")
    needs = "patch tokens (extract --tokens)"

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        like, dim, inner = prepared.text.embedding, prepared.dim, self.heads * self.head_width
        token = prepared.support.others["token"].shape[2]
        return {"query": xavier_uniform((inner, dim), generator, like),
                "key": xavier_uniform((inner, token), generator, like),
                "value": xavier_uniform((inner, token), generator, like), "out": like.new_zeros(dim, inner)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        tokens = prepared.support.others["token"].shape[1]
        return VisualGuide(prepared.text.class_weights, **parameters, ratio=self.ratio, tokens=tokens,
                           heads=self.heads, scale=prepared.logit_scale, bias=prepared.logit_bias)

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return self.with_values(ratio=1.0).head(prepared, parameters)
