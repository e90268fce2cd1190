"""ComCLIP from given crops and phrases: as its formula term by term, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceclip.pipeline.api.retrieval import retrieve
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval import comclip, similarity
from onceclip.pipeline.retrieval.comclip import comclip_scores
from onceclip.stores import Store, open_store


def test_scores_are_those_of_images_with_their_crops_added() -> None:
    draw = torch.Generator().manual_seed(1)
    text, phrases, images, crops = (torch.randn(size, generator=draw, dtype=torch.float64) + 0.5 for size in (
        (4, 8), (4, 3, 8), (5, 8), (5, 3, 8)))
    text = text / text.norm(dim=1, keepdim=True)
    found, zeros = comclip_scores(text, phrases, images, crops), 0
    for number, image in enumerate(images):
        for sentence in range(4):
            products = (phrases[sentence] * crops[number]).sum(dim=1)
            drawn, zero = image, bool((products <= 0).any())
            zeros += zero
            if not zero:
                drawn = image + (products / products.sum()) @ crops[number]
            assert found[sentence, number] == pytest.approx(float(text[sentence] @ drawn / drawn.norm()))
    assert 0 < zeros < 20


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two colours side by side, boxes of both, captions and phrases, and a store of them."""
    from click.testing import CliRunner

    from onceclip.cli import main

    root, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    (root / "images").mkdir()
    lines, captions, phrases = ["path,label,split,x0,y0,x1,y1"], {}, {}
    for number in range(6):
        pixels = random.integers(0, 256, (32, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        lines += [f"{number}.png,,test,{left},0,{left + 32},32" for left in (0, 32)]
        captions[f"{number}.png"] = [f"a ring  beside cross {number}"]
        phrases[f"a ring beside cross {number}"] = ["a ring", f"cross {number}"]
    (root / "boxes.csv").write_text("\n".join(lines))
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "phrases.json").write_text(json.dumps(phrases))
    for words in ([
            "extract", root / "boxes.csv", root / "s.zarr", "--root", root / "images", "--model", "demo", "--crops",
            "--views-for", "test", "--unlabelled"], ["text", root / "s.zarr", "--captions", root / "captions.json"]):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
    return root


def test_comclip_from_the_command_line_is_the_dense_matrix(
        scenes: Path, run: Callable[..., Any], run_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["retrieve", scenes / "s.zarr", "--split", "test", "--rerank", "comclip"]
    row = run_json(*asked, "--phrases", scenes / "phrases.json")
    assert row["rerank"] == "comclip"
    assert row["phrases"]["name"] == "phrases.json"
    assert row["crops"]["kind"] == "crops"
    store = open_store(str(scenes / "s.zarr"))
    plain = run_json(*asked[:-2])
    assert row["text_to_item"] != plain["text_to_item"]
    for module in (comclip, similarity):  # a block of one or two scores
        monkeypatch.setattr(module, "WIDE", 13)
    assert run_json(*asked, "--phrases", scenes / "phrases.json")["item_to_text"] == row["item_to_text"]
    assert "re-ranked by comclip" in run(*asked, "--phrases", scenes / "phrases.json", "--normalize", "dual-softmax",
                                         "--page", scenes / "page.html").stdout
    assert (scenes / "page.html").stat().st_size > 1000
    assert not store.rows("train").size


def test_what_comclip_lacks_is_one_line(scenes: Path, videos_store: Store, run: Callable[..., Any], tmp_path: Path
                                        ) -> None:
    asked = ["retrieve", scenes / "s.zarr", "--split", "test", "--rerank", "comclip"]
    for values, message in (({"a": ["b"]}, "has no phrases of 'a ring beside cross 0' (and of 5 more captions)"),
                            ({f"a ring beside cross {number}": ["a ring"] for number in range(6)}, "2 crops each"),
                            ([], "is not a file of phrases"), ({"a": ["b", ""]}, "is not a file of phrases")):
        (tmp_path / "phrases.json").write_text(json.dumps(values))
        result = run(*asked, "--phrases", tmp_path / "phrases.json")
        assert result.exit_code != 0
        assert message in result.stderr
    assert "add --phrases FILE.json" in run(*asked).stderr
    assert "add --rerank comclip" in run(*asked[:-2], "--phrases", scenes / "phrases.json").stderr
    assert "leave out what is trained" in run(*asked, "--phrases", scenes / "phrases.json", "--pooling", "max").stderr
    with pytest.raises(RetrievalError, match="comclip takes no number"):
        retrieve(videos_store, rerank="comclip:2")
