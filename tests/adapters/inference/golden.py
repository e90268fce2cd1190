"""The classifiers and queries of golden values of inference strategies."""

import torch

from onceclip.adapters import Classifier, Rows, Task, Text, ZeroShot
from onceclip.adapters.heads import Linear
from onceclip.adapters.inference import Queries, queries_of
from onceclip.adapters.ops import unit

from ..golden import COMMON, LABEL, SUPPORT, TEXT, VIEWS, WEIGHTS, grid
from ..golden import QUERIES as IMAGES

SCALE = 100.0
TASK = Task(TEXT, Rows(SUPPORT, LABEL))
CLASSIFIER = ZeroShot().fit(TASK)
QUERIES = queries_of(CLASSIFIER, IMAGES)
_PROMPTS = unit(grid((3, 5, 8), 1.1))
STATES = torch.stack([unit(COMMON + 0.12 * unit(_PROMPTS[number, :3].mean(dim=0))) for number in (0, 1)])


def linear(weights=WEIGHTS, names=("a", "b", "c")):
    """A classifier of class vectors, as zero-shot makes one, and its task."""
    text = Text(weights, torch.arange(len(names)), tuple(names))
    task = Task(text, Rows(weights[:0], torch.zeros(0, dtype=torch.int64)), logit_scale=SCALE)
    return Classifier(Linear(SCALE * weights), tuple(names), weights.shape[1], "zero-shot"), task


def of_views(*images):
    """Queries of some of the four images with views."""
    rows = list(images)
    return Queries(IMAGES[:4][rows], views=VIEWS[rows])
