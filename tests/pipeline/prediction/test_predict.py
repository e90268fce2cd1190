"""Labels from a saved adapter, for files, folders and stores; scores on stores, joined by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import Classifier, load_classifier
from onceclip.adapters.heads import Linear
from onceclip.pipeline.api.stores import add_tower
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import EncoderError, SourceError
from onceclip.pipeline.evaluation.evaluate import evaluate
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.prediction.encoding import encoder_of
from onceclip.pipeline.prediction.inputs import list_inputs
from onceclip.pipeline.prediction.predict import predict_images, predict_store, rows_to_label
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, StoreMismatch, StoreWriter, open_store

Extract = Callable[..., Any]


@pytest.fixture
def adapter(adapter_path: Path) -> Classifier:
    return load_classifier(adapter_path)


@pytest.fixture
def store(store_path: Path) -> Store:
    return open_store(str(store_path))


def test_answers_come_in_the_order_of_the_images(adapter: Classifier, encoder: Any, image_folder: Path) -> None:
    """autofaiss: 10.npy was read before 2.npy, and nobody could map rows back to images (clip-retrieval#12)."""
    paths = sorted(image_folder.rglob("*.*"))[::-1]
    found = list(predict_images(adapter, list_inputs(paths).records, encoder))
    assert [each.key for each in found] == [str(path) for path in paths]
    alone = next(predict_images(adapter, list_inputs([paths[17]]).records, encoder))
    np.testing.assert_allclose(found[17].logits, alone.logits, atol=1e-3)


def test_a_bad_image_keeps_its_place_and_says_why(adapter: Classifier, encoder: Any, image_folder: Path,
                                                  tmp_path: Path) -> None:
    """clip-retrieval#13: a bad image is an answer, not an end."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = sorted(image_folder.rglob("*.png"))[:2]
    paths = [good[0], tmp_path / "bad.png", tmp_path / "none.png", good[1]]
    first, bad, missing, last = predict_images(adapter, list_inputs(paths).records, encoder)
    assert (bad.top, bad.logits, bad.state, "not an image" in bad.reason) == ([], None, "bad", True)
    assert "No such file" in missing.reason
    assert [len(first.top), len(last.top)] == [1, 1]


@pytest.mark.parametrize(("top_k", "number"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_the_best_classes_come_first(adapter: Classifier, store: Store, top_k: int, number: int) -> None:
    answer = next(predict_store(adapter, store, top_k=top_k))
    values = [value for _, value in answer.top]
    assert len(values) == number
    assert values == sorted(values, reverse=True)
    assert answer.logits is not None
    assert answer.top[0][0] == store.classes[int(np.argmax(answer.logits))]
    assert number < 4 or sum(values) == pytest.approx(1, abs=1e-5)


def test_a_split_of_a_store_is_labelled_alone(adapter: Classifier, store: Store) -> None:
    keys = [each.key for each in predict_store(adapter, store, "test")]
    assert keys == list(map(str, store.table.key[store.rows("test")]))


def test_the_adapter_finds_its_own_encoder(adapter: Classifier, encoder: Any) -> None:
    assert encoder_of(adapter).info["fingerprint"] == encoder.info["fingerprint"]


def test_another_encoder_is_refused(adapter: Classifier, other_encoder: str, image_folder: Path, tmp_path: Path,
                                    extract_demo: Extract) -> None:
    """lilbee#184: the check belongs to every use, a width that fits is no proof (clip-retrieval#325)."""
    other = open_encoder(EncoderSpec(other_encoder))
    with pytest.raises(StoreMismatch, match="--model"):
        next(predict_images(adapter, list_inputs([image_folder]).records, other))
    extract_demo(image_folder, tmp_path / "other.zarr", model=other_encoder)
    with pytest.raises(StoreMismatch, match="the adapter"):
        next(predict_store(adapter, open_store(str(tmp_path / "other.zarr"))))
    with pytest.raises(StoreMismatch, match="the adapter"):
        evaluate(adapter, open_store(str(tmp_path / "other.zarr")))


def test_an_adapter_of_a_local_encoder_asks_where_it_is(other_encoder: str, image_folder: Path, tmp_path: Path,
                                                        extract_demo: Extract) -> None:
    extract_demo(image_folder, tmp_path / "other.zarr", model=other_encoder)
    classifier = fit(open_store(str(tmp_path / "other.zarr")), RunSpec("zero-shot")).classifier
    with pytest.raises(SourceError, match="--model"):
        encoder_of(classifier)
    encoder = encoder_of(classifier, EncoderSpec(other_encoder))
    assert len(list(predict_images(classifier, list_inputs([image_folder / "disc"]).records, encoder))) == 15


def test_an_adapter_of_imported_features_takes_the_encoder_that_the_user_names(
        store: Store, encoder: Any, import_of: Callable[..., Store], image_folder: Path) -> None:
    imported = import_of({"embedding": store.embeddings(), "label": store.table.label, "text": store.text().embedding})
    classifier = fit(imported, RunSpec("tip-adapter", 4)).classifier
    with pytest.raises(SourceError, match="name it with --model"):
        encoder_of(classifier)
    found = list(predict_images(classifier, list_inputs([image_folder]).records,
                                encoder_of(classifier, EncoderSpec("demo"))))
    assert len(found) == 60


@pytest.fixture(scope="module")
def rich(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, extract_demo: Extract) -> tuple[Path, Store]:
    """A folder of images, one of them bad, and its store of float32 with all outputs."""
    root = tmp_path_factory.mktemp("rich")
    shutil.copytree(image_folder, root / "images")
    (root / "images" / "disc" / "disc-3x.png").write_bytes(b"no image")
    extract_demo(root / "images", root / "s.zarr", dtype="float32",
                 outputs=OutputOptions(preproj=True, tokens="value", layer_statistics=True))
    add_tower(str(root / "s.zarr"))
    return root / "images", open_store(str(root / "s.zarr"))


@pytest.mark.parametrize(("method", "values"), [
    ("tip-adapter", {}), ("linear-probe-preproj", {}), ("sgva", {"epochs": 2}), ("vt-clip", {"epochs": 2}),
    ("stylip", {"epochs": 2, "network": "random"})])
def test_images_and_their_store_get_the_same_answers_whatever_the_adapter_takes(
        rich: tuple[Path, Store], encoder: Any, tmp_path: Path, method: str, values: dict[str, Any]) -> None:
    folder, store = rich
    fit(store, RunSpec(method, 4, values=values, select="fixed")).classifier.save(tmp_path)
    classifier = load_classifier(tmp_path)
    stored = list(predict_store(classifier, store))
    direct = list(predict_images(classifier, list_inputs([folder]).records, encoder))
    assert [each.key for each in direct] == [each.key for each in stored]
    assert [(each.state, each.reason) for each in direct] == [(each.state, each.reason) for each in stored]
    assert [each.key for each in stored if each.state == "bad"] == ["disc/disc-3x.png"]
    good = [(one, other) for one, other in zip(direct, stored, strict=True) if one.logits is not None]
    assert len(good) == 60
    assert [one.top[0][0] for one, _ in good] == [other.top[0][0] for _, other in good]
    for one, other in good:
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_tokens_that_does_not_say_which_is_refused(rich: tuple[Path, Store], encoder: Any) -> None:
    folder, store = rich
    fitted = fit(store, RunSpec("vt-clip", 1, values={"epochs": 1})).classifier
    assert fitted.provenance["outputs"] == {"token": {"tokens": "value"}}
    older = replace(fitted, provenance={**fitted.provenance, "outputs": {}})
    with pytest.raises(EncoderError, match="does not say which"):
        next(predict_images(older, list_inputs([folder]).records, encoder))


def test_bad_images_of_a_store_keep_their_place_in_its_split(adapter: Classifier, folder_of: Callable[..., Path],
                                                             tmp_path: Path, extract_demo: Extract) -> None:
    root = folder_of({"train/disc": 2, "test/disc": 2, "test/ring": 2})
    (root / "test" / "disc" / "00x.png").write_bytes(b"no image")
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    found = {split: [(each.key, each.state) for each in predict_store(adapter, store, split)]
             for split in ("train", "val", "test")}
    assert found["test"] == [("test/disc/00.png", "ok"), ("test/disc/00x.png", "bad"), ("test/disc/01.png", "ok"),
                             ("test/ring/00.png", "ok"), ("test/ring/01.png", "ok")]
    assert (len(found["train"]), found["val"]) == (2, [])
    assert {split: len(rows_to_label(store, split)) for split in found} == {"train": 2, "val": 0, "test": 5}


def test_equal_logits_give_the_answer_of_the_classifier(adapter: Classifier, store: Store) -> None:
    """Two classes with one prompt are level for every image."""
    weight = torch.randn(2, adapter.dim, generator=torch.Generator().manual_seed(1))[[0, 1, 0, 1]]
    level = replace(adapter, head=Linear(weight))
    answers = list(predict_store(level, store, top_k=3))
    assert [each.top[0][0] for each in answers] == level.predict(store.embeddings())
    assert all(len({name for name, _ in each.top}) == 3 for each in answers)


def relabelled(path: Path, target: Path, order: list[int]) -> Store:
    """A copy of a store whose classes stand in another order."""
    shutil.copytree(path, target)
    store = open_store(str(target))
    writer = StoreWriter.open(str(target), store.encoder)
    writer.update(classes=[store.classes[number] for number in order])
    writer.store.array("label")[...] = np.argsort(order).astype(np.int32)[store.table.label]
    writer.update(columns=None)
    return open_store(str(target))


def test_classes_in_another_order_have_the_same_scores(adapter: Classifier, store: Store, store_path: Path,
                                                       tmp_path: Path) -> None:
    """CLIP_benchmark#21: labels and prompts in different orders moved a published number."""
    other = relabelled(store_path, tmp_path / "other.zarr", [2, 0, 3, 1])
    assert other.classes != store.classes
    names = ("accuracy", "macro_recall", "nll", "ece", "n", "classes")
    first, second = evaluate(adapter, store), evaluate(adapter, other)
    assert {name: second[name] for name in names} == {name: first[name] for name in names}
    assert first["accuracy"] > 0.5


def test_a_store_with_fewer_classes_is_joined_by_name(adapter: Classifier, image_folder: Path, tmp_path: Path,
                                                      extract_demo: Extract) -> None:
    """ultralytics#13936: test had fewer classes than train and the ids shifted."""
    for name in ("cross", "ring"):
        shutil.copytree(image_folder / name, tmp_path / "images" / "test" / name)
    extract_demo(tmp_path / "images", tmp_path / "part.zarr")
    part = open_store(str(tmp_path / "part.zarr"))
    scores = evaluate(adapter, part)
    right = [part.classes[label] == answer.top[0][0]
             for answer, label in zip(predict_store(adapter, part), part.table.label, strict=True)]
    assert (scores["n"], scores["classes"]) == (30, 2)
    assert scores["accuracy"] == pytest.approx(np.mean(right))


def test_a_class_that_the_adapter_does_not_know_is_named(adapter: Classifier, folder_of: Callable[..., Path],
                                                         tmp_path: Path, extract_demo: Extract) -> None:
    extract_demo(folder_of({"test/disc": 2, "test/star": 2}), tmp_path / "s.zarr")
    with pytest.raises(StoreMismatch, match="does not know: star"):
        evaluate(adapter, open_store(str(tmp_path / "s.zarr")))
