"""Labels by a strategy: views are made of new images as a store has them, and sets and streams keep their order."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import Classifier, MethodError, load_classifier
from onceclip.adapters.inference import INFERENCES, Queries
from onceclip.pipeline.decoding.views import TEN_CROP, Views
from onceclip.pipeline.errors import ArgumentError, PredictionError
from onceclip.pipeline.evaluation import queries
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.prediction.inference import DEFAULT_VIEWS, views_for
from onceclip.pipeline.prediction.predict import answers, predict_images
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.sources import Record, open_source
from onceclip.stores import Store, open_store

VIEWS = Views(number=6, seed=3)


@pytest.fixture(scope="module")
def store(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, extract_demo: Callable[..., Any]) -> Store:
    """The shared images with views and patch tokens of all, in float32."""
    path = tmp_path_factory.mktemp("predict") / "glyphs.zarr"
    outputs = OutputOptions(VIEWS, ("train", "val", "test"), tokens="value")
    extract_demo(image_folder, path, outputs=outputs, dtype="float32")
    return open_store(str(path))


@pytest.fixture(scope="module")
def classifier(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """Fitted on it, saved and loaded."""
    folder = tmp_path_factory.mktemp("adapter") / "zero-shot"
    fit(store, RunSpec("zero-shot")).classifier.save(folder)
    return load_classifier(folder)


def labels(found: Any) -> dict[str, tuple[str | None, float | None]]:
    return {each.key: (each.class_name, each.probability) for each in found.predictions}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert {key: name for key, (name, _) in one.items()} == {key: name for key, (name, _) in other.items()}
    assert [share for _, share in one.values()] == pytest.approx([other[key][1] for key in one], abs=2e-3)


@pytest.mark.parametrize("name", ["zero", "mta", "crops", "patch-max", "anovl", "onzeta"])
def test_images_get_the_labels_that_their_rows_in_the_store_get(name: str, store: Store, classifier: Classifier,
                                                                image_folder: Path) -> None:
    strategy = INFERENCES[name](**({"normal": "disc"} if name == "anovl" else {}))
    same(labels(answers(classifier, str(image_folder), strategy=strategy)),
         labels(answers(classifier, store, strategy=strategy)))


def test_a_set_is_read_when_all_images_are_encoded(store: Store, classifier: Classifier, image_folder: Path) -> None:
    strategy = INFERENCES["dn"](fit_on="query")
    same(labels(answers(classifier, str(image_folder), strategy=strategy)),
         labels(answers(classifier, store, strategy=strategy)))


def test_bad_images_stand_in_their_places(classifier: Classifier, image_folder: Path, encoder: Any) -> None:
    records = list(open_source(str(image_folder)).records[:3])
    records.insert(1, Record("missing.png", replace(records[0].content, path="missing.png")))  # type: ignore[type-var]
    for name in ("mta", "tda"):
        found = list(predict_images(classifier, records, encoder, strategy=INFERENCES[name]()))
        assert [each.key for each in found] == [record.key for record in records]
        assert [each.state for each in found] == ["ok", "bad", "ok", "ok"]
    strategy = INFERENCES["tda"]()
    assert [each.state for each in predict_images(classifier, records[1:2], encoder, strategy=strategy)] == ["bad"]
    assert list(predict_images(classifier, [], encoder, strategy=strategy)) == []


def test_views_are_those_of_the_adapters_record_unless_something_else_is_said(classifier: Classifier) -> None:
    assert views_for(classifier, []) == VIEWS
    assert views_for(classifier, [], 9) == replace(VIEWS, number=9)
    unknown = replace(classifier, provenance={})
    assert views_for(unknown, []) == DEFAULT_VIEWS
    ten = replace(classifier, provenance={"outputs": {"view": TEN_CROP.spec()}})
    assert views_for(ten, []) == TEN_CROP
    assert views_for(ten, [], 5) == replace(DEFAULT_VIEWS, number=5)
    assert views_for(replace(classifier, provenance={"outputs": ["view"]}), []) == DEFAULT_VIEWS
    assert views_for(replace(classifier, provenance={"outputs": {"view": "many"}}), []) == DEFAULT_VIEWS
    with pytest.raises(PredictionError, match="give 2 or more"):
        views_for(classifier, [], 1)


@pytest.mark.parametrize("change", [{"number": 10**9}, {"number": "x"}, {"scale": [0, 5]}, {"scale": None},
                                    {"ratio": [1, float("inf")]}, {"seed": []}, {"scale": [0.9, 0.1]}])
def test_a_record_of_views_that_cannot_be_is_refused(classifier: Classifier, change: dict[str, Any]) -> None:
    odd = replace(classifier, provenance={"outputs": {"view": {**VIEWS.spec(), **change}}})
    with pytest.raises(PredictionError, match="give --views N"):
        views_for(odd, [])


def test_given_boxes_are_the_views(classifier: Classifier, image_folder: Path, tmp_path: Path, encoder: Any,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "x0", "y0", "x1", "y1"], ["disc/disc-1.png", 0, 0, 32, 32],
                                    ["disc/disc-1.png", 2, 2, 20, 20], ["ring/ring-1.png", 4, 4, 30, 30]])
    seen: list[Queries] = []
    kind = INFERENCES["crops"]
    infer = kind.infer
    monkeypatch.setattr(kind, "infer", lambda self, classifier, queries, prepared: (
        seen.append(queries), infer(self, classifier, queries, prepared))[1])
    found = answers(classifier, str(tmp_path / "boxes.csv"), options=_rooted(image_folder), strategy=kind())
    assert len(list(found.predictions)) == 2
    views = torch.cat([queries.views for queries in seen if queries.views is not None])
    assert views.shape[:2] == (2, 3)
    cosine = (views * views[:, :1]).sum(dim=-1)
    np.testing.assert_allclose(cosine[0, :2], 1, atol=1e-5)  # a box around everything is the image
    np.testing.assert_allclose(cosine[1, [0, 2]], 1, atol=1e-5)  # the image with one box is filled up
    assert cosine[0, 2] < 0.999


def _rooted(root: Path) -> Any:
    from onceclip.pipeline.sources import SourceOptions

    return SourceOptions(str(root))


def test_what_a_strategy_needs_and_images_lack_is_said(classifier: Classifier, image_folder: Path, store: Store,
                                                       store_path: Path) -> None:
    def ask(name: str, inputs: Any = None, views: int | None = None, **values: Any) -> None:
        list(answers(classifier, str(image_folder) if inputs is None else inputs, strategy=INFERENCES[name](**values),
                     views=views).predictions)

    with pytest.raises(PredictionError, match=r"images alone have none: .* or say fit_on=query"):
        ask("dn")
    with pytest.raises(PredictionError, match=r"images alone have none: predict on a store$"):
        ask("patch-knn", normal="disc")
    with pytest.raises(PredictionError, match=r"tpt encodes prompts anew, .* a store that has one"):
        ask("tpt")
    with pytest.raises(PredictionError, match="reads views of images, and these are embeddings"):
        ask("mta", np.ones((3, 64), np.float32))
    with pytest.raises(ArgumentError, match="--views is for a strategy that reads views"):
        ask("tda", views=4)
    with pytest.raises(ArgumentError, match="a store has its own"):
        ask("mta", store, 4)
    with pytest.raises(MethodError, match="which class is the normal one"):
        ask("anovl")
    with pytest.raises(Exception, match="--views 64 --views-for train"):
        ask("mta", open_store(str(store_path)))


def test_a_stream_of_views_is_not_all_in_memory_at_once(store: Store, classifier: Classifier,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    kind = INFERENCES["zero"]
    infer = kind.infer
    monkeypatch.setattr(queries, "_ELEMENTS", 6 * 64 * 5)
    monkeypatch.setattr(kind, "infer", lambda self, classifier, queries, prepared: (
        sizes.append(len(queries)), infer(self, classifier, queries, prepared))[1])
    assert len(labels(answers(classifier, store, strategy=kind()))) == 60
    assert sizes == [5] * 12
