"""Gradient descent for groups of runs, cut into pieces of the size that suits the device."""

from __future__ import annotations

from collections.abc import Sequence

from onceclip.adapters.compiling import compiles, required
from onceclip.adapters.groups import group_sizes, stacks
from onceclip.adapters.stack import Parameters, stackable
from onceclip.adapters.threads import threads_for
from onceclip.adapters.training import Progress, Run, Training, part_of


def descend(group: Sequence[Run], progress: Progress) -> list[Parameters]:
    """Train runs on one task with one seed that differ only in numbers."""
    run, start = group[0], group[0].start
    device = run.task.device.type
    elements = sum(value.numel() * value.element_size() // 4 for value in start.values())
    compile = None
    if compiles(run, elements):
        from onceclip.adapters.compiled import CompiledStep

        compile = CompiledStep(required())
    alone = not (stackable(run.method) and stacks(elements, device))
    size, most = (1, 1) if alone else _sizes(run, start, elements, device, len(group), compile is not None)
    results: list[Parameters] = []
    # Whatever the number of runs: threads and products show in last digits.
    with threads_for(run.task.work * most):
        for begin in range(0, len(group), size):
            runs = group[begin:begin + size]
            padded = [*runs, *[runs[-1]] * (size - len(runs))]
            training = Training(padded, [each.start for each in padded], alone, compile)
            share = part_of(progress, begin / len(group), len(runs) / len(group))
            results += training.run(share)[:len(runs)]
    return results


def _sizes(run: Run, start: Parameters, elements: int, device: str, count: int, compiled: bool) -> tuple[int, int]:
    """Number of runs in a piece, and of the largest pieces that may be.

    What a piece lacks, copies of a run fill. compiled: code of a single run would not be that of several.
    """
    if not stacks(elements, device):
        return 1, 1
    rows = min(int(run.method.values.get("batch_size", 0)) or len(run.task.support), len(run.task.support))
    activations = rows * run.method.training_head(run.prepared, start).width
    least, most = group_sizes(elements, activations, device)
    return max(least, 1 + compiled, -(-count // -(-count // most))), most
