"""Caches of many sharpnesses at once give what each gives alone, with far fewer exponentials."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from onceclip.adapters.heads import Kernel, Linear, kernel
from onceclip.adapters.heads.kernel import batched_cache_logits, cache_logits, same_cache
from onceclip.adapters.methods.tip_adapter import SHARPNESS

GRIDS = {"searched": SHARPNESS, "geometric": [0.25 * 2 ** (number / 2) for number in range(17)],
         "arithmetic": [0.1 + 0.0645 * number for number in range(200)], "any order": [3.0, 0.0, 7.5, 3.0, 1.0],
         "one": [5.5]}
LABELS = {"by class": torch.arange(5).repeat_interleave(4), "shuffled": torch.tensor([4, 0, 2, 3, 1] * 4),
          "ragged": torch.tensor([0] * 3 + [4] * 6 + [2] * 5 + [3] * 6), "one class": torch.tensor([3] * 18 + [1, 2])}


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return (normalize(torch.randn(count, 16, generator=generator, dtype=torch.float64) + 0.3, dim=1).to(dtype)
            for count in (37, 20))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("grid", GRIDS)
def test_caches_together_are_the_caches_one_by_one(grid, labels, weighted):
    rows, keys = drawn()
    weight = torch.linspace(0.5, 2, 20) if weighted else None
    heads = [Kernel(keys, LABELS[labels], 5, float(beta), weight) for beta in GRIDS[grid]]
    assert same_cache(heads)
    for together, head in zip(batched_cache_logits(heads, rows), heads, strict=True):
        assert_close(together, head(rows), rtol=2e-5, atol=1e-7)


def test_rounding_does_not_grow_with_the_grid():
    """Two hundred steps of one factor would lose a digit or two: powers are anchored now and then."""
    rows, keys = drawn(torch.float64)
    betas, label = GRIDS["arithmetic"], LABELS["by class"]
    exact = cache_logits(rows, keys, label, 5, betas)
    narrow = cache_logits(rows.float(), keys.float(), label, 5, betas).double()
    assert ((narrow - exact) / exact).abs().max() < 1e-5


@pytest.mark.parametrize(("grid", "exponentials"), [("arithmetic", 9), ("geometric", 4), ("searched", 6)])
def test_few_exponentials_serve_a_grid(grid, exponentials, monkeypatch):
    """Two chains of doublings, or one of steps, and an anchor here and there."""
    rows, keys = drawn()
    calls = []
    exp = torch.exp
    monkeypatch.setattr(torch, "exp", lambda values: calls.append(1) or exp(values))
    cache_logits(rows, keys, LABELS["by class"], 5, GRIDS[grid])
    assert len(calls) <= exponentials


@pytest.mark.parametrize("name", ["_MAX_LOGITS", "_MAX_PRODUCT", "_CACHE_ELEMENTS"])
def test_pieces_of_any_size_give_the_same(name, monkeypatch):
    rows, keys = drawn()
    heads = [Kernel(keys, LABELS["ragged"], 5, beta) for beta in SHARPNESS]
    whole = torch.stack(list(batched_cache_logits(heads, rows)))
    monkeypatch.setattr(kernel, name, 50)
    assert_close(torch.stack(list(batched_cache_logits(heads, rows))), whole, rtol=1e-6, atol=1e-7)


def test_only_caches_of_the_same_keys_belong_together():
    _, keys = drawn()
    label = LABELS["by class"]
    first = Kernel(keys, label, 5, 1.0)
    assert same_cache([first, Kernel(keys, label, 5, 2.0)])
    assert not same_cache([first, Kernel(keys.clone(), label, 5, 2.0)])
    assert not same_cache([first, Kernel(keys, label, 5, 2.0, torch.ones(20))])
    assert not same_cache([first, Linear(keys)])
    assert not same_cache([Linear(keys), first])


def test_no_rows_give_no_logits():
    rows, keys = drawn()
    assert cache_logits(rows[:0], keys, LABELS["by class"], 5, [1.0, 2.0]).shape == (2, 0, 5)
