"""Label-free and bank methods on fixed tensors: the numbers of their papers' formulas, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import (
    RECO,
    CapsAdapter,
    LabellingNetwork,
    LaFTerText,
    MethodError,
    Pool,
    Rows,
    SSText,
    Task,
    TipAdapter,
    XMoRe,
    ZeroShot,
    support_source,
)
from onceclip.adapters.heads.layers import Perceptron
from onceclip.adapters.heads.neighbors import certainty, nearest_rows, refined
from onceclip.adapters.methods.reco import contrastive
from onceclip.adapters.ops import unit
from onceclip.adapters.support.dual_prototypes import aligned
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

from ..golden import BANK, CAPTIONS, LABEL, QUERIES, SUPPORT, TEXT, WEIGHTS, grid, near

TASK = Task(TEXT, Rows(SUPPORT, LABEL), bank=Pool(BANK, CAPTIONS))
RETRIEVED = support_source("retrieve:2").support(TEXT, TASK.bank)


def first_logits(method, task):
    prepared = method.prepare(task)
    return method.head(prepared, method.initial(prepared, torch.Generator()))(QUERIES[:1])[0]


def test_tip_adapter_on_a_retrieved_support():
    near(first_logits(TipAdapter(), replace(TASK, support=RETRIEVED)), [101.414411, 99.165509, 99.603898])


def test_caps_adapter_compares_with_images_and_captions():
    task = replace(TASK, support=RETRIEVED)
    near(first_logits(CapsAdapter(gamma=0.0), task), [101.421351, 99.223618, 99.598825])
    logits = first_logits(CapsAdapter(gamma=500.0), task)
    expected = torch.tensor([101.376052, 99.139459, 99.492228], dtype=torch.float64)
    near(logits - logits.mean(), (expected - expected.mean()).tolist())  # what all classes share is left out


def test_x_more_reads_the_captions_of_the_nearest_images():
    method = XMoRe(neighbours=4)
    head = method.head(method.prepare(TASK), {})
    own, read = head.probabilities(QUERIES[:1])
    near(read[0], [0.450093, 0.347201, 0.202706])
    near(torch.cat([certainty(own), certainty(read)]).flatten(), [0.375932, 0.044144])
    near(torch.tensor([head.sure, head.caption_sure], dtype=torch.float64), [0.327507, 0.039495])
    near(head(QUERIES[:1])[0].exp(), [1.391084, 0.487836, 0.386631])


def test_x_more_reads_no_label_and_does_without_support():
    method, nothing = XMoRe(neighbours=4), Rows(SUPPORT[:0], LABEL[:0])
    other = method.fit(replace(TASK, support=Rows(SUPPORT, LABEL.flip(0)))).logits(QUERIES)
    assert torch.equal(other, method.fit(TASK).logits(QUERIES))
    alone = method.fit(replace(TASK, support=nothing, unlabelled=SUPPORT)).logits(QUERIES)
    assert torch.equal(alone, method.fit(TASK).logits(QUERIES))
    assert torch.isfinite(method.fit(replace(TASK, support=nothing)).logits(QUERIES)).all()


def test_reco_refines_a_query_by_the_captions_of_its_neighbours():
    found = nearest_rows(QUERIES[:1], BANK, 2)
    assert found.tolist() == [[9, 5]]
    one, nothing = torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    # Attention to all alike, of which three times the mean is added: unit(2 q + 2 mean caption).
    layer = (nothing, one, one, 3 / 8**0.5 * one, one, nothing[0], nothing, nothing[0])
    near(refined(QUERIES[:1], CAPTIONS[found], layer, 1)[0],
          [0.577587, -0.334781, 0.138013, -0.347293, 0.572568, 0.201938, 0.037783, 0.211222])


def test_reco_attends_as_a_layer_that_projects_every_key_and_value():
    found = CAPTIONS[nearest_rows(QUERIES, BANK, 3)]
    shapes = [(6, 8)] * 3 + [(8, 6), (5, 8), (5,), (8, 5), (8,)]
    layer = tuple(grid(shape, 0.3 * number) for number, shape in enumerate(shapes))
    query, key, value, out, wide, wide_bias, narrow, narrow_bias = layer
    tokens = 8**0.5 * torch.cat([QUERIES.unsqueeze(1), found], dim=1)
    split = [(tokens @ each.T).unflatten(-1, (2, 3)).transpose(1, 2) for each in (query, key, value)]
    read = torch.nn.functional.scaled_dot_product_attention(*split)[:, :, 0].flatten(1)
    seen = QUERIES + read @ out.T
    hidden = torch.nn.functional.gelu(8**0.5 * unit(seen) @ wide.T + wide_bias)
    assert_close(refined(QUERIES, found, layer, 2), unit(seen + hidden @ narrow.T + narrow_bias))


def test_reco_learns_from_the_pairs_of_the_bank_alone_and_never_from_a_pair_itself():
    method = RECO(neighbours=4, hidden=16, epochs=60, learning_rate=1e-3)
    prepared = method.prepare(TASK)
    own = prepared.chosen.unsqueeze(1)
    assert prepared.captions_near.shape == (10, 4)
    assert not ((prepared.captions_near == own) | (prepared.images_near == own)).any()
    other = replace(TASK, support=Rows(SUPPORT.flip(0), LABEL))
    fitted = method.fit(TASK, seed=1)
    assert torch.equal(fitted.logits(QUERIES), method.fit(other, seed=1).logits(QUERIES))
    rows, label = method.training_rows(TASK, prepared, 0)
    losses = [float(method.loss(prepared, parameters, rows, label, torch.Generator()))
              for parameters in (method.initial(prepared, torch.Generator()),
                                 train([Run(method, TASK, prepared, 1)])[0])]
    assert losses[1] < 0.9 * losses[0]
    same = 3 * contrastive(100 * BANK @ CAPTIONS.T)  # at the start nothing is refined
    near(torch.tensor(losses[:1], dtype=torch.float64), [float(same)])


def test_reco_on_a_bank_of_one_pair_has_no_neighbour_to_learn_from():
    one = replace(TASK, bank=Pool(BANK[:1], CAPTIONS[:1]))
    assert torch.isfinite(RECO(epochs=2).fit(one).logits(QUERIES)).all()


def test_ss_text_and_its_second_form():
    near(first_logits(SSText(), TASK), [99.638912, 95.558531, 96.735235])
    near(first_logits(SSText(form="plus"), TASK), [99.655481, 95.660803, 96.808682])
    ragged = replace(TASK, support=Rows(SUPPORT[:5], LABEL[:5]))
    near(first_logits(SSText(form="plus"), ragged), [99.647992, 95.615069, 97.698536])
    without = replace(TASK, support=Rows(SUPPORT[:4], LABEL[:4]))
    near(first_logits(SSText(), without)[2:], first_logits(ZeroShot(), TASK)[2:].tolist())


def test_lafter_lowers_the_smoothed_cross_entropy_of_noisy_prompts():
    method, parameters = LaFTerText(noise=0.0), {"weight": WEIGHTS}
    near(method.loss(TASK, parameters, WEIGHTS, TEXT.class_index, torch.Generator()), 0.575738)
    shifted = unit(WEIGHTS + 0.1 * grid((3, 8), 4.7))
    near(method.loss(TASK, parameters, shifted, TEXT.class_index, torch.Generator()), 0.570504)
    noisy = [LaFTerText(noise=noise, spread=spread) for noise, spread in ((0.1 * 8**0.5, "norm"), (0.1, "coordinate"))]
    losses = [each.loss(TASK, parameters, WEIGHTS, TEXT.class_index, torch.Generator().manual_seed(3))
              for each in noisy]
    assert_close(*losses)
    assert losses[0] != method.loss(TASK, parameters, WEIGHTS, TEXT.class_index, torch.Generator())


def test_lafter_looks_at_no_image():
    other = replace(TASK, support=Rows(SUPPORT.flip(0), LABEL))
    assert torch.equal(LaFTerText(epochs=3).fit(TASK).logits(QUERIES), LaFTerText(epochs=3).fit(other).logits(QUERIES))


def test_the_labelling_network_is_two_layers_and_a_relu():
    head = Perceptron(grid((4, 8), 0.5), torch.zeros(4, dtype=torch.float64), grid((3, 4), 0.7),
                      torch.zeros(3, dtype=torch.float64))
    near(head(QUERIES)[0], [-0.263895, -0.322878, -0.392441])
    assert LabellingNetwork().fit(TASK).logits(QUERIES).argmax(dim=1).eq(torch.arange(12) % 3).float().mean() > 0.5


def test_dual_prototypes_agree_on_labels_and_weights():
    label, weight, probability = aligned(TEXT, Pool(QUERIES), 2, 0.3, keep=12)
    near(probability[0], [0.843159, 0.061058, 0.095783])
    near(weight[0], 1.0)
    assert label.tolist() == probability.argmax(dim=1).tolist()
    assert ((weight > 0) & (weight <= 1)).all()


@pytest.mark.parametrize(("method", "change", "text"), [
    (RECO, {"bank": Pool(BANK)}, "reco needs a caption of every image of the bank"),
    (XMoRe, {"bank": None}, "x-more looks things up in a bank"),
    (XMoRe, {"bank": Pool(BANK)}, "x-more needs a caption of every image of the bank"),
    (CapsAdapter, {}, "caps-adapter needs a caption of every support row"),
])
def test_what_is_missing_is_one_line(method, change, text):
    with pytest.raises(MethodError, match=text) as caught:
        method().fit(replace(TASK, **change))
    assert "\n" not in str(caught.value)


def test_x_more_averages_its_certainties_over_images_of_all_classes(monkeypatch):
    """Support rows come class by class: the first ones of many would be of the first classes alone."""
    monkeypatch.setattr("onceclip.adapters.methods.x_more._ROWS", 3)
    assert torch.equal(XMoRe().prepare(TASK).rows, unit(SUPPORT)[::2])
