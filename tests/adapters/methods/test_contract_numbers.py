"""What every registered method keeps in single precision, under selection, and from one fit to the next."""

from dataclasses import replace

import pytest
import torch

from onceclip.adapters import METHODS, Rows, fit_selected


def centred(logits):
    return logits - logits.mean(dim=1, keepdim=True)


def test_single_and_double_precision_agree(method, make_task, make_rows):
    """Within a thousandth of the logits' range; training keeps to few epochs, in which nothing can drift apart."""
    task, rows = make_task((4, 5, 3), dtype=torch.float64), make_rows((7, 7, 7), 10, seed=50, dtype=torch.float64)
    short = {"epochs": 3, "epsilon": 1e-3}
    method = method.with_values(**{name: value for name, value in short.items() if name in method.values})
    narrow, wide = (method.fit(task.to(kind)).logits(rows.input(method.inputs).to(kind))
                    for kind in (torch.float32, torch.float64))
    assert (centred(narrow) - centred(wide)).abs().max() < 1e-3 * max(float(wide.max() - wide.min()), 1.0)


def test_what_selection_chose_is_what_a_fit_of_the_chosen_values_gives(case, make_task, make_method, queries):
    """The result row names values with which anybody gets the same classifier. One retrained setting is searched."""
    method, task = make_method(case), make_task((3, 4, 3), val=5, noise=0.5)
    searched = [name for name, setting in method.hyperparameters.items() if setting.search]
    retrained = {name for name in searched if method.trained and method.hyperparameters[name].retrain}
    held = set(sorted(retrained)[1:])
    found = fit_selected(method, task, "val", held)
    assert (found.tried > 0) == bool(set(searched) - held or method.mixing)
    values = {name: value for name, value in found.classifier.hyperparameters.items() if name != "preset"}
    again = METHODS[case[0]](**values).fit(task)
    torch.testing.assert_close(found.classifier.logits(queries), again.logits(queries), rtol=1e-4, atol=1e-3)
    if found.accuracy is not None:
        rows = task.val.input(method.inputs)
        assert found.accuracy == float((again.logits(rows).argmax(dim=1) == task.val.label).double().mean())


def test_with_fixed_values_the_labels_of_validation_rows_are_not_read(method, make_task, queries):
    """Only `keep=best` looks at them."""
    method = method.with_values(keep="last") if method.values.get("keep") == "best" else method
    task = make_task((4, 4, 4), val=4)
    other = replace(task, val=replace(task.val, label=task.val.label.roll(1)))
    assert torch.equal(method.fit(task).logits(queries), method.fit(other).logits(queries))
    assert torch.equal(method.fit(task).logits(queries), method.fit(replace(task, val=None)).logits(queries))


@pytest.mark.parametrize("views", [1, 3])
def test_equal_views_count_as_the_image_itself(method, make_task, queries, views):
    """One stored view that is the plain image, or copies of it, change no class of a clear row."""
    task = make_task((4, 4, 4), noise=0.1)
    support = task.support
    copied = replace(support, views=support.embedding.unsqueeze(1).repeat(1, views, 1))
    plain, seen = (method.fit(replace(task, support=each)).logits(queries) for each in (support, copied))
    assert (plain.argmax(dim=1) == seen.argmax(dim=1)).float().mean() > 0.95


def test_a_task_of_one_image_per_class_with_views_can_be_fitted(method, make_task, queries):
    classifier = method.fit(make_task((1, 1, 1), views=4, noise=0.1))
    assert torch.isfinite(classifier.logits(queries)).all()


def test_no_rows_to_classify_give_no_logits(classifier, queries):
    assert classifier.logits(queries[:0]).shape == (0, 3)


def test_methods_see_a_support_without_its_order_by_class(method, make_task, queries):
    """Reading the label by position was a fault of three reference codes: the last class first, classes interleaved.

    With an epsilon under which gradients that are zero but for rounding move nothing.
    """
    if "epsilon" in method.values:
        method = method.with_values(epsilon=1e-5)
    task = make_task((3, 3, 3))
    order = torch.arange(9).view(3, 3).flip(0).T.flatten()
    support = task.support
    others = {name: values[order] for name, values in support.others.items()}
    moved = replace(task, support=Rows(support.embedding[order], support.label[order], None, others))
    torch.testing.assert_close(method.fit(moved).logits(queries), method.fit(task).logits(queries),
                               rtol=1e-3, atol=2e-3)
