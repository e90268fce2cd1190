"""Pixel AUROC and PRO: their definitions, pixel by pixel; and masks in folders and tables, from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from onceclip.pipeline.evaluation.metrics import Marks, per_region_overlap
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.stores import open_store


def test_both_are_those_of_single_pixels() -> None:
    """Four images of 6 x 6 pixels in 3 x 3 patches; two have regions, one of them two."""
    random = np.random.default_rng(1)
    score, mask = random.integers(0, 5, (4, 9)).astype(float), np.zeros((4, 6, 6), int)
    mask[0, :3, :2], mask[1, 1, 1:5], mask[1, 4:, 4:] = 1, 2, 3
    patch = (np.arange(6) // 2)[:, None] * 3 + np.arange(6) // 2
    counted = [np.stack([np.bincount(patch[each == number], minlength=9) for each in mask]) for number in range(4)]
    region = sum(each / max(each.sum(), 1) for each in counted[1:])
    found = Marks(sum(counted[1:]), counted[0], region, {}).scores(score)
    pixels = score[:, patch]
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(mask.ravel() > 0, pixels.ravel()))
    x, *found_of = ([(pixels[mask == each] >= level).mean() for level in (9, 4, 3, 2, 1, 0)] for each in range(4))
    y = np.mean(found_of, axis=0)
    fine = np.linspace(0, 0.3, 100_001)
    assert found["pro"] == pytest.approx(np.interp(fine, x, y).mean(), abs=1e-4)


def test_a_perfect_score_has_all_regions_and_a_constant_one_what_chance_has() -> None:
    region, normal = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 4, 4])
    assert per_region_overlap(np.array([3.0, 2, 1, 0]), region, normal) == 1
    assert per_region_overlap(np.zeros(4), region, normal) == pytest.approx(0.15)
    assert per_region_overlap(np.zeros(4), np.zeros(4), normal) is None


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, extract_demo: Callable[..., Any]) -> Path:
    """Grey pictures, those of `crack` with a white corner, their masks, and a store of their patches."""
    folder, random = tmp_path_factory.mktemp("parts"), np.random.default_rng(1)
    for split, name, number in [("train", "good", 6), ("train", "crack", 2), ("test", "good", 3), ("test", "crack", 3)]:
        for each in range(number):
            pixels = random.integers(100, 120, (64, 64, 3), np.uint8)
            path = folder / "images" / split / name / f"{each}.png"
            mask = folder / "masks" / name / f"{each}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.parent.mkdir(parents=True, exist_ok=True)
            if name == "crack":
                pixels[:24, 40:] = 255
                marked = np.zeros((64, 64), np.uint8)
                marked[:24, 40:] = 255
                if split == "test":
                    Image.fromarray(marked).save(mask)
            Image.fromarray(pixels).save(path)
    extract_demo(folder / "images", folder / "parts.zarr", outputs=OutputOptions(tokens="value"))
    return folder


def test_masks_of_a_folder_or_a_table_score_the_patches(parts: Path, run: Callable[..., Any], tmp_path: Path,
                                                        run_json: Callable[..., Any]) -> None:
    store = parts / "parts.zarr"
    run("fit", store, "--method", "zero-shot", "--out", tmp_path / "adapter")
    asked = ["evaluate", tmp_path / "adapter", store, "--inference", "patch-knn", "--masks"]
    found = run_json(*asked, parts / "masks")
    assert found["masks"]["n"] == 3
    assert found["pixel_auroc"] > 0.8
    assert 0.5 < found["pro"] <= 1
    assert "abnormal pixels: AUROC" in run(*asked, parts / "masks").stdout
    keys = [key for key in open_store(str(store)).column("key").tolist() if key.startswith("test/crack")]
    table = tmp_path / "masks.csv"
    lines = [f"{key},{parts / 'masks' / 'crack' / Path(key).stem}_mask.png" for key in keys]
    table.write_text("path,mask\n" + "\n".join([*lines, "test/good/0.png,"]))
    again = run_json(*asked, table)
    assert (again["pro"], again["masks"]) == (found["pro"], found["masks"])
    Image.new("L", (64, 32)).save(tmp_path / "black.png")  # of a normal image it says just what is so
    table.write_text("path,mask\n" + "\n".join([*lines, f"test/good/0.png,{tmp_path / 'black.png'}"]))
    again = run_json(*asked, table)
    assert (again["pro"], again["masks"]["sizes"]) == (found["pro"], {"64 x 64": 3, "64 x 32": 1})
    assert (again["masks"]["n"], again["masks"]["outside_of_the_crop"]) == (4, 0)
    for text, message in (("path,mask\n" + lines[0], f"has no mask of {keys[1]} (and 1 more)"), ("a,b\n", "no columns"),
                          ("\n".join(["path,mask", *lines, lines[0]]), "has a mask already"),
                          ("\n".join(["path,mask", *lines[1:], f"{keys[0]},{tmp_path / 'black.png'}"]), "is black,"),
                          ("\n".join(["path,mask", *lines[1:], f"{keys[0]},{table}"]), f"the mask of {keys[0]}")):
        table.write_text(text)
        result = run(*asked, table)
        assert result.exit_code != 0
        assert message in result.stderr
    for options, message in ((["--inference", "stata"], "use anovl or patch-knn"), ([], "add inference"),
                             (["--inference", "patch-knn", "--batches", "2"], "read all together"),
                             (["--inference", "patch-max"], "use anovl or patch-knn")):
        result = run("evaluate", tmp_path / "adapter", store, *options, "--masks", parts / "masks")
        assert result.exit_code != 0
        assert message in result.stderr
