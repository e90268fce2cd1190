"""TaI-DPT: prompts learned from sentences in place of images."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.methods.coop import CONTEXT, TOWER_NEEDED, TRAINING, CoOp
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_SCALE = 4.0  # of cosines in its loss
_MARGIN, _SLOPE = 1.0, 2.0


class TaIDPT(CoOp):
    """CoOp trained on the sentences of the text set as if they were images of their classes; it sees no image.

    `loss = sum_{+,-} max(0, 1 - 2 (y_+ - y_-))` over pairs of a class that a sentence names and one that it does not,
    with `y = 4 z . w_c`; the fitted classifier has the encoder's own scale. Of the paper's two contexts this is the
    global one: the local one is trained on tokens of sentences, which no text set holds. A sentence names one class.

    Source: Texts as Images in Prompt Tuning for Multi-Label Image Recognition (Guo et al., CVPR 2023), equations 3
    to 5.

    Example:
        >>> onceclip.adapters.TaIDPT(epochs=2).fit(tower_task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "tai-dpt"
    summary = "words learned from the sentences of the text set, without images"
    source = "Guo et al., Texts as Images in Prompt Tuning for Multi-Label Image Recognition, CVPR 2023"
    equation = "logits = s x.unit(tower(v, name))', v trained on sentences by a ranking loss"
    needs = f"{TOWER_NEEDED}, best with a text set of many sentences"
    hyperparameters = {
        **CONTEXT,
        **TRAINING,
        "weight_decay": Hyperparameter(5e-4, TRAINING["weight_decay"].meaning, high=100.0, retrain=True),
    }
    presets = {"paper": {"words": "", "length": 16, "optimizer": "sgd", "learning_rate": 1e-4, "schedule": "dassl",
                         "batch_size": 512, "epochs": 20}}
    needs_support = False
    needs_text = True

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        return prepared.text.unit, prepared.text.class_index

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        named = torch.nn.functional.one_hot(label, prepared.classes).bool()
        return ranking_loss(_SCALE * rows @ self.vectors(prepared, parameters).T, named)


def ranking_loss(scores: Tensor, named: Tensor) -> Tensor:
    """Sum over pairs of a named and another class, mean over rows. scores, named: (n, classes)."""
    apart = scores.unsqueeze(2) - scores.unsqueeze(1)  # of class i over class j
    pairs = named.unsqueeze(2) & ~named.unsqueeze(1)
    return ((_MARGIN - _SLOPE * apart).relu() * pairs).sum(dim=(1, 2)).mean()
