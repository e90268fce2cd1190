"""Hand-derived values on closed-form inputs, computed once outside this project (methods/trained.md, section 9)."""

from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import ClipAdapter, Rows, TipAdapter, TipAdapterF, ZeroShot
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

from ..golden import golden_queries, golden_task, grid

KEY_ROW = (0.163246, 0.332761, -0.434234, 0.303587, 0.232944, -0.342903, -0.474461, -0.430044)
QUERY_LABEL = torch.tensor([0, 1, 2, 0])
ZERO_SHOT_ROWS = ((7.918197, 23.396506, 22.015866), (59.668475, -34.310747, 13.972352))


def bottleneck(branch, dtype):
    return {f"{branch}_down": grid((2, 8), 0.5).to(dtype), f"{branch}_up": grid((8, 2), 0.7).to(dtype)}


def test_zero_shot_logits(dtype, agree):
    logits = ZeroShot().fit(golden_task(dtype, views=True)).logits(golden_queries(dtype))
    agree(logits[:2], ZERO_SHOT_ROWS)


def test_tip_adapter_keys_are_the_unit_mean_of_raw_views(dtype, agree):
    agree(golden_task(dtype, views=True).support.keys[0], KEY_ROW)


def test_tip_adapter_logits_with_flat_cache(dtype, agree):
    logits = TipAdapter(alpha=1.17, beta=1.0).fit(golden_task(dtype, views=True)).logits(golden_queries(dtype))
    agree(logits[:2], ((8.407859, 24.277451, 23.121670), (60.891742, -33.300211, 14.708112)))


def test_tip_adapter_logits_with_defaults_of_the_paper(dtype, agree):
    logits = TipAdapter().fit(golden_task(dtype, views=True)).logits(golden_queries(dtype))
    agree(logits[0], (7.918604, 23.406257, 22.051820))


def test_tip_adapter_f_loss_before_training(dtype, agree):
    start = TipAdapterF(alpha=1.17, beta=1.0, epochs=0).fit(golden_task(dtype, views=True))
    agree(cross_entropy(start.logits(golden_queries(dtype)), QUERY_LABEL), 30.168605)


def test_tip_adapter_f_keys_after_one_step(dtype, agree):
    """The printed step has keys from the support and its loss on the queries, so the run trains on those."""
    method = TipAdapterF(train_alpha=1.17, train_beta=1.0, learning_rate=1e-3, epsilon=1e-4, weight_decay=0.01,
                         epochs=1, batch_size=0)
    task = golden_task(dtype, views=True)
    on_queries = replace(task, support=Rows(golden_queries(dtype), QUERY_LABEL))
    keys = train([Run(method, on_queries, method.prepare(task), seed=0)])[0]["keys"]
    agree(keys[0, :4], (0.162245, 0.333684, -0.433231, 0.302585))


def test_clip_adapter_image_branch(dtype, agree):
    task, method = golden_task(dtype, views=True), ClipAdapter(branch="image", ratio=0.2, share=1)
    logits = method.classifier(task, method.prepare(task), bottleneck("image", dtype)).logits(golden_queries(dtype))
    agree(logits[1], (67.418545, -43.110147, 30.205631))
    agree(logits[0], ZERO_SHOT_ROWS[0])  # a dead relu leaves the direction as it is


def test_clip_adapter_text_branch(dtype, agree):
    task, method = golden_task(dtype, views=True), ClipAdapter(branch="text", ratio=0.2, share=1)
    logits = method.classifier(task, method.prepare(task), bottleneck("text", dtype)).logits(golden_queries(dtype))
    agree(logits[0], (18.797369, 25.326731, 22.015866))


def test_clip_adapter_both_branches(dtype, agree):
    task, method = golden_task(dtype, views=True), ClipAdapter(branch="both", ratio=0.2, share=1)
    parameters = {**bottleneck("image", dtype), **bottleneck("text", dtype)}
    logits = method.classifier(task, method.prepare(task), parameters).logits(golden_queries(dtype))
    agree(logits[1], (70.051982, -43.387266, 30.205631))
