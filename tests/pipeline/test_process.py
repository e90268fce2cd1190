"""Processes that are forks of one that has imported what they need: they start fast, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.process import can_fork
from onceclip.pipeline.workers import Processes
from onceclip.stores import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_fork(), reason="elsewhere processes are no forks")]
# Shells start what they put into the background deaf to SIGINT, and so its children.
PROGRAM = """
import signal
from onceclip.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
"""
Run = Callable[..., "subprocess.Popen[str]"]


def looked_at(name: str) -> dict[str, Any]:
    """What a worker finds as it takes its first task."""
    imported = "torch" in sys.modules
    import torch

    time.sleep(0.2)
    return {"pid": os.getpid(), "parent": os.getppid(), "imported": imported, "threads": torch.get_num_threads(),
            "set": os.environ.get(name), "alive": len(os.listdir("/proc/self/task")), "folder": os.getcwd()}


def end_first(task: tuple[int, str]) -> int:
    """Kill a process, once; gives the parent of this one."""
    pid, note = task
    if not os.path.exists(note):
        Path(note).touch()
        os.kill(pid or os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return os.getppid()


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


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_workers_are_forks_of_one_process_that_has_imported_their_modules(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each has one thread, the environment of the command as it is, its folder, and another one takes its place."""
    monkeypatch.setenv("ONCECLIP_TEST", "first")
    with Processes(2, modules=("torch",)) as processes:
        before = list(processes.work(looked_at, ["ONCECLIP_TEST"] * 2))
    monkeypatch.setenv("ONCECLIP_TEST", "second")
    monkeypatch.chdir(tmp_path)
    with Processes(2, modules=("torch",)) as processes:
        after = list(processes.work(looked_at, ["ONCECLIP_TEST"] * 2))
        server, = {each["parent"] for each in [*before, *after]}
        assert list(processes.work(end_first, [(0, str(tmp_path / "worker"))])) == [server]
        assert list(processes.work(end_first, [(server, str(tmp_path / "server"))])) != [server]
    assert server != os.getpid()
    assert len({each["pid"] for each in [*before, *after]}) == 4
    assert all(each["imported"] and each["threads"] == 1 and each["alive"] <= 4 for each in [*before, *after])
    assert [each["set"] for each in [*before, *after]] == ["first"] * 2 + ["second"] * 2
    assert {each["folder"] for each in after} == {str(tmp_path)}


def test_a_command_that_is_killed_leaves_no_process(imported: Store, tmp_path: Path, started: Run) -> None:
    process = started("sweep", imported.path, "--methods", "clip-adapter", "--shots", "4,8,16", "--seeds", "1-30",
                      "--grid", "epochs=400", "--compile", "off", "--local-workers", 2, "--out", tmp_path / "out")
    with process:
        wait_until((tmp_path / "out" / "results.jsonl").exists)
        assert len(running(process.pid)) >= 4  # the command, what the workers are forks of, and they
        process.kill()
        process.wait()
        wait_until(lambda: not running(process.pid))


def test_ctrl_c_while_modules_are_imported_says_what_it_always_says(imported: Store, tmp_path: Path,
                                                                    started: Run) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    # In place of the module of which the workers of `verify` need most: it takes for ever in all processes but one.
    (modules / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onceclip.pipeline.cluster.verification' and 'forkserver' in ' '.join(sys.orig_argv):\n"
        f"            pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "            time.sleep(3)\n"
        "sys.meta_path.insert(0, Slow())\n")
    process = started("verify", imported.path, "--local-workers", 2,
                      env={**os.environ, "PYTHONPATH": str(modules)})
    with process:
        wait_until((tmp_path / "begun").exists)
        time.sleep(1)  # until the command waits for it, or nearly
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, complaint = process.communicate(timeout=60)
        wait_until(lambda: not running(process.pid))
    assert process.returncode == 130
    assert (out, complaint.split("\r")[-1].strip()) == ("", "Stopped. What was done is kept: run the same command "
                                                        "again to go on.")
    assert "Traceback" not in complaint


def test_a_file_of_the_working_directory_is_not_taken_for_a_module(imported: Store, tmp_path: Path,
                                                                   started: Run) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("random.py", "numpy.py", "zarr.py"):
        (folder / name).write_text("raise SystemExit('this is not the module that was meant')\n")
    with started("verify", imported.path, "--local-workers", 1, cwd=folder) as process:
        assert process.wait() == 0, process.stderr.read() if process.stderr else ""
