"""Scores that see every prompt: the best one, and weights that each image chooses, against loops over the formula."""

import math
from dataclasses import replace

import pytest
import torch

from onceclip.adapters import MethodError, Text, ZeroShot, load_classifier
from onceclip.adapters.heads.prompts import tempered

OPTIONS = [{"prompts": "max"}, {"prompts": "autoclip"}, {"prompts": "softmax", "entropy": 0.6}]


@pytest.fixture
def task(make_task):
    """Three classes with five shared templates and, but for the last class, another number of sentences of its own."""
    plain = make_task().to(torch.float64)
    generator = torch.Generator().manual_seed(5)
    counts = (7, 6, 6)
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    template = torch.cat([torch.cat([torch.arange(5), torch.full((count - 5,), -1)]) for count in counts])
    prompts = plain.text.class_weights[index] + 0.2 * torch.randn(sum(counts), 10, generator=generator).double()
    text = Text(4 * prompts, index, plain.text.class_names, template)
    return replace(plain, text=text, logit_scale=30.0, logit_bias=-4.0)


@pytest.fixture
def rows(make_rows):
    return make_rows((5, 5, 5), 10, seed=50).embedding.double()


def unit(vector):
    return vector / vector.dot(vector).sqrt()


def by_hand(task, row, prompts, entropy=0.85):
    """Logits of one row, with plain loops."""
    text, row = task.text, unit(row)
    groups = [[[float(row.dot(unit(vector))) for vector, index, template
                in zip(text.embedding, text.class_index, text.template_id, strict=True)
                if index == number and template == group] for number in range(3)] for group in (0, 1, 2, 3, 4, -1)]
    if prompts == "max":
        best = [max(max(group[number]) for group in groups) for number in range(3)]
        return [30 * value - 4 for value in best]
    cosine = [[sum(values) / len(values) for values in group] for group in groups]
    mean = [sum(group[number] for group in cosine) / 6 for number in range(3)]
    total = sum(math.exp(value) for value in mean)
    share = [math.exp(value) / total if prompts == "autoclip" else 1 / 3 for value in mean]
    merit = [sum(weight * value for weight, value in zip(share, group, strict=True)) for group in cosine]

    def weights(sharpness):
        raised = [math.exp(sharpness * (value - max(merit))) for value in merit]
        return [value / sum(raised) for value in raised]

    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        even = -sum(value * math.log2(value) for value in weights(middle) if value)
        low, high = (middle, high) if even > entropy * math.log2(6) else (low, middle)
    weight = weights(low)
    return [30 * sum(each * group[number] for each, group in zip(weight, cosine, strict=True)) - 4
            for number in range(3)]


@pytest.mark.parametrize("values", OPTIONS, ids=lambda values: values["prompts"])
def test_scores_are_those_of_the_formula_written_out(task, rows, values):
    head = ZeroShot(**values).fit(task).head
    actual = head(torch.nn.functional.normalize(rows, dim=1))
    expected = torch.tensor([by_hand(task, row, **values) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    single = ZeroShot(**values).fit(task.to(torch.float32)).logits(rows)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", OPTIONS, ids=lambda values: values["prompts"])
def test_logits_of_a_row_do_not_depend_on_other_rows_and_classes_permute(task, rows, values):
    whole = ZeroShot(**values).fit(task).logits(rows)
    alone = torch.cat([ZeroShot(**values).fit(task).logits(row.unsqueeze(0)) for row in rows])
    torch.testing.assert_close(alone, whole)
    order = torch.tensor([2, 0, 1])
    text = task.text
    other = replace(task, text=Text(text.embedding, order.argsort()[text.class_index],
                                    tuple(text.class_names[number] for number in order), text.template_id))
    torch.testing.assert_close(ZeroShot(**values).fit(other).logits(rows), whole[:, order])


@pytest.mark.parametrize("values", OPTIONS, ids=lambda values: values["prompts"])
def test_saving_and_loading_changes_no_bit(task, rows, tmp_path, values):
    fitted = ZeroShot(**values).fit(task.to(torch.float32))
    fitted.save(tmp_path)
    assert torch.equal(load_classifier(tmp_path).logits(rows), fitted.logits(rows))


def test_even_weights_are_the_mean_of_the_scores(task, rows):
    aligned = task.text.template_id >= 0
    text = Text(task.text.embedding[aligned], task.text.class_index[aligned], task.text.class_names,
                task.text.template_id[aligned], rule="score-mean")
    even = ZeroShot(prompts="autoclip", entropy=1.0).fit(replace(task, text=text)).logits(rows)
    torch.testing.assert_close(even, ZeroShot().fit(replace(task, text=text)).logits(rows))


@pytest.mark.parametrize("entropy", [0.2, 0.85, 0.99])
def test_the_weights_have_the_entropy_that_was_asked_for(entropy):
    merit = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).double()
    weight = tempered(1e-3 * merit, entropy * math.log(16))
    assert ((weight.log() * weight).sum(dim=1) / -math.log(16)).allclose(torch.tensor(entropy).double())
    assert torch.equal(weight.argmax(dim=1), merit.argmax(dim=1))


def test_equal_templates_have_equal_weights_and_rounding_decides_nothing():
    weight = tempered(0.3 + 1e-8 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 0.85 * math.log(4))
    assert torch.equal(weight, torch.full((5, 4), 0.25))


def test_weights_for_each_image_need_templates_that_the_classes_share(make_task):
    with pytest.raises(MethodError, match=r"prompts=autoclip .* several templates.*onceclip text") as caught:
        ZeroShot(prompts="autoclip").fit(make_task())
    assert "\n" not in str(caught.value)
    assert ZeroShot(prompts="max").fit(make_task()).head.classes == 3
