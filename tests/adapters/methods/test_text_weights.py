"""Class vectors from prompts: the rules of the papers, each against its formula written out."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from onceclip.adapters import MethodError, Rows, Task, Text, ZeroShot, method_class
from onceclip.adapters.text import RULES
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

from ..golden import golden_queries, golden_task

TEMPLATES = torch.tensor([0, 1, 2, -1, -1] * 3)


@pytest.fixture
def close(dtype):
    """Function that compares with a formula: 1e-9 in float64, 1e-4 in float32."""
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    return lambda actual, expected: torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def text(dtype):
    return golden_task(dtype).text


@pytest.fixture
def queries(dtype):
    return normalize(golden_queries(), dim=1).to(dtype)


def of(text, number):
    """Raw prompt vectors of one class."""
    return [vector.double() for vector, index in zip(text.embedding, text.class_index, strict=True) if index == number]


@pytest.mark.parametrize("rule", RULES)
def test_class_vectors_follow_their_rule_written_out(text, close, rule):
    expected = []
    for number in range(3):
        vectors = of(text, number)
        units = [vector / vector.dot(vector).sqrt() for vector in vectors]
        mean = sum(vectors if rule == "raw-mean" else units) / len(vectors)
        expected.append(mean if rule == "score-mean" else mean / mean.dot(mean).sqrt())
    close(replace(text, rule=rule).class_weights, torch.stack(expected))


def test_score_mean_is_the_mean_of_the_prompts_cosines(text, queries, close):
    cosines = queries @ text.unit.T
    expected = torch.stack([cosines[:, text.class_index == number].mean(dim=1) for number in range(3)], dim=1)
    close(queries @ replace(text, rule="score-mean").class_weights.T, expected)


def test_the_rules_differ_and_every_method_follows_the_texts(make_task, make_rows):
    task, queries = make_task(), make_rows((4, 4, 4), 10, seed=9).embedding
    logits = [method_class(name)().fit(replace(task, text=replace(task.text, rule=rule))).logits(queries)
              for name in ("zero-shot", "tip-adapter", "gda") for rule in RULES]
    assert all(not torch.allclose(first, second, atol=1e-3)
               for place, first in enumerate(logits) for second in logits[:place])


def test_given_weights_of_prompts_count_as_repeated_prompts_do(text, close):
    weight = torch.tensor([1, 2, 0, 1, 3] * 3)
    repeated = weight.nonzero()[:, 0].repeat_interleave(weight[weight > 0])
    for rule in RULES:
        given = replace(text, rule=rule, prompt_weight=0.5 * weight.to(text.embedding))
        longer = Text(text.embedding[repeated], text.class_index[repeated], text.class_names, rule=rule)
        close(given.class_weights, longer.class_weights)


@pytest.mark.parametrize(("values", "message"), [
    ({"rule": "median"}, "no rule 'median'.*unit-mean"),
    ({"template_id": torch.zeros(2, dtype=torch.int64)}, r"15 prompts and template_id of shape \(2,\)"),
    ({"prompt_weight": torch.ones(4)}, "prompt_weight of shape"),
    ({"prompt_weight": -torch.ones(15)}, "not negative"),
    ({"prompt_weight": torch.tensor([0.0] * 5 + [1] * 10)}, "every class"),
    ({"prompt_weight": torch.full((15,), float("nan"))}, "finite")])
def test_what_does_not_fit_a_text_is_refused_in_one_line(text, values, message):
    with pytest.raises(MethodError, match=message) as caught:
        replace(text, **values)
    assert "\n" not in str(caught.value)


def test_templates_of_all_classes_are_groups_and_the_rest_is_one(text):
    mixed = replace(text, template_id=TEMPLATES)
    assert mixed.groups.tolist() == [0, 1, 2, 3, 3] * 3
    assert mixed.bank.shape == (4, 3, 8)
    torch.testing.assert_close(mixed.bank[3, 1], mixed.unit[8:10].mean(dim=0))
    assert text.groups.tolist() == [0] * 15


def test_a_rest_that_leaves_out_a_class_makes_no_groups(text):
    template = torch.tensor([0, 1, 2, -1, -1, 0, 1, 2, 2, 2, 0, 1, 2, -1, -1])
    assert set(replace(text, template_id=template).groups.tolist()) == {0}


@pytest.fixture
def ensemble(make_task):
    """A task of three classes with four templates, of which the third says nothing."""
    task = make_task((6, 6, 6), noise=0.2)
    generator = torch.Generator().manual_seed(3)
    centre = task.text.class_weights
    noise = torch.tensor([0.1, 0.2, 9.0, 0.3]).repeat(3).unsqueeze(1)
    prompts = centre.repeat_interleave(4, dim=0) + noise * torch.randn(12, 10, generator=generator)
    text = Text(5 * prompts, torch.arange(3).repeat_interleave(4), task.text.class_names, torch.arange(4).repeat(3))
    return replace(task, text=text)


def accuracy(classifier, rows):
    return float((classifier.logits(rows.embedding).argmax(dim=1) == rows.label).float().mean())


def test_template_selection_leaves_out_the_template_that_says_nothing(ensemble, make_rows):
    shown = make_rows((30, 30, 30), 10, noise=0.2, seed=70)
    method = method_class("template-selection")(keep=2)
    _, rank = method.prepare(ensemble)
    assert rank[2] == 3
    kept = torch.argsort(rank)[:2]
    chosen = torch.isin(ensemble.text.template_id, kept)
    by_hand = Text(ensemble.text.embedding[chosen], ensemble.text.class_index[chosen], ensemble.text.class_names)
    fitted = method.fit(ensemble)
    torch.testing.assert_close(fitted.logits(shown.embedding),
                               ZeroShot().fit(replace(ensemble, text=by_hand)).logits(shown.embedding))
    assert accuracy(fitted, shown) > accuracy(ZeroShot().fit(ensemble), shown)
    everything = method_class("template-selection")(keep=64).fit(ensemble)
    torch.testing.assert_close(everything.logits(shown.embedding), ZeroShot().fit(ensemble).logits(shown.embedding))


def test_learned_prompt_weights_start_at_zero_shot_and_turn_away_from_a_template_that_says_nothing(ensemble, make_rows):
    shown = make_rows((30, 30, 30), 10, noise=0.2, seed=70)
    plain = ZeroShot().fit(ensemble).logits(shown.embedding)
    torch.testing.assert_close(method_class("prompt-weights")(epochs=0).fit(ensemble).logits(shown.embedding), plain)
    method = method_class("prompt-weights")(epochs=60)
    theta = train([Run(method, ensemble, method.prepare(ensemble), 0)])[0]["theta"]
    assert theta.shape == (4,)
    assert theta.argmin() == 2
    loss = cross_entropy(method.fit(ensemble).logits(shown.embedding), shown.label)
    assert loss < 0.95 * cross_entropy(plain, shown.label)
    together = train([Run(replaced, ensemble, ensemble, 0) for replaced in
                      (method.with_values(learning_rate=rate) for rate in (0.1, 0.2, 0.3, 0.4))])
    torch.testing.assert_close(together[0]["theta"], theta, rtol=1e-3, atol=1e-4)


def test_ragged_prompts_without_templates_have_a_learned_weight_each(make_task):
    task = make_task()
    method = method_class("prompt-weights")()
    assert method.initial(method.prepare(task), torch.Generator())["theta"].shape == (len(task.text.embedding),)


def test_a_text_moves_with_its_task(text):
    task = Task(replace(text, template_id=TEMPLATES), Rows(torch.ones(3, 8), torch.arange(3)))
    moved = task.to(torch.float32).text
    assert (moved.embedding.dtype, moved.template_id.dtype) == (torch.float32, torch.int64)
