"""TaI-DPT: prompts learned from sentences in place of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.methods.coop import CONTEXT, TOWER_NEEDED, TRAINING, CoOp, extended
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_SCALE = 4.0  # of cosines in its loss
_MARGIN, _SLOPE = 1.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Sentences(Task):
    """A task and its different sentences: unit (n, dim), and which classes each names (n, classes) bool."""

    sentence: Tensor
    named: Tensor


class TaIDPT(CoOp):
    """CoOp trained on the sentences of the text set as if they were images of their classes; it sees no image.

    `loss = sum_{+,-} max(0, 1 - 2 (y_+ - y_-))` over pairs of a class that a sentence names and one that it does not,
    with `y = 4 z . w_c`; the fitted classifier has the encoder's own scale. Of the paper's two contexts this is the
    global one: the local one is trained on tokens of sentences, which no text set holds. A sentence names all classes
    that the text set has it for; `text --prompts FILE.txt` finds them by their names in it. `evaluate --multi-label`
    scores the result on images of several classes.

    Source: Texts as Images in Prompt Tuning for Multi-Label Image Recognition (Guo et al., CVPR 2023), equations 3
    to 5.
    """

    name = "tai-dpt"
    summary = "words learned from the sentences of the text set, without images"
    equation = "logits = s x.unit(tower(v, name))', v trained on sentences by a ranking loss"
    needs = f"{TOWER_NEEDED}, best with a text set of many sentences"
    hyperparameters = {
        **CONTEXT,
        **TRAINING,
        "weight_decay": Hyperparameter(5e-4, TRAINING["weight_decay"].meaning, high=100.0),
    }
    presets = {"paper": {"words": "", "length": 16, "optimizer": "sgd", "learning_rate": 1e-4, "schedule": "dassl",
                         "batch_size": 512, "epochs": 20}}
    needs_support = False
    needs_text = True

    def prepare(self, task: Task) -> Sentences:
        sentence, place = task.text.embedding.unique(dim=0, return_inverse=True)
        named = torch.zeros(len(sentence), task.classes, dtype=torch.bool, device=task.device)
        named[place, task.text.class_index] = True
        return extended(Sentences, task, sentence=unit(sentence), named=named)

    def training_rows(self, task: Task, prepared: Sentences, epoch: int) -> tuple[Tensor, Tensor]:
        return prepared.sentence, prepared.named

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        return ranking_loss(_SCALE * rows @ self.vectors(prepared, parameters).T, label)


def ranking_loss(scores: Tensor, named: Tensor) -> Tensor:
    """Sum over pairs of a named and another class, mean over rows. scores, named: (n, classes)."""
    row, own = named.nonzero(as_tuple=True)
    apart = scores[row, own].unsqueeze(1) - scores[row]
    return ((_MARGIN - _SLOPE * apart).relu() * ~named[row]).sum() / len(scores)
