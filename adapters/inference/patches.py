"""What strategies share that look at the patch tokens of an image."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.base import Queries


def patches_of(queries: Queries) -> Tensor:
    """The patch tokens of queries (n, patches, dim), unit.

    Raises MethodError where there are none.
    """
    if queries.patches is None:
        raise MethodError("the strategy reads patch tokens and there are none: extract with --tokens value")
    return queries.patches


def smoothed(values: Tensor, size: int) -> Tensor:
    """Mean of values (n, patches) over size x size patches, the edge repeated beyond it: (n, patches).

    Raises MethodError where the patches are no square, or the size is even.
    """
    if size == 1:
        return values
    side = math.isqrt(values.shape[1])
    if side * side != values.shape[1] or size % 2 == 0:
        raise MethodError(f"means over {size} x {size} of {values.shape[1]} patches cannot be taken: the size must be "
                          "odd and the patches a square; use smooth=1")
    square = pad(values.view(-1, 1, side, side), (size // 2,) * 4, mode="replicate")
    return avg_pool2d(square, size, stride=1).flatten(1)
