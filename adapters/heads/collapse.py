"""What is linear in a head, as one linear head."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.heads.linear import Linear
from onceclip.adapters.heads.projected import Projected
from onceclip.adapters.heads.weighted import Sum


def as_linear(head: Head) -> Linear | None:
    """The one linear head that gives the same logits on unit rows, or None if there is none.

    A weighted sum of linear heads is one, whatever its depth; so is a linear head behind a scaling to unit length.
    """
    if isinstance(head, Linear):
        return head
    if isinstance(head, Projected) and head.matrix is None and head.bias is None:
        return as_linear(head.head)
    if not isinstance(head, Sum):
        return None
    terms = [as_linear(each) for each in head.heads]
    linear = [each for each in terms if each is not None]
    if len(linear) < len(terms):
        return None
    # In float64: the terms of a sum may be much larger than what is left of them.
    weight = sum((float(factor) * each.weight.double() for factor, each in zip(head.weights, linear, strict=True)),
                 start=torch.zeros((), dtype=torch.float64))
    biases = [float(factor) * each.bias.double() for factor, each in zip(head.weights, linear, strict=True)
              if each.bias is not None]
    bias: Tensor | None = torch.stack(biases).sum(dim=0).to(head.dtype) if biases else None
    return Linear(weight.to(head.dtype), bias)
