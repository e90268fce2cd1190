"""What a user may rely on for every strategy, whichever it is; one added to `INFERENCES` is tested without a change."""

from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import LinearProbePreproj, MethodError, Text
from onceclip.adapters.inference import INFERENCES, Inference, Queries, queries_of

from .conftest import HEADS


def probabilities(inferred):
    assert torch.isfinite(inferred.logits).all()
    return inferred.logits.softmax(dim=1)


def same(first, second, tolerance=1e-4):
    assert_close(probabilities(first), probabilities(second), rtol=0, atol=tolerance)


def test_a_strategy_says_what_it_is(strategy):
    for text in (strategy.summary, strategy.source, strategy.equation):
        assert text
    assert strategy.prior in ("uniform", "none", "estimated")
    assert strategy.fitted_on in ("nothing", "train", "query")
    assert all(setting.parse(name, setting.default) == setting.default
               for name, setting in strategy.hyperparameters.items())


def test_queries_have_no_place_for_labels():
    assert {field.name for field in fields(Queries)} == {"embedding", "inputs", "views", "patches"}


@pytest.mark.parametrize("head", HEADS)
def test_easy_images_are_recognised_with_every_head(strategy, head, make_task, make_queries, make_unlabelled):
    fitted = HEADS[head]().fit(make_task((4, 4, 4), noise=0.05))
    queries, label = make_queries(fitted, noise=0.05)
    found = strategy.run(fitted, queries, make_task(noise=0.05), make_unlabelled(fitted, 0.05))
    assert found.logits.shape == (len(queries), 3)
    assert (probabilities(found).argmax(dim=1) == label).float().mean() > 0.9


def test_nothing_that_was_given_is_changed(strategy, classifier, queries, task, unlabelled):
    given = [queries.embedding, queries.views, queries.patches, unlabelled.embedding, task.text.embedding,
             classifier.head.weight]
    before = [tensor.clone() for tensor in given]
    strategy.run(classifier, queries, task, unlabelled)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


def test_a_strategy_forgets_between_runs(strategy, classifier, queries, task, unlabelled):
    first = strategy.run(classifier, queries, task, unlabelled)
    strategy.run(classifier, queries.of(torch.arange(5)), task, unlabelled)
    again = strategy.run(classifier, queries, task, unlabelled)
    assert torch.equal(first.logits, again.logits)


def test_permuting_a_set_permutes_its_answers_and_rows_seen_alone_do_not_know_each_other(
        strategy, classifier, queries, task, unlabelled):
    if strategy.sees == "stream":
        pytest.skip("the order of a stream counts")
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(6))
    whole = strategy.run(classifier, queries, task, unlabelled)
    moved = strategy.run(classifier, queries.of(order), task, unlabelled)
    assert_close(probabilities(moved), probabilities(whole)[order], rtol=0, atol=1e-4)
    if not strategy.transductive:
        alone = torch.cat([probabilities(strategy.run(classifier, queries.of(torch.tensor([row])), task, unlabelled))
                           for row in range(5)])
        assert_close(alone, probabilities(whole)[:5], rtol=0, atol=1e-4)


def test_pieces_of_the_computation_change_nothing(strategy, classifier, queries, task, unlabelled, monkeypatch):
    whole = strategy.run(classifier, queries, task, unlabelled)
    for module in ("base", "prior_bias"):
        monkeypatch.setattr(f"onceclip.adapters.inference.{module}.elements_at_once", lambda device: 4 * 10)
    monkeypatch.setattr("onceclip.adapters.inference.graph._ELEMENTS", 50)
    same(strategy.run(classifier, queries, task, unlabelled), whole, 1e-5)


def test_a_class_may_be_absent_from_the_queries(strategy, classifier, make_queries, task, unlabelled):
    queries, label = make_queries(classifier, (9, 0, 8), noise=0.05)
    found = probabilities(strategy.run(classifier, queries, task, unlabelled))
    assert (found.argmax(dim=1) == label).float().mean() > 0.5


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_image_or_two_are_enough(strategy, classifier, queries, task, unlabelled, rows):
    found = strategy.run(classifier, queries.of(torch.arange(rows)), task, unlabelled)
    assert probabilities(found).shape == (rows, 3)


def test_equal_images_get_the_same_class(strategy, classifier, queries, task, unlabelled):
    if strategy.sees == "stream":
        pytest.skip("a stream remembers the first of two equal images")
    twice = queries.of(torch.tensor([0, 0, 0, 0, 0, 0]))
    found = probabilities(strategy.run(classifier, twice, task, unlabelled))
    assert len(found.argmax(dim=1).unique()) == 1


def test_the_classifier_that_is_left_behind_reads_rows_one_by_one_and_is_saved(
        strategy, classifier, queries, task, unlabelled, tmp_path):
    from onceclip.adapters import load_classifier

    left = strategy.run(classifier, queries, task, unlabelled).classifier
    if left is None:
        return
    assert left.class_names == classifier.class_names
    left.save(tmp_path / "adapter")
    loaded = load_classifier(tmp_path / "adapter")
    assert torch.equal(loaded.logits(queries.embedding), left.logits(queries.embedding))
    assert loaded.provenance["inference"]["fitted_on"] == strategy.fitted_on
    alone = torch.cat([left.logits(row.unsqueeze(0)) for row in queries.embedding])
    assert_close(left.logits(queries.embedding), alone, rtol=1e-4, atol=1e-4)


def test_without_prompts_a_cosine_head_stands_in_for_the_text(strategy, classifier, queries, task, unlabelled):
    names = task.text.class_names
    nameless = replace(task, text=Text(task.text.embedding[:0], task.text.class_index[:0], names))
    same(strategy.run(classifier, queries, nameless, unlabelled), strategy.run(classifier, queries, task, unlabelled),
         1e-3)


def test_the_precision_of_the_head_is_kept(strategy, task, make_queries, make_unlabelled):
    fitted = HEADS["zero-shot"]().fit(task.to(torch.float64))
    queries, rows = make_queries(fitted)[0], make_unlabelled(fitted)
    assert strategy.run(fitted, queries, task.to(torch.float64), rows).logits.dtype == torch.float64


def test_a_strategy_that_is_fitted_on_train_rows_says_where_there_are_none(classifier, queries, task):
    with pytest.raises(MethodError, match="fit_on=query"):
        INFERENCES["dn"]().run(classifier, queries, task)


def test_a_strategy_that_sees_what_nobody_has_is_refused():
    with pytest.raises(MethodError, match="give one of set, views, stream, patches"):
        type("Odd", (Inference,), {"sees": "labels"})


def test_an_inductive_strategy_reads_train_rows_or_the_queries(strategy, classifier, queries, task, unlabelled):
    if "fit_on" not in strategy.hyperparameters:
        pytest.skip("fits nothing")
    train, query = (strategy.with_values(fit_on=each) for each in ("train", "query"))
    found = train.run(classifier, queries, task, unlabelled)
    assert (train.transductive, query.transductive) == (False, True)
    assert_close(found.classifier.logits(queries.embedding), found.logits, rtol=1e-4, atol=1e-4)
    first = queries.of(torch.arange(5))
    assert_close(probabilities(train.run(classifier, first, task, unlabelled)), probabilities(found)[:5])
    same(query.run(classifier, queries, task), query.run(classifier, queries, task, unlabelled), 0)


def test_an_adapter_of_other_outputs_is_read_or_refused_in_one_line(strategy, make_task, make_rows, unlabelled, task):
    if strategy.sees != "set":
        pytest.skip("views and patches are embeddings")
    fitted = LinearProbePreproj().fit(make_task((4, 4, 4)))
    rows, others = (make_rows((9, 7, 8), 10, seed=seed) for seed in (70, 71))
    queries, train = (queries_of(fitted, each.embedding, each.input(fitted.inputs)) for each in (rows, others))
    if strategy.name == "inmap":
        with pytest.raises(MethodError, match="use an adapter of embeddings"):
            strategy.run(fitted, queries, task, train)
        return
    found = strategy.run(fitted, queries, task, train)
    assert (probabilities(found).argmax(dim=1) == rows.label).float().mean() > 0.5
    if strategy.name in ("stata", "transclip", "zlap"):
        assert found.classifier is None
        with pytest.raises(MethodError, match="use an adapter of embeddings"):
            strategy.with_values(fit_on="train").run(fitted, queries, task, train)


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_what_is_left_behind_weighs_the_classifier_as_the_fit_did(name, classifier, queries, task, unlabelled):
    strategy = INFERENCES[name](fit_on="train", text_weight=0.25)
    left = strategy.run(classifier, queries, task, unlabelled).classifier
    _, head, _ = strategy.solve(classifier, unlabelled, task)
    expected = 0.25 * classifier.head(queries.embedding) + head(queries.embedding)
    assert_close(left.head(queries.embedding), expected, rtol=1e-4, atol=1e-4)
