"""Strategies on the views, patches and orders of a store: read in pieces, recorded, and told how to be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import Classifier, MethodError, ZeroShot
from onceclip.adapters.inference import INFERENCES, Queries
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.decoding.views import TEN_CROP, Views
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation import queries
from onceclip.pipeline.evaluation.batches import order_hash, parse_orders, permutation
from onceclip.pipeline.evaluation.evaluate import Evaluation, score
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.draws import tied
from onceclip.pipeline.tasks.tasks import draw_labelled, draw_task
from onceclip.stores import Store, StoreIncomplete, open_store


@pytest.fixture(scope="module")
def store(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, extract_demo: Callable[..., Any]) -> Store:
    """The shared images with eight views of the test images and patch tokens of all."""
    path = tmp_path_factory.mktemp("reading") / "glyphs.zarr"
    extract_demo(image_folder, path, outputs=OutputOptions(Views(number=8), ("test",), tokens="value"))
    return open_store(str(path))


@pytest.fixture(scope="module")
def classifier(store: Store) -> Classifier:
    return ZeroShot().fit(make_task(store, shots=1))


@pytest.fixture(scope="module")
def alone(classifier: Classifier, store: Store) -> Evaluation:
    return score(classifier, store)


@pytest.mark.parametrize("name", ["zero", "mta", "tps", "crops", "anovl", "patch-max", "patch-knn"])
def test_pieces_of_one_row_give_what_the_whole_gives(name: str, alone: Evaluation,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    kind = INFERENCES[name]
    strategy = kind(normal="disc") if "normal" in kind.hyperparameters else kind()
    whole = read(alone, strategy).values
    told: list[float] = []
    monkeypatch.setattr(queries, "_ELEMENTS", 1)
    pieces = read(alone, strategy, progress=told.append).values
    assert (pieces["accuracy"], pieces["confusions"]) == (whole["accuracy"], whole["confusions"])
    assert pieces["nll"] == pytest.approx(whole["nll"], abs=1e-4)
    assert told == pytest.approx([(number + 1) / 16 for number in range(16)])


def test_the_views_of_the_store_are_what_the_strategy_sees(alone: Evaluation, store: Store) -> None:
    rows, (seen,) = alone.rows, queries.several_queries(alone.classifier, store, alone.rows, "views")
    stored = torch.nn.functional.normalize(torch.from_numpy(store.embeddings(rows, "view").astype(np.float32)), dim=-1)
    assert torch.equal(seen.views, stored)
    assert torch.allclose(seen.views[:, 0], seen.embedding)


def test_a_row_says_which_views_it_saw(alone: Evaluation, store: Store) -> None:
    found = read(alone, INFERENCES["mta"]()).values["inference"]
    assert (found["sees"], found["transductive"], found["prior"]) == ("views", False, "none")
    assert found["query"]["output"] == {**store.outputs["view"].spec, "number": 8}
    assert found["query"]["n"] == len(alone.rows)


def test_before_ten_crops_comes_the_plain_image(image_folder: Path, tmp_path: Path,
                                                extract_demo: Callable[..., Any]) -> None:
    extract_demo(image_folder, tmp_path / "s.zarr", outputs=OutputOptions(TEN_CROP, ("test",)))
    store = open_store(str(tmp_path / "s.zarr"))
    classifier = ZeroShot().fit(make_task(store, shots=1))
    seen = next(queries.several_queries(classifier, store, store.rows("test"), "views"))
    assert seen.views is not None
    assert seen.views.shape[1] == 11
    assert torch.equal(seen.views[:, 0], seen.embedding)


def test_views_of_test_images_alone_are_no_views_to_learn_from(store: Store) -> None:
    assert make_task(store, shots=2).support.views is None
    drawn = draw_task(store, DrawSpec(2))
    assert draw_labelled(store, drawn, ("train", "test"))[1].support.views is None


@pytest.mark.parametrize(("split", "name", "message"), [
    ("train", "mta", "has those of test images alone: extract into a new store with --views 64 --views-for train"),
    ("test", "none", "has none: extract into a new store with --views 64 --views-for test")])
def test_a_store_without_the_views_says_how_to_make_them(store: Store, store_path: Path, classifier: Classifier,
                                                         split: str, name: str, message: str) -> None:
    place = open_store(str(store_path)) if name == "none" else store
    with pytest.raises(StoreIncomplete, match=message):
        read(score(classifier, place, split), INFERENCES["mta"]())


def test_a_store_without_tokens_says_how_to_make_them(store_path: Path, classifier: Classifier) -> None:
    with pytest.raises(StoreIncomplete, match="has none: extract into a new store with --tokens value"):
        read(score(classifier, open_store(str(store_path))), INFERENCES["patch-max"]())


def test_images_of_the_other_classes_are_found_by_their_patches(alone: Evaluation, store: Store) -> None:
    found = read(alone, INFERENCES["patch-knn"](normal="disc")).values
    assert found["auroc"] > 0.9
    assert 0 < found["inference"]["alone"]["auroc"] <= 1
    assert found["average_precision"] > 0.9
    fit = found["inference"]["fit"]
    train = store.rows("train")
    assert fit["n"] == (store.column("label")[train] == store.classes.index("disc")).sum() > 0


def test_normal_train_images_that_stand_in_a_later_split_too_are_left_out(alone: Evaluation, store: Store,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A test image whose copy is in the bank is no distance from it."""
    train = store.rows("train")
    normal = train[store.column("label")[train] == store.classes.index("disc")]
    monkeypatch.setattr(queries, "tied", lambda *_: tied(store, normal[:2]))
    found = read(alone, INFERENCES["patch-knn"](normal="disc")).values
    assert found["inference"]["fit"]["n"] == len(normal) - 2


def test_the_normal_class_has_to_be_known(alone: Evaluation) -> None:
    with pytest.raises(MethodError, match="which class is the normal one"):
        read(alone, INFERENCES["anovl"]())


@pytest.mark.parametrize("name", ["tda", "dmn", "onzeta"])
def test_each_order_is_read_anew_and_recorded(name: str, alone: Evaluation) -> None:
    told: list[float] = []
    values = read(alone, INFERENCES[name](), orders=(1, 2), progress=told.append).values
    again = read(alone, INFERENCES[name](), orders=(2,)).values
    orders = values["inference"]["orders"]
    assert [each["seed"] for each in orders] == [1, 2]
    assert orders[1] == again["inference"]["orders"][0]
    assert orders[0]["permutation"] != orders[1]["permutation"]
    assert values["accuracy"] == pytest.approx(np.mean([each["accuracy"] for each in orders]))
    assert values["inference"]["spread"] == pytest.approx(np.std([each["accuracy"] for each in orders], ddof=1))
    assert again["inference"]["spread"] is None
    assert values["n"] == len(alone.rows)
    assert told == sorted(told)
    assert told[-1] == 1
    assert values["inference"]["difference"]["difference"] == pytest.approx(
        values["accuracy"] - alone.as_values()["accuracy"])


def test_answers_come_back_to_their_rows_whatever_the_order(alone: Evaluation, store: Store) -> None:
    strategy = INFERENCES["tda"](weight=0.0, negative_weight=0.0)
    found = read(alone, strategy, orders=(5,))
    assert np.array_equal(found.evaluation.predicted, alone.predicted)
    seen = {}
    task = make_task(store, shots=1)
    for seed in (5, 6):
        order = permutation(seed, len(alone.rows))
        rows = torch.from_numpy(store.embeddings(alone.rows[order]).astype(np.float32))
        seen[seed] = INFERENCES["tda"]().run(alone.classifier, Queries(torch.nn.functional.normalize(rows, dim=-1)),
                                             task).logits.argmax(dim=1).numpy()
        expected = np.empty_like(seen[seed])
        expected[order] = seen[seed]
        assert np.array_equal(read(alone, INFERENCES["tda"](), orders=(seed,)).evaluation.predicted, expected)


@pytest.mark.parametrize(("text", "seeds"), [("1-5", (1, 2, 3, 4, 5)), ("7", (7,)), ("1, 4-5,9", (1, 4, 5, 9))])
def test_seeds_of_orders_are_listed(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_orders(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5-1", "1-", "-3", "1,,2", "1-99999", "1.5", "99999999999"])
def test_what_is_no_list_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(TaskError, match="give seeds of permutations"):
        parse_orders(text)


def test_a_seed_that_is_named_twice_would_count_twice() -> None:
    with pytest.raises(TaskError, match="name a seed twice"):
        parse_orders("1-3,2")


def test_an_order_is_a_permutation_of_its_seed_alone() -> None:
    assert sorted(permutation(3, 50)) == list(range(50))
    assert np.array_equal(permutation(3, 50), permutation(3, 50))
    assert order_hash(permutation(3, 50)) != order_hash(permutation(4, 50))
    assert len(order_hash(permutation(1, 0))) == 64
