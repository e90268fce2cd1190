"""Saved adapters: damaged folders are refused in one line, failed saves leave no mixture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

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
    (tmp_path / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(AdapterFileError, match=rf"{name} cannot be written \(.*No space left.*as it was$"):
        other.save(tmp_path)
    assert contents(tmp_path) == before


def test_a_save_that_is_killed_between_renames_leaves_one_whole_adapter_or_none(classifier, other, tmp_path,
                                                                                monkeypatch):
    states, rename = [], Path.replace

    def seen(path, target):
        states.append(contents(tmp_path))
        return rename(path, target)

    classifier.save(tmp_path)
    old = contents(tmp_path)
    monkeypatch.setattr(Path, "replace", seen)
    other.save(tmp_path)
    new = contents(tmp_path)
    assert set(new) == set(old) == {CONFIG, WEIGHTS, "README.md"}
    assert new[WEIGHTS] != old[WEIGHTS]
    assert len(states) == 3
    for state in states:
        assert CONFIG not in state or state.items() >= old.items() or state.items() >= new.items()
