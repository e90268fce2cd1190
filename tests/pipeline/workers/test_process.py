"""Workers of this machine: they die, are replaced, and what they cannot do is named; nothing of them stays."""

from __future__ import annotations

import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from onceclip.adapters import cpu
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.sweep import MANY, known, sweep
from onceclip.pipeline.workers import cluster as scheduler
from onceclip.pipeline.workers.cluster import Workers, connected, local
from onceclip.stores import Store

from .tasks import look, sleep, work_of

pytestmark = pytest.mark.slow
# Shells start what they put into the background deaf to SIGINT, and so its children.
PROGRAM = """
import signal
from onceclip.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
"""
OWN_METHOD = """
import sys

import onceclip
from onceclip.adapters import ZeroShot


class Mine(ZeroShot):
    pass


if __name__ == "__main__":
    store, out, seeds, workers = sys.argv[1:]
    rows = onceclip.sweep(store, methods=Mine, shots=1, seeds=range(int(seeds)), out=out, local_workers=int(workers))
    print({row["method"] for row in rows}, len(rows))
"""
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Workers can import the tasks, whatever folder the tests are started in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[3])
        yield


@pytest.fixture(scope="module")
def workers(importable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two of them, started in a folder and an environment that can be told from others.

    What they are to do first waits for nobody; at the end they are ended in the middle of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONCECLIP_TEST", "set")
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.chdir(tmp_path_factory.mktemp("workers"))
        with local(2, gpus=["a", "b"], modules=("torch",)) as processes:
            yield processes
            processes.begin(sleep, 600)
            pids = list(processes.client.run(os.getpid).values())
        assert not alive(pids)
        assert os.environ["OMP_NUM_THREADS"] == "2"


def alive(pids: list[int]) -> list[int]:
    """Those of some processes that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def started(tmp_path: Path) -> Run:
    """Start a command in a session of its own; its script stands in a folder of its own, as an installed one does."""
    script = tmp_path / "scripts" / "start.py"
    script.parent.mkdir()
    script.write_text(PROGRAM)

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, script, *map(str, arguments)], start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    return start


def running(session: int) -> list[str]:
    """The processes of a session, zombies aside."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in listed.stdout.splitlines() if "Z" not in line.split()[1]]


def wait_until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.02)


def test_a_task_that_ends_its_workers_is_set_aside_and_all_others_are_done(
        workers: Workers, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note, names = tmp_path / "note", ["a", "deadly", *"bcdefg"]
    work = workers.work(work_of, [(name, str(note)) for name in names])
    done = [next(work) for _ in "abcdefg"]
    with pytest.raises(WorkerError, match=r"^1 task was set aside.*deadly.*it ended every worker that took it"):
        next(work)
    assert sorted(done) == list("abcdefg")
    assert note.read_text().split().count("deadly") >= 2
    assert capfd.readouterr().err == ""  # dask would tell of each worker


def test_what_a_task_raises_ends_the_work(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^as it should$"):
        list(workers.work(work_of, [(name, str(tmp_path / "note")) for name in ("a", "failing", "b")]))
    assert list(workers.work(work_of, [("a", str(tmp_path / "note"))])) == ["a"]


def test_tasks_are_taken_as_they_are_needed(workers: Workers, tmp_path: Path) -> None:
    """A billion images must not become a billion tasks in memory."""
    taken = 0

    def tasks() -> Any:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield str(number), str(tmp_path / "note")

    work = workers.work(work_of, tasks())
    next(work)
    assert taken <= 4
    work.close()


def test_workers_have_one_thread_and_the_environment_and_the_folder_of_the_command(workers: Workers) -> None:
    workers.client.wait_for_workers(2)  # one whose task ended it is started anew
    assert workers.per_machine == 2
    found = list(workers.work(look, ["ONCECLIP_TEST"] * 8))
    devices = {each["set"] for each in workers.work(look, ["CUDA_VISIBLE_DEVICES"] * 8)}
    assert {(each["threads"], each["set"], each["folder"]) for each in found} == {(1, "set", os.getcwd())}
    assert devices <= {"a", "b"}
    assert {each["pid"] for each in found} <= set(workers.client.run(os.getpid).values())


def test_workers_that_cannot_be_started_are_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_RECOUNT", 0.1)
    with local(1) as workers:
        work = workers.work(work_of, [(name, str(tmp_path / "note")) for name in ("a", "deadly", "b")])
        assert next(work) == "a"
        monkeypatch.setattr(scheduler, "_PATIENCE", 1.0)
        monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no Python starts with it
        with pytest.raises(WorkerError, match=r"^no worker can be started any more: see whether this machine has room"):
            list(work)
    with pytest.raises(WorkerError, match=r"^2 workers cannot be started .*: see whether this machine"), local(2):
        pass


def test_a_script_without_a_guard_has_no_workers_that_would_run_it_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from onceclip.pipeline.workers import repeatable\n"
                      "from onceclip.pipeline.workers.cluster import local\n"
                      "print(repeatable())\n"
                      "with local(2):\n    print('workers')\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert done.stderr.splitlines()[-1].endswith('put what it does behind if __name__ == "__main__":')


def test_a_method_that_a_script_defines_is_fitted_by_its_workers_and_one_of_a_notebook_without_any(
        imported: Store, tmp_path: Path) -> None:
    """Workers have a script as the module `__mp_main__`, by which name no row would be found again."""
    script = tmp_path / "script.py"
    script.write_text(OWN_METHOD)
    for program, seeds, workers in (([script], 2, 2), (["-c", OWN_METHOD], MANY, 0)):
        command = [sys.executable, *program, imported.path, tmp_path / str(seeds), seeds, workers]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.stdout == f"{{'__main__:Mine'}} {seeds}\n", done.stderr


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """All of a row that does not depend on the clock, to the last digit."""
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


def test_a_sweep_that_is_killed_leaves_no_process_and_ends_with_the_rows_of_one_that_was_not(
        imported: Store, tmp_path: Path, started: Run, run_json: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP benchmarks start again from nothing (lessons, D): here a kill costs the groups in hand.

    It is started in a folder whose files have names of modules, which nobody takes them for.
    """
    folder, out = tmp_path / "here", tmp_path / "two"
    folder.mkdir()
    for name in ("random.py", "numpy.py", "zarr.py"):
        (folder / name).write_text("raise SystemExit('this is not the module that was meant')\n")
    arguments = ["sweep", imported.path, "--methods", "zero-shot,tip-adapter,clip-adapter", "--shots", "1,2,4",
                 "--seeds", "1-3", "--grid", "clip-adapter.ratio=0.1,0.2,0.3", "--select", "fixed", "--out", out]
    with started(*arguments, "--local-workers", 2, cwd=folder, env={**os.environ, "PYTHONSAFEPATH": ""}) as process:
        wait_until(lambda: len(known(out)) >= 3 or process.poll() is not None)
        process.kill()
        process.wait()
        wait_until(lambda: not running(process.pid))
    assert len(known(out)) >= 3
    assert run_json(*arguments)["tables"][0]["failed"] == 0
    rows = known(out)
    multiplied, = {row["products"] for row in rows.values()}
    monkeypatch.setattr(cpu, "_fastest", lambda: multiplied)  # by time, which may turn out differently
    specs = make_specs(["zero-shot", "tip-adapter", "clip-adapter"], [1, 2, 4], [1, 2, 3],
                       [("clip-adapter.ratio", ["0.1", "0.2", "0.3"])], select="fixed", validated=True)
    alone = sweep([imported], specs, tmp_path / "one", local_workers=1)
    assert len(read_rows(out)) == len(rows) == 45
    assert {run: lasting(row) for run, row in rows.items()} == {row["run"]: lasting(row) for row in alone}


@pytest.mark.parametrize("moment", ["workers start", "workers are at work"])
def test_ctrl_c_says_what_it_always_says_and_leaves_no_process(
        pictures: Path, means: str, tmp_path: Path, started: Run, moment: str) -> None:
    process = started("extract", pictures, tmp_path / "store.zarr", "--model", means, "--unit-rows", 4, "--batch-size",
                      1, "--local-workers", 2, env={**os.environ, "MEANS_SECONDS": "0.7"})
    with process:
        if moment == "workers start":
            wait_until(lambda: len(running(process.pid)) >= 3)
        else:
            wait_until((tmp_path / "store.zarr" / "image" / "state" / "c").exists)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, complaint = process.communicate()
        wait_until(lambda: not running(process.pid))
    assert process.returncode == 130
    assert (out, complaint.strip()) == ("", "Stopped. What was done is kept: run the same command again to go on.")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of dask's end of a refused connection
def test_nobody_without_the_commands_own_key_reaches_its_workers(workers: Workers) -> None:
    """What a scheduler is sent runs as its user, and every user of a machine reaches its loopback."""
    host, port = workers.address.removeprefix("tls://").split(":")
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=60) as plain, pytest.raises(ssl.SSLError, match="alert"):
        stranger.wrap_socket(plain).recv(1)
    gc.collect()


def test_a_scheduler_with_certificates_is_reached_by_those_that_dask_is_configured_with(
        workers: Workers, tmp_path: Path) -> None:
    security, files = workers.client.security, {}
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        (tmp_path / name).write_text(getattr(security, name))
        files[f"distributed.comm.{name.replace('_', '.').replace('ca.', 'ca-')}"] = str(tmp_path / name)
    with dask.config.set(files), connected(workers.address) as found:
        assert found.per_machine == 2
