"""How many threads a worker computes with."""

from __future__ import annotations

import torch


def give_threads(number: int) -> None:
    """Let this process compute with a number of threads."""
    torch.set_num_threads(number)
