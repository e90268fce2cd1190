"""Rows of a bank that look like a class's prompts: SuS-X by retrieval, and retrieval by captions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onceclip.adapters.ops import unit
from onceclip.adapters.support.source import Choice, SupportSource, most_alike
from onceclip.adapters.task import Pool
from onceclip.adapters.text import Text
from onceclip.adapters.training.trainable import Hyperparameter

_AHEAD = 64  # candidates of a class that are looked at beyond the number it takes


class Retrieve(SupportSource):
    """For every class the `k` images of the bank that are nearest to its prompts.

    Source: SuS-X: Training-Free Name-Only Transfer of Vision-Language Models (Udandarao et al., ICCV 2023), section
    3.1, SuS-LC.
    """

    name = "retrieve"
    summary = "the k images of a bank nearest to each class's text"
    hyperparameters = {
        "k": Hyperparameter(16, "images that each class takes", low=1, high=1e6),
        "exclusive": Hyperparameter(False, "give every image to the class it is nearest to, and to no other"),
        "apart": Hyperparameter(1.0, "cosine with an image that the class has taken from which another is left out; "
                                "1 takes all", high=1.0),
        "weighted": Hyperparameter(False, "give every row its zero-shot probability as weight, for methods that weigh "
                                   "rows"),
    }
    from_bank = True
    of = "image"

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        k, apart, classes = int(self.values["k"]), float(self.values["apart"]), len(text.class_names)
        index = nearest(unit(text.class_weights), pool, self.of, k + _AHEAD if apart < 1 else k,
                        bool(self.values["exclusive"]))
        index = _apart(index, pool, k, apart) if apart < 1 else index
        taken = index >= 0
        label = torch.arange(classes, device=index.device).unsqueeze(1).expand_as(index)[taken]
        if not self.values["weighted"]:
            return Choice(index[taken], label)
        weights = text.class_weights
        rows = unit(pool.image[index[taken]].to(weights.dtype))
        logits = pool.logit_scale * rows @ weights.T
        return Choice(index[taken], label, logits.softmax(dim=1).gather(1, label.unsqueeze(1)).squeeze(1))


class Captions(Retrieve):
    """For every class the `k` images of the bank whose captions are nearest to its prompts.

    Their captions come along, for methods that read them, such as caps-adapter.

    Source: CapS-Adapter: Caption-based MultiModal Adapter in Zero-Shot Classification (Wang et al., ACCV 2024), with
    captions of a bank in the place of generated ones.
    """

    name = "captions"
    summary = "the k images of a bank whose captions are nearest to each class's text"
    needs = "caption"
    of = "caption"


def nearest(weights: Tensor, pool: Pool, of: str, most: int, exclusive: bool) -> Tensor:
    """Positions (classes, most) of the pool rows nearest to class vectors, best first, -1 where there are fewer.

    weights: (classes, dim), unit. of: "image" or "caption". exclusive: each row only for its nearest class.
    """
    def cosines() -> Iterator[tuple[slice, Tensor]]:
        for place, rows in pool.pieces(len(weights), of):
            cosine = weights @ rows.to(weights.dtype).T
            if exclusive:
                mine = cosine.argmax(dim=0) == torch.arange(len(weights), device=weights.device).unsqueeze(1)
                cosine = cosine.masked_fill(~mine, -torch.inf)
            yield place, cosine

    cosine, index = most_alike(cosines(), most)
    return index.masked_fill(cosine == -torch.inf, -1)


def _apart(index: Tensor, pool: Pool, k: int, most: float) -> Tensor:
    """The first k of each class's candidates (classes, n) whose cosine with one taken before is below `most`.

    Where there are fewer, -1 fills the rest.
    """
    found = index.new_full((len(index), k), -1)
    for number, each in enumerate(index):
        candidates = each[each >= 0]
        rows = unit(pool.image[candidates].float())
        alike = rows @ rows.T >= most
        kept: list[int] = []
        for place in range(len(rows)):
            if len(kept) < k and not alike[place, kept].any():
                kept.append(place)
        found[number, :len(kept)] = candidates[kept]
    return found
