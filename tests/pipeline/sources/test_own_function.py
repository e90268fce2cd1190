"""What a user's own function gives by mistake is one line, before anything is loaded or written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import open_source


@pytest.mark.parametrize(("body", "message"), [
    ("[Record('a', None, 1)]", "gave a record of key 'a', label 1, split None and group '': give text"),
    ("[Record('a', None, 'x', 'validation')]", "split 'validation' and group '': give text, and train, val, test or"),
    ("[Record('a', None, '')]", "label ''"),
    ("[Record('a', 'a.png', 'x')]", "gave the content 'a.png' for a, which has no `read`: give LocalFile(path)"),
    ("[Record('a', type('C', (), {'read': bytes})(), 'x')]", "sent to the processes that decode images (Can't"),
    ("[Record('a', Pixels(numpy.ones((8, 8, 3))), 'x')]", "of shape (8, 8, 3) and type float64: give numbers from 0"),
    ("[Record('a', Pixels(numpy.ones((3, 8, 8), 'uint8')), 'x')]", "of shape (3, 8, 8) and type uint8: give numbers"),
    ("[Record('a', LocalFile(''), 'x', 'train'), Record('b', LocalFile(''), 'y')]", "b has no split, though others"),
    ("[Record('a', None, 'x').nothing]", "failed (AttributeError: 'Record' object has no attribute 'nothing' in own_"),
    ("pathlib.Path('missing').stat()", "No such file or directory: 'missing' in own_mistake.py:5)"),
    ("None", "failed (TypeError: 'NoneType' object is not iterable"),
    ("[]", "gave no record"),
])
def test_what_a_function_gives_by_mistake_is_one_line(body: str, message: str, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_mistake.py").write_text(
        "import numpy, pathlib\nfrom onceclip import Record\nfrom onceclip.pipeline.sources import LocalFile, Pixels\n"
        f"def give(root):\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_mistake", raising=False)
    with pytest.raises(SourceError) as refused:
        open_source("own_mistake:give")
    assert message in str(refused.value)


def test_keys_and_labels_of_a_function_are_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_names.py").write_text(
        "from onceclip import Record\nfrom onceclip.pipeline.sources import LocalFile\n"
        "def give(root):\n    return [Record('a\\nb', LocalFile(''), 'caf\\udce9'), Record('c d', LocalFile(''))]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [(each.key, each.label) for each in open_source("own_names:give").records] == [
        ("a%0Ab", "caf%E9"), ("c d", None)]
