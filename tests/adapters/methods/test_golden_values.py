"""Hand-derived values on closed-form inputs, computed once outside this project (methods/trained.md, section 9)."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import ClipAdapter, Rows, Task, Text, TipAdapter, TipAdapterF, ZeroShot
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

KEY_ROW = (0.163246, 0.332761, -0.434234, 0.303587, 0.232944, -0.342903, -0.474461, -0.430044)
QUERY_LABEL = torch.tensor([0, 1, 2, 0])
ZERO_SHOT_ROWS = ((7.918197, 23.396506, 22.015866), (59.668475, -34.310747, 13.972352))


def grid(shape, shift):
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(shift + 1.7 * number + 0.37 * number**2).reshape(shape)


def golden_task(dtype):
    images = grid((6, 8), 0.3)
    views = torch.stack([images, grid((6, 8), 0.9), grid((6, 8), 4.0)], dim=1)
    text = Text(grid((3, 5, 8), 1.1).flatten(0, 1), torch.arange(3).repeat_interleave(5), ("a", "b", "c"))
    return Task(text, Rows(images, torch.tensor([0, 0, 1, 1, 2, 2]), views)).to(dtype)


def queries(dtype):
    return grid((4, 8), 2.2).to(dtype)


def bottleneck(branch, dtype):
    return {f"{branch}_down": grid((2, 8), 0.5).to(dtype), f"{branch}_up": grid((8, 2), 0.7).to(dtype)}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def agree(dtype):
    """Function that compares with printed values: six decimals in float64, three digits in float32."""

    def check(actual, printed):
        rtol, atol = (1e-6, 6e-7) if dtype == torch.float64 else (1e-3, 1e-5)
        expected = torch.tensor(printed, dtype=torch.float64)
        torch.testing.assert_close(torch.as_tensor(actual).double(), expected, rtol=rtol, atol=atol)

    return check


def test_zero_shot_logits(dtype, agree):
    logits = ZeroShot().fit(golden_task(dtype)).logits(queries(dtype))
    agree(logits[:2], ZERO_SHOT_ROWS)


def test_tip_adapter_keys_are_the_unit_mean_of_raw_views(dtype, agree):
    agree(golden_task(dtype).support.keys[0], KEY_ROW)


def test_tip_adapter_logits_with_flat_cache(dtype, agree):
    logits = TipAdapter(alpha=1.17, beta=1.0).fit(golden_task(dtype)).logits(queries(dtype))
    agree(logits[:2], ((8.407859, 24.277451, 23.121670), (60.891742, -33.300211, 14.708112)))


def test_tip_adapter_logits_with_defaults_of_the_paper(dtype, agree):
    logits = TipAdapter().fit(golden_task(dtype)).logits(queries(dtype))
    agree(logits[0], (7.918604, 23.406257, 22.051820))


def test_tip_adapter_f_loss_before_training(dtype, agree):
    start = TipAdapterF(alpha=1.17, beta=1.0, epochs=0).fit(golden_task(dtype))
    agree(cross_entropy(start.logits(queries(dtype)), QUERY_LABEL), 30.168605)


def test_tip_adapter_f_keys_after_one_step(dtype, agree):
    """The printed step has keys from the support and its loss on the queries, so the run trains on those."""
    method = TipAdapterF(train_alpha=1.17, train_beta=1.0, learning_rate=1e-3, epsilon=1e-4, weight_decay=0.01,
                         epochs=1, batch_size=0)
    task = golden_task(dtype)
    on_queries = replace(task, support=Rows(queries(dtype), QUERY_LABEL))
    keys = train([Run(method, on_queries, method.prepare(task), seed=0)])[0]["keys"]
    agree(keys[0, :4], (0.162245, 0.333684, -0.433231, 0.302585))


def test_clip_adapter_image_branch(dtype, agree):
    task, method = golden_task(dtype), ClipAdapter(branch="image", ratio=0.2, share=1)
    logits = method.classifier(task, method.prepare(task), bottleneck("image", dtype)).logits(queries(dtype))
    agree(logits[1], (67.418545, -43.110147, 30.205631))
    agree(logits[0], ZERO_SHOT_ROWS[0])  # a dead relu leaves the direction as it is


def test_clip_adapter_text_branch(dtype, agree):
    task, method = golden_task(dtype), ClipAdapter(branch="text", ratio=0.2, share=1)
    logits = method.classifier(task, method.prepare(task), bottleneck("text", dtype)).logits(queries(dtype))
    agree(logits[0], (18.797369, 25.326731, 22.015866))


def test_clip_adapter_both_branches(dtype, agree):
    task, method = golden_task(dtype), ClipAdapter(branch="both", ratio=0.2, share=1)
    parameters = {**bottleneck("image", dtype), **bottleneck("text", dtype)}
    logits = method.classifier(task, method.prepare(task), parameters).logits(queries(dtype))
    agree(logits[1], (70.051982, -43.387266, 30.205631))
