"""Classifiers on another device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import pack, unpack


def moved(classifiers: Sequence[Classifier], where: torch.device | str) -> list[Classifier]:
    """Copies of classifiers on another device; tensors that they share are shared there, too."""
    copies: dict[Any, Tensor] = {}

    def move(value: Tensor) -> Tensor:
        memory = value.data_ptr(), value.dtype, value.shape, value.stride()
        if memory not in copies:
            copies[memory] = value.detach().to(where)
        return copies[memory]

    moves = []
    for classifier in classifiers:
        description, tensors = pack(classifier.head, copy=False)
        head = unpack(description, {name: move(value) for name, value in tensors.items()})
        parameters = {name: move(value) for name, value in classifier.parameters.items()}
        moves.append(replace(classifier, head=head, parameters=parameters))
    return moves
