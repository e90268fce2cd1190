"""The workers of a dask scheduler elsewhere: real processes with a folder of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.runs.results import append_rows, read_rows
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import sweep
from onceclip.pipeline.workers import cluster as module
from onceclip.pipeline.workers.cluster import connected
from onceclip.stores import Store, open_store
from onceclip.stores.schema import STORED

OPTIONS = ExtractOptions(unit_rows=8, batch_size=4, workers=1)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory, means_folder: Path) -> Iterator[str]:
    """The file of a scheduler with two workers of one thread."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(means_folder), os.environ.get("PYTHONPATH", "")]),
                   "MEANS_SECONDS": "0.1"}
    file = folder / "scheduler.json"
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
                 "--scheduler-file", str(file)],
                ["worker", "--scheduler-file", str(file), "--nthreads", "1", "--nworkers", "2", "--no-dashboard",
                 "--local-directory", str(folder)]]
    with (folder / "log").open("w") as log:
        processes = [subprocess.Popen([sys.executable, "-m", "dask", *each], env=environment, cwd=folder, stdout=log,
                                      stderr=log) for each in commands]
    while not file.exists():
        assert processes[0].poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    yield str(file)
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def cluster(scheduler: str) -> Iterator[module.Workers]:
    """Its workers, once they are there."""
    with ExitStack() as opened:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "TIMEOUT", 600.0)  # so that a busy machine is not taken for one that does not answer
            cluster = opened.enter_context(connected(scheduler))
        cluster.client.wait_for_workers(2, timeout=600)
        yield cluster


@pytest.mark.slow
def test_workers_make_the_store_of_one_process(
        cluster: module.Workers, scheduler: str, image_folder: Path, extract_demo: Callable[..., Any], tmp_path: Path,
        run: Callable[..., Any], contents: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are the client's own; the workers live in another folder. The client never loads the encoder.

    Nor does the scheduler: it hands bytes on, and would keep all others waiting while it imports what they name.
    """

    def imports_torch() -> bool:
        import sys

        return "torch" in sys.modules

    extract_demo(image_folder, tmp_path / "one.zarr", unit_rows=16, batch_size=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onceclip.pipeline.extraction.processes.open_encoder", None)
    result = run("extract", os.path.relpath(image_folder), "two.zarr", "--model", "demo", "--unit-rows", 16,
                 "--batch-size", 8, "--scheduler", scheduler)
    assert result.exit_code == 0, result.stderr
    assert "2 workers at tcp://" in result.stderr
    assert "dashboard: http://127.0.0.1:" in result.stderr
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")
    assert not cluster.client.run_on_scheduler(imports_torch)


@pytest.mark.slow
def test_a_sweep_by_workers_gives_the_rows_of_one_process_and_goes_on_after_ctrl_c(
        cluster: module.Workers, imported: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = make_specs(["zero-shot", "tip-adapter"], [1, 2], [1, 2, 3], select="fixed")
    monkeypatch.setattr("onceclip.adapters.cpu._fastest", lambda: "default")  # whatever the workers would choose
    alone = sweep([imported], specs, tmp_path / "one")

    def stopped(*arguments: Any) -> None:
        append_rows(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onceclip.pipeline.runs.sweep.append_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep([imported], specs, tmp_path / "two", workers=cluster)
    assert len(read_rows(tmp_path / "two")) == 1
    rows = sweep([imported], specs, tmp_path / "two", workers=cluster)
    assert len(read_rows(tmp_path / "two")) == len(specs)
    numbers = ("run", "store", "accuracy", "hyperparameters", "fingerprints", "products")
    assert [{name: row[name] for name in numbers} for row in rows] == [
        {name: row[name] for name in numbers} for row in alone]


@pytest.mark.slow
def test_a_worker_without_a_module_of_ones_own_says_so(cluster: module.Workers, imported: Store, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("from onceclip.adapters import GDA\n\n\nclass Mine(GDA):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerError, match=r"a worker of tcp://\S+ says: cannot import 'only_here'"):
        sweep([imported], make_specs(["only_here:Mine"], [1], [1], select="fixed"), tmp_path / "rows", workers=cluster)


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_command_with_one_line_and_the_next_one_goes_on(
        cluster: module.Workers, pictures: Path, means: str, tmp_path: Path,
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), OPTIONS)
    scheduler, store = cluster.client.run_on_scheduler(os.getpid), tmp_path / "two.zarr"

    def kill_when_a_unit_is_stored() -> None:
        while not (store / "image" / "state" / "c").is_dir() or not (
                open_store(str(store)).column("state") == STORED).any():
            time.sleep(0.02)
        os.kill(scheduler, signal.SIGKILL)

    thread = threading.Thread(target=kill_when_a_unit_is_stored)
    thread.start()
    with pytest.raises(WorkerError, match=r"the scheduler tcp://.* was lost .*run the same command again"):
        extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), OPTIONS, cluster)
    thread.join()
    assert not open_store(str(tmp_path / "two.zarr")).complete
    extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), OPTIONS)
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


@pytest.mark.parametrize(("choice", "message"), [
    ("tcp://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1"),
    ("nowhere.json", "neither an address such as tcp://10.0.0.1:8786 nor a file"),
    ("dask", "dask is configured with no scheduler"),
])
def test_a_scheduler_that_is_not_there_is_one_line(
        run: Callable[..., Any], store_path: Path, tmp_path: Path, choice: str, message: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    result = run("sweep", store_path, "--scheduler", choice, "--out", tmp_path)
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
