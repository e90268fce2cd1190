"""Scores of patch tokens: those of the card, and what a user of an anomaly detector relies on."""

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import MethodError
from onceclip.adapters.inference import INFERENCES, Queries
from onceclip.adapters.inference.anomaly import anomaly_score, normal_class, with_odds
from onceclip.adapters.inference.anovl import patch_odds
from onceclip.adapters.inference.patch_knn import bank_of, distances
from onceclip.adapters.ops import unit

from ..golden import PATCHES, WEIGHTS, near
from .golden import IMAGES, SCALE, STATES, linear

NAMES = ("normal", "damaged")
QUERIES = Queries(IMAGES[:2], patches=PATCHES)


def share(name="anovl", queries=QUERIES, normal=None, **values):
    """Probability of damage."""
    classifier, task = linear(STATES, NAMES)
    return INFERENCES[name](**values).run(classifier, queries, task, normal).logits.softmax(dim=1)[:, 1]


def test_patches_score_as_the_card_says():
    near(torch.sigmoid(patch_odds(PATCHES @ STATES.T, 0))[0, :3], [0.502731, 0.503898, 0.502461])
    near(torch.sigmoid(patch_odds(SCALE * PATCHES @ STATES.T, 0))[0, :3], [0.748860, 0.826220, 0.728020])
    near(torch.sigmoid(patch_odds(SCALE * PATCHES @ STATES.T, 0, 3))[0, :3], [0.625630, 0.657335, 0.689039])


def test_images_score_as_the_card_says():
    near(share(), [0.826220, 0.790583])
    near(share(score="image"), [0.328916, 0.927788])
    near(share(score="image", scale=1.0), [0.498217, 0.506383])
    near(share(score="mean"), [(0.826220 + 0.328916) / 2, (0.790583 + 0.927788) / 2])


@pytest.mark.parametrize("values", [{}, {"smooth": 3}, {"score": "mean"}])
def test_images_that_are_surely_abnormal_still_have_a_ranking(values):
    """float32 has no probability between 1 - 6e-8 and 1; an AUROC of ties would be worth nothing."""
    classifier, task = linear(STATES.float(), NAMES)
    step = (STATES[1] - STATES[0]).float()
    patches = torch.stack([unit(STATES[1].float() + shift * step).expand(9, -1) for shift in (5.0, 6.0, 7.0)])
    queries = Queries(patches[:, 0].contiguous(), patches=patches.contiguous())
    logits = INFERENCES["anovl"](scale=200.0, **values).run(classifier, queries, task).logits
    odds = anomaly_score(logits, 0)
    assert torch.sigmoid(odds).tolist() == [1.0, 1.0, 1.0]
    assert odds[0] < odds[1] < odds[2]


def test_the_best_patch_of_a_class_is_its_score():
    classifier, task = linear()
    near(INFERENCES["patch-max"]().run(classifier, QUERIES, task).logits[:, 0] / SCALE, [0.993088, 0.995962])


def test_patches_far_from_all_normal_ones_are_found():
    found = distances(PATCHES[1:], PATCHES[0])
    near(found[0, :3], [0.007207, 0.016266, 0.008744])
    near(found.amax(dim=1), [0.027039])
    near(distances(PATCHES[1:], PATCHES[0], 2)[0, :1], [(2 - (PATCHES[0] @ PATCHES[1, 0]).topk(2).values.sum()) / 2])


def test_an_image_is_abnormal_beyond_what_the_normal_ones_differ_by():
    normal = Queries(IMAGES[:2], patches=PATCHES)
    bank = bank_of(PATCHES, 1000)
    assert bank.threshold == pytest.approx(float(torch.stack([
        distances(PATCHES[:1], PATCHES[1]).max(), distances(PATCHES[1:], PATCHES[0]).max()]).max()))
    odd = Queries(IMAGES[:2], patches=torch.cat([PATCHES[:1], -PATCHES[1:]]))
    near_odds = share("patch-knn", odd, normal).tolist()
    assert near_odds[0] < 0.5 < near_odds[1]


def test_a_bank_is_drawn_once_and_keeps_to_its_size():
    many = PATCHES.repeat(5, 1, 1)
    assert len(bank_of(many, 20).patches) == 20
    assert torch.equal(bank_of(many, 20).patches, bank_of(many, 20).patches)


def test_one_normal_image_alone_is_enough():
    assert bank_of(PATCHES[:1], 100).threshold == 0
    near(share("patch-knn", QUERIES, Queries(IMAGES[:1], patches=PATCHES[:1]))[:1], [0.5])


def test_abnormal_classes_share_what_the_normal_one_leaves():
    logits = SCALE * IMAGES @ WEIGHTS.T
    odds = torch.linspace(-40, 40, 12, dtype=torch.float64)
    found = with_odds(logits, 1, odds)
    assert_close(anomaly_score(found, 1), odds)
    assert_close(found.exp().sum(dim=1), torch.ones(12, dtype=torch.float64))
    assert_close(found[:, 0] - found[:, 2], logits[:, 0] - logits[:, 2])


def test_the_normal_class_is_found_by_its_name():
    assert normal_class(("scratch", "Good")) == 1
    assert normal_class(("scratch", "fine"), "fine") == 1
    with pytest.raises(MethodError, match="normal=NAME; there are: scratch, fine"):
        normal_class(("scratch", "fine"))
    with pytest.raises(MethodError, match="did you mean 'fine'"):
        normal_class(("scratch", "fine"), "fin")


@pytest.mark.parametrize("name", ["anovl", "patch-max", "patch-knn"])
def test_without_patches_the_message_says_how_to_make_them(name):
    with pytest.raises(MethodError, match="--tokens value"):
        share(name, Queries(IMAGES[:2]), Queries(IMAGES[:2], patches=PATCHES))


def test_without_normal_images_there_is_nothing_to_compare_with():
    with pytest.raises(MethodError, match="normal train images, and there are none"):
        share("patch-knn")


def test_means_over_patches_need_a_square_of_them():
    with pytest.raises(MethodError, match="smooth=1"):
        share(queries=Queries(IMAGES[:2], patches=PATCHES[:, :8]), smooth=3)
