"""Text sets of normal and abnormal states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import ZeroShot
from onceclip.adapters.ops import unit
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.api.stores import sentences_of
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts.descriptions import ABNORMAL, NORMAL, state_descriptions
from onceclip.pipeline.sources import SourceOptions
from onceclip.stores import open_store


def test_the_normal_class_has_normal_states_and_all_others_abnormal_ones() -> None:
    lines = state_descriptions(("good", "cut", "hole"), " metal  nut ", "", ("a photo of a {}.", "a {}.")).lines
    assert lines["good"][:2] == ("a photo of a normal metal nut.", "a photo of a flawless metal nut.")
    assert lines["cut"] == lines["hole"]
    assert lines["cut"][-1] == "a metal nut with damage."
    assert [len(each) for each in lines.values()] == [2 * len(NORMAL), 2 * len(ABNORMAL), 2 * len(ABNORMAL)]


def test_a_store_gets_them_and_class_vectors_are_means_of_raw_sentences(
        run_json: Callable[..., Any], run: Callable[..., Any], store_copy: Path, encoder: Any) -> None:
    done = run_json("text", store_copy, "--name", "states", "--states", "shape", "--normal", "disc")
    assert done["prompts"] == 4 * 7
    store = open_store(str(store_copy))
    task = make_task(store, 1, text="states", class_weights="raw-mean")
    sentences = [f"a photo of a {state.replace('{}', 'shape')}." for state in NORMAL]
    expected = unit(torch.from_numpy(encode_sentences(encoder, sentences).embedding).mean(dim=0))
    weights = ZeroShot().fit(task).head.weight / task.logit_scale
    np.testing.assert_allclose(weights[store.classes.index("disc")], expected, atol=1e-5)
    shown = run("text", store_copy, "--name", "more", "--states", "shape", "--normal", "ring", "--dry-run")
    assert "ring\ta photo of a flawless shape." in shown.stdout
    assert "disc\ta photo of a shape with flaw." in shown.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("--states", "shape"), "name it with --normal NAME; there are: bar, cross, disc, ring"),
    (("--states", "shape", "--normal", "dics"), "did you mean 'disc'"),
    (("--states", " ", "--normal", "disc"), "say what the images show"),
    (("--normal", "disc"), "--normal is for --states"),
    (("--states", "shape", "--normal", "disc", "--waffle", "2"), "leave out --prompts, --waffle and --class-names"),
    (("--states", "shape", "--normal", "disc", "--names", "disc,ring"), "has classes of its own: leave --names out"),
])
def test_what_cannot_be_is_one_line(run: Callable[..., Any], store_path: Path, arguments: tuple[str, ...],
                                    message: str) -> None:
    result = run("text", store_path, "--name", "states", *arguments)
    assert result.exit_code != 0
    assert message in result.stderr


def test_without_a_thing_there_are_no_states() -> None:
    with pytest.raises(PromptError, match="such as bottle"):
        state_descriptions(("good", "cut"), "", "good", ("{}",))


def test_images_without_classes_have_states_of_those_that_are_named(
        image_folder: Path, tmp_path: Path, extract_demo: Callable[..., Any], run: Callable[..., Any]) -> None:
    extract_demo(image_folder, tmp_path / "u.zarr", source=SourceOptions(unlabelled=True))
    shown = run("text", tmp_path / "u.zarr", "--name", "s", "--states", "shape", "--names", "good,cut", "--dry-run")
    assert "good\ta photo of a flawless shape." in shown.stdout, shown.stderr
    told = sentences_of(open_store(tmp_path / "u.zarr"), "s", states="shape", names="good,cut")
    assert told.classes == ("good", "cut")
    assert "name some with --names" in run("text", tmp_path / "u.zarr", "--name", "s", "--states", "shape").stderr
