"""Sources of support rows: the papers' rules on fixed tensors, and what every source promises."""

import re

import pytest
import torch

from onceclip.adapters import SUPPORTS, MethodError, Pool, UnknownName, support_source
from onceclip.adapters.support import Choice, SupportSource
from onceclip.adapters.support.pseudo_labels import grip_counts, nola_count

from ..golden import BANK, CAPTIONS, QUERIES, TEXT, WEIGHTS


def by_class(choice):
    return {number: choice.index[choice.label == number].tolist() for number in range(3)}


@pytest.mark.parametrize("name", ["upl:2", "fpl:2"])
def test_pseudo_labels_are_those_of_the_published_rule(name):
    choice = support_source(name).choose(TEXT, Pool(QUERIES))
    assert by_class(choice) == {0: [0, 6], 1: [7, 1], 2: [5, 11]}
    assert choice.weight is None


def test_weights_are_the_probabilities_of_the_guesses():
    choice = support_source("upl:2,weighted=true").choose(TEXT, Pool(QUERIES))
    probability = (100 * QUERIES @ WEIGHTS.T).softmax(dim=1)
    torch.testing.assert_close(choice.weight, probability[choice.index, choice.label])


def test_the_rounds_of_grip_and_the_number_of_nola_are_those_of_the_papers():
    assert grip_counts(12, 3, 10) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert nola_count(12, 3) == 16
    assert nola_count(50_000, 100) == 100


@pytest.mark.parametrize(("name", "expected"), [
    ("retrieve:2", {0: [0, 9], 1: [0, 1], 2: [0, 8]}),
    ("retrieve:3", {0: [0, 9, 5], 1: [0, 1, 8], 2: [0, 8, 5]}),
    ("retrieve:5,exclusive=true", {0: [9, 5, 6, 3], 1: [0, 1, 7, 4], 2: [8, 2]})])
def test_retrieval_takes_the_nearest_images_of_the_bank(name, expected):
    assert by_class(support_source(name).choose(TEXT, Pool(BANK))) == expected


def test_retrieval_by_captions_looks_at_captions_and_brings_images_with_them():
    rows = support_source("captions:2").support(TEXT, Pool(BANK, CAPTIONS))
    expected = (WEIGHTS @ CAPTIONS.T).topk(2, dim=1).indices.flatten()
    assert torch.equal(rows.embedding, BANK[expected])
    assert torch.equal(rows.others["caption"], CAPTIONS[expected])


def test_near_copies_of_a_taken_image_are_not_taken_again():
    pool = Pool(torch.cat([BANK, BANK + 1e-4, BANK - 1e-4]))
    assert by_class(support_source("retrieve:3").choose(TEXT, pool))[0] != [0, 9, 5]
    apart = by_class(support_source("retrieve:3,apart=0.9999").choose(TEXT, pool))
    assert {number: [each % 10 for each in rows] for number, rows in apart.items()} == {
        0: [0, 9, 5], 1: [0, 1, 8], 2: [0, 8, 5]}


def test_fpl_leaves_no_class_without_images_and_grip_uses_all_of_an_even_share():
    pool = Pool(QUERIES[:6])
    assert by_class(support_source("fpl:2").choose(TEXT, pool)).keys() == {0, 1, 2}
    assert torch.bincount(support_source("grip").choose(TEXT, Pool(QUERIES)).label).tolist() == [4, 4, 4]
    assert torch.bincount(support_source("ifpl:3,rounds=2").choose(TEXT, Pool(QUERIES)).label).tolist() == [3, 3, 3]


def test_nola_takes_second_guesses_for_a_class_that_nothing_is_predicted():
    shown = QUERIES[(100 * QUERIES @ WEIGHTS.T).argmax(dim=1) != 1]
    choice = support_source("nola").choose(TEXT, Pool(shown))
    order = (shown @ WEIGHTS.T).argsort(dim=1, descending=True)
    assert by_class(choice)[1]
    assert set(by_class(choice)[1]) == set(torch.nonzero(order[:, 1] == 1)[:, 0].tolist())


@pytest.mark.parametrize("name", SUPPORTS)
def test_every_source_gives_rows_of_the_pool_in_whatever_order_it_lies(name):
    source, order = support_source(name), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    choice = source.chosen(TEXT, Pool(BANK, CAPTIONS))
    other = source.chosen(TEXT, Pool(BANK[order], CAPTIONS[order]))
    pairs = sorted(zip(choice.index.tolist(), choice.label.tolist(), strict=True))
    assert pairs == sorted(zip(order[other.index].tolist(), other.label.tolist(), strict=True))
    rows = source.support(TEXT, Pool(BANK, CAPTIONS))
    assert torch.equal(rows.embedding, BANK[choice.index])
    assert "Source:" in type(source).__doc__
    assert len(type(source).summary) * len(type(source).source) > 0


@pytest.mark.parametrize("name", SUPPORTS)
def test_pieces_of_a_pool_change_nothing(name, monkeypatch):
    whole = support_source(name).chosen(TEXT, Pool(BANK, CAPTIONS))
    monkeypatch.setattr("onceclip.adapters.task._PAIRS", 9)
    pieces = support_source(name).chosen(TEXT, Pool(BANK, CAPTIONS))
    assert (whole.index.tolist(), whole.label.tolist()) == (pieces.index.tolist(), pieces.label.tolist())


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_pool_of_one_image_and_one_of_none(name):
    assert len(support_source(name).support(TEXT, Pool(BANK[:1], CAPTIONS[:1]))) >= 1
    with pytest.raises(MethodError, match="has no image to choose from"):
        support_source(name).support(TEXT, Pool(BANK[:0], CAPTIONS[:0]))


def test_a_source_that_needs_captions_says_so_and_widths_must_agree():
    with pytest.raises(MethodError, match="needs a caption of every image"):
        support_source("captions:2").support(TEXT, Pool(BANK))
    with pytest.raises(MethodError, match="the pool has 4 dimensions and the text has 8"):
        support_source("upl").support(TEXT, Pool(BANK[:, :4]))


class Mine(SupportSource):
    """A source of one's own that chooses what is not there."""

    def choose(self, text, pool, seed=0):
        return Choice(torch.tensor([99]), torch.tensor([0]))


@pytest.mark.parametrize(("name", "text"), [
    ("uppl:4", "no support source 'uppl': did you mean 'upl'"), ("upl:many", "k=many is not a whole number"),
    ("upl:0", "k=0 is not between 1"), ("upl:4,colour=red", "no hyperparameter 'colour' of upl"),
    ("upl:4,weighted", "'weighted' is not NAME=VALUE"), ("upl:4:5", "give NAME:K"), ("", "no support source ''"),
    (f"{__name__}:Missing", "has no class 'Missing'")])
def test_a_name_that_means_nothing_is_one_line(name, text):
    with pytest.raises((UnknownName, MethodError), match=re.escape(text)) as caught:
        support_source(name)
    assert "\n" not in str(caught.value)


def test_a_source_from_outside_is_named_and_what_it_gives_is_checked():
    source = support_source(f"{__name__}:Mine")
    assert str(source) == f"{__name__}:Mine"
    with pytest.raises(MethodError, match="chose rows that the pool does not have"):
        source.support(TEXT, Pool(BANK))
