"""Whatever a user does wrong is one line that says what, where and how to mend it; exit code 1 or 2, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.cli import main

FAILURES = [
    ("extract empty new.zarr --model demo", "empty is empty"),
    ("extract missing new.zarr --model demo", "missing does not exist"),
    ("extract file new.zarr --model demo", "file is a file"),
    ("extract no-images new.zarr --model demo", "no images (1 other file;"),
    ("extract one-class new.zarr --model demo", "one class only ('disc')"),
    ("extract good new.zarr --model ViT-B-32", "needs --pretrained"),
    ("extract good new.zarr --model ViT-B-23 --pretrained openai", "did you mean 'ViT-B-32'"),
    ("extract good new.zarr --model ViT-B-32 --pretrained openia", "did you mean 'openai'"),
    ("extract good new.zarr --model local-dir:missing", "local-dir:missing"),
    ("extract good new.zarr --model demo --device cuda:99", "cuda:99"),
    ("extract good new.zarr --model demo --device gpu", "gpu"),
    ("extract good new.zarr --model demo --templates imagnet", "did you mean 'imagenet'"),
    ("extract good new.zarr --model demo --class-names names.csv", "did you mean 'disc'"),
    ("extract good store.zarr --model local-dir:other", "was made by encoder demo"),
    ("extract good file --model demo", "file"),
    ("extract good new.zarr --model demo --class-names missing.csv", "missing.csv"),
    ("extract good new.zarr", "--model"),
    ("extract good new.zarr --model demo --batch-size 0", "--batch-size"),
    ("import missing.npz new.zarr", "missing.npz"),
    ("import file new.zarr", "file"),
    ("import bad.npz new.zarr", "embedding"),
    ("fit missing.zarr --method tip-adapter", "missing.zarr is not a store"),
    ("fit good --method tip-adapter", "good is not a store"),
    ("fit file --method tip-adapter", "file is not a store"),
    ("extract good good --model demo", "make one with `onceclip extract good good.zarr --model NAME`"),
    ("predict adapter store.zarr --every 2", "--root, --every and --frames are for images"),
    ("fit store.zarr --method tip-adaptor", "did you mean 'tip-adapter'"),
    ("fit store.zarr --method tip-adapter --set bta=2", "did you mean 'beta'"),
    ("fit store.zarr --method tip-adapter --set beta", "'beta' is not NAME=VALUE"),
    ("fit store.zarr --method tip-adapter --set beta=two", "beta=two is not a number"),
    ("fit store.zarr --method tip-adapter --text nice", "there are: default"),
    ("fit store.zarr --method tip-adapter --shots 0", "--shots"),
    ("fit store.zarr --method tip-adapter --shots two", "--shots"),
    ("fit store.zarr --method tip-adapter --shots ²", "--shots"),
    ("fit store.zarr --method tip-adapter --out file", "file"),
    ("fit store.zarr --method tip-adapter --out adapter", "holds an adapter already"),
    ("fit store.zarr --method gda --overwrite", "add --out FOLDER"),
    ("fit store.zarr --method gda --support ", "it is empty: give SOURCE:K, or leave --support out"),
    ("fit store.zarr --method gda --search optuna", "optuna:30"),
    ("fit store.zarr --method gda --search grid:5", "write grid, or random:5"),
    ("sweep store.zarr --methods= --out new", "methods is empty: give at least one"),
    ("sweep store.zarr --log mlflow2:runs --out new", "mlflow:PLACE"),
    ("evaluate adapter store.zarr --overwrite", "add --save FOLDER"),
    ("evaluate missing store.zarr", "missing is not a saved adapter"),
    ("evaluate good store.zarr", "good is not a saved adapter"),
    ("evaluate adapter missing.zarr", "missing.zarr is not a store"),
    ("evaluate adapter store.zarr --split dev", "--split"),
    ("predict missing good", "missing is not a saved adapter"),
    ("predict adapter missing.png", "no image could be read, of 1"),
    ("predict adapter empty", "empty is empty: give images"),
    ("predict adapter no-images", "no-images has no images (1 other file): give images"),
    ("predict adapter missing", "missing does not exist: give images"),
    ("predict adapter missing/", "missing/ does not exist"),
    ("predict adapter -", "standard input names no files"),
    ("predict adapter good --model local-dir:other", "--model"),
    ("predict adapter good --split test", "--split is for a store"),
    ("predict adapter good --logits adapter/README.md/l.npy", "README.md"),
    ("info missing", "missing is not a store"),
    ("info good", "good is not a store"),
    ("methods tip_adaptor", "did you mean 'tip-adapter'"),
    ("extrct good new.zarr", "extrct"),
]


@pytest.mark.parametrize(("command", "text"), FAILURES, ids=[command for command, _ in FAILURES])
def test_a_failure_is_one_line_that_says_what_and_how_to_mend_it(place: Path, run: Callable[..., Any], command: str,
                                                                 text: str) -> None:
    result = run(*command.split(" "))
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), result.stderr
    assert text in lines[-1]
    if result.exit_code == 1:
        assert len(lines) == 1
    else:
        word = command.split(" ")[0]
        assert lines[0].startswith(f"Usage: onceclip {word if word in main.commands else '[OPTIONS]'}")
    assert not (place / "new.zarr").exists(), "a failure left a store behind"


@pytest.mark.parametrize("arguments", [["fit", "s.zarr", "--method", "gda", "--out", "s3://bucket/adapter"],
                                       ["export", "a", "--to", "npz", "s3://bucket/a.npz"], ["demo", "--out", "memory://x"]])
def test_a_url_where_only_a_local_path_can_be_is_wrong_usage(run: Callable[..., Any], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "only stores can be" in result.stderr
