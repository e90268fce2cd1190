"""The methods as scikit-learn classifiers: its own checks, and what its users do with classifiers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import onceclip
from onceclip import FewShotClassifier
from onceclip.adapters import GDA, METHODS, Rows, Task, Text, TipAdapter

_FLOAT32 = {"check_methods_subset_invariance": "logits are float32: the last bit of a product may depend on how many "
            "rows it has, and the check wants 1e-7"}


@parametrize_with_checks([FewShotClassifier("zero-shot"), FewShotClassifier("tip-adapter"), FewShotClassifier("gda"),
                          FewShotClassifier("linear-probe")], expected_failed_checks=lambda estimator: _FLOAT32)
def test_it_passes_the_checks_of_scikit_learn(estimator: Any, check: Callable[..., None]) -> None:
    check(estimator)


def rows_of(names: tuple[Any, ...] = ("disc", "cross", "ring"), shots: int = 8, dim: int = 16,
            seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[Any, np.ndarray]]:
    """Raw rows around one centre per name, their labels, and three prompts per name; centres belong to the names."""
    random = np.random.default_rng(seed)
    centres = {name: np.random.default_rng(list(str(name).encode())).normal(size=dim) for name in names}
    y = np.repeat(np.array(names), shots)
    noise = random.normal(size=(len(y), dim))
    rows = (np.array([centres[each] for each in y.tolist()]) + noise) * random.uniform(1, 9, (len(y), 1))
    return rows, y, {name: centre + 0.5 * random.normal(size=(3, dim)) for name, centre in centres.items()}


@pytest.mark.parametrize("method", ["zero-shot", "tip-adapter", "gda", "linear-probe", "proker", "taskres"])
def test_easy_rows_are_recognised_with_and_without_a_text(method: str) -> None:
    rows, y, text = rows_of()
    others, truth, _ = rows_of(seed=1)
    for words in (text, None):
        fitted = FewShotClassifier(method, text=words).fit(rows, y)
        assert fitted.score(others, truth) > 0.85
        assert_array_equal(fitted.classes_, ["cross", "disc", "ring"])
        assert_allclose(fitted.predict_proba(others).sum(axis=1), 1)


def test_it_gives_what_the_method_gives_of_the_same_task() -> None:
    rows, y, text = rows_of()
    names = sorted(text)
    embedding = torch.from_numpy(np.concatenate([text[name] for name in names]).astype(np.float32))
    label = torch.tensor([names.index(name) for name in y])
    task = Task(Text(embedding, torch.arange(3).repeat_interleave(3), tuple(names)),
                Rows(torch.from_numpy(rows.astype(np.float32)), label))
    estimator = FewShotClassifier("tip-adapter", text=text, params={"alpha": 2.0}, select="fixed").fit(rows, y)
    assert (estimator.select_, estimator.remarks_) == ("fixed", [])
    assert_array_equal(estimator.decision_function(rows), TipAdapter(alpha=2.0).fit(task).logits(rows).numpy())


def test_text_is_joined_by_name_and_never_by_position() -> None:
    """CLIP_benchmark#21: prompts in another order than the labels moved a published number."""
    rows, y, text = rows_of()
    mapping = FewShotClassifier("zero-shot", text=text).fit(rows, y).decision_function(rows)
    turned = dict(reversed(text.items()))
    order = ["ring", "cross", "disc"]
    for other in ({"text": turned}, {"text": {**text, "a class without rows": np.ones(16)}},
                  {"text": np.stack([text[name] for name in order]), "class_names": order}):
        assert_array_equal(FewShotClassifier("zero-shot", **other).fit(rows, y).decision_function(rows), mapping)


@pytest.mark.parametrize(("change", "message"), [
    ({"text": np.ones((3, 16))}, "say with class_names which label"),
    ({"text": np.ones((3, 16)), "class_names": ["disc", "ring"]}, "text has 3 entries"),
    ({"text": {"disc": np.ones(16), "rings": np.ones(16)}}, "no entry for 'cross', 'ring'"),
    ({"text": dict.fromkeys(("disc", "cross", "ring"), np.ones(8))}, "16 features"),
    ({"select": "loo"}, "select='loo' needs a text"),
    ({"select": "val-full"}, "there are: fixed, val, loo"),
    ({"seed": None}, "seed None: give a whole number"),
    ({"validation_fraction": 20}, "validation_fraction 20: give a part"),
    ({"method": "tip-adaptor"}, "did you mean 'tip-adapter'"),
    ({"params": {"bta": 2}}, "did you mean 'beta'"),
    ({"params": {"beta": "two"}}, "beta=two is not a number"),
    ({"method": "vt-clip"}, "patch tokens"),
    ({"method": TipAdapter()}, "is no method: give a name"),
    ({"method": dict}, "is no method: give a name"),
    ({"text": Text(torch.ones(3, 16), torch.arange(3), ("cross", "disc", "ring"))}, "text is a Text: .*from_store"),
])
def test_what_does_not_fit_is_a_value_error_that_says_what_to_do(change: dict[str, Any], message: str) -> None:
    rows, y, _ = rows_of()
    with pytest.raises(ValueError, match=message) as raised:
        FewShotClassifier(**change).fit(rows, y)
    assert isinstance(raised.value, onceclip.OnceclipError)


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.inputs != ("embedding",)])
def test_methods_that_need_more_than_embeddings_are_refused(method: str) -> None:
    rows, y, text = rows_of()
    with pytest.raises(ValueError, match="an estimator has embeddings alone"):
        FewShotClassifier(method, text=text).fit(rows, y)


@pytest.mark.parametrize("names", [(3, 1, 2), (True, False), ("1", "10", "2"), (1.0, 2.0)])
def test_labels_come_back_as_they_were_given(names: tuple[Any, ...]) -> None:
    rows, y, _ = rows_of(names)
    fitted = FewShotClassifier("gda").fit(rows, y)
    assert_array_equal(fitted.classes_, np.unique(y))
    assert fitted.predict(rows).dtype == y.dtype
    assert fitted.score(rows, y) > 0.9


def test_two_classes_have_one_decision() -> None:
    rows, y, text = rows_of(("disc", "ring"))
    fitted = FewShotClassifier("gda", text=text).fit(rows, y)
    decision = fitted.decision_function(rows)
    assert decision.shape == (16,)
    assert_array_equal(fitted.predict(rows), fitted.classes_[(decision > 0).astype(int)])


def test_it_works_in_searches_pipelines_and_cross_validation() -> None:
    rows, y, text = rows_of(shots=12)
    grid = {"params": [{"beta": 1.0}, {"beta": 5.5}], "method": ["tip-adapter", "proker"]}
    search = GridSearchCV(FewShotClassifier(text=text), grid, cv=StratifiedKFold(3)).fit(rows, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.85
    pipeline = make_pipeline(StandardScaler(), FewShotClassifier("gda"))
    assert cross_val_score(pipeline, rows, y, cv=3).mean() > 0.8
    assert pipeline.set_params(fewshotclassifier__params={"alpha": 0.0}).fit(rows, y).predict(rows[:2]).shape == (2,)


def test_a_copy_has_the_same_settings_and_a_pickle_the_same_answers() -> None:
    rows, y, text = rows_of()
    estimator = FewShotClassifier("clip-adapter", text=text, params={"epochs": 5}, seed=7)
    assert clone(estimator).get_params().keys() == estimator.get_params().keys()
    assert clone(estimator).seed == 7
    with pytest.raises(NotFittedError):
        clone(estimator.fit(rows, y)).predict(rows)
    again = pickle.loads(pickle.dumps(estimator))
    assert_array_equal(again.decision_function(rows), estimator.decision_function(rows))
    assert_array_equal(clone(estimator).fit(rows, y).decision_function(rows), estimator.decision_function(rows))


def test_validation_rows_choose_and_then_all_rows_are_fitted() -> None:
    rows, y, text = rows_of(shots=10)
    text = dict(zip(text, [*text.values()][::-1], strict=True))  # of other classes, so that the defaults are wrong
    chosen = FewShotClassifier("tip-adapter", text=text, select="val").fit(rows, y)
    values = chosen.classifier_.hyperparameters
    fixed = FewShotClassifier("tip-adapter", text=text, select="fixed").fit(rows, y)
    assert values != fixed.classifier_.hyperparameters
    assert_array_equal(chosen.decision_function(rows),
                       FewShotClassifier("tip-adapter", text=text, params=values).fit(rows, y).decision_function(rows))
    assert chosen.classifier_.calibrated_on == "val"
    held = FewShotClassifier("tip-adapter", text=text, select="val", params={"beta": 3.0}).fit(rows, y)
    assert held.classifier_.hyperparameters["beta"] == 3.0


def test_without_a_policy_rows_are_left_out_where_a_method_can_and_else_it_says_that_nothing_chose() -> None:
    rows, y, text = rows_of(shots=10)
    assert FewShotClassifier("gda", text=text).fit(rows, y).select_ == "loo"
    for defaults in (FewShotClassifier("gda"), FewShotClassifier("clip-adapter", text=text, params={"epochs": 2})):
        fitted = defaults.fit(rows, y)
        assert fitted.select_ == "fixed"
        assert "hyperparameters are defaults" in fitted.remarks_[0]


def test_probabilities_are_calibrated_where_rows_are_left_for_it() -> None:
    rows, y, text = rows_of(shots=10)
    fitted = FewShotClassifier("tip-adapter", text=text, select="loo").fit(rows, y)
    assert fitted.classifier_.calibrated_on == "loo"
    assert_allclose(fitted.predict_proba(rows), fitted.classifier_.probabilities(rows).numpy(), rtol=1e-4, atol=1e-6)
    assert FewShotClassifier("tip-adapter").fit(rows, y).classifier_.temperature == 1  # every row is part of a mean


def test_a_store_gives_text_scale_and_encoder_and_the_adapter_can_be_used_by_commands(
        store_path: Any, tmp_path: Any, run_json: Callable[..., dict[str, Any]]) -> None:
    store = onceclip.open_store(str(store_path))
    rows = store.rows("train")
    labels = [store.classes[number] for number in store.column("label")[rows]]
    estimator = FewShotClassifier.from_store(str(store_path), GDA, select="fixed").fit(store.embeddings(rows), labels)
    assert_array_equal(estimator.decision_function(store.embeddings(rows)),
                       GDA().fit(onceclip.make_task(store)).logits(store.embeddings(rows)).numpy()
                       [:, [store.classes.index(name) for name in estimator.classes_]])
    estimator.classifier_.save(tmp_path / "adapter")
    test = store.rows("test")
    truth = [store.classes[number] for number in store.column("label")[test]]
    found = run_json("evaluate", tmp_path / "adapter", store_path)
    assert found["accuracy"] == pytest.approx(estimator.score(store.embeddings(test), truth))


@pytest.mark.parametrize("make", [lambda each: VotingClassifier([("one", each)], voting="soft"),
                                  lambda each: BaggingClassifier(each, 2),
                                  lambda each: StackingClassifier([("one", each)], cv=2)])
def test_text_of_other_classes_is_refused_where_an_ensemble_has_recoded_the_labels(make: Callable[[Any], Any]) -> None:
    """It hands 0, 1, 2 for 3, 5, 7: the prompts of other classes, without a word."""
    rows, y, text = rows_of((3, 5, 7))
    _, _, others = rows_of(tuple(range(10)))
    alone = FewShotClassifier("zero-shot", text={**others, **text})
    assert alone.fit(rows, y).score(rows, y) > 0.8
    with pytest.raises(ValueError, match="in sorted order, name them by these numbers"):
        make(alone).fit(rows, y)
    by_number = {number: text[name] for number, name in enumerate(sorted(text))}
    assert make(FewShotClassifier("zero-shot", text=by_number)).fit(rows, y).score(rows, y) > 0.8


def test_classes_of_equal_text_are_told() -> None:
    rows, y, text = rows_of()
    with pytest.warns(UserWarning, match="with the same prompts, which text cannot tell apart: 'cross', 'disc'"):
        FewShotClassifier("zero-shot", text={**text, "disc": text["cross"]}).fit(rows, y)
