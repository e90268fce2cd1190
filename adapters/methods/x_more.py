"""X-MoRe: an image's own probabilities and those of captions of images that look like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.heads.neighbors import CaptionEnsemble, certainty
from onceclip.adapters.method import Method
from onceclip.adapters.ops import unit, whole_precision
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_ROWS = 2048  # that the mean certainties are taken over
_LEAST = 1e-6


@dataclass(frozen=True)
class Bank:
    """A task with its bank as unit vectors. rows: (rows, dim), unit, whose certainties are averaged; labels unread."""

    task: Task
    image: Tensor
    caption: Tensor
    rows: Tensor


def captioned_bank(task: Task) -> tuple[Tensor, Tensor]:
    """Images and captions (bank, dim) of the task's bank, unit, in the type of its text."""
    assert task.bank is not None  # `Method.check` has seen to it
    assert task.bank.caption is not None
    image, caption = (unit(whole_precision(each)).to(task.text.embedding)
                      for each in (task.bank.image, task.bank.caption))
    return image, caption


class XMoRe(Method):
    """Zero-shot probabilities p and the mean probabilities q of the captions of the nearest images of a bank.

    `logits = log(a / a' p + b / b' q)`, where a and b are `1 - entropy / ln classes` of p and q. Their means a' and b'
    are those of up to 2,048 support images, evenly spread, or of images without labels where there is no support; the
    authors' code takes the test images seen so far, so that there a row's result depends on the rows before it.

    Source: Cross-Modal Retrieval Meets Inference: Improving Zero-Shot Classification with Cross-Modal Retrieval (Eom et
    al., 2023), equations 3 to 7.

    Example:
        >>> import dataclasses
        >>> bank = onceclip.adapters.Pool(torch.randn(30, 64), torch.randn(30, 64))
        >>> onceclip.adapters.XMoRe().fit(dataclasses.replace(task, bank=bank)).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "x-more"
    summary = "zero-shot, and the captions of a bank's images that look alike"
    family = "retrieval"
    equation = "logits = log(a/a' softmax(s x.W') + b/b' mean_k softmax(s t_k.W')),  a, b = 1 - H / ln C"
    hyperparameters = {
        "neighbours": Hyperparameter(16, "images of the bank whose captions are read", search=(4, 8, 16, 32, 64), low=1,
                                     high=1e5),
    }
    needs = "a bank of images with captions (--bank STORE)"
    needs_support = False
    needs_bank = "caption"
    from_bank = True
    weighs = True
    wants_unlabelled = True

    def prepare(self, task: Task) -> Bank:
        image, caption = captioned_bank(task)
        rows = task.support.embedding if len(task.support) else task.unlabelled
        seen = image if rows is None or not len(rows) else rows
        seen = seen[::-(-len(seen) // _ROWS)]  # evenly spread, since support rows come class by class
        seen = unit(whole_precision(seen)).to(image)
        return Bank(task, image, caption, seen)

    def head(self, prepared: Bank, parameters: dict[str, Tensor]) -> Head:
        head = CaptionEnsemble(prepared.task.zero_shot_weights, prepared.image, prepared.caption, self.neighbours, 1.0,
                               1.0)
        step = max(1, 2**22 // head.width)
        sure = torch.cat([torch.stack([certainty(each)[:, 0] for each in head.probabilities(piece)], dim=1)
                          for piece in prepared.rows.split(step)]).double().mean(dim=0).clamp_min(_LEAST)
        return CaptionEnsemble(head.weight, head.image, head.caption, self.neighbours, float(sure[0]), float(sure[1]))
