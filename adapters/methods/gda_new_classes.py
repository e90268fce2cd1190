"""GDA for classes without an image: Gaussians made of their texts and the base classes' images."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Linear

NEIGHBOURS = 64
TEXT_WEIGHT = 16.0
_CLASSES = 16  # whose neighbours are held at a time


def new_classes(rows: Tensor, text: Tensor, neighbours: int = NEIGHBOURS, text_weight: float = TEXT_WEIGHT) -> Linear:
    """Make the Gaussian head of new classes from their texts and the images of the base classes.

    Every new class takes the nearest base rows of its text w as if they were its own: its mean is that of these rows
    and of w, counted `text_weight` times; its scatter is theirs around w. One precision serves all new classes: the
    mean of the shrunk precisions of each. As in `gda` it is rescaled to that of one row, so that the base's alpha
    serves here, too.

    rows: (rows, dim), unit, of the base classes. text: (classes, dim), unit. neighbours: rows that each class takes.
    Source: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation (Wang et al., ICLR 2024), with the
    numbers of the authors' code.
    """
    rows, weights = rows.double(), text.double()
    number = min(neighbours, len(rows))
    nearest = (weights @ rows.T).topk(number, dim=1).indices
    mean = text_weight * weights
    for each in nearest.T:
        mean = mean + rows[each]
    mean = mean / (number + text_weight)
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    for start in range(0, len(weights), _CLASSES):
        piece = slice(start, start + _CLASSES)
        total += _precisions(rows[nearest[piece]] - weights[piece].unsqueeze(1))
    precision = total / len(weights)
    weight = mean @ precision
    return Linear(weight.to(text), (-(weight * mean).sum(dim=1) / 2).to(text))


def _precisions(offset: Tensor) -> Tensor:
    """Sum over classes of `n (O^T O + t I)^-1`, t = tr(O^T O) / (n - 1), of offsets O (classes, n, dim): (dim, dim).

    By the identity of Woodbury that is `n / t (I - O^T (t I + O O^T)^-1 O)`, with an (n, n) inverse per class.
    """
    number = offset.shape[1]
    shrinkage = (offset.square().sum(dim=(1, 2)) / max(number - 1, 1)).clamp(min=1e-9)
    small = offset @ offset.transpose(1, 2)
    small.diagonal(dim1=1, dim2=2).add_(shrinkage.unsqueeze(1))
    scaled = torch.linalg.solve(small, offset) * (number / shrinkage).view(-1, 1, 1)
    identity = torch.eye(offset.shape[2], dtype=offset.dtype, device=offset.device)
    return identity * (number / shrinkage).sum() - offset.flatten(0, 1).T @ scaled.flatten(0, 1)
