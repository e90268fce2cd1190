"""The small inputs that the published code of the strategies was run on, as float64 tensors."""

import math

import torch

from onceclip.adapters import Classifier, Rows, Task, Text
from onceclip.adapters.heads import Linear
from onceclip.adapters.inference import Queries
from onceclip.adapters.ops import unit

SCALE = 100.0


def waves(shape, phase):
    """`sin(phase + 1.7 n + 0.37 n^2)` over n, the number of the element."""
    number = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(phase + 1.7 * number + 0.37 * number * number).view(shape)


PROMPTS = waves((3, 5, 8), 1.1)
_CLASS = unit(unit(PROMPTS).mean(dim=1))
CENTRE = unit(waves((8,), 8.0))
WEIGHTS = unit(CENTRE + 0.12 * _CLASS)
LABEL = torch.arange(12) % 3
IMAGES = unit(CENTRE + 0.15 * _CLASS[LABEL] + 0.20 * unit(waves((12, 8), 5.1)))
VIEWS = unit(IMAGES[:4, None] + 0.15 * unit(waves((4, 8, 8), 6.2)))
VIEWS[:, 0] = IMAGES[:4]
_PARTS = (torch.arange(2)[:, None] + torch.arange(9)) % 3
PATCHES = unit(CENTRE + 0.15 * _CLASS[_PARTS] + 0.20 * unit(waves((2, 9, 8), 4.4)))
STATES = torch.stack([unit(CENTRE + 0.12 * unit(unit(PROMPTS[number, :3]).mean(dim=0))) for number in (0, 1)])


def linear(weights=WEIGHTS, names=("a", "b", "c")):
    """A classifier of class vectors, as zero-shot makes one, and its task."""
    text = Text(weights, torch.arange(len(names)), tuple(names))
    task = Task(text, Rows(weights[:0], torch.zeros(0, dtype=torch.int64)), logit_scale=SCALE)
    return Classifier(Linear(SCALE * weights), tuple(names), weights.shape[1], "zero-shot"), task


def of_views(*images):
    """Queries of some of the four images with views."""
    rows = list(images)
    return Queries(IMAGES[:4][rows], views=VIEWS[rows])
