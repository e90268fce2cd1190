"""An encoder of the user's own that takes several frames of a video as one input: a row for every video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import EncoderError
from onceclip.stores import open_store

av = pytest.importorskip("av")

MOTION = '''
"""How bright each of four frames is: the class is the order, which no single frame says."""
import numpy as np

def preprocess(image):
    return np.asarray(image.convert("RGB").resize((8, 8)), np.float32).transpose(2, 0, 1) / 255

class Motion:
    name, dim, identity, frames = "motion", 4, {"version": 1}, 4
    preprocess = staticmethod(preprocess)

    def encode_image(self, pixels):
        return pixels.mean(dim=(2, 3, 4)) + 0.01

def load():
    return Motion()
'''
PREPARED = "onceclip.pipeline.decoding.preparation.Preparation(size=(8, 8), resize_mode='squash')"


def film(path: Path, levels: Sequence[int]) -> None:
    """A video of grey frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in levels:
            picture = np.full((32, 32, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Six videos that grow brighter and six that grow darker, one of them shorter than what the encoder takes."""
    for number in range(6):
        levels = [40 + 20 * each + 4 * number for each in range(4 + number)] if number else [40, 200]
        film(tmp_path / "films" / "brighter" / f"{number}.mp4", levels)
        film(tmp_path / "films" / "darker" / f"{number}.mp4", levels[::-1])
    return tmp_path / "films"


def test_an_encoder_of_frames_has_a_row_for_every_video(module: Callable[[str, str], str], films: Path, tmp_path: Path,
                                                        run: Callable[..., Any], run_json: Callable[..., Any]) -> None:
    module("motion", MOTION)
    extract = ("extract", films, tmp_path / "s.zarr", "--model", "motion:Motion", "--workers", "1")
    done = run_json(*extract)
    assert (done["images"], done["encoded"], done["bad"]) == (12, 12, 0)
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.encoder["frames"] == 4
    assert store.table.key.tolist()[:2] == ["brighter/0.mp4", "brighter/1.mp4"]
    rows = store.rows()
    change = np.diff(store.embeddings(rows).astype(np.float32), axis=1)
    brighter = store.column("label")[rows] == store.classes.index("brighter")
    assert (change > -0.01).all(axis=1).tolist() == brighter.tolist()
    assert (np.abs(change[0, [0, 2]]) < 0.02).all()  # both frames of the short one, twice each
    assert len({each.tobytes() for each in store.column("digest")}) == 12
    again = run_json(*extract)
    assert (again["encoded"], again["reused"]) == (0, 12)
    run_json("fit", store.path, "--method", "linear-probe", "--shots", "2", "--out", tmp_path / "a")
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    found = run_json("predict", tmp_path / "a", films / "darker", tmp_path / "still.png", "--model", "motion:Motion")
    assert [each["class"] for each in found["predictions"][:-1]] == ["darker"] * 6
    assert found["predictions"][-1]["reason"] == "it is no video of which the encoder could look at 4 frames"
    other = (*extract[:2], tmp_path / "other.zarr", *extract[3:])
    for options, message in ((["--every", "2"], "takes 4 frames of every video"), (["--views", "2"], "no views")):
        assert message in run(*other, *options).stderr


def test_frames_are_prepared_as_images_are_where_onceclip_prepares_them(module: Callable[[str, str], str],
                                                                        films: Path, tmp_path: Path,
                                                                        run_json: Callable[..., Any]) -> None:
    """CLIP's normalisation of every frame: what the encoder gives is the mean of all channels of each."""
    text = MOTION.replace("staticmethod(preprocess)", PREPARED).replace("import numpy as np", "import numpy as np\n"
                                                                        "import onceclip.pipeline.decoding.preparation")
    module("prepared", text)
    run_json("extract", films, tmp_path / "p.zarr", "--model", "prepared:Motion", "--workers", "1")
    store = open_store(str(tmp_path / "p.zarr"))
    encoder = open_encoder(EncoderSpec("prepared:Motion"))
    assert encoder.preparation.shape == (4, 8, 8, 3)
    grey = np.full((4, 8, 8, 3), 128, np.uint8)
    expected = ((128 / 255 - np.array(encoder.preparation.mean)) / encoder.preparation.std).mean() + 0.01
    np.testing.assert_allclose(encoder.encode_images(grey[None])["embedding"], np.full((1, 4), expected), rtol=1e-5)
    assert store.embeddings(store.rows()).shape == (12, 4)


def test_a_folder_without_videos_is_refused(module: Callable[[str, str], str], tmp_path: Path,
                                            run: Callable[..., Any]) -> None:
    module("motion", MOTION)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "1.png")
    result = run("extract", tmp_path / "images", tmp_path / "s.zarr", "--model", "motion:Motion")
    assert (result.exit_code, "there are no videos" in result.stderr) == (1, True)


@pytest.mark.parametrize(("old", "new", "model", "text"), [
    ("frames = ", "frames = ", "motion:load", "say so on the class"),
    ("}, 4\n", "}, 1\n", "motion:Motion", "frames 1: give a whole number from 2"),
    ("}, 4\n", "}, \"4\"\n", "motion:Motion", "frames '4'"),
])
def test_a_number_of_frames_that_cannot_be_is_one_line(module: Callable[[str, str], str], old: str, new: str,
                                                       model: str, text: str) -> None:
    assert old in MOTION
    module("motion", MOTION.replace(old, new, 1))
    with pytest.raises(EncoderError, match=text) as caught:
        open_encoder(EncoderSpec(model))
    assert "\n" not in str(caught.value)
