"""Saved adapters: damaged folders are refused in one line, failed saves leave no mixture."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onceclip.adapters import AdapterFileError, TipAdapter, load_classifier

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def classifier(make_task):
    return TipAdapter().fit(make_task())


def edit_config(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE = {
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "truncated JSON": lambda folder: (folder / CONFIG).write_text((folder / CONFIG).read_text()[:60]),
    "JSON of something else": lambda folder: (folder / CONFIG).write_text("[1, 2]"),
    "bytes in JSON": lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00\n{"),
    "truncated weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-20]),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights of nothing": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "newer format": lambda folder: edit_config(folder, format=99),
    "unknown head": lambda folder: edit_config(folder, head={"type": "transformer"}),
    "head without fields": lambda folder: edit_config(folder, head={"type": "linear"}),
    "head that is a text": lambda folder: edit_config(folder, head="linear"),
    "missing tensor": lambda folder: edit_config(folder, head={"type": "linear", "weight": {"tensor": "w"}}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_line(classifier, tmp_path, damage):
    classifier.save(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(AdapterFileError) as caught:
        load_classifier(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_newer_format_names_both_formats(classifier, tmp_path):
    classifier.save(tmp_path)
    edit_config(tmp_path, format=99)
    with pytest.raises(AdapterFileError, match=r"format 99.* reads up to 1: install a newer onceclip"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("provenance", [{}, {"encoder": "ViT-B-32"}, {"encoder": None}, {"encoder": {"name": "B"}}])
def test_provenance_of_any_json_values_can_be_saved(classifier, tmp_path, provenance):
    replace(classifier, provenance=provenance).save(tmp_path)
    assert load_classifier(tmp_path).provenance == provenance


@pytest.fixture
def other(make_task):
    return TipAdapter().fit(make_task(seed=9))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_save_of_what_json_cannot_hold_leaves_the_adapter_that_was_there(classifier, other, tmp_path):
    classifier.save(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        replace(other, provenance={"encoder": {"name": "ViT-B-32"}, "not JSON": {1, 2}}).save(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", [CONFIG, "README.md"])
def test_a_save_onto_a_full_disk_names_the_file_and_leaves_the_adapter_that_was_there(
        classifier, other, tmp_path, name):
    classifier.save(tmp_path)
    before = contents(tmp_path)
    (tmp_path / ".saving").mkdir()
    (tmp_path / ".saving" / name).symlink_to("/dev/full")
    with pytest.raises(AdapterFileError, match=rf"{name} cannot be written \(.*No space left.*as it was$"):
        other.save(tmp_path)
    assert contents(tmp_path) == before


def test_a_fit_that_was_killed_as_it_saved_is_repeated_by_the_same_command(classifier, store_path, tmp_path, run):
    folder = tmp_path / "adapter"
    (folder / ".saving").mkdir(parents=True)
    (folder / ".saving" / WEIGHTS).write_bytes(b"the half of it")
    command = ("fit", store_path, "--method", "zero-shot", "--out", folder)
    assert run(*command).exit_code == 0
    assert load_classifier(folder).method == "zero-shot"
    (folder / ".saved").mkdir()
    (folder / CONFIG).rename(folder / ".saved" / CONFIG)
    assert "holds an adapter already" in run(*command).stderr
    assert not (folder / ".saving").exists()


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from onceclip.adapters import load_classifier

old, new, folder = map(Path, sys.argv[1:4])
other = load_classifier(new)
for moment in range(100):
    trial = folder / str(moment)
    if old.exists():
        shutil.copytree(old, trial)
    child = os.fork()
    if not child:
        steps = 0

        def before(event, _):
            global steps
            if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}:
                steps += 1
                if steps > moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        other.save(trial)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(moment)
        break
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["an adapter", "nothing"])
def test_a_save_that_is_killed_at_any_step_leaves_the_old_adapter_or_the_new_one(
        classifier, other, make_task, tmp_path, process, before):
    old, new, trials = (tmp_path / name for name in ("old", "new", "trials"))
    other.save(new)
    if before == "an adapter":
        classifier.save(old)
    done = process("-c", KILLED, old, new, trials)
    assert done.returncode == 0, done.stderr
    rows, found = make_task().support.embedding, []
    logits = {name: each.logits(rows) for name, each in (("an adapter", classifier), ("the new one", other))}
    for number in range(int(done.stdout)):
        folder = trials / str(number)
        try:
            loaded = load_classifier(folder).logits(rows)
            found.append(next(name for name in logits if torch.equal(loaded, logits[name])))
        except AdapterFileError:
            found.append("nothing")
        if number % 2:  # a save after that goes as if nothing had been
            other.save(folder)
            assert contents(folder) == contents(new)
    through = found.index("the new one")
    assert found == [before] * through + ["the new one"] * (len(found) - through)
    assert through > 3
    assert len(found) - through > 3
