"""Models in the format of Hugging Face's transformers, tiny and with weights of no meaning, in folders of their own."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError
from onceclip.stores import open_store

transformers = pytest.importorskip("transformers")

WORDS = ("<pad>", "<unk>", "<start>", "<end>", "a", "photo", "of", "disc", "ring", "bar", "cross", ".")
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 12,
        "max_position_embeddings": 10, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
PROCESSORS = {"clip": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
              "siglip": {"size": {"height": 32, "width": 32}}}


def save_model(folder: Path, kind: str) -> Path:
    """Save a model, its tokenizer and its image processor as their makers do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
        model, processor = transformers.CLIPModel(config), transformers.CLIPImageProcessor
    else:
        config = transformers.SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)
        model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessor
        model.logit_bias.data.fill_(-12.0)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>" if kind == "clip" else "$A <end>", special_tokens=[("<start>", 2), ("<end>", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>",
                                                     bos_token="<start>", eos_token="<end>")
    for part in (model, tokenizer, processor(**PROCESSORS[kind])):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; not to be changed."""
    transformers.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in PROCESSORS}


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Copy the CLIP folder with some values of a JSON file changed, and give the model's name."""
    import shutil

    def make(file: str = "config.json", **values: Any) -> str:
        folder = Path(shutil.copytree(folders["clip"], tmp_path / "changed"))
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | values))
        return f"transformers:{folder}"

    return make


def odd_pictures() -> list[Image.Image]:
    random = np.random.default_rng(5)
    found = []
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1"):
        for _ in range(6):
            high, wide = random.integers(12, 200, 2)
            coarse = Image.fromarray(random.integers(0, 256, (high // 8 + 2, wide // 8 + 2, 3), dtype=np.uint8))
            found.append(coarse.resize((int(wide), int(high)), Image.Resampling.BICUBIC).convert(mode))
    return found


@pytest.mark.parametrize("kind", PROCESSORS)
def test_embeddings_are_those_of_the_librarys_own_way_from_picture_to_vector(folders: dict[str, Path],
                                                                             kind: str) -> None:
    """transformers#11994: another resize in between, and nobody could tell."""
    folder = folders[kind]
    encoder = open_encoder(EncoderSpec(f"transformers:{folder}"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = odd_pictures()[1]
    file = io.BytesIO()
    image.save(file, "png")
    sentences = ["a photo of a disc.", "ring"]
    with torch.inference_mode():
        expected = model(**processor(image, return_tensors="pt"),
                         **tokenizer(sentences, padding="max_length", max_length=10, return_tensors="pt"))
    found = encoder.encode_images(encoder.preparation.pixels(file.getvalue())[None])["embedding"]
    text = encode_sentences(encoder, sentences).embedding
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (found, text)]
    np.testing.assert_allclose(unit[0], expected.image_embeds.numpy(), atol=2e-6)
    if kind == "clip":  # SigLIP attends to what fills the context; the library's own call masks that out here
        np.testing.assert_allclose(unit[1], expected.text_embeds.numpy(), atol=2e-6)
        logits = encoder.info["logit_scale"] * unit[0] @ unit[1].T
        np.testing.assert_allclose(logits, expected.logits_per_image.numpy(), atol=1e-4)
    else:
        with torch.inference_mode():
            ids = tokenizer(sentences, padding="max_length", max_length=10, return_tensors="pt").input_ids
            pooled = model.get_text_features(input_ids=ids).pooler_output
        np.testing.assert_allclose(text, pooled.numpy(), atol=1e-5)
        assert encoder.info["logit_bias"] == pytest.approx(-12.0)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_librarys_image_processor(folders: dict[str, Path], kind: str) -> None:
    """To the bit for its Pillow version; torchvision's, its default, rounds in between and mostly differs by one."""
    encoder = open_encoder(EncoderSpec(f"transformers:{folders[kind]}"))
    exact, default = (transformers.AutoImageProcessor.from_pretrained(folders[kind], backend=backend, do_rescale=False,
                                                                      do_normalize=False)
                      for backend in ("pil", "torchvision"))
    far = []
    for image in odd_pictures():
        file = io.BytesIO()
        image.save(file, "tiff" if image.mode == "CMYK" else "png")
        mine = encoder.preparation.pixels(file.getvalue()).astype(int)
        with warnings.catch_warnings(action="ignore"):
            theirs, rounded = (np.asarray(each(image, return_tensors="np")["pixel_values"][0]).astype(int)
                               for each in (exact, default))
        assert np.array_equal(mine, theirs.transpose(1, 2, 0)), image
        far.append(np.abs(mine - rounded.transpose(1, 2, 0)) > 1)
    assert np.mean(far) < 1e-3


def test_clip_gives_further_outputs_and_siglip_says_why_not(folders: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    clip, siglip = (open_encoder(EncoderSpec(f"transformers:{folders[kind]}")) for kind in ("clip", "siglip"))
    plain = clip.encode_images(pixels)["embedding"]
    kinds = {}
    for tokens in ("last", "value"):
        several = clip.encode_images(pixels, ("embedding", "preproj", "token", "statistics"), tokens)
        assert np.array_equal(several["embedding"], plain)
        np.testing.assert_allclose(several["preproj"] @ clip.projection, plain, atol=1e-5)
        assert several["token"].shape == (3, 16, 16)
        assert several["statistics"].shape[::2] == (3, 2)
        kinds[tokens] = several["token"]
    assert not np.allclose(kinds["last"], kinds["value"], atol=1e-3)
    assert siglip.projection is None
    with pytest.raises(EncoderError, match=r"'preproj' .SigLIP pools its patches by attention"):
        siglip.encode_images(pixels, ("embedding", "preproj"))


def test_a_folder_goes_through_extraction_and_is_refused_by_its_name_alone(
        folders: dict[str, Path], folder_of: Callable[..., Path], tmp_path: Path, run: Callable[..., Any],
        run_json: Callable[..., Any]) -> None:
    name = f"transformers:{folders['siglip']}"
    done = run_json("extract", folder_of({"disc": 4, "ring": 4}), tmp_path / "s.zarr", "--model", name)
    assert (done["encoded"], done["encoder"]["name"]) == (8, "transformers:siglip")
    store = open_store(str(tmp_path / "s.zarr"))
    assert (store.dim, store.encoder["logit_bias"]) == (32, pytest.approx(-12.0))
    assert store.text().embedding.shape == (2, 32)
    run_json("fit", tmp_path / "s.zarr", "--method", "linear-probe", "--shots", "1", "--out", tmp_path / "a")
    refused = run("predict", tmp_path / "a", tmp_path / "images")
    assert refused.exit_code == 1
    assert "name it with --model" in refused.stderr
    assert run_json("predict", tmp_path / "a", tmp_path / "images", "--model", name)["n"] == 8


def test_a_prompt_longer_than_the_context_is_an_error(folders: dict[str, Path]) -> None:
    for kind in folders:
        encoder = open_encoder(EncoderSpec(f"transformers:{folders[kind]}"))
        with pytest.raises(EncoderError, match="disc disc"):
            encode_sentences(encoder, [" ".join(["disc"] * 11)])
        assert encode_sentences(encoder, [" ".join(["disc"] * 8)]).embedding.shape == (1, encoder.dim)


def test_the_fingerprint_knows_weights_preparation_and_words_and_not_the_place(
        folders: dict[str, Path], changed: Callable[..., str]) -> None:
    """datasets#2496: a fingerprint that changes when the folder is moved."""
    mine = open_encoder(EncoderSpec(f"transformers:{folders['clip']}")).info
    place = changed()
    assert open_encoder(EncoderSpec(place)).info["fingerprint"] == mine["fingerprint"]
    folder = Path(place.removeprefix("transformers:"))
    for file, old, new in (("preprocessor_config.json", '"resample": 3', '"resample": 2'),
                           ("tokenizer.json", '"photo"', '"foto"')):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        assert open_encoder(EncoderSpec(place)).info["fingerprint"] != mine["fingerprint"], file
        (folder / file).write_text(text)


@pytest.mark.parametrize(("file", "values", "text"), [
    ("preprocessor_config.json", {"size": {"shortest_edge": 40}}, r"prepares images with size=\{'shortest_edge': 40\}"),
    ("preprocessor_config.json", {"resample": 1}, "resample=1"),
    ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor=1.0"),
    ("config.json", {"model_type": "bert"}, "type 'bert', not one of clip, siglip, siglip2"),
    ("config.json", {"quantization_config": {"quant_method": "awq"}}, "is quantized"),
])
def test_what_cannot_be_followed_is_refused_rather_than_guessed(changed: Callable[..., str], file: str,
                                                               values: dict[str, Any], text: str) -> None:
    """open_clip#1068: a default preprocessing in place of the model's own gave other embeddings in silence."""
    with pytest.raises(EncoderError, match=text) as caught:
        open_encoder(EncoderSpec(changed(file, **values)))
    assert "\n" not in str(caught.value)


def test_no_code_that_a_folder_names_runs(changed: Callable[..., str], tmp_path: Path) -> None:
    """Of its own, or of attention kernels on the hub."""
    evil = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None],
                         "AutoImageProcessor": "evil.Evil"}}
    name = changed(attn_implementation="evil/kernel", vision_config={**VISION, "attn_implementation": "evil/kernel"},
                   text_config={**TEXT, "attn_implementation": "evil/kernel"}, **evil)
    folder = Path(name.removeprefix("transformers:"))
    for file in ("tokenizer_config.json", "preprocessor_config.json"):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | evil))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nEvil = object\n")
    model = open_encoder(EncoderSpec(name)).model
    assert not (tmp_path / "ran").exists()
    assert model is not None
    for part in (model, model.vision_model, model.text_model):
        assert part.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_an_adapter_of_peft_and_a_pointer_in_place_of_weights_are_named(changed: Callable[..., str]) -> None:
    name = changed()
    folder = Path(name.removeprefix("transformers:"))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}')
    with pytest.raises(EncoderError, match="adapter of PEFT"):
        open_encoder(EncoderSpec(name))
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(EncoderError, match="Git LFS pointer"):
        open_encoder(EncoderSpec(name))


def test_missing_weights_are_an_error(changed: Callable[..., str]) -> None:
    """open_clip#168: random weights in silence; here one tensor is missing from the file."""
    from safetensors.torch import load_file, save_file

    name = changed()
    path = Path(name.removeprefix("transformers:")) / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 1 weights \(visual_projection.weight"):
        open_encoder(EncoderSpec(name))


@pytest.mark.parametrize("name", ["/nonexistent", "./here"])
def test_a_folder_that_does_not_exist_is_one_line(name: str) -> None:
    with pytest.raises(EncoderError, match="no such folder"):
        open_encoder(EncoderSpec(f"transformers:{name}"))


def test_a_model_of_open_clip_with_a_tokenizer_and_a_context_of_its_own_works(folders: dict[str, Path],
                                                                              tmp_path: Path) -> None:
    """Not every model reads 77 tokens of CLIP's vocabulary."""
    import shutil

    import open_clip
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(folders["clip"], tmp_path / "own"))
    text = {"context_length": 9, "vocab_size": 12, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "own",
            "pool_type": "last"}
    config = {"embed_dim": 16, "text_cfg": text,
              "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {
        "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}}))
    (folder / "model.safetensors").unlink()
    save_file(open_clip.CLIP(**{**config, "vision_cfg": open_clip.CLIPVisionCfg(**config["vision_cfg"]),
                                "text_cfg": open_clip.CLIPTextCfg(**text)}).state_dict(),
              folder / "open_clip_model.safetensors")
    encoder = open_encoder(EncoderSpec(f"local-dir:{folder}"))
    assert encoder.tokenizer.context_length == 9
    vectors = encode_sentences(encoder, ["a photo of a disc", "a photo of a ring"]).embedding
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], vectors[1])
