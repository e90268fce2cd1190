"""The text tower: its savings are exact, gradients reach the context alone, and what does not fit is one line."""

import pytest
import torch

from onceclip.adapters import MethodError
from onceclip.adapters.tower import POSITIONS, TextTower, tower
from onceclip.adapters.tower.layout import Layout


@pytest.fixture
def ragged(make_tower):
    """A tower whose class names have one to five tokens, with a context of 24."""
    plain = make_tower(4, 8, layers=2)
    names = {"class 0": [10, 3], "class 1": [4, 11, 12, 13, 3], "class 2": [4, 12, 3], "class 3": [14]}
    spec = {**plain.spec, "names": names, "stems": {"class 0": 1, "class 1": 4, "class 2": 2, "class 3": 1}}
    return TextTower.checked(plain.tensors, spec).of(list(names))


def without_savings(monkeypatch):
    """Have every prompt computed whole: to the end of the context, beginning included."""
    def whole(*arguments):
        layout = lay_out(*arguments)
        return Layout(layout.index, layout.place, 0)

    lay_out = tower.lay_out
    monkeypatch.setattr(tower, "lay_out", whole)
    monkeypatch.setattr(Layout, "of", lambda self, chosen, cut: Layout(self.index[chosen], self.place[chosen], 0))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["shared", "per class", "several"])
def test_cutting_and_sharing_change_nothing_neither_values_nor_gradients(ragged, monkeypatch, position, kind):
    shape = {"shared": (5, 16), "per class": (4, 5, 16), "several": (3, 5, 16)}[kind]
    context = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def both(of):
        found = (of.encode_several if kind == "several" else of.encode)(context, position)
        return found, torch.autograd.grad((found * weights).sum(), context)[0]

    short = both(ragged)
    without_savings(monkeypatch)
    whole = both(ragged.of(ragged.classes))
    for one, other in zip(short, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert short[1].abs().max() > 1e-3


def test_what_was_saved_in_float32_is_within_rounding_of_the_whole(ragged, monkeypatch):
    narrow, context = ragged.to(torch.float32), torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    short = narrow.encode(context)
    without_savings(monkeypatch)
    torch.testing.assert_close(short, narrow.of(narrow.classes).encode(context), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["last", "first"])
def test_a_tower_that_looks_ahead_sees_every_place_of_its_context(make_tower, pool):
    """Nothing is cut and nothing shared: the fill behind a sentence is part of what it computes."""
    both = make_tower(4, 8, layers=2, causal=False, pool=pool)
    context = torch.randn(3, both.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, *both.spec["names"][name], 1] + [2] * 19 for name in both.classes])
    assert ids.shape == (4, 24)
    torch.testing.assert_close(both.raw(context[None, None, :0], "front")[0], both.encode_tokens(ids), rtol=0,
                               atol=1e-12)
    other = dict(both.tensors)
    other["tokens"] = other["tokens"].clone()
    other["tokens"][2] = other["tokens"][4]  # what fills
    changed = TextTower.checked(other, both.spec).of(both.classes)
    assert (changed.encode(context) - both.encode(context)).abs().max() > 1e-3
    alone = torch.cat([both.of([name]).encode(context) for name in both.classes])
    torch.testing.assert_close(both.encode(context), alone, rtol=0, atol=1e-12)


def test_a_context_of_plain_words_gives_the_plain_prompt(ragged):
    for position, order in (("front", [5, 6, 7, 5]), ("middle", [5, 6]), ("end", [])):
        behind = [5, 6, 7, 5][len(order):]
        ids = torch.full((4, 24), 2)
        for row, name in enumerate(ragged.classes):
            tail, stem = ragged.spec["names"][name], ragged.spec["stems"][name]
            prompt = [0, *order, *tail[:stem], *behind, *tail[stem:], 1]
            ids[row, :len(prompt)] = torch.tensor(prompt)
        vectors = ragged.raw(ragged.phrase("a photo of a")[None, None], position)[0]
        torch.testing.assert_close(vectors, ragged.encode_tokens(ids), rtol=0, atol=1e-12)


def test_one_context_for_all_has_the_sum_of_the_gradients_of_one_for_each(ragged):
    shared = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    own = shared.detach().repeat(4, 1, 1).requires_grad_()
    weights = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one, = torch.autograd.grad((ragged.encode(shared) * weights).sum(), shared)
    several, = torch.autograd.grad((ragged.encode(own) * weights).sum(), own)
    torch.testing.assert_close(several.sum(dim=0), one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 16), (4, 5, 16)])
def test_blocks_of_classes_give_what_all_at_once_gives(ragged, monkeypatch, shape):
    """In memory for one class at a time, the backward pass computes each block again."""
    context = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.linspace(-1, 1, 8, dtype=torch.float64)
    ragged = ragged.of([*ragged.classes[::-1]])

    def both():
        found = ragged.encode(context)
        return found, torch.autograd.grad((found * weights).sum(), context)[0]

    whole = both()
    passes, checkpoint = [], tower.checkpoint
    monkeypatch.setattr(tower, "ACTIVATION_BYTES", 1)
    monkeypatch.setattr(tower, "checkpoint", lambda *given, **more: passes.append(1) or checkpoint(*given, **more))
    for one, other in zip(both(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert len(passes) == 4


def test_parts_of_many_contexts_give_what_all_at_once_gives(ragged, monkeypatch):
    """In memory for one prompt at a time, every context is a part, and every class a block of it."""
    contexts = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def both():
        found = ragged.encode_several(contexts)
        return found, torch.autograd.grad((found * torch.linspace(-1, 1, 8).double()).sum(), contexts)[0]

    whole = both()
    seen, vectors = [], tower.TextTower._vectors
    monkeypatch.setattr(tower, "ACTIVATION_BYTES", 1)
    monkeypatch.setattr(tower.TextTower, "_vectors",
                        lambda self, given, *others: (seen.append(len(given)), vectors(self, given, *others))[1])
    for one, other in zip(both(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert {*seen} == {1}
    assert ragged.encode_several(contexts.detach()).shape == whole[0].shape


def test_the_frozen_weights_get_no_gradient(ragged):
    context = torch.zeros(2, 16, dtype=torch.float64, requires_grad=True)
    assert not any(value.requires_grad for value in ragged.tensors.values())
    ragged.encode(context).sum().backward()
    assert all(value.grad is None for value in ragged.tensors.values())


def test_classes_are_found_by_name_in_any_order_and_a_strange_one_is_refused(ragged):
    context = torch.zeros(2, 16, dtype=torch.float64)
    order = [2, 0, 3, 1]
    moved = ragged.of([ragged.classes[place] for place in order]).encode(context)
    torch.testing.assert_close(moved, ragged.encode(context)[order], rtol=0, atol=1e-12)
    with pytest.raises(MethodError, match=r"no tokens for the class 'yak' and 1 more: run `onceclip text STORE --tow"):
        ragged.of(["class 1", "yak", "gnu"])
    with pytest.raises(MethodError, match="was given no classes"):
        ragged.of([]).encode(context)


def test_words_and_positions_that_do_not_exist_are_refused(ragged):
    assert torch.equal(ragged.phrase("of photo"), ragged.phrase("a photo of a")[[2, 1]])
    with pytest.raises(MethodError, match=r"no tokens for the word 'blurry'.*--words \"a blurry photo\""):
        ragged.phrase("a blurry photo")
    with pytest.raises(MethodError, match="position=behind: there are front, middle, end"):
        ragged.encode(torch.zeros(2, 16, dtype=torch.float64), "behind")
    with pytest.raises(MethodError, match=r"20 learned tokens and the 5 of 'class 1' are more than .* 24 positions"):
        ragged.encode(torch.zeros(20, 16, dtype=torch.float64))
    with pytest.raises(MethodError, match="does not keep the token 9"):
        ragged.encode_tokens(torch.tensor([[0, 9, 1]]))


@pytest.mark.parametrize(("change", "said"), [
    (lambda tensors, spec: tensors.update(positions=tensors["positions"][:, :3]), "positions has shape"),
    (lambda tensors, spec: tensors.update({"up.bias": tensors["up.bias"] / 0}), "up.bias holds NaN or infinity"),
    (lambda tensors, spec: tensors.pop("norm_1.bias"), "it has no norm_1.bias"),
    (lambda tensors, spec: spec.update(heads=3), "cannot have 3 heads"),
    (lambda tensors, spec: spec.update(activation="__import__"), "the activation '__import__'"),
    (lambda tensors, spec: spec.update(pool="argmax"), "the pooling 'argmax'"),
    (lambda tensors, spec: spec.update(end=[]), "token ids"),
    (lambda tensors, spec: spec.update(names={"class 0": [999]}), "token ids"),
    (lambda tensors, spec: spec.update(stems={**spec["stems"], "class 0": 9}), "longer than their tokens"),
    (lambda tensors, spec: spec.update(epsilon=-1.0), "epsilons")])
def test_tensors_and_spec_that_do_not_fit_are_refused_before_anything_is_computed(ragged, change, said):
    tensors, spec = dict(ragged.tensors), dict(ragged.spec)
    change(tensors, spec)
    with pytest.raises(ValueError, match=said):
        TextTower.checked(tensors, spec)
