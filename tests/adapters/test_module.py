"""A classifier as a torch module, and what is linear in it as one linear head."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import CLAP, LinearProbe, Text, TipAdapter, ZeroShot, merge
from onceclip.adapters.classifier import ClassifierModule
from onceclip.adapters.heads import Linear, Projected, Sum
from onceclip.adapters.heads.linear import as_linear
from onceclip.adapters.ops import unit

LINEAR = {"zero-shot", "template-selection", "prompt-weights", "linear-probe", "lpclip", "linear-probe-preproj",
          "linear-probe-adamw", "zs-lp", "clap", "lp++", "cross-modal-lp", "wise-ft", "taskres", "clip-a-self",
          "meta-adapter", "gda", "gda-em", "coop", "kgcoop", "prograd", "cpl", "upl", "eco", "pre", "tai-dpt",
          "ss-text", "lafter-text"}


def test_the_module_of_every_method_says_what_the_classifier_says(method, make_task, queries):
    fitted = method.fit(make_task((2, 5, 4)))
    logits, probabilities = ClassifierModule(fitted)(queries)
    assert_close(logits, fitted.logits(queries), rtol=1e-5, atol=1e-4)
    assert_close(probabilities, fitted.probabilities(queries), rtol=1e-4, atol=1e-5)


def test_what_is_linear_collapses_to_the_same_logits(case, method, make_task, queries):
    """Which methods are linear by default is part of what their users rely on."""
    fitted = method.fit(make_task((2, 5, 4)))
    linear = as_linear(fitted.head)
    name, values = case
    assert (linear is not None) == (name in LINEAR or values == {"branch": "text"})
    if linear is not None:
        assert_close(linear(unit(queries)), fitted.logits(queries), rtol=1e-5, atol=1e-3)


def test_a_nested_sum_of_linear_heads_collapses_with_and_without_biases():
    generator = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(3, 5, generator=generator) for _ in range(3))
    bias, rows = torch.randn(3, generator=generator), unit(torch.randn(7, 5, generator=generator))
    head = Sum((Linear(first), Sum((Linear(second, bias), Projected(Linear(third))), (0.5, torch.tensor(-2.0)))),
               (3.0, 0.25))
    linear = as_linear(head)
    assert_close(linear(rows), head(rows))
    assert as_linear(Sum((Linear(first), Linear(second)), (1.0, 1.0))).bias is None
    assert as_linear(Sum((Linear(first), Projected(Linear(second), torch.eye(5))), (1.0, 1.0))) is None


def test_small_differences_of_large_terms_survive_the_collapse():
    large = torch.full((2, 4), 3.0e7)
    small = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    linear = as_linear(Sum((Linear(large), Linear(small), Linear(large)), (1.0, 0.25, -1.0)))
    assert_close(linear.weight, 0.25 * small, rtol=0, atol=0)


def test_a_merge_of_linear_classifiers_is_linear(make_task, make_rows):
    task, queries = make_task((3, 3, 3)), make_rows((7, 7, 7), 10, seed=50).embedding
    merged = merge(LinearProbe(l2=0.03).fit(task), CLAP(epochs=5).fit(task), 0.3)
    assert_close(as_linear(merged.head)(unit(queries)), merged.logits(queries), rtol=1e-5, atol=1e-4)
    assert as_linear(merge(TipAdapter().fit(task), ZeroShot().fit(task)).head) is None


def test_the_module_moves_and_compiles_as_modules_do(make_task, make_rows):
    fitted = TipAdapter().fit(make_task((2, 5, 4)))
    module, queries = ClassifierModule(fitted), make_rows((7, 7, 7), 10, seed=50).embedding
    assert not list(module.parameters())
    assert {name for name, _ in module.named_buffers()} == set(module.state_dict())
    double = module.double()
    assert {values.dtype for values in double.state_dict().values() if values.is_floating_point()} == {torch.float64}
    assert_close(double(queries)[0], fitted.logits(queries), rtol=1e-5, atol=1e-4)


def test_the_module_copies_what_it_holds(make_task):
    fitted = ZeroShot().fit(make_task())
    before = fitted.head.weight.clone()
    next(ClassifierModule(fitted).buffers()).zero_()
    assert torch.equal(fitted.head.weight, before)


def test_probabilities_of_the_module_have_the_temperature(make_task, make_rows):
    fitted = replace(ZeroShot().fit(make_task()), temperature=4.0)
    logits, probabilities = ClassifierModule(fitted)(make_rows((2, 2, 2), 10).embedding)
    assert_close(probabilities, (logits / 4).softmax(dim=1))


@pytest.mark.parametrize("prompts", ["max", "autoclip", "softmax"])
def test_prompts_that_each_image_weighs_are_modules_too(make_task, make_rows, prompts):
    task = make_task()
    embedding = torch.cat([task.text.embedding, task.text.embedding.flip(0)])
    index = torch.cat([task.text.class_index, task.text.class_index.flip(0)])
    text = Text(embedding, index, task.text.class_names, torch.arange(2).repeat_interleave(len(task.text.class_index)))
    fitted = ZeroShot(prompts=prompts).fit(replace(task, text=text))
    queries = make_rows((7, 7, 7), 10, seed=50).embedding
    assert_close(ClassifierModule(fitted)(queries)[0], fitted.logits(queries), rtol=1e-5, atol=1e-4)
