"""What a user may rely on for every method, whichever it is; a method added to `METHODS` is tested without a change."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import MethodError, Rows, Text, ZeroShot, load_classifier

SHAPES = {"ragged": ((1, 5, 3), 10), "one shot": ((1, 1, 1), 10), "two classes": ((4, 4), 10),
          "wide": ((3, 3, 3), 40), "narrow": ((12, 12, 12), 4), "a class without images": ((4, 0, 4), 10)}


def same(first, second):
    assert_close(first, second, rtol=1e-3, atol=2e-3)


def reordered(task, order):
    """The same task with classes in another order."""
    place = order.argsort()
    names = tuple(task.text.class_names[number] for number in order.tolist())
    text = Text(task.text.embedding, place[task.text.class_index], names)
    return replace(task, text=text, support=replace(task.support, label=place[task.support.label]))


def test_logits_of_a_row_do_not_depend_on_other_rows(classifier, queries):
    alone = torch.cat([classifier.logits(row.unsqueeze(0)) for row in queries])
    assert_close(classifier.logits(queries), alone, rtol=1e-5, atol=1e-4)


def test_logits_do_not_depend_on_the_size_of_pieces(classifier, queries, monkeypatch):
    whole = classifier.logits(queries)
    monkeypatch.setattr("onceclip.adapters.heads.batched.elements_at_once", lambda device: 4 * classifier.head.width)
    assert_close(classifier.logits(queries), whole, rtol=1e-5, atol=1e-4)


def test_permuting_support_rows_changes_nothing(method, make_task, queries):
    task = make_task((2, 5, 4), views=2)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    others = {name: values[order] for name, values in task.support.others.items()}
    support = Rows(task.support.embedding[order], task.support.label[order], task.support.views[order], others)
    same(method.fit(replace(task, support=support)).logits(queries), method.fit(task).logits(queries))


def test_permuting_classes_permutes_logits(method, make_task, queries):
    task, order = make_task((2, 5, 4)), torch.tensor([2, 0, 1])
    before, after = method.fit(task), method.fit(reordered(task, order))
    same(after.logits(queries), before.logits(queries)[:, order])
    assert after.predict(queries) == before.predict(queries)


@pytest.mark.parametrize("shape", SHAPES)
def test_easy_images_are_recognised_whatever_the_shape_of_the_support(method, make_task, make_rows, shape):
    """Also guards against NaN: a row of NaN is never right in all classes."""
    shots, dim = SHAPES[shape]
    shown = make_rows([10 if count else 0 for count in shots], dim, noise=0.05, seed=60)
    classifier = method.fit(make_task(shots, dim, noise=0.05))
    logits = classifier.logits(shown.input(method.inputs))
    assert torch.isfinite(logits).all()
    assert (logits.argmax(dim=1) == shown.label).float().mean() > 0.9


def test_saving_and_loading_changes_no_bit(method, make_task, queries, tmp_path):
    fitted = replace(method.fit(make_task(views=2)), provenance={"encoder": {"name": "ViT-B-32"}, "seed": 4})
    fitted.save(tmp_path / "new" / "folder")
    loaded = load_classifier(tmp_path / "new" / "folder")
    assert torch.equal(loaded.logits(queries), fitted.logits(queries))
    for name in ("class_names", "dim", "method", "hyperparameters", "provenance"):
        assert getattr(loaded, name) == getattr(fitted, name)


def test_inputs_are_not_changed(method, make_task, queries):
    task = make_task(views=2, val=2)
    given = [task.text.embedding, task.text.class_index, task.support.embedding, task.support.label,
             task.support.views, task.val.embedding, task.val.label, queries]
    before = [tensor.clone() for tensor in given]
    method.fit(task).logits(queries)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


def test_a_method_looks_at_the_text_or_does_without_prompts(method, make_task, queries):
    task = make_task(val=2)
    names = task.text.class_names
    alone = replace(task, text=Text(task.text.embedding[:0], task.text.class_index[:0], names))
    if method.needs_text:
        with pytest.raises(MethodError, match="has class names alone"):
            method.fit(alone)
        other = Text(task.text.embedding.flip(1), task.text.class_index, names)
        assert not torch.equal(method.fit(replace(task, text=other)).logits(queries), method.fit(task).logits(queries))
    else:
        assert torch.equal(method.fit(alone).logits(queries), method.fit(task).logits(queries))


def test_half_precision_embeddings_give_the_same_classes(method, make_task, queries):
    task = make_task((5, 5, 5))
    exact, rounded = (method.fit(each).logits(rows) for each, rows in
                      ((task, queries), (task.to(torch.float16).to(torch.float32), queries.half())))
    top = exact.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.02 * (exact.max() - exact.min())
    assert clear.float().mean() > 0.7
    assert torch.equal(exact.argmax(dim=1)[clear], rounded.argmax(dim=1)[clear])


@pytest.mark.parametrize("factor", [0.25, 37.0])
def test_brightness_of_a_query_embedding_changes_nothing(classifier, queries, factor):
    assert_close(classifier.logits(factor * queries), classifier.logits(queries), rtol=1e-5, atol=1e-4)


def test_logit_scale_and_bias_of_the_encoder_reach_the_zero_shot_term(make_task, queries):
    task = make_task()
    scaled = ZeroShot().fit(replace(task, logit_scale=50.0, logit_bias=-10.0)).logits(queries)
    assert_close(scaled, ZeroShot().fit(task).logits(queries) / 2 - 10)
