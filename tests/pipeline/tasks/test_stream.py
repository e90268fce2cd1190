"""Training on rows that are read anew in every epoch: the same rows, each once, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import ClipAdapter, MethodError, Rows
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import draw_task
from onceclip.stores import Store

QUICK = {"epochs": 4, "batch_size": 8}


def test_a_store_of_one_block_gives_the_bits_of_training_in_memory(imported: Store) -> None:
    drawn, streamed = draw_task(imported), draw_task(imported, DrawSpec(stream=True)).task
    order = torch.from_numpy(np.argsort(drawn.support.rows))  # a stream has them as they lie in the store
    held = drawn.task.support
    ordered = replace(drawn.task, support=Rows(held.embedding[order], held.label[order]))
    first, second = (ClipAdapter(**QUICK).fit(task) for task in (streamed, ordered))
    rows = imported.embeddings(imported.rows("test"))
    assert torch.equal(first.logits(rows), second.logits(rows))


def test_streaming_is_part_of_what_a_run_is(imported: Store) -> None:
    """The order of rows is another one, and so is the result."""
    first, second = (RunSpec("clip-adapter", stream=stream).identity(imported) for stream in (True, False))
    assert first != second


def test_every_epoch_sees_each_row_once_with_its_label(imported: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceclip.adapters.task.BLOCK", 10)
    held, streamed = (draw_task(imported, DrawSpec(stream=stream)).task.support for stream in (False, True))
    order = torch.Generator().manual_seed(0)
    known = {tuple(row.tolist()): int(label) for row, label in zip(held.unit, held.label, strict=True)}
    epochs = []
    for _ in range(2):
        seen = [(tuple(row.tolist()), int(label)) for rows, labels in streamed.blocks(order)
                for row, label in zip(rows, labels, strict=True)]
        assert len(seen) == len(held)
        assert dict(seen) == known
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("method", ["clip-adapter", "zs-lp"])
def test_blocks_in_random_order_learn_as_well(imported: Store, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    held = fit(imported, RunSpec(method, values=QUICK))
    for module in ("adapters.task", "adapters.training.loop"):
        monkeypatch.setattr(f"onceclip.{module}.BLOCK", 16)
    streamed = fit(imported, RunSpec(method, values=QUICK, stream=True))
    assert streamed.row["n_support"] == held.row["n_support"]
    assert streamed.row["accuracy"] == pytest.approx(held.row["accuracy"], abs=0.1)


@pytest.mark.parametrize("method", ["gda", "tip-adapter", "linear-probe"])
def test_a_method_that_needs_all_rows_says_so(imported: Store, method: str) -> None:
    with pytest.raises(MethodError, match="needs all support rows in memory: leave out --stream"):
        fit(imported, RunSpec(method, select="fixed", stream=True))


def test_an_average_that_holds_rows_out_says_so_too(without_val: Store) -> None:
    with pytest.raises(MethodError, match="needs all support rows in memory: leave out --stream"):
        fit(without_val, RunSpec("automatic", stream=True))


def test_the_command_takes_it(imported: Store, run: Callable[..., Any]) -> None:
    done = run("fit", imported.path, "--method", "clip-adapter", "--set", "epochs=2", "--stream", "--json")
    assert done.exit_code == 0, done.stderr
