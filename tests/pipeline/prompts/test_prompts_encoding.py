"""Sentences into embeddings: each once, none cut without a word, and a shorter context that changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError

SENTENCES = ["a photo of the digit 7.", "7", "a blurry scan of an uppercase letter q, dark on light.", "", "7"]


@pytest.fixture
def batches(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches of tokens that reach the encoder."""
    shapes: list[tuple[int, ...]] = []
    kind, encode = type(encoder), type(encoder).encode_tokens

    def watching(self: Any, tokens: Any) -> np.ndarray:
        shapes.append(tuple(tokens.shape))
        return encode(self, tokens)

    monkeypatch.setattr(kind, "encode_tokens", watching)
    return shapes


@pytest.fixture
def model_like(tmp_path: Path) -> Callable[..., str]:
    """`local-dir:` name of a model of the demo's kind, with other settings of its text tower and random weights."""
    import open_clip
    from safetensors.torch import save_file

    def make(name: str, custom: bool = False, **settings: Any) -> str:
        folder = tmp_path / name
        shutil.copytree(str(files("onceclip.pipeline.encoders") / "demo_model"), folder)
        config = json.loads((folder / "open_clip_config.json").read_text())
        top = {key: settings.pop(key) for key in list(settings) if key.startswith("init_")}
        config["model_cfg"] |= top
        config["model_cfg"]["text_cfg"] |= settings
        if custom:
            config["model_cfg"]["custom_text"] = True
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        torch.manual_seed(1)
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        model_cfg = {key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
        state = kind(**model_cfg).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors",
                  metadata={"format": "pt"})
        return f"local-dir:{folder}"

    return make


def whole(encoder: Any, sentences: list[str]) -> np.ndarray:
    """Embeddings with the full context, by the model itself."""
    return encoder.encode_tokens(encoder.tokenizer(sentences))


def test_embeddings_are_the_models_own_in_the_order_given(encoder: Any) -> None:
    found = encode_sentences(encoder, SENTENCES)
    np.testing.assert_allclose(found.embedding, whole(encoder, SENTENCES), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.embedding[1], found.embedding[4])
    assert (found.distinct, found.cut) == (4, ())
    assert encode_sentences(encoder, []).embedding.shape == (0, encoder.dim)


def test_equal_sentences_are_encoded_once_and_short_ones_with_a_short_context(encoder: Any,
                                                                              batches: list[tuple[int, ...]]) -> None:
    found = encode_sentences(encoder, ["7", "8"] * 1000)
    assert (batches[-1][0], found.distinct) == (2, 2)
    assert batches[-1][1] <= 4 < encoder.tokenizer.context_length
    assert encoder.model.positional_embedding.shape[0] == encoder.tokenizer.context_length


def test_long_sentences_do_not_lengthen_the_batches_of_short_ones(encoder: Any, batches: list[tuple[int, ...]],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceclip.pipeline.encoders.sentences.BATCH", 4)
    mixed = [f"{number} {'very ' * (15 * (number % 2))}" for number in range(8)]
    found = encode_sentences(encoder, mixed)
    assert [shape[0] for shape in batches[-2:]] == [4, 4]
    assert batches[-2][1] < 6 < 15 < batches[-1][1]
    np.testing.assert_allclose(found.embedding, whole(encoder, mixed), rtol=1e-4, atol=1e-5)


def test_the_same_sentences_give_the_same_bits_again(encoder: Any) -> None:
    first, second = (encode_sentences(encoder, SENTENCES).embedding for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("words", [21, 22, 23, 24, 60])
def test_a_sentence_is_refused_exactly_when_the_model_would_cut_it(encoder: Any, words: int) -> None:
    """24 tokens hold 22 words between the marks of start and end. Some published code cuts silently."""
    sentence = " ".join(["very"] * words)
    if words <= 22:
        assert encode_sentences(encoder, [sentence]).cut == ()
        return
    with pytest.raises(EncoderError, match=r"longer than the 24 tokens that demo .*'very.*\(and 1 more\)") as refused:
        encode_sentences(encoder, ["fine", sentence, f"{sentence} x"])
    assert "\n" not in str(refused.value)
    cut = encode_sentences(encoder, ["fine", sentence, f"{sentence} x", sentence], truncate=True)
    assert cut.cut == (sentence, f"{sentence} x")
    np.testing.assert_allclose(cut.embedding[1], cut.embedding[2], rtol=1e-4, atol=1e-5)


def test_other_context_lengths_are_read_from_the_model(model_like: Callable[..., str]) -> None:
    encoder = open_encoder(EncoderSpec(model_like("short", context_length=8)))
    assert encode_sentences(encoder, ["one two three four five six"]).cut == ()
    with pytest.raises(EncoderError, match="longer than the 8 tokens"):
        encode_sentences(encoder, ["one two three four five six seven"])


def test_a_model_that_looks_ahead_keeps_its_whole_context(model_like: Callable[..., str]) -> None:
    """SigLIP has no causal mask: what fills the context up is part of what it was trained on."""
    encoder = open_encoder(EncoderSpec(model_like("ahead", custom=True, no_causal_mask=True, pool_type="last")))
    found = encode_sentences(encoder, SENTENCES)
    np.testing.assert_allclose(found.embedding, whole(encoder, SENTENCES), rtol=1e-4, atol=1e-5)


def test_a_causal_model_that_pools_its_last_place_keeps_its_whole_context(model_like: Callable[..., str]) -> None:
    encoder = open_encoder(EncoderSpec(model_like("last", custom=True, pool_type="last")))
    found = encode_sentences(encoder, SENTENCES)
    np.testing.assert_allclose(found.embedding, whole(encoder, SENTENCES), rtol=1e-4, atol=1e-5)


def test_scale_and_bias_of_a_sigmoid_model_reach_the_logits(model_like: Callable[..., str], image_folder: Path,
                                                            extract_demo: Callable[..., Any], tmp_path: Path) -> None:
    """SigLIP scores s x.w + b with a scale and a bias of its own."""
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec
    from onceclip.stores import open_store

    name = model_like("sigmoid", init_logit_bias=-10.0, init_logit_scale=float(np.log(10)))
    extract_demo(image_folder, tmp_path / "s.zarr", model=name)
    store = open_store(str(tmp_path / "s.zarr"))
    assert (store.encoder["logit_scale"], store.encoder["logit_bias"]) == (pytest.approx(10), -10.0)
    rows = store.embeddings(store.rows("test")).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    text = store.text().embedding
    expected = 10 * unit @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T - 10
    logits = fit(store, RunSpec("zero-shot")).classifier.logits(rows)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_model_that_takes_sentences_themselves_needs_no_tokenizer() -> None:
    class Plain:
        tokenizer, dim, info = None, 2, {"name": "plain"}

        def encode_tokens(self, sentences: list[str]) -> np.ndarray:
            return np.array([[len(sentence), 1] for sentence in sentences], np.float32)

    found = encode_sentences(Plain(), ["aa", "b", "aa"])  # type: ignore[arg-type]
    assert found.embedding.tolist() == [[2, 1], [1, 1], [2, 1]]


def test_an_embedding_that_is_not_finite_is_refused(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """openai/CLIP#198: NaN of half precision went into caches."""
    monkeypatch.setattr(type(encoder), "encode_tokens",
                        lambda self, tokens: np.full((len(tokens), self.dim), np.nan, np.float32))
    with pytest.raises(EncoderError, match="no finite embedding for '7'"):
        encode_sentences(encoder, ["7"])


class Words:
    """A tokenizer of whole words, such as those of Hugging Face: with or without a mark of the end, filled up right or
    left; what is too long loses words, never the mark."""

    def __init__(self, end: int | None, fill: int, left: bool) -> None:
        self.context_length, self.end, self.fill, self.left = 6, end, fill, left

    def __call__(self, sentences: list[str], context_length: int | None = None) -> torch.Tensor:
        context = context_length or self.context_length
        rows = []
        for sentence in sentences:
            words = [2 + len(word) for word in sentence.split()]
            row = words[:context] if self.end is None else [*words[:context - 1], self.end]
            filling = [self.fill] * (context - len(row))
            rows.append(filling + row if self.left else row + filling)
        return torch.tensor(rows)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(("end", "fill", "most"), [(1, 0, 5), (1, 1, 5), (None, 0, 6)],
                         ids=["end mark", "filled with the end mark", "no end mark"])
def test_what_a_tokenizer_cuts_is_seen_whatever_its_habits(end: int | None, fill: int, most: int, left: bool) -> None:
    """SigLIP's tokenizer fills with the mark of the end; others pad on the left."""
    class Encoder:
        tokenizer, dim, info = Words(end, fill, left), 6, {"name": "words"}

        def encode_tokens(self, tokens: torch.Tensor) -> np.ndarray:
            return tokens.numpy().astype(np.float32)

    words = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg"]
    sentences = [" ".join(words[:count]) for count in range(1, 8)]
    found = encode_sentences(Encoder(), sentences, truncate=True)  # type: ignore[arg-type]
    assert found.cut == tuple(sentences[most:])
    np.testing.assert_array_equal(found.embedding, Encoder.tokenizer(sentences).numpy())
