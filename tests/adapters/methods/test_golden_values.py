"""Hand-derived values on closed-form inputs, computed once outside this project (methods/trained.md, section 9)."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import (
    APE,
    APET,
    ClipAdapter,
    ClipASelf,
    MetaAdapter,
    MultiModalAdapter,
    Rows,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
)
from onceclip.adapters.methods.ape import Channels
from onceclip.adapters.ops import unit
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

from ..golden import golden_queries, golden_task, grid

KEY_ROW = (0.163246, 0.332761, -0.434234, 0.303587, 0.232944, -0.342903, -0.474461, -0.430044)
QUERY_LABEL = torch.tensor([0, 1, 2, 0])
ZERO_SHOT = (7.918197, 23.396506, 22.015866)
IMAGE, TEXT = ({f"{branch}_down": grid((2, 8), 0.5), f"{branch}_up": grid((8, 2), 0.7)} for branch in ("image", "text"))


def residual_on_chosen_channels():
    residual = torch.zeros(3, 8, dtype=torch.float64)
    residual[:, Channels(golden_task()).best("text", 0.2, 640)] = 0.1 * grid((3, 5), 3.3)
    return residual


def multi_modal_parameters(method):
    """The printed ones: parameter number i of the authors' module is 0.3 G(shape, 0.1 (i + 1))."""
    start = method.initial(golden_task(), torch.Generator().manual_seed(0))
    return {name: 0.3 * grid(tuple(value.shape), 0.1 * (number + 1))
            for number, (name, value) in enumerate(start.items())}


MULTI_MODAL = MultiModalAdapter(mask="shipped", ratio=0.2, head_width=2)


@pytest.mark.parametrize(("method", "parameters", "row", "printed"), [
    (ZeroShot(), {}, 0, ZERO_SHOT),
    (ZeroShot(), {}, 1, (59.668475, -34.310747, 13.972352)),
    (TipAdapter(alpha=1.17, beta=1), {}, 0, (8.407859, 24.277451, 23.121670)),
    (TipAdapter(alpha=1.17, beta=1), {}, 1, (60.891742, -33.300211, 14.708112)),
    (TipAdapter(), {}, 0, (7.918604, 23.406257, 22.051820)),
    (ClipAdapter(share=1), IMAGE, 1, (67.418545, -43.110147, 30.205631)),
    (ClipAdapter(share=1), IMAGE, 0, ZERO_SHOT),  # a dead relu leaves the direction as it is
    (ClipAdapter(share=1, branch="text"), TEXT, 0, (18.797369, 25.326731, 22.015866)),
    (ClipAdapter(share=1, branch="both"), {**IMAGE, **TEXT}, 1, (70.051982, -43.387266, 30.205631)),
    (APE(alpha=1, beta=2, gamma=0.3, similarity=0.7, channels=640), {}, 0, (8.027290, 24.078735, 22.945205)),
    (APET(alpha=1, beta=1, similarity=0.2, channels=640),
     {"residual": residual_on_chosen_channels(), "weight": 1 + 0.1 * grid((6,), 3.7)}, 0,
     (10.621885, 23.885129, 29.158469)),
    (ClipASelf(ratio=0.2),
     {"query": grid((2, 8), 0.1), "key": grid((2, 8), 0.2), "value": grid((2, 8), 0.3), "out": grid((8, 2), 0.4),
      "out_bias": 0.1 * grid((8,), 0.5), "norm": torch.ones(8), "norm_bias": torch.zeros(8)}, 0,
     (-2.586836, 3.710649, -12.974251)),
    (MetaAdapter(),
     {"query": grid((8, 8), 0.2), "key": grid((8, 8), 0.4), "gate": grid((1, 8), 0.6), "gate_bias": torch.ones(1)}, 0,
     (-1.963397, 22.466911, 29.085317)),
    (MULTI_MODAL, multi_modal_parameters(MULTI_MODAL), 0, (27.741966, 28.242412, 33.889475)),
], ids=lambda value: getattr(value, "name", ""))
def test_logits_of_given_parameters(dtype, agree, method, parameters, row, printed):
    task = golden_task(dtype, views=True)
    head = method.head(method.prepare(task), {name: value.to(dtype) for name, value in parameters.items()})
    agree(head(unit(golden_queries(dtype)))[row], printed)


def test_ape_chooses_channels_by_both_criteria(dtype):
    channels = Channels(golden_task(dtype, views=True))
    assert channels.best("text", 0.7, 640).tolist() == [2, 3, 0, 6, 5]
    assert channels.best("full", 0.7, 640).tolist() == [2, 3, 1, 0, 4]


def test_tip_adapter_keys_are_the_unit_mean_of_raw_views(dtype, agree):
    agree(golden_task(dtype, views=True).support.keys[0], KEY_ROW)


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
