"""Gradient descent for groups of runs, cut into pieces of the size that suits the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onceclip.adapters.compiling import compiles, required
from onceclip.adapters.groups import group_sizes, stacks
from onceclip.adapters.stack import Parameters, stackable
from onceclip.adapters.threads import threads_for
from onceclip.adapters.training import Compile, Progress, Run, Training, part_of


@dataclass(frozen=True)
class _Piece:
    """Runs that are one training.

    group: the place of theirs. copies: how many of the last run's fill the piece. most: the largest number of runs
    that a step of such may have. alone, compile: as of `Training`.
    """

    group: int
    runs: Sequence[Run]
    copies: int
    most: int
    alone: bool
    compile: Compile | None

    def training(self) -> Training:
        """From the start values on."""
        return Training(self.runs, [run.start for run in self.runs], self.alone, self.compile)


def descend(groups: Sequence[Sequence[Run]], progress: Progress) -> list[list[Parameters]]:
    """Train groups of runs and give the parameters of each.

    The runs of a group are on one task with one seed and differ only in numbers. Several groups are such as may have
    their steps together.
    """
    pieces = [piece for number, group in enumerate(groups) for piece in _pieces(number, group)]
    together = 1 if len(groups) == 1 else max(1, pieces[0].most // max(len(piece.runs) for piece in pieces))
    results: list[list[Parameters]] = [[] for _ in groups]
    for start in range(0, len(pieces), together):
        some = pieces[start:start + together]
        share = part_of(progress, start / len(pieces), len(some) / len(pieces))
        # Whatever their number: threads and products show in last digits.
        with threads_for(groups[0][0].task.work * some[0].most):
            for piece, trained in zip(some, _train([piece.training() for piece in some], share), strict=True):
                results[piece.group] += trained[:len(piece.runs) - piece.copies]
    return results


def _train(trainings: Sequence[Training], progress: Progress) -> list[list[Parameters]]:
    if len(trainings) == 1:
        return [trainings[0].run(progress)]
    from onceclip.adapters.lockstep import Lockstep, bundles  # a second, for those whose device gains nothing by it

    results: list[list[Parameters]] = [[] for _ in trainings]
    done = 0.0
    for bundle in bundles(trainings):
        some, share = [trainings[place] for place in bundle], len(bundle) / len(trainings)
        part = part_of(progress, done, share)
        lockstep = Lockstep(some) if len(some) > 1 else None
        trained = (lockstep.run(part) if lockstep and lockstep.agrees() else
                   [training.run(part_of(part, number / len(some), 1 / len(some)))
                    for number, training in enumerate(some)])
        for place, parameters in zip(bundle, trained, strict=True):
            results[place] = parameters
        done += share
    return results


def _pieces(number: int, group: Sequence[Run]) -> Iterator[_Piece]:
    """A group in pieces that are as equal as can be."""
    run, start = group[0], group[0].start
    device = run.task.device.type
    elements = sum(value.numel() * value.element_size() // 4 for value in start.values())
    compile = None
    if compiles(run, elements):
        from onceclip.adapters.compiled import CompiledStep

        compile = CompiledStep(required())
    alone = not (stackable(run.method) and stacks(elements, device))
    size, most = (1, 1) if alone else _sizes(run, start, elements, device, len(group), compile is not None)
    for begin in range(0, len(group), size):
        runs = group[begin:begin + size]
        copies = size - len(runs)
        yield _Piece(number, [*runs, *[runs[-1]] * copies], copies, most, alone, compile)


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
