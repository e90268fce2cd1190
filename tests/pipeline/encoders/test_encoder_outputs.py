"""One pass through an encoder: pixels, further outputs, memory that does not suffice, compilation."""

from __future__ import annotations

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.open_clip_models import OpenClipBackend
from onceclip.pipeline.errors import EncoderError

ALL = ("embedding", "preproj", "token", "statistics")


def pixels(count: int = 5, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def random_model(name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """An encoder with random weights of one of open_clip's own kinds, made tiny."""
    from open_clip import factory

    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": changes, "text_cfg": text}
    monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    return open_encoder(EncoderSpec(name, allow_random=True))


def picture() -> Image.Image:
    """The fixed picture of the known answers: 48 x 40, with an edge, a ramp and three different channels."""
    down, across = np.mgrid[0:40, 0:48]
    return Image.fromarray(np.stack([5 * across, 255 - 6 * down, 255 * (across > down)], axis=-1).astype(np.uint8))


KNOWN = {
    "exact": [-3.6234, -0.6809, 0.0713, -0.6940, 0.2975, 0.2109],
    "fast": [-3.6252, -0.6837, 0.0698, -0.6958, 0.3000, 0.2072],
    "exif": [-3.1606, -2.1790, 0.6468, 0.3222, 1.0236, 1.6055],
}


@pytest.mark.parametrize(("path", "spec"), [
    ("exact", EncoderSpec("demo")), ("fast", EncoderSpec("demo", decode="fast")),
    ("exif", EncoderSpec("demo", exif=True))])
def test_a_fixed_picture_has_a_known_embedding_on_every_path(path: str, spec: EncoderSpec) -> None:
    """clip-retrieval#264: published embeddings could not be made again, because of another resize in between."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().resize((480, 400)).save(file, "jpeg", quality=95, exif=exif)
    encoder = open_encoder(spec)
    found = encoder.encode_images(encoder.preparation.pixels(file.getvalue())[None])["embedding"][0]
    np.testing.assert_allclose(found[:6], KNOWN[path], rtol=0, atol=1e-3)


def test_pixels_are_normalised_to_the_bit_as_open_clip_does(encoder: Any, own_preprocess: Any) -> None:
    image = Image.fromarray(pixels(1)[0])
    file = io.BytesIO()
    image.save(file, "png")
    mine = encoder._normalized(encoder._to_device(encoder.preparation.pixels(file.getvalue())[None]))
    assert np.array_equal(mine.numpy(), own_preprocess(image))


@pytest.mark.parametrize("tokens", ["last", "value"])
def test_several_outputs_cost_one_pass_and_leave_the_embedding_as_it_is(encoder: Any, tokens: str) -> None:
    """thingsvision#186: several layers in one pass; openai/CLIP#353: which layer an embedding is of."""
    several = encoder.encode_images(pixels(), ALL, tokens)
    assert np.array_equal(several["embedding"], encoder.encode_images(pixels())["embedding"])
    assert {name: values.shape for name, values in several.items()} == {
        "embedding": (5, 64), "preproj": (5, 96), "token": (5, 16, 64), "statistics": (5, 3, 2, 96)}
    np.testing.assert_allclose(several["preproj"] @ encoder.projection, several["embedding"], atol=1e-5, rtol=1e-5)
    assert encoder.output_shapes(ALL, tokens) == {"embedding": (64,), "preproj": (96,), "token": (16, 64),
                                                  "statistics": (3, 2, 96)}


def test_patch_tokens_of_two_kinds_and_statistics_of_blocks_are_what_they_are_named_after(encoder: Any) -> None:
    """MaskCLIP's equation, written once more with the layers' own calls."""
    visual = encoder.model.visual
    with torch.inference_mode():
        start = visual._embeds(encoder._normalized(torch.from_numpy(pixels())))
        before, style = start, []
        for block in visual.transformer.resblocks[:-1]:
            before = block(before)
            style.append((before[:, 1:].mean(1), before[:, 1:].std(1, correction=0)))
        block = visual.transformer.resblocks[-1]
        value = block.ln_1(before) @ block.attn.in_proj_weight[-96:].T + block.attn.in_proj_bias[-96:]
        aligned = visual.ln_post(block.attn.out_proj(value))[:, 1:] @ visual.proj
        last = visual.ln_post(block(before))[:, 1:] @ visual.proj
        style.append((block(before)[:, 1:].mean(1), block(before)[:, 1:].std(1, correction=0)))
    for tokens, expected in (("value", aligned), ("last", last)):
        found = encoder.encode_images(pixels(), ("token",), tokens)["token"]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert not np.allclose(aligned.numpy(), last.numpy(), atol=0.1)
    for several in (pixels(), pixels()[:1]):
        found = encoder.encode_images(several, ("statistics",))["statistics"]
        np.testing.assert_allclose(found, np.stack([np.stack(each, 1) for each in style], 1)[:len(several)], atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"ls_init_value": 0.1}, {"final_ln_after_pool": True}, {"no_ln_pre": True},
                                     {"pool_type": "avg"}, {"layers": 1}, {"qk_norm": True}],
                         ids=lambda changes: ", ".join(changes) or "plain")
def test_leaving_out_what_the_class_token_does_not_need_gives_open_clips_own_embeddings(
        monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    tower = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8, **changes}
    encoder = random_model("tiny-vit", monkeypatch, **tower)
    encoder.model.visual.positional_embedding.data.normal_()  # as after training: all tokens differ
    encoder.model.visual.class_embedding.data.normal_()
    found = encoder.encode_images(pixels())["embedding"]
    with torch.inference_mode():
        own = encoder.model.encode_image(encoder._normalized(torch.from_numpy(pixels()))).numpy()
    np.testing.assert_allclose(found, own, atol=1e-5 * np.abs(own).max())
    assert np.abs(own[1:] - own[:1]).max() > 1e-3 * np.abs(own).max()  # images differ, so a wrong token would show


def test_a_residual_network_gives_what_its_attention_pooled_before_the_projection(
        monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_model("tiny-rn", monkeypatch, image_size=32, layers=[1, 1, 1, 1], width=16, patch_size=None)
    several = encoder.encode_images(pixels(), ("embedding", "preproj"))
    assert np.array_equal(several["embedding"], encoder.encode_images(pixels())["embedding"])
    np.testing.assert_allclose(several["preproj"] @ encoder.projection + encoder.projection_bias,
                               several["embedding"], atol=1e-5)
    assert encoder.output_shapes(("token",), "value") == {"token": (1, 16)}
    with pytest.raises(EncoderError, match="no patch tokens; --tokens value"):
        encoder.encode_images(pixels(), ("token",), "last")
    with pytest.raises(EncoderError, match=r"statistics.*blocks of one width"):
        encoder.output_shapes(("statistics",))


def test_a_tower_of_timm_gives_what_comes_before_its_linear_head(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_model("tiny-timm", monkeypatch, image_size=32, timm_model_name="resnet10t", timm_pool="avg",
                           timm_proj="linear")
    several = encoder.encode_images(pixels(), ("embedding", "preproj"))
    assert np.array_equal(several["embedding"], encoder.encode_images(pixels())["embedding"])
    np.testing.assert_allclose(several["preproj"] @ encoder.projection, several["embedding"], atol=1e-5)
    with pytest.raises(EncoderError, match=r"token.*timm"):
        encoder.output_shapes(("token",))


@pytest.mark.parametrize(("outputs", "tokens", "text"), [
    (("embeding",), "last", "no output embeding: there are embedding, preproj, token, statistics"),
    (("token",), "first", "no output first"), ((), "last", "none given")])
def test_an_output_that_does_not_exist_is_named(encoder: Any, outputs: Any, tokens: str, text: str) -> None:
    with pytest.raises(EncoderError, match=text):
        encoder.encode_images(pixels(), outputs, tokens)


def test_no_images_give_no_rows_of_the_right_width(encoder: Any) -> None:
    assert encoder.encode_images(pixels(0))["embedding"].shape == (0, 64)


def test_pixels_that_must_not_be_written_to_are_taken_without_a_warning(encoder: Any) -> None:
    fixed = pixels()
    fixed.flags.writeable = False
    assert np.array_equal(encoder.encode_images(fixed)["embedding"], encoder.encode_images(pixels())["embedding"])


def test_threads_that_share_an_encoder_get_the_embeddings_of_one(encoder: Any) -> None:
    batches = [pixels()[np.newaxis, number].repeat(3, axis=0) for number in range(5)] * 4
    alone = [encoder.encode_images(batch, ALL)["token"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: encoder.encode_images(batch, ALL)["token"], batches))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError()],
    ids=["cpu", "cuda", "python"])
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_later_ones_too(monkeypatch: pytest.MonkeyPatch,
                                                                            error: Exception) -> None:
    encoder, sizes = open_encoder(EncoderSpec("demo")), []
    expected, plain = encoder.encode_images(pixels(11))["embedding"], OpenClipBackend.images

    def small(backend: OpenClipBackend, batch: torch.Tensor, *wanted: Any) -> dict[str, torch.Tensor]:
        if len(batch) > 3:
            raise error
        sizes.append(len(batch))
        return plain(backend, batch, *wanted)

    monkeypatch.setattr(OpenClipBackend, "images", small)
    assert encoder.batch_size > 3
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode_images(pixels(11))["embedding"], expected, atol=1e-4)
    assert sizes == [2] * 5 + [1] + [2] * 5 + [1]
    assert encoder.batch_size == 2


def test_one_image_that_does_not_fit_is_a_line_and_other_failures_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, fault = open_encoder(EncoderSpec("demo")), [RuntimeError("out of memory")]

    def failing(backend: OpenClipBackend, batch: torch.Tensor, *wanted: Any) -> dict[str, torch.Tensor]:
        raise fault[0]

    monkeypatch.setattr(OpenClipBackend, "images", failing)
    with pytest.raises(EncoderError, match="one image does not fit into the memory of cpu"):
        encoder.encode_images(pixels())
    fault[0] = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encoder.encode_images(pixels())


def test_decoding_in_another_way_is_another_encoder_and_the_default_adds_nothing(encoder: Any) -> None:
    fast, turned = (open_encoder(EncoderSpec("demo", **each)).info for each in ({"decode": "fast"}, {"exif": True}))
    assert len({encoder.info["fingerprint"], fast["fingerprint"], turned["fingerprint"]}) == 3
    assert (fast["decode"], turned["exif"]) == ("fast", True)
    assert not {"decode", "exif"} & set(encoder.info)
    assert encoder.info["fingerprint"] == "6487402ce16850279ab3081ad5078691"  # of every store made so far


def test_how_products_are_computed_is_recorded_and_is_not_another_encoder(encoder: Any,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    from onceclip.adapters.cpu import fast_products

    assert (encoder.info["products"], encoder.info["compiled"]) == ("default", False)  # too small for anything else
    monkeypatch.setattr("onceclip.pipeline.encoders.opening._SMALL", 0)
    large = open_encoder(EncoderSpec("demo"))
    assert large.info["products"] == fast_products()
    assert large.info["fingerprint"] == encoder.info["fingerprint"]
    np.testing.assert_allclose(large.encode_images(pixels())["embedding"], encoder.encode_images(pixels())["embedding"],
                               rtol=1e-4, atol=1e-4)


# Two encoders, so small that compiling one takes no time.
TINY = ("import numpy; from open_clip import factory;"
        "from onceclip.pipeline.encoders import EncoderSpec, open_encoder;"
        "vision = {'image_size': 16, 'patch_size': 8, 'width': 16, 'head_width': 8, 'layers': 1};"
        "text = {'context_length': 8, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1};"
        "factory._MODEL_CONFIGS['tiny'] = {'embed_dim': 16, 'vision_cfg': vision, 'text_cfg': text};"
        "plain, compiled = (open_encoder(EncoderSpec('tiny', allow_random=True, compile=each))"
        " for each in (False, True))\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ here")
def test_a_compiled_encoder_gives_the_embeddings_of_a_plain_one_for_any_number_of_images(forked: Any) -> None:
    code = ("pixels = numpy.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype='uint8');"
            "expected = plain.encode_images(pixels)['embedding'];"
            "found = [compiled.encode_images(pixels[:count])['embedding'] for count in (5, 2)];"
            "assert all(numpy.allclose(each, expected[:len(each)], atol=1e-5) for each in found);"
            "assert [len(each) for each in found] == [5, 2];"
            "assert compiled.info['compiled'] and compiled.info['fingerprint'] == plain.info['fingerprint']")
    done = forked("-c", TINY + code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compilation_without_a_compiler_is_one_line(tmp_path: Path, process: Any,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    code = ("from onceclip.pipeline.errors import EncoderError\n"
            "try: compiled.encode_images(numpy.zeros((1, 16, 16, 3), 'uint8'))\n"
            "except EncoderError as error: print(error)")
    done = process("-c", TINY + code)
    assert done.returncode == 0, done.stderr
    line, = done.stdout.strip().splitlines()
    assert "--compile does not work here" in line
    assert "leave --compile away" in line
    assert os.linesep not in line
