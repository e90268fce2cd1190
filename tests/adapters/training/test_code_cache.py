"""Code is made once for all processes, and never taken for what it is not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onceclip.adapters import ClipAdapter, ZeroShotLinearProbe
from onceclip.adapters.training import code_cache
from onceclip.adapters.training.compile import _step_constants
from onceclip.adapters.training.loop import Run, Training

pytestmark = pytest.mark.usefixtures("own_folder")
ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, torch
from onceclip.adapters import ZeroShotLinearProbe
from onceclip.adapters.training import code_cache
from onceclip.adapters.training.compile import Compiling, compiling
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run
from tests.adapters.conftest import _task

made, make = [], code_cache.make
code_cache.make = lambda *given: made.append(1) or make(*given)
task = _task((6, 6, 7), dim=32)
runs = [Run(ZeroShotLinearProbe(learning_rate=rate, epochs=20, batch_size=6), task, task, 0)
        for rate in (1e-3, 2e-3, 3e-3)]
with compiling(Compiling("off")):
    plain = train(runs)
with compiling(Compiling("on")):
    together, single = train(runs), train(runs[1:2])[0]
assert all(torch.equal(value, single[name]) for name, value in together[1].items())
for one, other in zip(together, plain, strict=True):
    assert not all(torch.equal(value, other[name]) for name, value in one.items())
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)
print(len(made) > 0, "torch._inductor" in sys.modules, sum(value.sum().item() for value in single.values()))
"""

CLIPPED = """
from onceclip.adapters import WiseFT
from onceclip.adapters.training.compile import Compiling, compiling
from tests.adapters.conftest import _task

with compiling(Compiling("on")):
    WiseFT(epochs=3, smoothing=0.1, clip=1.0).fit(_task((2, 2, 2), dim=16))
"""


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(code_cache, "_loaded", {})


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_runs_are_the_plain_ones_whatever_company_they_have_and_a_second_process_loads_their_code(
        forked, process, monkeypatch):
    """A damaged file is not loaded."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    first, second = forked("-c", PROGRAM), process("-c", PROGRAM)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    *made, weight = first.stdout.split()
    assert made == ["True", "True"]
    assert second.stdout.split() == ["False", "False", weight]  # the compiler is not even imported
    file, *_ = code_cache.folder().glob("*.so")
    whole = file.read_bytes()
    for damaged in (whole[:len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        assert code_cache.load(file.stem) is None
    file.write_bytes(whole)
    assert code_cache.load(file.stem)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_steps_with_clipped_gradients_and_smoothed_labels_are_compiled(forked, monkeypatch):
    """torch finds no code for a concatenation of gradients that are changed in place."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    done = forked("-c", CLIPPED)
    assert done.returncode == 0, done.stderr


def test_a_name_follows_what_the_code_is_made_of(monkeypatch):
    parts = (1, 2.0, "x", None, torch.float32, torch.device("cpu"), ClipAdapter, ((3, 4), torch.int64))
    name = code_cache.digest(*parts)
    assert name == code_cache.digest(*parts)
    for place, other in enumerate((2, 2.5, "y", 0, torch.float64, torch.device("meta"), ZeroShotLinearProbe,
                                   ((4, 4), torch.int64))):
        assert code_cache.digest(*parts[:place], other, *parts[place + 1:]) != name
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert code_cache.digest(*parts) != name
    monkeypatch.setattr(code_cache, "_processor", lambda: "another")
    assert code_cache.digest(*parts) != name


def test_what_only_this_process_knows_has_no_name():
    """A class from elsewhere may be written anew under the same name; one that only searches other values may not."""

    class Stranger(ClipAdapter):
        def head(self, prepared, parameters):
            return super().head(prepared, parameters)

    class Quiet(ClipAdapter):
        momentum = 0.5

    class Searching(ClipAdapter):
        hyperparameters = {**ClipAdapter.hyperparameters,
                           "ratio": replace(ClipAdapter.hyperparameters["ratio"], search=(0.5,))}

    assert code_cache.digest(Stranger) is None
    assert code_cache.digest(Quiet) is None
    assert code_cache.digest(object()) is None
    assert code_cache.digest((1, (Stranger,))) is None
    Searching().with_values(ratio=0.5)  # copying leaves a trace in the class
    assert code_cache.digest(Searching)


def test_the_number_of_epochs_tells_steps_apart_that_may_read_it(make_task):
    """A loss of somebody's own may grow with the epochs; code for another number of them would be silently wrong."""
    class Ramp(ClipAdapter):
        def penalty(self, prepared, parameters):
            return parameters["image_up"].square().sum() / self.epochs

    def constants(kind, epochs):
        task = make_task()
        run = Run(kind(epochs=epochs), task, task, 0)
        return _step_constants(Training([run], [run.start], True, None))

    assert constants(ClipAdapter, 3) == constants(ClipAdapter, 9)
    assert constants(Ramp, 3) != constants(Ramp, 9)


def test_a_folder_that_cannot_be_written_to_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    code_cache.note("name", "x")
    assert code_cache.noted("name") is None
    assert code_cache.load("name") is None


def test_notes_are_kept_and_damaged_ones_passed_over():
    code_cache.note("name", ["code", [1, 2]])
    assert code_cache.noted("name") == ["code", [1, 2]]
    (code_cache.folder() / "name.json").write_text("[1, ")
    assert code_cache.noted("name") is None


def test_a_full_disk_leaves_nothing_behind(monkeypatch):
    code_cache.note("name", "x")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_cache.os, "replace", full)
    code_cache.note("name", "y")
    assert code_cache.noted("name") == "x"
    assert len(list(code_cache.folder().iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users")
@pytest.mark.parametrize("share", ["folder", "folder around", "file", "link", "link to a folder"])
def test_nothing_is_taken_from_where_others_can_write(tmp_path, share):
    """Code that is loaded is code that runs."""
    code_cache.note("name", "x")
    own = code_cache.folder()
    if share == "link to a folder":
        own.rename(tmp_path / "theirs")
        own.symlink_to(tmp_path / "theirs")
    elif share == "link":
        (own / "name.json").rename(own / "other")
        (own / "name.json").symlink_to(own / "other")
    else:
        {"folder": own, "folder around": own.parent, "file": own / "name.json"}[share].chmod(0o777)
    assert code_cache.noted("name") is None
    assert code_cache.load("name") is None


def test_without_a_home_nothing_is_written_into_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is neither HOME nor a passwd entry
    code_cache.note("name", "x")
    assert not list(tmp_path.iterdir())
    assert code_cache.noted("name") is None
