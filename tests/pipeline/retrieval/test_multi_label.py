"""Images of several classes each: average precision of every class, as scikit-learn has it where nothing is tied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from onceclip.adapters import Classifier, load_classifier
from onceclip.adapters.heads import Linear
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.retrieval import multi_label
from onceclip.stores import Store, open_store

CLASSES = ("bar", "cross", "disc", "ring")


@pytest.fixture
def store(store_path: Path) -> Store:
    return open_store(str(store_path))


def labels_of(store: Store, path: Path, split: str = "test", seed: int = 0) -> tuple[Path, np.ndarray]:
    """Random classes of the images of a split, which one of them has none of and no image has "ring" of."""
    rows = store.rows(split)
    shown = np.random.default_rng(seed).random((len(rows), 4)) < 0.5
    shown[0], shown[:, 3] = False, False
    lines = [f"{key},{name}" for key, several in zip(store.column("key")[rows], shown, strict=True)
             for name in (np.array(CLASSES)[several].tolist() or [""])]
    path.write_text("\n".join(["key,label", *lines]))
    return path, shown


def test_every_class_ranks_the_images_of_the_split(store: Store, adapter_path: Path, tmp_path: Path,
                                                   run_json: Callable[..., Any], run: Callable[..., Any],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    file, shown = labels_of(store, tmp_path / "labels.csv")
    monkeypatch.setattr(multi_label, "_SCORES", 20)  # so that classes come in several blocks
    found = run_json("evaluate", adapter_path, store.path, "--multi-label", file)
    logits = load_classifier(adapter_path).logits(store.embeddings(store.rows("test"))).numpy()
    expected = [average_precision_score(shown[:, number], logits[:, number]) for number in range(3)]
    assert [each["average_precision"] for each in found["per_class"]] == [*map(pytest.approx, expected), None]
    assert found["map"] == pytest.approx(np.mean(expected))
    assert [each["n"] for each in found["per_class"]] == shown.sum(axis=0).tolist()
    assert (found["n"], found["classes"], found["among"]) == (len(shown), 3, 4)
    text = run("evaluate", adapter_path, store.path, "--multi-label", file, "--per-class").stdout
    assert f"mean average precision {100 * found['map']:.2f} %" in text
    assert len(text.splitlines()) == 7
    json.dumps(found, allow_nan=False)


def test_a_classifier_that_knows_nothing_gains_nothing(store: Store, tmp_path: Path) -> None:
    """Equal logits count half, so that the order of rows is no help."""
    constant = Classifier(Linear(torch.zeros(4, store.dim)), CLASSES, store.dim, "none")
    rows = store.rows("test")
    (tmp_path / "labels.csv").write_text("key,label\n" + "".join(
        f"{key},{'bar' if place < 3 else ''}\n" for place, key in enumerate(store.column("key")[rows])))
    found = multi_label.evaluate(constant, store, multi_label.read_labels(str(tmp_path / "labels.csv")))
    # Each of the three ties with all others: half of the other two are ahead of it, and half of all others.
    assert found["map"] == pytest.approx(2 / (1 + (len(rows) - 1) / 2))


def test_images_of_a_store_without_labels_are_all_scored(store: Store, adapter_path: Path, tmp_path: Path,
                                                         make_store: Callable[..., Store]) -> None:
    rows = store.rows()
    key, values = store.column("key")[rows].tolist(), store.embeddings(rows).astype(np.float32)
    bare = make_store(tmp_path / "s.zarr", values, {key[0]: [values[0]]}, key=key)
    file, shown = labels_of(store, tmp_path / "labels.csv")
    file.write_text(file.read_text().replace("bar/", "./bar/"))
    classifier = replace(load_classifier(adapter_path), provenance={})
    both = [multi_label.evaluate(classifier, each, multi_label.read_labels(str(file))) for each in (bare, store)]
    assert [each["split"] for each in both] == [None, "test"]
    assert [each["n"] for each in both] == [len(shown)] * 2
    assert both[0]["map"] == pytest.approx(both[1]["map"])


@pytest.mark.parametrize(("text", "said"), [
    ("key,label\nbar/bar-0.jpg,dics\n", "no class 'dics' of the adapter: did you mean 'disc'"),
    ("key,label\nbar/none.png,bar\n", r"1 image of 1 not in .*: bar/none.png; keys there are such as"),
    ("path,label\na,b\n", "has no columns key and label"), ("key,label\n,bar\n", "line 2 has no key"),
    ("key,label\nbar/bar-0.jpg\n", "line 2 has no key, or no label"), ("", "no columns"),
    ("key,label\n{train},bar\n{test},\n", r"gives no class to a test image .*listed images: train 1, val 0, test 1"),
])
def test_files_that_do_not_fit_are_one_line(store: Store, adapter_path: Path, tmp_path: Path, text: str,
                                            said: str) -> None:
    some = {split: store.column("key")[store.rows(split)[0]] for split in ("train", "test")}
    file = tmp_path / "labels.csv"
    file.write_text(text.format(**some))
    with pytest.raises(TaskError, match=said) as raised:
        multi_label.evaluate(load_classifier(adapter_path), store, multi_label.read_labels(str(file)))
    assert "\n" not in str(raised.value)


def test_it_goes_with_no_other_way_of_scoring(store: Store, adapter_path: Path, tmp_path: Path,
                                              run: Callable[..., Any]) -> None:
    file, _ = labels_of(store, tmp_path / "labels.csv")
    for more in (["--inference", "stata"], ["--classes", "bar,disc"], ["--against", adapter_path]):
        result = run("evaluate", adapter_path, store.path, "--multi-label", file, *more)
        assert result.exit_code == 2
        assert "give no other options with it but the split" in result.stderr
    classifier = replace(load_classifier(adapter_path), provenance={"encoder": {"fingerprint": "1" * 32, "name": "x"}})
    with pytest.raises(Exception, match="made by the same encoder"):
        multi_label.evaluate(classifier, store, multi_label.read_labels(str(file)))
