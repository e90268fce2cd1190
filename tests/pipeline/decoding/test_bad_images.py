"""Bad images are row states with a reason: they never stop a run, drop their batch or become a vector."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.errors import SourceError
from onceclip.stores import StoreDamaged, open_store
from onceclip.stores.schema import BAD, STORED

Extract = Callable[..., Any]
FolderOf = Callable[..., Path]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 50 + content[middle + 50:]


def bomb() -> bytes:
    return saved(Image.new("1", (10000, 9500)), "png")


BAD_FILES = {
    "truncated.jpg": (lambda: saved(picture(), "jpeg")[:-200], "damaged .*truncated"),
    "header.jpg": (lambda: saved(picture(), "jpeg")[:300], "damaged|not an image"),
    "truncated.png": (lambda: saved(picture(), "png")[:400], "damaged"),
    "flipped.png": (lambda: overwritten(saved(picture(), "png")), "damaged"),
    "empty.jpg": (lambda: b"", "empty file"),
    "text.jpg": (lambda: b"<html>404 not found</html>", "not an image"),
    "bomb.png": (bomb, "too large"),
}
@pytest.fixture
def root(folder_of: FolderOf) -> Path:
    return folder_of({"disc": 6, "ring": 6})


def state_of(path: Path, key: str) -> tuple[int, str]:
    table = open_store(str(path)).table
    row = int(np.flatnonzero(table.key == key)[0])
    return int(table.state[row]), str(table.reason[row])


def test_bad_images_are_named_with_their_reason_and_the_run_goes_on(root: Path, tmp_path: Path,
                                                                    extract_demo: Extract) -> None:
    """clip-retrieval#13, #89, #330: one truncated JPEG hung the run; the cure was lost in a refactor."""
    for name, (make, _) in BAD_FILES.items():
        (root / "disc" / name).write_bytes(make())
    os.mkfifo(root / "ring" / "pipe.jpg")
    (root / "ring" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "ring" / "folder.jpg").mkdir()
    with (root / "ring" / "vast.jpg").open("wb") as file:
        file.truncate(2**31)
    done = extract_demo(root, tmp_path / "s.zarr", batch_size=5)
    reasons = {f"disc/{name}": reason for name, (_, reason) in BAD_FILES.items()}
    reasons |= {"ring/pipe.jpg": "not a regular file", "ring/gone.jpg": "cannot be read",
                "ring/vast.jpg": r"too large \(2,147,483,648 bytes"}
    assert set(done.bad_images) == set(reasons)
    assert (done.encoded, done.bad) == (12, len(reasons))
    for key, reason in reasons.items():
        state, text = state_of(tmp_path / "s.zarr", key)
        assert state == BAD
        assert text == done.bad_images[key]
        assert re.search(reason, text)


def test_a_bad_image_is_never_a_vector(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    """fiftyone-brain#90: embeddings that could not be computed became zero vectors."""
    (root / "disc" / "bad.png").write_bytes(b"no image")
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    row = np.flatnonzero(store.table.state == BAD)
    assert np.isnan(store.array("embedding")[...][row]).all()
    assert row[0] not in store.rows(labelled=False)
    with pytest.raises(StoreDamaged):
        store.embeddings(row)


def test_a_bad_image_does_not_cost_its_neighbours(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    """yolo-scout#63: one bad image dropped its whole batch."""
    extract_demo(root, tmp_path / "good.zarr")
    (root / "disc" / "02-bad.png").write_bytes(b"no image")
    extract_demo(root, tmp_path / "bad.zarr", batch_size=4)
    good, bad = (open_store(str(tmp_path / name)) for name in ("good.zarr", "bad.zarr"))
    assert list(bad.table.key[bad.rows()]) == list(good.table.key)
    np.testing.assert_allclose(bad.embeddings(), good.embeddings(), atol=2e-3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_image_without_permission_is_bad_until_it_has_it(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    (root / "disc" / "00.png").chmod(0)
    assert "Permission denied" in extract_demo(root, tmp_path / "s.zarr").bad_images["disc/00.png"]
    (root / "disc" / "00.png").chmod(0o600)
    assert extract_demo(root, tmp_path / "s.zarr").encoded == 1


def test_a_repaired_image_is_encoded_and_a_bad_one_not_tried_again(root: Path, tmp_path: Path, extract_demo: Extract,
                                                                   glyph: Callable[..., Path]) -> None:
    for name in ("a.png", "b.png"):
        (root / "disc" / name).write_bytes(b"no image " + name.encode())
    extract_demo(root, tmp_path / "s.zarr")
    glyph(root / "disc" / "a.png", "cross", 4)
    done = extract_demo(root, tmp_path / "s.zarr")
    assert (done.encoded, done.reused, list(done.bad_images)) == (1, 12, ["disc/b.png"])
    assert state_of(tmp_path / "s.zarr", "disc/a.png") == (STORED, "")


def test_nothing_but_bad_images_is_a_failure_and_can_be_mended(root: Path, tmp_path: Path, extract_demo: Extract,
                                                              run: Callable[..., Any]) -> None:
    """lightly-studio#1691: all failed is an error; clip-retrieval#345: an empty result looked like success."""
    good = Path(shutil.copytree(root, tmp_path / "good"))
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"none of the 12 images .*not an image"):
        extract_demo(root, tmp_path / "s.zarr")
    assert not open_store(str(tmp_path / "s.zarr")).complete
    assert run("extract", root, tmp_path / "s.zarr", "--model", "demo").exit_code == 1
    assert extract_demo(good, tmp_path / "s.zarr").encoded == 12


def test_a_class_of_bad_images_is_a_warning_with_its_name(root: Path, tmp_path: Path, extract_demo: Extract) -> None:
    for path in (root / "ring").iterdir():
        path.write_bytes(b"no image")
    done = extract_demo(root, tmp_path / "s.zarr")
    assert done.classes == {"disc": 6, "ring": 0}
    assert done.warnings == ["class 'ring' has no readable image"]


def test_values_that_are_no_numbers_never_reach_the_store(root: Path, tmp_path: Path, extract_demo: Extract,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """openai/CLIP#198, #144: half precision gave NaN features on some cards, and they went into caches."""
    encode = Encoder.encode_images

    def broken(self: Encoder, pixels: Any, *rest: Any, **options: Any) -> dict[str, np.ndarray]:
        found = encode(self, pixels, *rest, **options)
        vectors = found["embedding"]
        vectors[0], vectors[1, 3], vectors[2, 5] = np.nan, np.inf, 1e6  # the last is too large for float16
        return found

    monkeypatch.setattr(Encoder, "encode_images", broken)
    done = extract_demo(root, tmp_path / "s.zarr", batch_size=12)
    assert (done.encoded, done.bad) == (9, 3)
    assert all("float16 cannot hold" in reason for reason in done.bad_images.values())
    assert np.isfinite(open_store(str(tmp_path / "s.zarr")).embeddings()).all()
