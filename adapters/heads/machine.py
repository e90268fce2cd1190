"""A head that compares rows with keys and adds up trained or solved values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product


@dataclass(frozen=True)
class KernelMachine(Head):
    """Logits `sum_i exp(-beta (1 - x . key_i)) value_i` with any values, as a kernel regression has them.

    keys: (keys, dim). value: (keys, classes). beta: sharpness.
    """

    keys: Tensor
    value: Tensor
    beta: float | Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        affinity = torch.exp(per_run(self.beta) * (product(rows, self.keys) - 1))
        return product(affinity, self.value.transpose(-1, -2))

    @property
    def width(self) -> int:
        return max(self.value.shape[-2:])

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype


@dataclass(frozen=True)
class FourierFeatures(Head):
    """Random Fourier features in front of another head: `head([cos(x F^T), sin(x F^T)] / sqrt(frequencies))`.

    The scalar product of the features of two unit vectors a and b approximates `exp(-beta (1 - a . b))` where the
    frequencies are drawn from a normal distribution of variance beta.

    frequency: (frequencies, dim). head: takes rows of twice as many columns as there are frequencies.
    Source: Random Features for Large-Scale Kernel Machines (Rahimi and Recht, NeurIPS 2007).
    """

    frequency: Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(fourier(rows, self.frequency))

    @property
    def width(self) -> int:
        return max(self.head.width, 2 * self.frequency.shape[-2])

    @property
    def dtype(self) -> torch.dtype:
        return self.frequency.dtype


def fourier(rows: Tensor, frequency: Tensor) -> Tensor:
    """Cosines and sines (rows, 2 frequencies) of rows (rows, dim), of unit length."""
    phase = product(rows, frequency)
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / frequency.shape[-2] ** 0.5
