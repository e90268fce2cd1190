"""ComCLIP: an image is drawn towards those of its crops that the phrases of a sentence agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.ops import unit

_SMALLEST = 1e-6


def comclip_scores(text: Tensor, phrases: Tensor, images: Tensor, crops: Tensor) -> Tensor:
    """Cosines of sentences with images to which their crops are added, weighted by the products with the phrases.

    Weights are the products over their sum; where one is not above 0, they are 0, because shares of such a sum mean
    nothing.
    text: (texts, dim) unit. phrases: (texts, parts, dim), such as subject, predicate and object. images: (images, dim)
        raw. crops: (images, parts, dim) raw, of the same parts in the same order.
    Gives (texts, images).
    Source: ComCLIP (Jiang et al., NAACL 2024); the weights are of `comclip.py` in its code.
    """
    products = torch.einsum("tpd,ipd->tip", phrases, crops)
    weights = products / products.sum(dim=-1, keepdim=True)
    weights = weights.where((products > _SMALLEST).all(dim=-1, keepdim=True), torch.zeros_like(weights))
    drawn = unit(images + torch.einsum("tip,ipd->tid", weights, crops))
    return torch.einsum("td,tid->ti", text, drawn)
