"""The weighted average of several methods: near the best of them, and never far below zero-shot."""

from dataclasses import replace

import pytest
import torch

from onceclip.adapters import (
    MethodError,
    Rows,
    Text,
    TipAdapter,
    ZeroShot,
    fit_automatically,
    load_classifier,
    transfer,
)
from onceclip.adapters.classifier import ClassifierModule
from onceclip.adapters.selection.automatic import _hold_out
from onceclip.adapters.selection.calibration import calibrated
from onceclip.adapters.selection.selection import default_policy, remarks_on


def accuracy(classifier, rows):
    return float((classifier.logits(rows.embedding).argmax(dim=1) == rows.label).double().mean())


@pytest.fixture(scope="module")
def rows(make_rows):
    return make_rows((60, 60, 60), 10, noise=0.6, seed=70)


def test_support_labels_that_are_noise_do_not_pull_it_far_below_zero_shot(make_task, rows):
    task = make_task((4, 4, 4), val=4, noise=0.6)
    task = replace(task, support=replace(task.support, label=task.support.label.roll(5)))
    classifier, reached = fit_automatically(task)
    assert accuracy(classifier, rows) >= accuracy(ZeroShot().fit(task), rows) - 0.02
    weight = {each.method: each.weight for each in reached}
    assert weight["linear-probe"] < 0.05 < weight["zero-shot"]
    assert sum(each.weight for each in reached[:-1]) == pytest.approx(1)


def test_text_that_is_wrong_does_not_keep_it_from_learning(make_task, rows):
    task = make_task((8, 8, 8), val=4, noise=0.4)
    task = replace(task, text=replace(task.text, embedding=-task.text.embedding))
    assert accuracy(fit_automatically(task)[0], rows) > accuracy(ZeroShot().fit(task), rows) + 0.3


def test_it_is_saved_and_exported_as_any_classifier_and_serves_no_other_classes(make_task, rows, tmp_path):
    task = make_task((4, 4, 4), val=4, noise=0.6)
    classifier, reached = fit_automatically(task)
    assert [each.method for each in reached] == ["zero-shot", "gda", "linear-probe", "lp++", "clip-adapter",
                                                 "automatic"]
    classifier.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert torch.equal(loaded.logits(rows.embedding), classifier.logits(rows.embedding))
    assert (loaded.method, loaded.calibrated_on, loaded.temperature) == ("automatic", "val", classifier.temperature)
    torch.testing.assert_close(ClassifierModule(loaded)(rows.embedding)[0], loaded.logits(rows.embedding))
    assert "lp++ share" in (tmp_path / "README.md").read_text()
    with pytest.raises(MethodError, match="an average of several methods serves the classes alone"):
        transfer(loaded, task)


def test_without_validation_rows_a_part_of_the_support_chooses_and_all_of_it_is_fitted(make_task, rows):
    task = make_task((4, 4, 2), noise=0.6)
    classifier, reached = fit_automatically(task, seed=3)
    assert classifier.calibrated_on == "held-out"
    assert accuracy(classifier, rows) >= accuracy(ZeroShot().fit(task), rows) - 0.05
    assert {round(3 * each.accuracy, 6) for each in reached} <= {0, 1, 2, 3}  # one image of each class
    again, _ = fit_automatically(task, seed=3)
    assert torch.equal(again.logits(rows.embedding), classifier.logits(rows.embedding))


@pytest.mark.parametrize(("shots", "method"), [((1, 1, 1), "lp++"), ((0, 0, 0), "zero-shot")])
def test_with_nothing_to_weigh_on_there_is_one_member(make_task, shots, method):
    classifier, reached = fit_automatically(make_task(shots))
    assert [(each.method, each.accuracy, each.weight) for each in reached] == [(method, None, 1.0)]
    assert (classifier.method, classifier.calibrated_on) == ("automatic", "")


def test_a_class_without_a_support_row_keeps_its_text(make_task, rows):
    task = make_task((6, 0, 6), val=4, noise=0.4)
    classifier, reached = fit_automatically(task)
    assert "linear-probe" not in [each.method for each in reached]
    right = classifier.logits(rows.embedding)[rows.label == 1].argmax(dim=1) == 1
    assert float(right.double().mean()) > 0.5


def test_without_text_it_is_a_linear_probe(make_task):
    task = make_task((4, 4, 4), val=4)
    bare = replace(task, text=Text(task.text.embedding[:0], task.text.class_index[:0], task.text.class_names))
    assert [each.method for each in fit_automatically(bare)[1]] == ["linear-probe", "automatic"]
    nothing = make_task((0, 0, 0))
    with pytest.raises(MethodError, match="neither text nor a labelled training row"):
        fit_automatically(replace(nothing, text=Text(task.text.embedding[:0], task.text.class_index[:0],
                                                     task.text.class_names)))


def test_copies_of_a_row_are_held_out_with_it_and_choose_nothing_by_being_left_out(make_task):
    """A row that is left out would be known by its copy."""
    task = make_task((4, 4, 4))
    support = Rows(task.support.embedding.repeat(2, 1), task.support.label.repeat(2))
    copied = replace(task, support=support)
    held = _hold_out(copied, 0)
    left, kept = (set(map(tuple, rows.embedding.tolist())) for rows in (held.val, held.support))
    assert not left & kept
    assert torch.bincount(held.val.label).tolist() == [2, 2, 2]  # one image of each class, and its copy
    plain, method = replace(task, support=support.at(slice(12))), TipAdapter()
    assert (default_policy(method, plain), default_policy(method, copied)) == ("loo", "fixed")
    assert calibrated(method.fit(plain), method, plain).calibrated_on == "loo"
    assert calibrated(method.fit(copied), method, copied).calibrated_on == ""
    assert remarks_on(method, plain, "loo") == []
    assert "copies of others" in remarks_on(method, copied, "loo")[0]


def test_rows_of_a_group_are_held_out_together_and_with_the_copies_of_any(make_task):
    """A frame that is left out would be known by the others of its video."""
    task = make_task((6, 6, 6))
    group = torch.arange(18) // 2  # three groups of two in each class
    embedding = task.support.embedding.clone()
    embedding[2] = embedding[1]  # so that the first two groups of the first class know each other
    grouped = replace(task, support=replace(task.support, embedding=embedding, group=group))
    for seed in range(5):
        held = _hold_out(grouped, seed)
        assert not {*held.val.group.tolist()} & {*held.support.group.tolist()}
        assert torch.bincount(held.val.label).tolist() in ([2, 2, 2], [4, 2, 2])
    alone = replace(task, support=replace(task.support, group=torch.arange(18) // 6))
    assert _hold_out(alone, 0).val is None  # nothing is left of a class whose one group is held out


@pytest.mark.parametrize("groups", [2, 6])
def test_images_of_a_group_are_held_out_together_in_all_classes_and_choose_nothing_by_being_left_out(make_task, groups):
    """Frames of a video, or visits of a patient with several findings: what is left out would be known by others."""
    plain, method = make_task((8, 8, 8)), TipAdapter()
    task = replace(plain, support=replace(plain.support, group=torch.arange(24) % groups))
    held = _hold_out(task, 0)
    assert len({*held.val.group.tolist()}) == 1  # a quarter of the groups, which all classes have
    assert {*held.val.group.tolist(), *held.support.group.tolist()} == {*range(groups)}
    assert len(held.val) == 24 // groups
    assert (default_policy(method, plain), default_policy(method, task)) == ("loo", "fixed")
    assert calibrated(method.fit(task), method, task).calibrated_on == ""
    assert "of one group" in remarks_on(method, task, "loo")[0]
    alone = replace(plain, support=replace(plain.support, group=torch.full((24,), -1)))
    assert default_policy(method, alone) == "loo"
    assert torch.equal(_hold_out(alone, 0).val.embedding, _hold_out(plain, 0).val.embedding)
