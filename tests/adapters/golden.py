"""The inputs of all golden values: formulas, no data, in float64; and plain numpy parts of dense formulas."""

from dataclasses import replace

import numpy as np
import torch

from onceclip.adapters import Rows, Task, Text
from onceclip.adapters.ops import unit


def grid(shape, shift):
    """`sin(shift + 1.7 n + 0.37 n^2)` over the positions n of a tensor, in C order."""
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(shift + 1.7 * number + 0.37 * number**2).reshape(shape)


COMMON = unit(grid((8,), 8.0))
CLASSES = unit(unit(grid((3, 5, 8), 1.1)).mean(dim=1))


def images_of(label, shift):
    """Unit rows (..., 8) near the classes of labels (...)."""
    return unit(COMMON + 0.15 * CLASSES[label] + 0.20 * unit(grid((*label.shape, 8), shift)))


WEIGHTS = unit(COMMON + 0.12 * CLASSES)
TEXT = Text(WEIGHTS, torch.arange(3), ("a", "b", "c"))
LABEL = torch.tensor([0, 0, 1, 1, 2, 2])
SUPPORT = images_of(LABEL, 0.3)
QUERIES = images_of(torch.arange(12) % 3, 5.1)
VIEWS = unit(QUERIES[:4, None] + 0.15 * unit(grid((4, 8, 8), 6.2)))
VIEWS[:, 0] = QUERIES[:4]
PATCHES = images_of((torch.arange(2)[:, None] + torch.arange(9)) % 3, 4.4)
BANK, CAPTIONS = (images_of(torch.arange(10) % 3, shift) for shift in (9.1, 7.7))


def golden_task(dtype=torch.float64, views=False):
    """A task whose rows are no class's in particular: five prompts of three classes, two images each."""
    text = Text(grid((3, 5, 8), 1.1).flatten(0, 1), torch.arange(3).repeat_interleave(5), ("a", "b", "c"))
    images = grid((6, 8), 0.3)
    seen = torch.stack([images, grid((6, 8), 0.9), grid((6, 8), 4.0)], dim=1) if views else None
    return Task(text, Rows(images, LABEL, seen)).to(dtype)


def golden_queries(dtype=torch.float64):
    """Rows (4, 8) of the same kind."""
    return grid((4, 8), 2.2).to(dtype)


def near(found, expected, within=1e-6):
    """Compare with printed values."""
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=within)


def numpy_unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def text_of(task):
    """Unit class vectors."""
    prompts, index = numpy_unit(task.text.embedding), task.text.class_index.numpy()
    return numpy_unit(np.stack([prompts[index == number].mean(axis=0) for number in range(task.classes)]))


def stacked(task):
    """All views as unit rows, and their labels."""
    support = task.support
    views = 1 if support.views is None else support.views.shape[1]
    return (numpy_unit(support.embedding if support.views is None else support.views.flatten(0, 1)),
            np.repeat(support.label.numpy(), views))


def keys_of(task):
    """Unit mean of the raw views of every image."""
    support = task.support
    return numpy_unit(support.embedding if support.views is None else np.asarray(support.views).mean(axis=1))


def without(task, row):
    """The task less one support image."""
    keep = torch.arange(len(task.support)) != row
    views = None if task.support.views is None else task.support.views[keep]
    return replace(task, support=Rows(task.support.embedding[keep], task.support.label[keep], views))
