"""Progress on stderr, where a person is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def percentage(name: str) -> Iterator[Callable[[float], None]]:
    """A bar for work that tells the fraction that is done; shown on a terminal, after the first second."""
    with tqdm(total=100, desc=name, delay=1, leave=False, disable=None,
              bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:
        yield lambda fraction: None if bar.disable else bar.update(100 * fraction - bar.n)
