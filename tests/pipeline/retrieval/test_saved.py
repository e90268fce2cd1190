"""Trained maps that are saved give the same scores again, on stores of their encoder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onceclip.adapters import load_classifier
from onceclip.adapters.errors import AdapterFileError
from onceclip.adapters.saving import CONFIG, WEIGHTS, write_adapter
from onceclip.pipeline.api.retrieval import retrieve, search
from onceclip.pipeline.errors import ArgumentError, ResultError, RetrievalError
from onceclip.pipeline.retrieval.items import Frames, items_of, read_frames
from onceclip.pipeline.retrieval.training import save_maps, train
from onceclip.stores import Store, StoreMismatch


@pytest.mark.parametrize("recipe", ["labclip", "geodesic", "temporal", "contra"])
def test_saved_maps_score_as_when_they_were_trained(videos_store: Store, tmp_path: Path, recipe: str) -> None:
    folder = tmp_path / "maps"
    values = {"epochs": 2, "learning_rate": 1e-2, "split": "test"}
    first = retrieve(videos_store, train=recipe, save=folder, **values)
    again = retrieve(videos_store, maps=folder, split="test")
    assert (again["text_to_item"], again["item_to_text"]) == (first["text_to_item"], first["item_to_text"])
    assert again["trained"]["store"] == videos_store.fingerprint
    assert {name: again["trained"][name] for name in first["trained"]} == first["trained"]
    with pytest.raises(RetrievalError, match="rank the test split"):
        retrieve(videos_store, maps=folder, split="all")
    with pytest.raises(ResultError, match=r"give another --save$"):
        retrieve(videos_store, train=recipe, save=folder, **values)


def test_maps_are_for_stores_of_their_encoder_and_no_classifier(
        videos_store: Store, make_store: Callable[..., Store], tmp_path: Path) -> None:
    folder, random = tmp_path / "maps", np.random.default_rng(1)
    save_maps(folder, train(videos_store, videos_store.text("captions"), "captions", "labclip", epochs=1), videos_store)
    rows = random.normal(size=(6, 12)).astype(np.float32)
    names = [f"{number}.png" for number in range(6)]
    captions = {name: [row] for name, row in zip(names, rows, strict=True)}
    other = make_store(tmp_path / "other.zarr", rows, captions, key=names)
    assert retrieve(other, maps=folder, split="all")["items"] == 6  # of another store no split has been seen
    for change, error, message in (
            ({"encoder": {"name": "b", "fingerprint": "1" * 32}}, StoreMismatch, "trained on embeddings of b"),
            ({"dim": 13}, StoreMismatch, "name a store of the same encoder"),
            ({"recipe": "nothing"}, AdapterFileError, "no trained maps"),
            ({"trained": {}}, AdapterFileError, "recipe is not there")):
        config = {**json.loads((folder / CONFIG).read_text()), **change}
        write_adapter(tmp_path / "changed", config, load_file(folder / WEIGHTS), "")
        with pytest.raises(error, match=message):
            retrieve(other, maps=tmp_path / "changed", split="all")
    for tensors in ({"of_text": torch.eye(5)}, {"of_text": torch.full((12, 12), torch.nan)}, {"what": torch.eye(12)}):
        write_adapter(tmp_path / "changed", json.loads((folder / CONFIG).read_text()), tensors, "")
        with pytest.raises(AdapterFileError, match="is damaged"):
            retrieve(other, maps=tmp_path / "changed", split="all")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"\1")
    with pytest.raises(AdapterFileError, match="is damaged"):
        retrieve(other, maps=folder, split="all")
    with pytest.raises(AdapterFileError, match="retrieve STORE --map FOLDER"):
        load_classifier(tmp_path / "changed")


def test_a_search_is_made_with_the_vectors_of_both_maps(videos_store: Store, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sentence by the map of texts, of an image by that of items; and they are no cosines of raw rows."""
    trained = train(videos_store, videos_store.text("captions"), "captions", "geodesic", epochs=3, learning_rate=1e-2)
    save_maps(tmp_path / "maps", trained, videos_store)
    items = items_of(videos_store, "group")
    vectors = trained.maps.items(read_frames(videos_store, items).to(torch.float32))
    asked = torch.randn(12, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("onceclip.pipeline.prediction.encoding.query_embedding", lambda *arguments: asked)
    text = trained.maps.text(asked[None])[0]
    item = trained.maps.items(Frames(asked[None], torch.tensor([0, 1])))[0]
    for given, vector in (({"query": "a"}, text), ({"image": "a.png"}, item)):
        hits = search(videos_store, by="group", top=3, maps=tmp_path / "maps", **given)
        scores, places = (vectors @ vector).topk(3)
        assert [hit.name for hit in hits] == items.names[places].tolist()
        assert [hit.score for hit in hits] == pytest.approx(scores.tolist(), abs=1e-6)
    with pytest.raises(ArgumentError, match="leave the pooling out"):
        search(videos_store, "a", maps=tmp_path / "maps", pooling="max")


def test_a_classifier_is_no_map_and_training_or_maps_is_meant(videos_store: Store, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"format": 1, "class_names": ["a"]}, {"a": torch.eye(2)}, "")
    further: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"maps": tmp_path / "adapter"}, RetrievalError, "a classifier is no map"),
        ({"maps": tmp_path / "none"}, AdapterFileError, "retrieve STORE --train NAME --save FOLDER"),
        ({"maps": tmp_path, "train": "labclip"}, ArgumentError, "give train or maps"),
        ({"save": tmp_path / "x"}, ArgumentError, "give train")]
    for values, error, message in further:
        with pytest.raises(error, match=message):
            retrieve(videos_store, split="test", **values)
