"""Evaluations and verifications shared out: the same answers as of one process, to the last bit."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onceclip.adapters import load_classifier
from onceclip.pipeline.cluster.evaluation import judged_by
from onceclip.pipeline.cluster.verification import spread_over
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.evaluate import Judged, Scoring, score
from onceclip.pipeline.metrics import Tally
from onceclip.pipeline.protocol import Protocol
from onceclip.pipeline.workers import Here, Processes
from onceclip.stores import Store, StoreMismatch
from onceclip.stores.verification import verify


def values(evaluation: Any) -> dict[str, Any]:
    """All scores but for the time that they took."""
    return {name: value for name, value in evaluation.as_values().items() if name != "seconds"}


def test_pieces_that_come_in_any_order_give_the_scores_of_one_pass(many: Store, many_adapter: Path) -> None:
    classifier = load_classifier(many_adapter)

    def backwards(scoring: Scoring) -> Iterator[Judged]:
        assert scoring.pieces == 4
        for number in reversed(range(scoring.pieces)):
            yield from pickle.loads(pickle.dumps(list(scoring.judged(number, number + 1))))

    assert values(score(classifier, many, judge=backwards)) == values(score(classifier, many))


def test_tallies_joined_count_what_one_tally_counts() -> None:
    torch.manual_seed(1)
    logits, label = torch.randn(600, 8), torch.randint(0, 8, (600,))
    one, joined = Tally(8, temperature=2.0), Tally(8, temperature=2.0)
    one.add(logits, label)
    for part in (slice(0, 250), slice(250, 251), slice(251, 600)):
        other = Tally(8, temperature=2.0)
        other.add(logits[part], label[part])
        joined.join(other)
    assert joined.details()["confusions"] == one.details()["confusions"]
    assert (joined.rows, joined.near) == (one.rows, one.near)
    assert torch.equal(joined.count, one.count)
    assert torch.equal(joined.right, one.right)
    assert joined.scores() == pytest.approx(one.scores())
    assert joined.calibrated_scores() == pytest.approx(one.calibrated_scores())


def test_an_evaluation_by_workers_has_the_json_of_one_process(
        many: Store, many_adapter: Path, run_json: Callable[..., dict[str, Any]], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(many_adapter.parent)
    command = ("evaluate", many_adapter.name, os.path.relpath(many.path), "--against", many_adapter.name,
               "--classes", "ant,cow,dog", "--only-its-classes")
    alone = run_json(*command, "--confusion", tmp_path / "one.csv")
    shared = run_json(*command, "--confusion", tmp_path / "two.csv", "--local-workers", 2)
    assert alone["n"] == 38_940
    assert {**shared, "seconds": 0} == {**alone, "seconds": 0}
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


def test_a_worker_killed_in_the_middle_of_an_evaluation_costs_nothing_but_time(many: Store,
                                                                               many_adapter: Path) -> None:
    classifier, protocol, killed = load_classifier(many_adapter), Protocol(), []

    def kill(fraction: float) -> None:
        if not killed:
            killed.append(processes._processes[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    with Processes(1) as processes:
        found = protocol.score(classifier, many, kill, judged_by(processes, many_adapter, many.path, protocol))
        assert processes._processes[0].process.pid not in killed
    assert values(found) == values(protocol.score(classifier, many))


def test_workers_refuse_an_adapter_or_a_store_that_is_not_the_one_that_was_meant(
        many: Store, many_adapter: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(many_adapter, tmp_path / "adapter"))
    classifier, protocol = load_classifier(adapter), Protocol()
    judge = judged_by(Here(), adapter, many.path, protocol)
    replace(classifier, temperature=3.0).save(adapter)
    with pytest.raises(WorkerError, match="has another adapter at"):
        protocol.score(classifier, many, judge=judge)
    shutil.rmtree(adapter)
    with pytest.raises(WorkerError, match="finds no adapter at"):
        protocol.score(classifier, many, judge=judge)
    judge = judged_by(Here(), many_adapter, str(tmp_path / "none.zarr"), protocol)
    with pytest.raises(WorkerError, match="finds no store at"):
        protocol.score(classifier, many, judge=judge)


def test_workers_refuse_a_store_that_changes_while_it_is_evaluated(many: Store, many_adapter: Path,
                                                                   store_path: Path) -> None:
    judge = judged_by(Here(), many_adapter, str(store_path), Protocol())
    with pytest.raises(StoreMismatch, match="has changed since the evaluation began"):
        Protocol().score(load_classifier(many_adapter), many, judge=judge)


@pytest.mark.parametrize("damage", [(), ("embedding/c/1/0",), ("label/c/0", "embedding/c/2/0"),
                                    ("state/c/1", "reason/c/0"), ("checksum/c/1",)])
def test_a_verification_in_shares_finds_what_one_process_finds(store_copy: Path, damage: tuple[str, ...]) -> None:
    for number, name in enumerate(damage):
        chunk = store_copy / "image" / name
        content = bytearray(chunk.read_bytes())
        content[5] ^= 4
        chunk.write_bytes(content) if number == 0 else chunk.unlink()
    alone = verify(str(store_copy))
    assert bool(alone.faults) == bool(damage)
    assert verify(str(store_copy), spread=spread_over(Here())) == alone


def test_a_verification_by_workers_has_the_json_of_one_process(store_copy: Path, run: Callable[..., Any],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    (store_copy / "image" / "embedding" / "c" / "2" / "0").unlink()
    monkeypatch.chdir(store_copy.parent)
    alone, shared = (run("verify", store_copy.name, "--json", *more) for more in ((), ("--local-workers", 2)))
    assert (alone.exit_code, shared.exit_code) == (1, 1)
    assert json.loads(shared.stdout) == json.loads(alone.stdout)
    assert shared.stderr == alone.stderr
