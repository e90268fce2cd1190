"""Adapters on their formula written out with every big tensor."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, multi_head_attention_forward, normalize
from torch.testing import assert_close

from onceclip.adapters import ClipAdapter, ClipASelf, MetaAdapter, MultiModalAdapter, Rows, SgVA, Text, VtClip
from onceclip.adapters.methods.ape import Channels

from ..golden import golden_queries, golden_task, grid


@pytest.mark.parametrize("mask", ["blocking", "shipped", "none"])
@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_multi_modal_adapter_equals_attention_of_torch_over_the_whole_sequence(mask, ratio):
    """Every image with all class vectors through torch's own attention, with (rows, classes, dim) tensors."""
    task = replace(golden_task(views=True), logit_scale=30.0, logit_bias=-4.0)
    method = MultiModalAdapter(mask=mask, ratio=ratio, head_width=2)
    start = method.initial(task, torch.Generator().manual_seed(0))
    given = {name: 0.3 * grid(value.shape, number) for number, (name, value) in enumerate(start.items())}
    rows, text = normalize(golden_queries(), dim=1), task.text.class_weights
    sequence = torch.cat([text.unsqueeze(1).expand(-1, 4, -1), rows.unsqueeze(0)])
    low = (sequence @ given["down"].T + given["down_bias"]) @ given["widen"].T + given["widen_bias"]
    other = torch.ones(4, 4, dtype=torch.float64)
    other[:3, :3] = other[3, 3] = 0
    added = {"blocking": other.log(), "shipped": other, "none": torch.zeros_like(other)}[mask]
    attended, _ = multi_head_attention_forward(
        low, low, low, 8, 4, given["attend"], given["attend_bias"], None, None, False, 0.0, given["join"],
        given["join_bias"], attn_mask=added, need_weights=False)
    hidden = gelu(attended @ given["narrow"].T + given["narrow_bias"])
    adapted = normalize(hidden @ given["up"].T + given["up_bias"], dim=-1)
    moved = normalize(ratio * adapted + (1 - ratio) * sequence, dim=-1)
    expected = 30 * torch.einsum("cnd,nd->nc", moved[:3], moved[3]) - 4
    assert_close(method.head(task, given)(rows), expected, rtol=1e-9, atol=1e-9)


def test_vt_clip_equals_an_attention_that_builds_every_class_vector(make_task, make_rows):
    task = replace(make_task(dtype=torch.float64), logit_scale=30.0, logit_bias=-4.0)
    rows = make_rows((2, 3, 2), 10, seed=50, dtype=torch.float64)
    method = VtClip(ratio=0.7, heads=3, head_width=2)
    start = method.initial(task, torch.Generator().manual_seed(0))
    given = {**start, "out": grid((10, 6), 0.4)}
    text, tokens = task.text.class_weights, normalize(rows.others["token"], dim=-1)
    query, key, value = text @ given["query"].T, tokens @ given["key"].T, tokens @ given["value"].T
    seen = torch.zeros(7, 3, 6, dtype=torch.float64)
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        score = torch.einsum("cd,nmd->ncm", query[:, part], key[:, :, part]) / math.sqrt(2)
        seen[:, :, part] = score.softmax(-1) @ value[:, :, part]
    moved = normalize(text + 0.7 * seen @ given["out"].T, dim=-1)
    expected = 30 * torch.einsum("ncd,nd->nc", moved, rows.unit) - 4
    assert_close(method.head(task, given)(rows.input(method.inputs)), expected, rtol=1e-9, atol=1e-9)


def test_sgva_equals_its_formula_class_by_class(make_task, make_rows):
    task, rows = make_task((3, 2, 4), dtype=torch.float64), make_rows((2, 3, 2), 10, seed=50, dtype=torch.float64)
    method = SgVA(weight=0.8)
    given = method.initial(method.prepare(task), torch.Generator().manual_seed(0))

    def adapt(values):
        mapped = torch.relu(normalize(values, dim=1) @ given["down"].T) @ given["up"].T
        return normalize(torch.relu(0.5 * mapped + 0.5 * normalize(values, dim=1)), dim=1)

    support = adapt(task.support.others["preproj"])
    means = torch.stack([support[task.support.label == number].mean(dim=0) for number in range(3)])
    expected = 100 * rows.unit @ task.text.class_weights.T + 0.8 * 100 * adapt(rows.others["preproj"]) @ means.T
    head = method.head(method.prepare(task), given)
    assert_close(head(rows.input(method.inputs)), expected, rtol=1e-9, atol=1e-9)


def test_sgva_loss_is_that_of_prototypes_without_the_image_and_of_the_teacher(make_task):
    """A class of one image keeps it; the others are averaged anew for every image."""
    task = make_task((3, 1, 4), dtype=torch.float64)
    task = replace(task, projection_bias=grid((10,), 0.3))
    method = SgVA(distillation=0.6, temperature=4.0)
    prepared = method.prepare(task)
    given = method.initial(prepared, torch.Generator().manual_seed(0))
    features = normalize(task.support.others["preproj"], dim=1)
    mapped = torch.relu(features @ given["down"].T) @ given["up"].T
    adapted = normalize(torch.relu(0.5 * mapped + 0.5 * features), dim=1)
    losses = []
    for row, label in enumerate(task.support.label.tolist()):
        means = []
        for number in range(3):
            members = task.support.label == number
            if members.sum() > 1:
                members[row] = False
            means.append(adapted[members].mean(dim=0))
        student, teacher = (100 / 4 * each @ task.text.class_weights.T for each in (
            normalize(adapted[row] @ task.projection + task.projection_bias, dim=0), task.support.unit[row]))
        distilled = -(teacher.softmax(0) * student.log_softmax(0)).sum()
        losses.append(-(100 * torch.stack(means) @ adapted[row]).log_softmax(0)[label] + 0.6 * distilled)
    actual = method.loss(prepared, given, *method.training_rows(task, prepared, 0), torch.Generator())
    assert_close(actual, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shots", [(2, 2, 2), (3, 1, 4), (3, 0, 2)], ids=["equal", "ragged", "without images"])
@pytest.mark.parametrize("criterion", ["text", "full"])
def test_ape_scores_channels_by_the_mean_over_all_pairs_of_rows_of_different_classes(make_task, shots, criterion):
    """Written as the published loop; with unequal shots every pair of classes counts the same."""
    task = make_task(shots, dim=16, views=2, dtype=torch.float64)
    text, keys, label = (each.numpy() for each in (task.text.class_weights, task.support.keys, task.support.label))
    similarity = np.zeros(16)
    for one, other in product(range(3), repeat=2):
        if one != other:
            first, second = ([text[number], *(keys[label == number] if criterion == "full" else ())]
                             for number in (one, other))
            similarity += np.mean([left * right for left, right in product(first, second)], axis=0) / 6
    order = np.argsort(0.4 * similarity - 0.6 * text.var(axis=0, ddof=1))
    assert Channels(task).best(criterion, 0.4, 512).tolist() == order[:8].tolist()


def test_meta_adapter_trains_on_classes_without_the_image_itself(make_task):
    """Also with one image per class, which leaves the text alone; compared with attention refitted for every image."""
    task = make_task((3, 1, 2), views=2, dtype=torch.float64)
    method = MetaAdapter()
    prepared = method.prepare(task)
    given = method.initial(prepared, torch.Generator().manual_seed(0))
    losses = []
    for row, label in enumerate(task.support.label.tolist()):
        others = torch.arange(6) != row
        rest = Rows(task.support.embedding[others], task.support.label[others], task.support.views[others])
        without = method.head(method.prepare(replace(task, support=rest)), given).weight
        weight = method.head(prepared, given).weight.clone()
        weight[label] = without[label]
        losses.append(cross_entropy(weight @ task.support.epoch(0)[row], task.support.label[row]))
    actual = method.loss(prepared, given, *method.training_rows(task, prepared, 0), torch.Generator())
    assert_close(actual, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)
    kept = MetaAdapter(own_key="kept")
    plain = cross_entropy(kept.head(prepared, given)(task.support.epoch(0)), task.support.label)
    assert_close(kept.loss(prepared, given, *kept.training_rows(task, prepared, 0), torch.Generator()), plain)


def test_clip_a_self_attends_within_each_class_however_many_sentences_it_has(make_task):
    task = make_task(dtype=torch.float64)  # with 2, 3 and 4 prompts
    order = torch.tensor([8, 0, 5, 2, 7, 1, 6, 3, 4])
    mixed = Text(task.text.embedding[order], task.text.class_index[order], task.text.class_names)
    method = ClipASelf(ratio=0.3)
    given = method.initial(method.prepare(task), torch.Generator().manual_seed(0))
    expected = []
    for number in range(3):
        sentences = task.text.embedding[task.text.class_index == number]
        query, key, value = (sentences @ given[name].T for name in ("query", "key", "value"))
        seen = (query @ key.T / math.sqrt(query.shape[1])).softmax(1) @ value @ given["out"].T
        both = 2 * (0.3 * seen + 0.7 * sentences)
        centred = both - both.mean(1, keepdim=True)
        scaled = centred / (both.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        expected.append(100 * normalize(scaled.mean(0), dim=0))
    for each in (task, replace(task, text=mixed)):
        assert_close(method.head(method.prepare(each), given).weight, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_clip_adapter_without_renormalization_is_the_plain_blend(dtype):
    task = golden_task(dtype, views=True)
    parameters = {"image_down": grid((2, 8), 0.5).to(dtype), "image_up": grid((8, 2), 0.7).to(dtype)}
    rows = normalize(golden_queries(dtype), dim=1)
    adapted = torch.relu(torch.relu(rows @ parameters["image_down"].T) @ parameters["image_up"].T)
    expected = 100 * (0.2 * adapted + 0.8 * rows) @ task.text.class_weights.T
    assert_close(ClipAdapter(renormalize=False, share=1).head(task, parameters)(rows), expected)
