"""What identifies things: row keys, fingerprints, class names."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onceclip.stores import StoreMismatch, TextSet
from onceclip.stores.identity import canonical, decode_key, encode_key, fingerprint

settings.register_profile("onceclip", derandomize=True, deadline=None, database=None)
settings.load_profile("onceclip")

NAMES = [b"50%.jpg", b"100%25.jpg", b"caf\xe9.jpg", "\N{FIRE}.png".encode(), b"two\nlines.png", "café.jpg".encode(),
         "cafe\u0301.jpg".encode(), b"a b/c%E9.jpg", b"caf\xe9/%E9.jpg", b"quote\"'.png", b"tab\t.png"]
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_survives_any_name_a_file_can_have(name: bytes) -> None:
    """surrogates not allowed: names that are not UTF-8 kill hashing, JSON and indexing (llama_index#10369)."""
    key = encode_key(os.fsdecode(name))
    assert os.fsencode(decode_key(key)) == name
    key.encode("utf-8")  # plain text: zarr, JSON and every terminal take it


def test_different_names_have_different_keys() -> None:
    assert len({encode_key(os.fsdecode(name)) for name in NAMES}) == len(NAMES)


@given(st.binary(max_size=20).filter(lambda name: b"\0" not in name),
       st.binary(max_size=20).filter(lambda name: b"\0" not in name))
def test_keys_are_one_to_one(first: bytes, second: bytes) -> None:
    keys = [encode_key(os.fsdecode(each)) for each in (first, second)]
    assert [os.fsencode(decode_key(key)) for key in keys] == [first, second]
    assert (keys[0] == keys[1]) == (first == second)


def test_a_readable_name_is_its_own_key() -> None:
    assert encode_key("Persian cat/Ünï 1.JPG") == "Persian cat/Ünï 1.JPG"


@given(st.dictionaries(st.text(), JSON))
def test_a_fingerprint_does_not_depend_on_the_order_of_names(values: dict[str, object]) -> None:
    backwards = dict(reversed(list(values.items())))
    assert canonical(backwards) == canonical(values)
    assert fingerprint(backwards) == fingerprint(values)


def test_a_fingerprint_is_known_forever() -> None:
    """Stores of today must match encoders of tomorrow; datasets#5161: others' hashes change with every run."""
    assert canonical({"b": [1, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null]}'
    assert fingerprint({"b": [1, None], "a": "é"}) == "617f48c82536c986acd76fc4553d9223"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("nan")]}, {1, 2}, b"bytes", object()])
def test_what_json_cannot_hold_has_no_fingerprint(value: object) -> None:
    """datasets#2775: a fallback to a random hash became constant and reused the wrong cache."""
    with pytest.raises((ValueError, TypeError)):
        fingerprint(value)


@pytest.fixture
def text() -> TextSet:
    """Three classes with 1, 3 and 2 prompts."""
    return TextSet(np.arange(12, dtype=np.float32).reshape(6, 2), ("cat", "dog", "owl"), np.array([0, 1, 4, 6]),
                   np.array([0, 0, 1, 2, 0, 1], np.int32), ("c0", "d0", "d1", "d2", "o0", "o1"), "encoder")


def test_prompts_join_classes_by_name_whatever_their_order(text: TextSet) -> None:
    """CLIP_benchmark#21: prompts in another order than the labels moved a published number."""
    chosen = text.of_classes(("owl", "dog"))
    assert chosen.classes == ("owl", "dog")
    assert chosen.prompts == ("o0", "o1", "d0", "d1", "d2")
    np.testing.assert_array_equal(chosen.embedding, text.embedding[[4, 5, 1, 2, 3]])
    np.testing.assert_array_equal(chosen.class_index, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(chosen.template_id, [0, 1, 0, 1, 2])


@given(st.permutations(["cat", "dog", "owl"]))
def test_any_order_of_classes_can_be_undone(order: list[str]) -> None:
    text = TextSet(np.eye(3, dtype=np.float32), ("cat", "dog", "owl"), np.arange(4), np.zeros(3, np.int32),
                   ("c", "d", "o"), "encoder")
    back = text.of_classes(order).of_classes(text.classes)
    assert back.prompts == text.prompts
    np.testing.assert_array_equal(back.embedding, text.embedding)
    assert back.fingerprint == text.fingerprint


def test_a_class_without_prompts_is_an_error_that_shows_both_lists(text: TextSet) -> None:
    with pytest.raises(StoreMismatch, match=r"no prompts for 'fox'; it has 'cat', 'dog', 'owl'"):
        text.of_classes(("cat", "fox"))


def test_a_text_sets_identity_is_its_sentences_and_its_encoder(text: TextSet) -> None:
    from dataclasses import replace

    assert replace(text, source={"templates": ["other record of the same"]}).fingerprint == text.fingerprint
    assert replace(text, prompts=(*text.prompts[:5], "another")).fingerprint != text.fingerprint
    assert replace(text, encoder="another").fingerprint != text.fingerprint
    assert replace(text, classes=("cat", "dog", "fox")).fingerprint != text.fingerprint
