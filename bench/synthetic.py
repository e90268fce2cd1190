"""Features with the look of CLIP's: a common direction, a class centre, noise; and a task or a store of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from onceclip.adapters import Rows, Task, Text


def features(classes: int, per_class: int, dim: int, seed: int = 0,
             noise: float = 1.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (classes x per_class, dim), labels, and one text vector per class (classes, dim); all float32."""
    random = np.random.default_rng(seed)
    common, centre = random.standard_normal(dim), random.standard_normal((classes, dim))
    label = np.repeat(np.arange(classes), per_class)
    embedding = common + 0.6 * centre[label] + noise * random.standard_normal((len(label), dim))
    text = 0.5 * common + 0.6 * centre + 0.6 * random.standard_normal((classes, dim))
    return embedding.astype(np.float32), label, text.astype(np.float32)


def task(classes: int, shots: int, dim: int, seed: int = 0, noise: float = 1.1) -> Task:
    """A few-shot task with 4 validation rows per class."""
    embedding, label, text = features(classes, shots + 4, dim, seed, noise)
    rows, labels = torch.from_numpy(embedding), torch.from_numpy(label)
    val = torch.arange(len(label)) % (shots + 4) < 4
    names = tuple(map(str, range(classes)))
    return Task(Text(torch.from_numpy(text), torch.arange(classes), names), Rows(rows[~val], labels[~val]),
                Rows(rows[val], labels[val]))


def store(path: Path, classes: int, train: int, val: int, test: int, dim: int, seed: int = 0,
          noise: float = 1.1) -> Path:
    """A store with so many rows per class in each split."""
    from onceclip.pipeline.extraction.import_arrays import import_arrays

    embedding, label, text = features(classes, train + val + test, dim, seed, noise)
    split = np.tile(np.repeat(["train", "val", "test"], [train, val, test]), classes)
    arrays = path.with_suffix(".npz")
    np.savez(arrays, embedding=embedding.astype(np.float16), label=label, split=split, text=text)
    import_arrays(arrays, path, encoder="synthetic")
    return path
