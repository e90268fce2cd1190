"""An evaluation whose rows are judged by workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from onceclip.adapters import AdapterFileError, load_classifier
from onceclip.adapters.classifier import CONFIG, WEIGHTS
from onceclip.adapters.saving import file_of
from onceclip.pipeline.cluster.machine import reached
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.evaluate import Judge, Judged, Scoring
from onceclip.pipeline.protocol import Protocol
from onceclip.pipeline.workers import Workers
from onceclip.stores import StoreMismatch, open_store
from onceclip.stores.identity import digest
from onceclip.stores.location import everywhere

_HELD = 4  # evaluations that a worker has open: adapters and stores of one command


@dataclass(frozen=True)
class Assignment:
    """What a worker opens: an adapter and a store, with what identifies their contents, and what is asked of them.

    session: of the command, as what is open from another one may have been overwritten since.
    """

    adapter: str
    adapter_digest: str
    store: str
    fingerprint: str
    protocol: Protocol
    session: str


@dataclass(frozen=True)
class Piece:
    """One piece of the rows of a scoring. rows: how many all pieces have."""

    assignment: Assignment
    number: int
    rows: int

    def __str__(self) -> str:
        return f"piece {self.number} of {self.assignment.store}"


def judged_by(workers: Workers, adapter: Path, store: str, protocol: Protocol) -> Judge:
    """Have workers judge the rows of a store. adapter, store: their paths."""
    folder = adapter.absolute()
    identity, session = adapter_digest(folder), os.urandom(8).hex()

    def judge(scoring: Scoring) -> Iterator[Judged]:
        assignment = Assignment(str(folder), identity, everywhere(store), scoring.store.fingerprint, protocol, session)
        pieces = (Piece(assignment, number, len(scoring.rows)) for number in range(scoring.pieces))
        return workers.work(judge_piece, pieces, twice=True)

    return judge


def judge_piece(piece: Piece) -> Judged:
    """Judge one piece wherever this process is.

    Raises WorkerError if this machine has no such adapter or store, StoreMismatch if the store has changed.
    """
    scoring = _opened(piece.assignment)
    if len(scoring.rows) != piece.rows:
        raise StoreMismatch(f"{piece.assignment.store} has changed since the evaluation began: run the same command "
                            "again")
    judged, = scoring.judged(piece.number, piece.number + 1)
    return judged


@lru_cache(_HELD)
def _opened(assignment: Assignment) -> Scoring:
    where, host = assignment.adapter, socket.gethostname()
    try:
        same, classifier = adapter_digest(Path(where)) == assignment.adapter_digest, load_classifier(where)
    except (AdapterFileError, OSError) as error:
        raise WorkerError(f"the worker on {host} finds no adapter at {where}: give a path that all machines "
                          "have") from error
    if not same:
        raise WorkerError(f"the worker on {host} has another adapter at {where}: give a path that is the same on all "
                          "machines, and run the same command again")
    store = reached(assignment.store, partial(open_store, assignment.store))
    if store.fingerprint != assignment.fingerprint:
        raise StoreMismatch(f"{assignment.store} has changed since the evaluation began, or is another one on {host}: "
                            "run the same command again")
    return assignment.protocol.scoring(classifier, store)


def adapter_digest(folder: Path) -> str:
    """Identity of a saved adapter."""
    return digest(b"".join(digest(file_of(folder, name).read_bytes()) for name in (CONFIG, WEIGHTS))).hex()
