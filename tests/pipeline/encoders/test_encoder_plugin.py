"""An encoder of the user's own, `--model module:function`: nothing of it is CLIP, everything else works on it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError
from onceclip.stores import open_store

HISTOGRAMS = '''
"""Histograms of each colour, and a text side that knows the names of three colours."""
import numpy as np
import torch

NAMES = ("red", "green", "blue")

def preprocess(image):
    """Runs in the processes that decode images."""
    return np.asarray(image.convert("RGB").resize((16, 16)), np.float32).transpose(2, 0, 1) / 255

class Histograms:
    name, dim, logit_scale = "histograms", 3, 10.0
    preprocess = staticmethod(preprocess)
    identity = {"version": 1}

    def encode_image(self, pixels):
        return pixels.mean(dim=(2, 3))

    def encode_text(self, sentences):
        return torch.tensor([[float(name in sentence) for name in NAMES] for sentence in sentences])

class ImagesOnly(Histograms):
    encode_text = None

def load():
    return Histograms()

def images_only():
    return ImagesOnly()
'''

NETWORK = '''
"""A small torch network on CLIP's own preparation of images."""
import torch
from onceclip.pipeline.decoding.preparation import Preparation

class Network(torch.nn.Module):
    name, dim = "network", 8
    preprocess = Preparation(size=(24, 24), resize_mode="squash")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))

    def encode_image(self, pixels):
        return self.layers(pixels).flatten(1)

def load():
    return Network()
'''


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """An image folder of three colours."""
    random = np.random.default_rng(0)
    for place, name in enumerate(("red", "green", "blue")):
        for number in range(8):
            values = random.integers(0, 60, (20, 30, 3), dtype=np.uint8)
            values[..., place] += 150
            (tmp_path / "colours" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "colours" / name / f"{number}.png")
    return tmp_path / "colours"


def test_an_encoder_that_is_no_clip_goes_through_extract_fit_evaluate_and_predict(
        module: Callable[[str, str], str], colours: Path, tmp_path: Path, run: Callable[..., Any],
        run_json: Callable[..., Any]) -> None:
    module("histograms", HISTOGRAMS)
    done = run_json("extract", colours, tmp_path / "s.zarr", "--model", "histograms:load")
    assert (done["encoded"], done["encoder"]["name"], done["encoder"]["logit_scale"]) == (24, "histograms", 10.0)
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.text().prompts == ("a photo of a blue.", "a photo of a green.", "a photo of a red.")
    for row in store.rows():
        with Image.open(colours / str(store.table.key[row])) as image:
            expected = np.asarray(image.resize((16, 16)), np.float32).mean(axis=(0, 1)) / 255
        np.testing.assert_allclose(store.embeddings([row])[0], expected, atol=1e-3)
    row = run_json("fit", tmp_path / "s.zarr", "--method", "tip-adapter", "--shots", "2", "--out", tmp_path / "a")
    assert row["accuracy"] == 1.0
    assert run_json("evaluate", tmp_path / "a", tmp_path / "s.zarr")["accuracy"] == 1.0
    refused = run("predict", tmp_path / "a", colours / "red")
    assert refused.exit_code == 1
    assert "name it with --model" in refused.stderr  # opening it runs its code: never by what a file says
    answers = run_json("predict", tmp_path / "a", colours / "red", "--model", "histograms:load")["predictions"]
    assert {answer["class"] for answer in answers} == {"red"}


def test_an_encoder_without_text_makes_a_store_without_prompts_and_says_so(
        module: Callable[[str, str], str], colours: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    module("silent", HISTOGRAMS)
    done = run("extract", colours, tmp_path / "s.zarr", "--model", "silent:images_only")
    assert done.exit_code == 0, done.stderr
    assert "histograms has no text encoder: the store has no prompts" in done.stderr
    assert open_store(str(tmp_path / "s.zarr")).texts == []
    assert open_store(str(tmp_path / "s.zarr")).complete
    assert "onceclip fit" in done.stdout
    command = shlex.split(done.stdout.partition("onceclip ")[2])
    assert run(*command).exit_code == 0
    failed = run("fit", tmp_path / "s.zarr", "--method", "zero-shot")
    assert failed.exit_code == 1
    assert "no text set 'default'" in failed.stderr
    assert "linear-probe and onceclip.FewShotClassifier do without" in failed.stderr
    with pytest.raises(EncoderError, match="embeds images only"):
        encode_sentences(open_encoder(EncoderSpec("silent:images_only")), ["a photo"])


def test_a_torch_network_is_known_by_its_weights_and_runs_in_the_precision_asked_for(
        module: Callable[[str, str], str]) -> None:
    module("network", NETWORK)
    module("other_network", NETWORK.replace("manual_seed(0)", "manual_seed(1)"))
    encoder, other, half = (open_encoder(EncoderSpec(f"{name}:load", precision=precision)) for name, precision in
                            (("network", "auto"), ("other_network", "auto"), ("network", "bf16")))
    assert len({each.info["fingerprint"] for each in (encoder, other, half)}) == 3
    assert encoder.preparation.size == (24, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    full, rounded = (each.encode_images(pixels)["embedding"] for each in (encoder, half))
    assert full.shape == (4, 8)
    assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max()
    with pytest.raises(EncoderError, match="cannot give the output 'preproj'"):
        encoder.encode_images(pixels, ("embedding", "preproj"))


@pytest.mark.parametrize(("old", "new", "text"), [
    ("identity = {\"version\": 1}", "", "needs `identity`"),
    ("identity = {\"version\": 1}", "identity = {\"v\": NAMES.__len__}", "needs `identity`"),
    ("name, dim, logit_scale = \"histograms\", 3, 10.0", "name = 'x'", "without `dim`"),
    ("def encode_image", "def encode_images", "without `encode_image`"),
    ("preprocess = staticmethod(preprocess)", "", "needs `preprocess`"),
    ("preprocess = staticmethod(preprocess)", "preprocess = staticmethod(lambda image: preprocess(image))",
     "must be a function"),
    (".resize((16, 16))", "", "the same for every picture"),
    (".convert(\"RGB\")", ".convert(\"L\")", "ValueError: axes don't match array in broken.py:10"),
    ("return Histograms()", "return 1 / 0", "ZeroDivisionError: division by zero in broken.py"),
    ("import torch", "import no_such_package", r"cannot import 'broken' \(ModuleNotFoundError.* in broken.py:4\)"),
    ("def load", "def lead", "broken has no function 'load': did you mean 'lead'"),
], ids=str)
def test_what_an_encoder_lacks_is_one_line_that_names_it(module: Callable[[str, str], str], old: str, new: str,
                                                         text: str) -> None:
    assert old in HISTOGRAMS
    module("broken", HISTOGRAMS.replace(old, new, 1))
    with pytest.raises(EncoderError, match=text) as caught:
        open_encoder(EncoderSpec("broken:load"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("body", "text"), [
    ("return pixels.mean(dim=(1, 2, 3))", r"gave an array of shape \(2,\), not \(2, 3\)"),
    ("return pixels @ pixels.mean(dim=1)[0, :5]", r"encode_image of wrong:load failed: RuntimeError.* in wrong.py:18"),
], ids=["shape", "failure"])
def test_what_fails_inside_an_encoder_is_one_line_with_the_place(module: Callable[[str, str], str], body: str,
                                                                 text: str) -> None:
    module("wrong", HISTOGRAMS.replace("return pixels.mean(dim=(2, 3))", body))
    encoder = open_encoder(EncoderSpec("wrong:load"))
    with pytest.raises(EncoderError, match=text):
        encoder.encode_images(np.zeros((2, 3, 16, 16), np.float32))


@pytest.mark.parametrize(("options", "text"), [
    ({"pretrained": "openai"}, "--pretrained is for models of open_clip"), ({"precision": "bf16"}, "could be cast"),
    ({"decode": "fast"}, "prepares images by itself")], ids=str)
def test_options_that_an_encoder_of_ones_own_cannot_follow_are_refused(module: Callable[[str, str], str],
                                                                       options: dict[str, Any], text: str) -> None:
    module("plain", HISTOGRAMS)
    with pytest.raises(EncoderError, match=text):
        open_encoder(EncoderSpec("plain:load", **options))


@pytest.mark.checkout
def test_the_encoder_of_the_extending_page_works(module: Callable[[str, str], str]) -> None:
    import torch

    page = (Path(__file__).parents[3] / "docs" / "extending.md").read_text(encoding="utf-8")
    example, = (block for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
                if "my_encoder.py" in block)
    module("my_encoder", example)
    names: dict[str, Any] = {}
    exec(compile(example, "my_encoder.py", "exec"), names)
    torch.save(names["Network"]().state_dict(), "my-weights.pt")
    encoder = open_encoder(EncoderSpec("my_encoder:load"))
    picture = encoder.preparation.array(Image.new("RGB", (90, 40)))
    assert encoder.encode_images(picture[None])["embedding"].shape == (1, 128)


MASKED = '''
import numpy as np
import torch

def preprocess(image, mask):
    channels = [*np.asarray(image.convert("RGB").resize((8, 8)), np.float32).transpose(2, 0, 1),
                np.asarray(mask.convert("L").resize((8, 8)), np.float32)]
    return np.stack(channels) / 255

class Masked:
    name, dim, identity, second_input = "masked-mean", 3, {"version": 1}, "mask"
    preprocess = staticmethod(preprocess)

    def encode_image(self, pixels):
        """The mean colour of what the mask shows."""
        colours, mask = pixels[:, :3], pixels[:, 3:]
        return (colours * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)) + 0.01

load = Masked
'''


def test_an_encoder_that_looks_at_a_mask_beside_each_image(
        module: Callable[[str, str], str], tmp_path: Path, run: Callable[..., Any],
        run_json: Callable[..., Any]) -> None:
    """The class is the colour under the mask: the pictures of both classes are the same."""
    module("masked", MASKED)
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8, 0], picture[:, 8:, 2] = 255, 255  # red on the left, blue on the right
    lines = ["path,label,mask"]
    for label, half in (("red", slice(0, 8)), ("blue", slice(8, 16))):
        for number in range(10):
            shown = np.zeros((16, 16), np.uint8)
            shown[number % 4:, half] = 255
            for name, values in ((f"{label}{number}.png", picture), (f"{label}{number}-mask.png", shown)):
                Image.fromarray(values).save(tmp_path / name)
            lines.append(f"{label}{number}.png,{label},{label}{number}-mask.png")
    manifest = tmp_path / "pictures.csv"
    manifest.write_text("\n".join(lines) + "\n")
    extract = ("extract", manifest, tmp_path / "s.zarr", "--model", "masked:load", "--workers", "1")
    assert run_json(*extract)["encoded"] == 20
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.encoder["second_input"] == "mask"
    rows = store.rows()
    of_class = store.column("label")[rows] == store.classes.index("red")
    assert (store.embeddings(rows)[:, 0] > 0.9).tolist() == of_class.tolist()
    assert len({digest.tobytes() for digest in store.column("digest")[rows]}) == 8  # of 2 x 4 masks, one picture
    run_json("fit", store.path, "--method", "linear-probe", "--shots", "2", "--out", tmp_path / "a")
    (tmp_path / "more").mkdir()
    Image.fromarray(picture).save(tmp_path / "more" / "alone.png")
    found = run_json("predict", tmp_path / "a", manifest, tmp_path / "more", "--model", "masked:load")
    answers = {each["image"]: each for each in found["predictions"]}
    assert [answers[f"{label}{number}.png"]["class"] for label in ("red", "blue") for number in (1, 9)] == [
        "red", "red", "blue", "blue"]
    assert answers[next(name for name in answers if "alone" in name)]["reason"] == (
        "it has no mask, which the encoder looks at: give a manifest with a column mask")

    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "red0-mask.png")  # another mask is another input
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "blue0-mask.png")
    (tmp_path / "blue1-mask.png").unlink()
    (tmp_path / "blue2-mask.png").write_text("nothing")
    done = run_json(*extract)
    assert (done["encoded"], done["bad"], done["reused"]) == (1, 3, 16)
    table = open_store(store.path).table
    reasons = dict(zip(table.key.tolist(), table.reason.tolist(), strict=True))
    assert [reasons[f"blue{number}.png"] for number in range(3)] == [
        "its mask has 5 x 4 pixels, and the image 16 x 16", "its mask: cannot be read (No such file or directory)",
        "its mask: not an image, or too damaged to tell which kind"]
    views = run(*extract[:2], tmp_path / "v.zarr", *extract[3:], "--views", "2")
    assert "of which there are no views" in views.stderr
    # Another encoder passes over the masks: the store is that of the pictures alone.
    module("plain", HISTOGRAMS)
    run_json("extract", manifest, tmp_path / "plain.zarr", "--model", "plain:load", "--workers", "1")
    assert len({each.tobytes() for each in open_store(str(tmp_path / "plain.zarr")).column("digest")}) == 1


@pytest.mark.parametrize(("old", "new", "text"), [
    ('"mask"', '"frames"', "second_input 'frames'"), ("image, mask):", "image):", "failed on a grey picture"),
    ("preprocess = staticmethod(preprocess)", "preprocess = 3", "its mask to floats")])
def test_a_second_input_that_is_none_is_one_line(module: Callable[[str, str], str], old: str, new: str,
                                                 text: str) -> None:
    module("no_mask", MASKED.replace(old, new, 1))
    with pytest.raises(EncoderError, match=text) as caught:
        open_encoder(EncoderSpec("no_mask:load"))
    assert "\n" not in str(caught.value)
