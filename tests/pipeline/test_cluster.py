"""The workers of a dask scheduler: real processes with folders of their own, killed as they may be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onceclip.adapters import load_classifier
from onceclip.pipeline.cluster import scheduler as module
from onceclip.pipeline.cluster.evaluation import judged_by
from onceclip.pipeline.cluster.scheduler import connected
from onceclip.pipeline.cluster.verification import spread_over
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extract import extract
from onceclip.pipeline.plan import make_specs
from onceclip.pipeline.protocol import Protocol
from onceclip.pipeline.results import append_rows, read_rows
from onceclip.pipeline.survey import ExtractOptions
from onceclip.pipeline.sweep import sweep
from onceclip.stores import Store, open_store
from onceclip.stores.schema import STORED, TODO
from onceclip.stores.verify import verify

OPTIONS = ExtractOptions(unit_rows=8, batch_size=4, workers=1)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory, means_folder: Path) -> Iterator[str]:
    """The file of a scheduler with two workers of one thread, which start again when they are killed."""
    folder = tmp_path_factory.mktemp("cluster")
    # Without forgiveness: that a task was there when a worker died must not count against it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(means_folder), "MEANS_SECONDS": "0.1",
                   "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    file = folder / "scheduler.json"
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
                 "--scheduler-file", str(file)],
                ["worker", "--scheduler-file", str(file), "--nthreads", "1", "--nworkers", "2", "--no-dashboard",
                 "--local-directory", str(folder)]]
    with (folder / "log").open("w") as log:
        processes = [subprocess.Popen([sys.executable, "-m", "dask", *each], env=environment, cwd=folder, stdout=log,
                                      stderr=log) for each in commands]
    yield str(file)
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def hands(scheduler: str) -> Iterator[module.Cluster]:
    """Its workers, once they are there."""
    limit = time.monotonic() + 120
    while not Path(scheduler).exists() and time.monotonic() < limit:
        time.sleep(0.1)
    with connected(scheduler) as cluster:
        cluster.client.wait_for_workers(2, timeout=120)
        yield cluster


def kill_when_a_unit_is_stored(store: Path, process: int) -> threading.Thread:
    """Have a process killed as soon as a store has a unit."""

    def kill() -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            time.sleep(0.02)
            if (store / "image" / "state" / "c").is_dir() and (open_store(str(store)).column("state") == STORED).any():
                os.kill(process, signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
def test_workers_make_the_store_of_one_process(
        hands: module.Cluster, scheduler: str, image_folder: Path, extract_demo: Callable[..., Any], tmp_path: Path,
        run: Callable[..., Any], contents: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are the client's own; the workers live in another folder. The client never loads the encoder.

    Nor does the scheduler: it hands bytes on, and would keep all others waiting while it imports what they name.
    """

    def imports_torch() -> bool:
        import sys

        return "torch" in sys.modules

    extract_demo(image_folder, tmp_path / "one.zarr", unit_rows=16, batch_size=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onceclip.pipeline.equipment.open_encoder", None)
    result = run("extract", os.path.relpath(image_folder), "two.zarr", "--model", "demo", "--unit-rows", 16,
                 "--batch-size", 8, "--scheduler", scheduler)
    assert result.exit_code == 0, result.stderr
    assert "2 workers at tcp://" in result.stderr
    assert "dashboard: http://127.0.0.1:" in result.stderr
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")
    assert not hands.client.run_on_scheduler(imports_torch)
    said = run("verify", "two.zarr", "--scheduler", scheduler)
    assert (said.exit_code, said.stdout) == (0, run("verify", "two.zarr").stdout)
    (tmp_path / "two.zarr" / "image" / "label" / "c" / "0").unlink()
    said = run("verify", "two.zarr", "--scheduler", scheduler)
    assert said.exit_code == 1
    assert "two.zarr has 1 fault:" in said.stderr


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nothing_but_time(
        hands: module.Cluster, pictures: Path, means: str, tmp_path: Path,
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), OPTIONS)
    worker = next(iter(hands.client.run(os.getpid).values()))
    thread = kill_when_a_unit_is_stored(tmp_path / "two.zarr", worker)
    done = extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), OPTIONS, hands)
    thread.join()
    assert worker not in hands.client.run(os.getpid).values()
    assert (done.images, done.encoded, done.bad) == (48, 48, 0)
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


@pytest.mark.slow
def test_a_unit_that_ends_every_worker_is_named_and_the_others_are_stored(
        hands: module.Cluster, pictures: Path, means: str, tmp_path: Path, blank: Callable[[Path], None]) -> None:
    blank(pictures / "disc" / "03.png")
    with pytest.raises(WorkerError, match=r"1 task was set aside.*unit 3 of .*rows 24 to 31.*every worker"):
        extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), OPTIONS, hands)
    state = open_store(str(tmp_path / "store.zarr")).column("state")
    assert (state[24:32] == TODO).all()
    assert (state[[*range(24), *range(32, 48)]] == STORED).all()


@pytest.mark.slow
def test_a_sweep_by_workers_gives_the_rows_of_one_process_and_goes_on_after_ctrl_c(
        hands: module.Cluster, imported: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = make_specs(["zero-shot", "tip-adapter"], [1, 2], [1, 2, 3], select="fixed")
    alone = sweep([imported], specs, tmp_path / "one")

    def stopped(*arguments: Any) -> None:
        append_rows(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onceclip.pipeline.sweep.append_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep([imported], specs, tmp_path / "two", hands=hands)
    assert len(read_rows(tmp_path / "two")) == 1
    rows = sweep([imported], specs, tmp_path / "two", hands=hands)
    assert len(read_rows(tmp_path / "two")) == len(specs)
    numbers = ("run", "store", "accuracy", "hyperparameters", "fingerprints")
    assert [{name: row[name] for name in numbers} for row in rows] == [
        {name: row[name] for name in numbers} for row in alone]


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_an_evaluation_or_a_verification_costs_nothing_but_time(
        hands: module.Cluster, many: Store, many_adapter: Path) -> None:
    classifier, protocol = load_classifier(many_adapter), Protocol()

    def killing() -> Callable[[float], None]:
        """Kill a worker when the first of something is done."""
        pids = list(hands.client.run(os.getpid).values())
        return lambda fraction: os.kill(pids.pop(), signal.SIGKILL) if len(pids) > 1 else None

    found = protocol.score(classifier, many, killing(), judged_by(hands, many_adapter, many.path, protocol)).as_values()
    assert {**found, "seconds": 0} == {**protocol.score(classifier, many).as_values(), "seconds": 0}
    hands.client.wait_for_workers(2, timeout=120)
    assert verify(many.path, killing(), spread=spread_over(hands)) == verify(many.path)


@pytest.mark.slow
def test_a_task_that_takes_far_longer_than_the_others_is_begun_by_a_second_worker(
        hands: module.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceclip.pipeline.pace.SLOW", 1.0)
    monkeypatch.setattr(module, "LOOK", 0.2)
    hands.client.wait_for_workers(2, timeout=120)

    def hang_the_first_time(task: str) -> str:
        import time
        from pathlib import Path

        begun = Path(task)
        late = task.endswith("late") and not begun.exists()
        begun.write_text("")
        while late and not begun.with_name("enough").exists():
            time.sleep(0.05)
        return task

    tasks = [str(tmp_path / name) for name in ("late", "a", "b", "c")]
    try:
        assert sorted(hands.work(hang_the_first_time, tasks, twice=True)) == sorted(tasks)
    finally:
        (tmp_path / "enough").write_text("")


@pytest.mark.slow
def test_what_workers_are_to_do_first_is_done_by_all_of_them(hands: module.Cluster, tmp_path: Path) -> None:
    def note(folder: str) -> None:
        import os
        from pathlib import Path

        Path(folder, str(os.getpid())).write_text("")

    hands.client.wait_for_workers(2, timeout=120)
    pids = {str(pid) for pid in hands.client.run(os.getpid).values()}
    hands.begin(note, str(tmp_path))
    while {path.name for path in tmp_path.iterdir()} < pids:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_command_with_one_line_and_the_next_one_goes_on(
        hands: module.Cluster, pictures: Path, means: str, tmp_path: Path,
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), OPTIONS)
    process = hands.client.run_on_scheduler(os.getpid)
    thread = kill_when_a_unit_is_stored(tmp_path / "two.zarr", process)
    with pytest.raises(WorkerError, match=r"the scheduler tcp://.* was lost .*run the same command again"):
        extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), OPTIONS, hands)
    thread.join()
    assert not open_store(str(tmp_path / "two.zarr")).complete
    extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), OPTIONS)
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


@pytest.mark.parametrize(("choice", "message"), [
    ("tcp://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1"),
    ("nowhere.json", "neither an address such as tcp://10.0.0.1:8786 nor a file"),
    ("dask", "dask is configured with no scheduler"),
])
def test_a_scheduler_that_is_not_there_is_one_line(run: Callable[..., Any], store_path: Path, choice: str, message: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    result = run("verify", store_path, "--scheduler", choice)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.mark.parametrize("options", [("--scheduler", "a:1", "--local-workers", "2"),
                                     ("--local-workers", "0", "--part", "1/2")])
def test_ways_to_share_the_work_that_exclude_each_other_are_wrong_usage(run: Callable[..., Any],
                                                                        options: tuple[str, ...]) -> None:
    result = run("extract", "images", "store.zarr", "--model", "demo", *options)
    assert result.exit_code == 2
    assert "do not go together: give one of them" in result.stderr
