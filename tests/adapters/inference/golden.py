"""The inputs of all golden values of inference strategies: formulas, no data (float64)."""

import torch

from onceclip.adapters import Rows, Task, Text, ZeroShot
from onceclip.adapters.inference import queries_of
from onceclip.adapters.ops import unit


def grid(shape, shift):
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(shift + 1.7 * number + 0.37 * number**2).reshape(shape)


CENTRE = unit(grid((8,), 8.0))
_TEXT = unit(unit(grid((3, 5, 8), 1.1)).mean(dim=1))
W = unit(CENTRE + 0.12 * _TEXT)  # class vectors
Y = torch.arange(12) % 3
U = unit(CENTRE + 0.15 * _TEXT[Y] + 0.20 * unit(grid((12, 8), 5.1)))  # queries
L = torch.tensor([0, 0, 1, 1, 2, 2])
S = unit(CENTRE + 0.15 * _TEXT[L] + 0.20 * unit(grid((6, 8), 0.3)))  # support rows
V = unit(U[:4, None] + 0.15 * unit(grid((4, 8, 8), 6.2)))
V[:, 0] = U[:4]  # views of four images
P = unit(CENTRE + 0.15 * _TEXT[(torch.arange(2)[:, None] + torch.arange(9)) % 3] + 0.20 * unit(grid((2, 9, 8), 4.4)))

TASK = Task(Text(W, torch.arange(3), ("a", "b", "c")), Rows(S, L))
CLASSIFIER = ZeroShot().fit(TASK)
QUERIES = queries_of(CLASSIFIER, U)
