"""ComCLIP: an image is drawn towards those of its crops that the phrases of a sentence agree with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.files import read_json
from onceclip.pipeline.retrieval.items import WIDE, Items, unit_text
from onceclip.pipeline.retrieval.similarity import MEAN, Gallery
from onceclip.stores import Store, StoreIncomplete
from onceclip.stores.identity import digest

_SMALLEST = 1e-6
_SHAPE = 'give JSON {"a dog chases a cat": ["a dog", "chases", "a cat"], ...}'


def comclip_scores(text: Tensor, phrases: Tensor, images: Tensor, crops: Tensor) -> Tensor:
    """Cosines of sentences with images to which their crops are added, weighted by the products with the phrases.

    Weights are the products over their sum; where one is not above 0, they are 0, because shares of such a sum mean
    nothing. The length of what they are added to is had from products of crops, so that nothing of (texts, images,
    dim) is made.
    text: (texts, dim) unit. phrases: (texts, parts, dim), such as subject, predicate and object. images: (images, dim)
        raw. crops: (images, parts, dim) raw, of the same parts in the same order.
    Gives (texts, images).
    Source: ComCLIP (Jiang et al., NAACL 2024); the weights are of `comclip.py` in its code.
    """
    parts = torch.cat([images[:, None], crops], dim=1)
    products = torch.einsum("tpd,ipd->tip", phrases, crops)
    weights = products / products.sum(dim=-1, keepdim=True)
    weights = weights.where((products > _SMALLEST).all(dim=-1, keepdim=True), torch.zeros_like(weights))
    weights = torch.cat([torch.ones_like(weights[..., :1]), weights], dim=-1)
    cosines = (text @ parts.flatten(0, 1).T).view(len(text), *parts.shape[:2])
    square = torch.einsum("tip,ipq,tiq->ti", weights, parts @ parts.transpose(1, 2), weights)
    return (weights * cosines).sum(dim=-1) / square.clamp_min(1e-24).sqrt()


@dataclass(frozen=True)
class Phrases:
    """Phrases of sentences, as embeddings. by_sentence: (phrases, dim) raw. record: JSON values on their file."""

    by_sentence: Mapping[str, Tensor]
    record: dict[str, Any]

    def beside(self, text: Tensor, sentences: Sequence[str], number: int) -> Tensor:
        """Texts (texts, dim), each with its phrases behind it: (texts, (1 + number) * dim).

        Raises RetrievalError for a sentence without phrases, or with another number of them.
        """
        if missing := [each for each in sentences if each not in self.by_sentence]:
            more = f" (and of {len(missing) - 1} more captions)" if missing[1:] else ""
            raise RetrievalError(f"{self.record['name']} has no phrases of {missing[0]!r}{more}: {_SHAPE}")
        if odd := [each for each in sentences if len(self.by_sentence[each]) != number]:
            raise RetrievalError(f"{self.record['name']} has {len(self.by_sentence[odd[0]])} phrases of {odd[0]!r}, "
                                 f"and the images have {number} crops each: give a phrase for every crop, in their "
                                 "order")
        return torch.cat([text, torch.stack([self.by_sentence[each] for each in sentences]).to(text).flatten(1)], dim=1)


def load_phrases(path: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Phrases by sentence, and the record of their file.

    Raises RetrievalError if the file is something else.
    """
    try:
        content = path.read_bytes()
        values = read_json(content.decode("utf-8-sig"))
        lists = list(values.values()) if isinstance(values, dict) else []
        if not lists or not all(isinstance(several, list) and several and all(
                isinstance(each, str) and each.strip() for each in several) for several in lists):
            raise ValueError("no object of lists of texts")
    except (OSError, ValueError) as error:
        raise RetrievalError(f"{path} is not a file of phrases ({error}): {_SHAPE}") from error
    # Captions are stored with single spaces.
    return ({" ".join(sentence.split()): several for sentence, several in values.items()},
            {"name": path.name, "digest": digest(content).hex()})


class Composed(Gallery):
    """Images with their crops, ready to be scored with texts that have their phrases behind them.

    vectors: (images, 1 + crops, dim) raw, each image before its crops.
    """

    def scores(self, text: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Scores of texts (texts, (1 + crops) * dim), as `Phrases.beside` makes them, with consecutive images."""
        assert self.vectors is not None
        several = text.view(len(text), *self.vectors.shape[1:])
        most = max(1, WIDE // (4 * max(1, len(text)) * several.shape[1]))  # several tensors of this size are at work
        parts = (each.to(text.dtype) for each in self.vectors[start:stop].split(most))
        return torch.cat([comclip_scores(several[:, 0], several[:, 1:], part[:, 0], part[:, 1:]) for part in parts],
                         dim=1)


def composed(store: Store, items: Items, text: Tensor, sentences: Sequence[str], phrases: Phrases | None
             ) -> tuple[Tensor, Composed]:
    """Raw texts (texts, dim) with their phrases behind them, and images of a store with the crops that it has.

    Raises RetrievalError without phrases and for groups, StoreIncomplete if there are no crops, or not those of all.
    """
    if phrases is None:
        raise RetrievalError(f"comclip takes phrases of the captions: add --phrases FILE.json, and {_SHAPE}")
    output = store.outputs.get("view")
    if output is None or output.spec.get("kind") != "crops":
        raise StoreIncomplete(f"comclip reads crops of the images, and {store.path} has none: extract into a new "
                              "store with --crops (docs/test-time.md)")
    if len(items) != len(items.rows):
        raise RetrievalError("comclip scores images, and these captions are of groups: give captions of images")
    stored = store.embeddings(items.rows, "view")
    if not (np.isfinite(stored).all() and stored.any(axis=2).all()):
        raise StoreIncomplete(f"{store.path} has crops of the {', '.join(output.spec.get('splits', ()))} split "
                              "alone: rank that --split, or extract into a new store with --views-for all of them")
    return (phrases.beside(unit_text(text), sentences, stored.shape[1] - 1),
            Composed(MEAN, torch.from_numpy(stored), None))
