"""Saved adapters: damaged folders are refused in one line, failed saves leave no mixture."""

import json
import os
import tempfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from onceclip.adapters import AdapterFileError, TipAdapter, load_classifier

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def classifier(make_task):
    return TipAdapter().fit(make_task())


def edit_config(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder, **tensors):
    path = folder / WEIGHTS
    save_file({**load_file(path), **tensors}, path)  # without a digest, as older versions did


def nested(folder):
    path = folder / CONFIG
    path.write_text(path.read_text().replace('"provenance": {}', '"provenance": ' + 9999 * '{"a": ' + "1" + 9999 * "}"))


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
    "nested JSON": nested,
    "a name too many": lambda folder: edit_config(folder, class_names=["a", "b", "c", "d"]),
    "a name too few": lambda folder: edit_config(folder, class_names=["a", "b"]),
    "names that are numbers": lambda folder: edit_config(folder, class_names=[1, 2, 3]),
    "temperature near zero": lambda folder: edit_config(folder, temperature=1e-300),
    "temperature that is no number": lambda folder: edit_config(folder, temperature=float("nan")),
    "provenance of nothing": lambda folder: edit_config(folder, provenance=None),
    "provenance that is a list": lambda folder: edit_config(folder, provenance=[]),
    "outputs of nothing": lambda folder: edit_config(folder, provenance={"outputs": None}),
    "encoder named by a number": lambda folder: edit_config(folder, provenance={"encoder": {"name": 5}}),
    "inputs that are a path": lambda folder: edit_config(folder, inputs=["../../x"]),
    "hyperparameters that are a list": lambda folder: edit_config(folder, hyperparameters=[]),
    "another width": lambda folder: edit_config(folder, dim=11),
    "a width of memory": lambda folder: edit_config(folder, dim=2**60),
    "labels of no class": lambda folder: edit_weights(folder, **{"heads.1.label": torch.full((12,), 2**40)}),
    "weights of whole numbers": lambda folder: edit_weights(
        folder, **{"heads.0.weight": torch.ones(3, 10, dtype=torch.int64)}),
    "missing tensor": lambda folder: edit_config(folder, head={"type": "linear", "weight": {"tensor": "w"}}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_line(classifier, untie, tmp_path, damage):
    classifier.save(tmp_path)
    untie(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(AdapterFileError) as caught:
        load_classifier(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_was_saved_without_digests_opens(classifier, untie, make_task, tmp_path):
    classifier.save(tmp_path)
    untie(tmp_path)
    rows = make_task().support.embedding
    assert torch.equal(load_classifier(tmp_path).logits(rows), classifier.logits(rows))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_changed_byte_is_noticed_and_names_the_file_or_changes_nothing(classifier, make_task, tmp_path, name):
    classifier.save(tmp_path)
    whole, rows = (tmp_path / name).read_bytes(), make_task().support.embedding
    silent = 0
    for place in range(0, len(whole), 7):
        for change in (0x80, 0x01):
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1:])
            try:
                loaded = load_classifier(tmp_path)
            except AdapterFileError as error:
                assert str(tmp_path) in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
            else:
                silent += 1
                assert torch.equal(loaded.logits(rows), classifier.logits(rows))
                assert replace(loaded, head=classifier.head) == classifier
    assert silent < 5  # white space and a comment of the weights' header


def test_files_of_two_saves_are_not_put_together(classifier, other, tmp_path):
    for number, each in enumerate((classifier, other)):
        each.save(tmp_path / str(number))
    (tmp_path / "0" / WEIGHTS).replace(tmp_path / "1" / WEIGHTS)
    with pytest.raises(AdapterFileError, match=r"adapter_model.safetensors is damaged|not of one save"):
        load_classifier(tmp_path / "1")


READER = """
import os, sys
from pathlib import Path
from onceclip.adapters import load_classifier

one, two, folder = sys.argv[1:]
given = [load_classifier(each) for each in (one, two)]
given[0].save(folder)
child = os.fork()
if not child:
    for number in range(80):
        given[number % 2].save(folder)
    os._exit(0)
loads = 0
while not os.waitpid(child, os.WNOHANG)[0]:
    loaded = load_classifier(folder)
    assert loaded.head.heads[1].keys.equal(given[loaded.hyperparameters["alpha"] == 2].head.heads[1].keys)
    loads += 1
print(loads)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_loads_while_another_process_saves_gets_one_save_or_the_other(classifier, make_task, tmp_path, forked):
    one, two = tmp_path / "one", tmp_path / "two"
    classifier.save(one)
    TipAdapter(alpha=2.0).fit(make_task(seed=9)).save(two)
    done = forked("-c", READER, one, two, tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8


def test_files_have_the_mode_of_the_umask(classifier, tmp_path):
    before = os.umask(0o027)
    try:
        classifier.save(tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


UNREADABLE = """
import os, sys
from onceclip.adapters import AdapterFileError, load_classifier

if not os.geteuid():
    os.seteuid(65534)
try:
    load_classifier(sys.argv[1])
except AdapterFileError as error:
    print(error)
"""


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_may_not_be_read_is_said_to_be_one(classifier, forked, name):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are its user's alone
        os.chmod(folder, 0o755)
        classifier.save(folder)
        os.chmod(os.path.join(folder, name), 0)
        done = forked("-c", UNREADABLE, folder)
        assert f"{name} cannot be read (Permission denied)" in done.stdout, done.stderr
        os.chmod(folder, 0)
        done = forked("-c", UNREADABLE, folder)
        assert f"{CONFIG} cannot be read (Permission denied)" in done.stdout, done.stderr
        os.chmod(folder, 0o755)


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


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "README.md"])
def test_a_save_that_has_no_room_names_the_file_and_leaves_the_adapter_that_was_there(
        classifier, other, tmp_path, name):
    resource = pytest.importorskip("resource")
    classifier.save(tmp_path)
    before, (soft, hard) = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[name]) - 1, hard))
    try:
        with pytest.raises(AdapterFileError, match=rf"{name} cannot be written \(.*too large.*as it was$"):
            other.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


def test_a_link_in_place_of_a_save_is_not_followed(classifier, tmp_path):
    """A folder of somebody else may hold anything."""
    mine, folder = tmp_path / "mine", tmp_path / "adapter"
    mine.mkdir()
    folder.mkdir()
    (mine / CONFIG).write_text("mine")
    for name in (".saving", ".saved"):
        (folder / name).symlink_to(mine)
    classifier.save(folder)
    assert contents(mine) == {CONFIG: b"mine"}
    assert load_classifier(folder).method == "tip-adapter"


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
        classifier, other, make_task, tmp_path, forked, before):
    old, new, trials = (tmp_path / name for name in ("old", "new", "trials"))
    other.save(new)
    if before == "an adapter":
        classifier.save(old)
    done = forked("-c", KILLED, old, new, trials)
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


def test_the_card_shows_names_of_classes_as_they_are(make_task, tmp_path):
    """No name ends a cell of the table, and none is markup."""
    task = make_task()
    names = ("x|y", "<b>", *task.text.class_names[2:])
    TipAdapter().fit(replace(task, text=replace(task.text, class_names=names))).save(tmp_path)
    line = next(line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| classes |"))
    assert line.startswith("| classes | x\\|y, &lt;b>, ")
