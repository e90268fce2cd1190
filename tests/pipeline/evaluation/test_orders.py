"""Seeds of orders as a user writes them, and the permutations that they are."""

import numpy as np
import pytest

from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import order_hash, parse_orders, permutation


@pytest.mark.parametrize(("text", "seeds"), [("1-5", (1, 2, 3, 4, 5)), ("7", (7,)), ("1, 4-5,9", (1, 4, 5, 9))])
def test_seeds_are_listed(text, seeds):
    assert parse_orders(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5-1", "1-", "-3", "1,,2", "1-99999", "1.5", "99999999999"])
def test_what_is_no_list_of_seeds_is_refused(text):
    with pytest.raises(TaskError, match="give seeds of permutations"):
        parse_orders(text)


def test_a_seed_that_is_named_twice_would_count_twice():
    with pytest.raises(TaskError, match="name a seed twice"):
        parse_orders("1-3,2")


def test_an_order_is_a_permutation_of_its_seed_alone():
    assert sorted(permutation(3, 50)) == list(range(50))
    assert np.array_equal(permutation(3, 50), permutation(3, 50))
    assert order_hash(permutation(3, 50)) != order_hash(permutation(4, 50))
    assert len(order_hash(permutation(1, 0))) == 64
