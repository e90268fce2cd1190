"""The golden inputs of strategies that read views, streams and patches, and the classifiers that they are read with."""

import torch

from onceclip.adapters import Classifier, Rows, Task, Text
from onceclip.adapters.heads import Linear
from onceclip.adapters.inference import Queries
from onceclip.adapters.ops import unit

from .golden import CENTRE, P, U, V, W, grid

SCALE = 100.0
WEIGHTS, IMAGES, VIEWS, PATCHES = W, U, V, P
_PROMPTS = unit(grid((3, 5, 8), 1.1))
STATES = torch.stack([unit(CENTRE + 0.12 * unit(_PROMPTS[number, :3].mean(dim=0))) for number in (0, 1)])


def linear(weights=WEIGHTS, names=("a", "b", "c")):
    """A classifier of class vectors, as zero-shot makes one, and its task."""
    text = Text(weights, torch.arange(len(names)), tuple(names))
    task = Task(text, Rows(weights[:0], torch.zeros(0, dtype=torch.int64)), logit_scale=SCALE)
    return Classifier(Linear(SCALE * weights), tuple(names), weights.shape[1], "zero-shot"), task


def of_views(*images):
    """Queries of some of the four images with views."""
    rows = list(images)
    return Queries(IMAGES[:4][rows], views=VIEWS[rows])
