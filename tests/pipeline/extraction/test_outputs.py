"""What a store has beside the embedding: views, the output before the projection, patch tokens."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.decoding.views import TEN_CROP, Views
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.extraction.units import Remaining, rows_to_view
from onceclip.stores import Store, StoreDamaged, StoreMismatch, open_store

Extract = Callable[..., Any]
THREE = OutputOptions(Views(number=3, seed=5))


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"disc": 8, "ring": 8})


def picture(size: tuple[int, int] = (60, 40), seed: int = 1, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "png")
    return file.getvalue()


def views_by_key(store: Store) -> dict[str, np.ndarray]:
    rows = store.rows("train")
    return dict(zip(map(str, store.table.key[rows]), store.embeddings(rows, "view"), strict=True))


def test_a_view_is_decided_by_seed_content_and_number_alone() -> None:
    preparation = Preparation((16, 16))
    views = Views(number=6, seed=3)
    found = views.pixels(picture(), preparation)
    assert found.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(found, views.pixels(picture(), preparation))
    np.testing.assert_array_equal(found[:2], replace(views, number=3).pixels(picture(), preparation))
    assert len(np.unique(found.reshape(5, -1), axis=0)) == 5
    assert not (found == replace(views, seed=4).pixels(picture(), preparation)).all(axis=(1, 2, 3)).any()
    other = Views(number=6, seed=3).pixels(picture(seed=2), preparation)
    assert not (found == other).all(axis=(1, 2, 3)).any()


def test_the_crops_of_a_known_picture_are_the_same_on_every_machine() -> None:
    """The numbers are golden: stores that others made must be reproducible."""
    gradient = np.stack(np.meshgrid(np.arange(200), np.arange(150)), -1).astype(np.uint8)
    image = Image.fromarray(np.dstack([gradient, np.zeros((150, 200), np.uint8)]))
    views = Views(number=5, seed=1)
    boxes = []
    for number in range(1, 5):
        crop = np.asarray(views._crop(image, b"0123456789abcdef", number, Preparation((150, 200)))).astype(int)
        boxes.append([int(crop[..., axis].min()) for axis in (0, 1)] + [int(crop[..., axis].max()) for axis in (0, 1)])
    assert boxes == [[50, 0, 185, 136], [12, 3, 174, 132], [51, 4, 181, 131], [44, 3, 182, 147]]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.3, 0.3)])
@pytest.mark.parametrize("size", [(200, 150), (31, 300), (1, 1), (5, 400)])
def test_crops_keep_to_their_share_of_the_area_and_to_their_shapes(size: tuple[int, int],
                                                                   scale: tuple[float, float]) -> None:
    views = Views(scale=scale)
    whole = 0
    for seed in range(200):
        left, top, width, height = views._box(*size, random.Random(seed).random)
        assert 0 <= left <= left + width <= size[0]
        assert 0 <= top <= top + height <= size[1]
        whole += (width, height) == size
        if size == (200, 150):
            assert scale[0] - 0.02 <= width * height / (size[0] * size[1]) <= scale[1] + 0.02
            assert 0.73 <= width / height <= 1.36
    assert whole < 200 or size == (1, 1)


def test_half_of_the_crops_are_flipped() -> None:
    gradient = np.repeat(np.arange(64, dtype=np.uint8)[None], 64, axis=0)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, "png")
    found = Views(number=201).pixels(file.getvalue(), Preparation((8, 8))).astype(int)
    assert 70 < (found[:, 4, 0, 0] > found[:, 4, 7, 0]).sum() < 130


def test_ten_crops_are_torchvisions() -> None:
    from torchvision.transforms import functional

    content = picture((90, 60))
    resized = functional.resize(Image.open(io.BytesIO(content)), 64, functional.InterpolationMode.BICUBIC)
    expected = [np.asarray(each) for each in functional.ten_crop(resized, [56, 56])]
    np.testing.assert_array_equal(TEN_CROP.pixels(content, Preparation((56, 56))), expected)


def test_views_of_palettes_and_transparency_are_made_like_the_plain_picture() -> None:
    for mode in ("P", "RGBA", "L", "1", "LA"):
        assert Views(number=3).pixels(picture(mode=mode), Preparation((16, 16))).shape == (2, 16, 16, 3)


def test_view_0_is_the_plain_embedding_and_the_others_are_those_of_the_crops(root: Path, tmp_path: Path, encoder: Any,
                                                                             extract_demo: Extract) -> None:
    """cross_modal_adaptation: with several views only the last survived in the file."""
    extract_demo(root, tmp_path / "s.zarr", outputs=THREE, unit_rows=4)
    store = open_store(str(tmp_path / "s.zarr"))
    rows = store.rows("train")
    views = store.embeddings(rows, "view")
    assert views.shape == (len(rows), 3, store.dim)
    np.testing.assert_array_equal(views[:, 0], store.embeddings(rows))
    for row, found in zip(rows[:4], views, strict=False):
        pixels = Views(number=3, seed=5).pixels((root / str(store.table.key[row])).read_bytes(), encoder.preparation)
        expected = encoder.encode_images(pixels)["embedding"]
        np.testing.assert_allclose(found[1:], expected, atol=1e-2 * np.abs(expected).max())
    assert store.outputs["view"].spec == {**Views(number=3, seed=5).spec(), "splits": ["train"]}


def test_only_images_of_the_splits_asked_for_have_views(root: Path, tmp_path: Path, extract_demo: Extract,
                                                        passed: list[int]) -> None:
    extract_demo(root, tmp_path / "s.zarr", outputs=replace(THREE, views_for=("train", "val")))
    store = open_store(str(tmp_path / "s.zarr"))
    with_views = len(store.rows("train")) + len(store.rows("val"))
    assert sum(passed) == 16 + 2 * with_views
    assert len(store.embeddings(store.rows("val"), "view")) == len(store.rows("val"))
    with pytest.raises(StoreDamaged):
        store.embeddings(store.rows("test"), "view")


def test_views_do_not_depend_on_batches_units_or_processes(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    found = []
    for name, options in (("a", {}), ("b", {"batch_size": 1}), ("c", {"batch_size": 5, "unit_rows": 3, "workers": 2})):
        extract_demo(root, tmp_path / name, outputs=THREE, **options)
        found.append(views_by_key(open_store(str(tmp_path / name))))
    for other in found[1:]:
        assert set(other) == set(found[0])
        for key, views in found[0].items():
            np.testing.assert_allclose(other[key], views, atol=2e-3 * np.abs(views).max())


@pytest.mark.parametrize("passes", [3, 7])
def test_an_extraction_with_views_that_was_stopped_goes_on(root: Path, tmp_path: Path, extract_demo: Extract,
                                                           monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    options = {"outputs": replace(THREE, preproj=True), "batch_size": 4, "unit_rows": 4}
    extract_demo(root, tmp_path / "whole.zarr", **options)
    encode, left = Encoder.encode_images, iter(range(passes))

    def stopping(self: Encoder, pixels: Any, *rest: Any, **further: Any) -> dict[str, np.ndarray]:
        if len(pixels) > 1 and next(left, None) is None:
            raise KeyboardInterrupt
        return encode(self, pixels, *rest, **further)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_images", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract_demo(root, tmp_path / "s.zarr", **options)
    assert not open_store(str(tmp_path / "s.zarr")).complete
    extract_demo(root, tmp_path / "s.zarr", **options)
    found, expected = (open_store(str(tmp_path / name)) for name in ("s.zarr", "whole.zarr"))
    assert found.fingerprint == expected.fingerprint
    first, second = views_by_key(found), views_by_key(expected)
    for key, views in second.items():
        np.testing.assert_allclose(first[key], views, atol=2e-3 * np.abs(views).max())


def test_a_folder_that_grew_gets_views_for_what_is_new_without_being_asked(
        root: Path, tmp_path: Path, extract_demo: Extract, glyph: Callable[..., Path], passed: list[int]) -> None:
    extract_demo(root, tmp_path / "s.zarr", outputs=replace(THREE, views_for=("train", "val", "test")))
    before = views_by_key(open_store(str(tmp_path / "s.zarr")))
    glyph(root / "disc" / "new.png", "cross", 1)
    glyph(root / "disc" / "00.png", "cross", 2)
    passed.clear()
    extract_demo(root, tmp_path / "s.zarr")
    assert sum(passed) == 2 + 2 * 2
    store = open_store(str(tmp_path / "s.zarr"))
    assert len(store.embeddings(store.rows(), "view")) == 17
    for key, views in views_by_key(store).items():
        assert key not in before or np.array_equal(before[key], views) == (key != "disc/00.png")


def test_other_views_than_a_store_has_are_refused(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    extract_demo(root, tmp_path / "s.zarr", outputs=THREE)
    for other in (OutputOptions(Views(number=4, seed=5)), OutputOptions(Views(number=3, seed=6)),
                  OutputOptions(TEN_CROP), OutputOptions(preproj=True), replace(THREE, views_for=("val",))):
        with pytest.raises(StoreMismatch, match=r"s.zarr has .*extract into another store"):
            extract_demo(root, tmp_path / "s.zarr", outputs=other)
    assert extract_demo(root, tmp_path / "s.zarr", outputs=THREE).encoded == 0


def test_a_store_keeps_its_type_and_refuses_another(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    extract_demo(root, tmp_path / "s.zarr", dtype="float32")
    with pytest.raises(StoreMismatch, match="is of float32, not of float16: extract into another store"):
        extract_demo(root, tmp_path / "s.zarr", dtype="float16")
    for same in ({}, {"dtype": "float32"}):
        assert extract_demo(root, tmp_path / "s.zarr", **same).encoded == 0


def test_outputs_of_one_pass_agree_with_each_other_and_with_the_encoder(root: Path, tmp_path: Path, encoder: Any,
                                                                       extract_demo: Extract) -> None:
    """openai/CLIP#353: the paper's linear probe used features before the projection, `encode_image` gives after."""
    extract_demo(root, tmp_path / "s.zarr", dtype="float32", outputs=OutputOptions(preproj=True, tokens="last"))
    extract_demo(root, tmp_path / "plain.zarr", dtype="float32")
    store = open_store(str(tmp_path / "s.zarr"))
    embeddings = store.embeddings()
    np.testing.assert_allclose(store.embeddings(name="preproj") @ store.encoder_array("projection"), embeddings,
                               atol=1e-4)
    np.testing.assert_allclose(embeddings, open_store(str(tmp_path / "plain.zarr")).embeddings(), atol=1e-4)
    assert store.embeddings(name="token").shape == (16, *encoder.output_shapes(("token",))["token"])


def test_a_bad_image_has_no_outputs(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    (root / "disc" / "bad.png").write_bytes(b"no image")
    done = extract_demo(root, tmp_path / "s.zarr", outputs=replace(THREE, preproj=True))
    assert list(done.bad_images) == ["disc/bad.png"]
    store = open_store(str(tmp_path / "s.zarr"))
    row = np.flatnonzero(store.table.key == "disc/bad.png")
    for name in ("embedding", "preproj", "view"):
        assert np.isnan(store.array(name)[...][row]).all()


def test_a_file_that_changes_between_the_passes_is_bad_and_encoded_next_time(
        root: Path, tmp_path: Path, extract_demo: Extract, glyph: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(*given: Any) -> Remaining:
        glyph(root / "disc" / "03.png", "cross", 9)
        return rows_to_view(*given)

    options = {"outputs": replace(THREE, views_for=("train", "val", "test"))}
    with monkeypatch.context() as patch:
        patch.setattr("onceclip.pipeline.extraction.units.rows_to_view", changing)
        done = extract_demo(root, tmp_path / "s.zarr", **options)
    assert done.bad_images == {"disc/03.png": "its file changed during the extraction"}
    done = extract_demo(root, tmp_path / "s.zarr", **options)
    assert (done.encoded, done.bad_images) == (1, {})
