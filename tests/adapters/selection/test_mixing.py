"""The exact best weight of `A + weight * B`, against brute force. Whole numbers keep the arithmetic exact."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onceclip.adapters.selection import mixing
from onceclip.adapters.selection.mixing import best_weight, intervals

TRIED = [number / 64 for number in range(-128, 513)]  # dyadic: products with small whole numbers are exact


@st.composite
def labelled_logits(draw):
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    values = st.lists(st.lists(st.integers(-4, 4), min_size=classes, max_size=classes), min_size=rows, max_size=rows)
    label = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return torch.tensor(draw(values)).float(), torch.tensor(draw(values)).float(), torch.tensor(label)


def right_rows(first, second, label, weight):
    """Which rows have the largest logit at their label, ties counted as wrong."""
    logits = (first.double() + weight * second.double())
    own = logits.gather(1, label.unsqueeze(1))
    return (logits < own).sum(dim=1) == logits.shape[1] - 1


def brute_force(first, second, label, high, low):
    """Best accuracy and width of the widest best interval: walk over all weights at which any two logits meet."""
    gap_first, gap_second = first.unsqueeze(2) - first.unsqueeze(1), second.unsqueeze(2) - second.unsqueeze(1)
    meeting = (-gap_first.double() / gap_second)[gap_second != 0]
    ends = torch.cat([meeting[(meeting > low) & (meeting < high)], torch.tensor([low, high]).double()])
    ends = sorted({round(end, 9) for end in ends.tolist()})
    pieces = []
    for start, end in itertools.pairwise(ends):
        right = right_rows(first, second, label, (start + end) / 2).tolist()
        if pieces and pieces[-1][2] == right:
            start = pieces.pop()[0]
        pieces.append((start, end, right))
    best = max(sum(right) for *_, right in pieces)
    return best / len(label), max(end - start for start, end, right in pieces if sum(right) == best)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(data=labelled_logits(), bounds=st.sampled_from([(0.0, 8.0), (0.0, 0.5), (-2.0, 3.0), (1.0, 2.0)]))
def test_the_weight_is_the_middle_of_the_widest_interval_that_no_other_weight_beats(data, bounds):
    first, second, label = data
    low, high = bounds
    found = best_weight(first, second, label, high, low)
    accuracy, width = brute_force(first, second, label, high, low)
    assert found.accuracy == pytest.approx(accuracy)
    assert right_rows(first, second, label, found.weight).double().mean() == pytest.approx(found.accuracy)
    assert found.high - found.low == pytest.approx(width)
    assert found.weight == pytest.approx((found.low + found.high) / 2)
    assert low <= found.low < found.high <= high
    tried = [float(right_rows(first, second, label, weight).double().mean())
             for weight in TRIED if low <= weight <= high]
    assert found.accuracy >= max(tried) - 1e-12


def test_one_row_that_is_right_between_two_weights():
    """Margins over the other classes are -1 + w and 3 - w: right for weights between 1 and 3."""
    found = best_weight(torch.tensor([[0.0, 1.0, -3.0]]), torch.tensor([[0.0, -1.0, 1.0]]), torch.tensor([0]), 50.0)
    assert (found.low, found.weight, found.high, found.accuracy) == (1.0, 2.0, 3.0, 1.0)


def test_the_wider_of_two_equally_good_intervals_wins():
    """The first row is right below 1, the second above 2: with an upper bound of 2.5 the first interval is wider."""
    first, second = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    label = torch.tensor([0, 0])
    assert best_weight(first, second, label, 2.5).weight == 0.5
    assert best_weight(first, second, label, 10.0).weight == 6.0


def test_a_row_that_no_weight_makes_right_lowers_the_accuracy_and_moves_nothing():
    first, second = torch.tensor([[0.0, 1.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    alone = best_weight(first[:1], second[:1], torch.tensor([0]), 4.0)
    both = best_weight(first, second, torch.tensor([0, 0]), 4.0)
    assert (both.low, both.weight, both.high) == (alone.low, alone.weight, alone.high) == (1.0, 2.5, 4.0)
    assert both.accuracy == alone.accuracy / 2 == 0.5


def test_equal_logits_are_wrong_at_every_weight_and_leave_the_middle_of_the_range():
    zero = torch.zeros(3, 2)
    found = best_weight(zero, zero, torch.tensor([0, 1, 0]), 8.0, 2.0)
    assert (found.weight, found.accuracy) == (5.0, 0.0)


def test_rows_that_are_right_at_every_weight_leave_the_middle_of_the_range():
    found = best_weight(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 8.0, 2.0)
    assert (found.low, found.weight, found.high, found.accuracy) == (2.0, 5.0, 8.0, 1.0)


def test_an_unbounded_range_still_gives_a_usable_weight():
    """`Hyperparameter.high` is infinite unless a method says otherwise."""
    found = best_weight(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), float("inf"))
    assert 1.0 < found.weight < float("inf")


@pytest.mark.parametrize(("low", "high", "weight"), [
    (float("-inf"), float("inf"), 0.0), (float("-inf"), 8.0, -1.0), (2.0, float("inf"), 5.0), (3.0, 3.0, 3.0)])
def test_ranges_without_an_end_or_without_a_width_give_a_finite_weight_within(low, high, weight):
    found = best_weight(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0]), high, low)
    assert (found.low, found.weight, found.high, found.accuracy) == (low, weight, high, 1.0)


@pytest.mark.parametrize("second", [0.0, -0.0])
def test_a_row_whose_label_is_level_with_another_class_at_every_weight_is_never_right(second):
    found = intervals(torch.tensor([[1.0, 1.0], [1.0, 0.5]]), torch.tensor([[second, 0.0], [second, 0.0]]),
                      torch.tensor([0, 0]))
    assert found.accuracy(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0.5, 0.5, 0.5]


def test_no_row_right_and_no_row_at_all_leave_the_middle_of_the_range():
    wrong = best_weight(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]), 4.0)
    assert (wrong.weight, wrong.accuracy) == (2.0, 0.0)
    none = best_weight(torch.empty(0, 2), torch.empty(0, 2), torch.empty(0, dtype=torch.int64), 4.0)
    assert (none.weight, none.accuracy) == (2.0, 0.0)


def test_intervals_give_the_accuracy_at_every_weight_of_a_table():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 7, generator=generator) for _ in range(2))
    label, weights = torch.arange(200) % 7, torch.linspace(-2, 5, 60, dtype=torch.float64)
    expected = [float(right_rows(first, second, label, float(weight)).double().mean()) for weight in weights]
    assert intervals(first, second, label).accuracy(weights).tolist() == pytest.approx(expected)


def test_pieces_of_any_size_give_the_same_intervals(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second, label = *(torch.randn(50, 4, generator=generator) for _ in range(2)), torch.arange(50) % 4
    whole = intervals(first, second, label)
    monkeypatch.setattr(mixing, "_ELEMENTS", 10)
    pieces = intervals(first, second, label)
    assert torch.equal(pieces.start, whole.start)
    assert torch.equal(pieces.end, whole.end)
