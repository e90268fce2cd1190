"""Devices that train: by name, refused in one line where they are not there, and no part of what a run is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from onceclip.pipeline.errors import DeviceError
from onceclip.pipeline.runs import sweep as sweeping
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.replay import device_of
from onceclip.pipeline.runs.results import append_rows, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import sweep
from onceclip.pipeline.workers.devices import device_like, device_named, name_of, training_device, within_memory
from onceclip.stores import Store

SPECS = make_specs(["zero-shot", "tip-adapter"], [1], [1, 2], select="fixed")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torch say that there are GPUs of these names."""

    def install(*names: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[torch.device(device).index or 0]
                            if isinstance(device, torch.device) else names[device])

    install()
    return install


@pytest.mark.parametrize("command", [
    "fit {store} --method tip-adapter", "sweep {store} --out results", "sweep {store} --out results --dry-run",
    "sweep {store} --out results --local-workers 2"])
@pytest.mark.parametrize("choice", ["cuda", "cuda:3", "gpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(
        command: str, choice: str, gpus: Callable[..., None], run: Callable[..., Result], imported: Store,
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = run(*command.format(store=imported.path).split(), "--device", choice)
    assert done.exit_code == 1, done.output
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"Error: --device {choice}: ")
    assert "use " in line
    assert sorted(tmp_path.iterdir()) == before  # nothing was begun


def test_auto_is_a_gpu_where_there_is_one(gpus: Callable[..., None]) -> None:
    assert device_named("auto") == torch.device("cpu")
    gpus("A")
    assert device_named("auto") == torch.device("cuda")


def test_a_number_that_no_gpu_has_is_refused_with_how_many_there_are(gpus: Callable[..., None]) -> None:
    gpus("A", "B")
    assert device_named("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="--device cuda:2: 2 CUDA devices visible on"):
        device_named("cuda:2")


def test_adapters_are_trained_on_devices_that_have_all_operations() -> None:
    with pytest.raises(DeviceError, match="--device mps: adapters are trained on cpu or cuda alone: use --device cpu"):
        training_device("mps")


def test_a_gpu_is_found_again_by_its_name(gpus: Callable[..., None]) -> None:
    gpus("A", "B")
    assert name_of(torch.device("cuda:1")) == "B"
    assert [device_like(name) for name in ("A", "B", "C", "cpu")] == ["cuda:0", "cuda:1", "cpu", "cpu"]
    assert device_of({"device": "B"}) == "cuda:1"
    assert device_of({}) == "cpu"  # rows of before there was a choice


def test_what_a_gpu_cannot_hold_is_refused_in_one_line() -> None:
    with pytest.raises(DeviceError, match=r"gda on 8 rows does not fit into the memory of cpu: .*--device cpu"), \
            within_memory(torch.device("cpu"), "gda on 8 rows"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nMany lines")


def test_a_device_is_recorded_and_no_part_of_what_a_run_is(imported: Store, tmp_path: Path,
                                                           gpus: Callable[..., None]) -> None:
    first = sweep([imported], SPECS, tmp_path, device="auto")
    assert {row["device"] for row in first} == {"cpu"}
    assert sweep([imported], SPECS, tmp_path) == first
    assert len(read_rows(tmp_path)) == len(SPECS)


def test_a_row_of_another_device_is_replayed_with_a_remark(imported: Store, tmp_path: Path, run: Callable[..., Result],
                                                           gpus: Callable[..., None]) -> None:
    row = fit(imported, RunSpec("tip-adapter", 2)).row
    append_rows(tmp_path, [{**row, "device": "A"}])
    done = run("fit", "--from-row", f"{tmp_path}:1", "--json")
    assert done.exit_code == 0, done.output
    assert "Replay: the same accuracy as the row; trained on cpu, and the row on A" in done.stderr
    assert json.loads(done.stdout)["device"] == "cpu"
    gpus("A")
    done = run("fit", "--from-row", f"{tmp_path}:1", "--device", "cuda:1")
    assert "Error: --device cuda:1: 1 CUDA device visible" in done.stderr  # what a user names goes first


class Recorded:
    """Takes the place of worker processes, and carries out nothing."""

    made: list[tuple[int, Sequence[str]]] = []

    def __init__(self, number: int, gpus: Sequence[str] = (), *_: Any) -> None:
        self.made.append((number, gpus))

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def work(self, function: Any, tasks: Any) -> Iterator[Any]:
        """Carry them out here."""
        return map(function, tasks)


@pytest.mark.parametrize(("choice", "workers", "made"), [
    ("cuda", 0, [(2, ["0", "1"])]), ("auto", 4, [(4, ["0", "1"])]), ("cpu", 2, [(2, [])]), ("cuda:1", 0, [])])
def test_processes_of_a_sweep_have_a_gpu_each(imported: Store, choice: str, workers: int, made: list[Any],
                                              gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """One per GPU unless more are asked for, and never one per core: they would take its memory from each other."""
    gpus("A", "B")
    monkeypatch.setattr(sweeping, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr("onceclip.pipeline.workers.cluster.local", Recorded)
    monkeypatch.setattr(sweeping, "MANY", 1)
    monkeypatch.setattr(Recorded, "made", [])
    monkeypatch.setattr(sweeping, "run_group", lambda group: group.device)
    plan = sweeping.make_plan([imported], SPECS, {}, device=choice)
    assert list(sweeping.rows_of_plan(plan, "default", workers)) == [choice] * len(plan.groups)
    assert Recorded.made == made


def test_a_numbered_gpu_is_for_one_process(imported: Store, tmp_path: Path, gpus: Callable[..., None]) -> None:
    """Each worker sees one GPU, and calls it by the first number."""
    gpus("A", "B")
    with pytest.raises(DeviceError, match=r"--device cuda:1: each worker sees one GPU.*use --device cuda"):
        sweep([imported], SPECS, tmp_path / "results", local_workers=2, device="cuda:1")
    assert not (tmp_path / "results").exists()
