"""Start values of layers, drawn in double precision so that one seed gives the same ones in every precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_start(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs) of a torch Linear layer: uniform within `1 / sqrt(inputs)`."""
    return _uniform(shape, 1 / math.sqrt(shape[1]), generator, like)


def linear_bias(outputs: int, inputs: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Biases (outputs,) of a torch Linear layer: uniform within `1 / sqrt(inputs)`."""
    return _uniform((outputs,), 1 / math.sqrt(inputs), generator, like)


def xavier_uniform(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs), uniform within `sqrt(6 / (inputs + outputs))` (Glorot and Bengio, 2010)."""
    return _uniform(shape, math.sqrt(6 / sum(shape)), generator, like)


def xavier_normal(shape: tuple[int, int], generator: torch.Generator, like: Tensor, gain: float = 1.0) -> Tensor:
    """Weights (outputs, inputs), of deviation `gain sqrt(2 / (inputs + outputs))` (Glorot and Bengio, 2010)."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (gain * math.sqrt(2 / sum(shape)) * values).to(like)


def kaiming_normal(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs), of deviation `sqrt(2 / inputs)` (He et al., ICCV 2015)."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (math.sqrt(2 / shape[1]) * values).to(like)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator, like: Tensor) -> Tensor:
    return (bound * (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)).to(like)
