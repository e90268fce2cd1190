"""A Python that has imported everything and forks a child per command, which then costs no start of its own.

The child is a process as any other: it has its own folder, environment, output and end. Not for tests of what a
command imports, or of the memory that it takes.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Self


class ForkServer:
    """The side of those who have it fork; until the end of the `with` block."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, arguments: list[str], folder: Path, work: Path) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of `python ARGUMENTS` in a folder. work: for files of its output."""
        output = [work / f"forked.{name}" for name in ("stdout", "stderr")]
        for path in output:
            path.write_bytes(b"")
        request = {"arguments": arguments, "folder": str(folder), "output": [str(path) for path in output],
                   "environment": {**os.environ, "OMP_NUM_THREADS": "1"}}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        texts = [path.read_text() for path in output]
        for path in output:
            path.unlink()
        return subprocess.CompletedProcess(arguments, code, *texts)


def run_python(arguments: list[str], folder: str, environment: dict[str, str], output: list[str]) -> None:
    """Do in this process what `python ARGUMENTS` does in a new one. output: files of the two streams."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each not in (*sys.path, "")]
    for number, name in enumerate([os.devnull, *output]):
        handle = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    first, *sys.argv = arguments
    if first == "-c":
        code, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv.insert(0, first)
        runpy.run_path(first, run_name="__main__")


def end(request: dict[str, Any]) -> None:
    """Do what is asked for, and end as Python does, but for the clearing of memory, which takes a second."""
    code: Any = 0
    try:
        run_python(**request)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        code = traceback.format_exc()
    if not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Take a request per line, and answer with its exit code, which is negative for a signal."""
    from onceclip import cli
    from onceclip.pipeline.encoders import EncoderSpec, open_encoder
    from onceclip.pipeline.extraction import extract
    from onceclip.pipeline.prediction import predict
    from onceclip.pipeline.reporting import description
    from onceclip.pipeline.runs import fit
    from onceclip.stores import verification

    modules: list[Any] = [cli, extract, predict, description, fit, verification]
    assert modules
    assert open_encoder(EncoderSpec("demo")).tokenizer
    gc.freeze()  # a child's collections of garbage would copy all pages
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            end(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
