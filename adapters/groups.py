"""Which runs share their steps: a rule of sizes alone.

What is trained beside a run must not change its numbers, whichever process it lands in and whatever was done before it.
So whether it has a place in a stack follows from its own size, also where it is the only one; how many go together
follows from the machine's caches, and the numbers do not depend on it.
"""

from __future__ import annotations

_SMALL = {"cpu": 2**17}  # elements of one run's parameters from which its steps fall out of a core's caches in a stack
_TOGETHER = {"cpu": 2**19, "cuda": 2**28}  # elements that one step works on
_LEAST = 2**13  # elements of a stack's parameters: libraries sum the products of smaller ones in other orders
_MOST = {"cpu": 64, "cuda": 1024}


def scored(device: str) -> int:
    """Elements of the largest tensor between where rows are only scored: what caches keep, or keeps a GPU busy."""
    return 2**20 if device == "cpu" else 2**24


def stacks(parameters: int, device: str) -> bool:
    """Whether runs with so many elements of parameters share their steps; on a GPU all do."""
    return parameters < _SMALL.get(device, 2**63)


def group_sizes(parameters: int, activations: int, device: str) -> tuple[int, int]:
    """The smallest and the largest number of runs that share a step.

    parameters, activations: elements of one run, the latter of the largest intermediate tensor of a step.
    """
    kind = device if device in _TOGETHER else "cuda"
    most = max(1, min(_MOST[kind], _TOGETHER[kind] // (parameters + activations)))
    return (min(most, -(-_LEAST // parameters)) if kind == "cpu" else 1), most
