"""Values of the methods' cards: fixed tensors in float64, computed apart from this package."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from onceclip.pipeline.retrieval.answers import answer_hinge
from onceclip.pipeline.retrieval.comclip import comclip_scores
from onceclip.pipeline.retrieval.evaluation import normalization_of, normalize_by
from onceclip.pipeline.retrieval.items import Frames
from onceclip.pipeline.retrieval.metrics import ranks_of
from onceclip.pipeline.retrieval.recipes import (
    clip_loss,
    contra_loss,
    geodesic_loss,
    geodesic_mix,
    hard_negative_loss,
)
from onceclip.pipeline.retrieval.similarity import (
    ITEM_TO_TEXT,
    TEXT_TO_ITEM,
    Choice,
    Gallery,
    Similarity,
    pooling_of,
)


def waves(shape: tuple[int, ...], start: float) -> Tensor:
    """sin(start + 1.7 n + 0.37 n^2)."""
    number = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(start + 1.7 * number + 0.37 * number * number).reshape(shape)


def unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """W: 3 texts. U: 12 images. V: 4 images of 8 views. images, captions: 10 pairs. F: 4 videos of 5 raw frames."""
    w = unit(unit(waves((3, 5, 8), 1.1)).mean(dim=1))
    g = unit(waves((8,), 8.0))
    label = torch.arange(12) % 3
    images = unit(g + 0.15 * w[label] + 0.2 * unit(waves((12, 8), 5.1)))
    views = unit(images[:4, None] + 0.15 * unit(waves((4, 8, 8), 6.2)))
    views[:, 0] = images[:4]
    bank = torch.arange(10) % 3
    frames = unit(g + 0.15 * w[torch.arange(4) % 3][:, None] + 0.25 * unit(waves((4, 5, 8), 3.4)))
    return SimpleNamespace(
        W=unit(g + 0.12 * w), U=images, V=views, waves=waves, unit=unit,
        images=unit(g + 0.15 * w[bank] + 0.2 * unit(waves((10, 8), 9.1))),
        captions=unit(g + 0.15 * w[bank] + 0.2 * unit(waves((10, 8), 7.7))),
        F=frames * (1 + 0.1 * waves((4, 5, 1), 2.6)))


@pytest.fixture(scope="session")
def videos(golden: SimpleNamespace) -> Frames:
    return Frames(golden.F.flatten(0, 1), torch.arange(0, 21, 5))


@pytest.fixture(scope="session")
def means(videos: Frames) -> Gallery:
    return Gallery.of_frames(videos, Choice("mean"))


def close(found: Tensor, expected: list[float]) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("pooling", "weight", "row"), [
    ("mean", 0, [0.996890, 0.991364, 0.994163, 0.996406]), ("raw-mean", 0, [0.996978, 0.990950, 0.994176, 0.996147]),
    ("fitclip", 0, [0.978126, 0.969842, 0.974458, 0.977502]),
    ("hitchhiker:0.1", 0, [0.996991, 0.992574, 0.995032, 0.995955]),
    ("max", 0, [0.985551, 0.993305, 0.988745, 0.984549]), ("mean", 0.5, [1.489665, 1.488016, 1.488536, 1.488680])])
def test_scores_of_videos(golden: SimpleNamespace, videos: Frames, pooling: str, weight: float,
                          row: list[float]) -> None:
    gallery = Gallery.of_frames(videos, pooling_of(pooling), weight)
    close(gallery.scores(golden.W)[0], row)
    close(Similarity(golden.W, gallery, ITEM_TO_TEXT).rows(slice(0, 4))[:, 0], row)


def test_a_query_bank_divides_only_rows_whose_best_is_a_hub(golden: SimpleNamespace, means: Gallery) -> None:
    bank = Similarity(golden.captions, means, TEXT_TO_ITEM)
    normalize = normalize_by(normalization_of("qb"), bank)
    assert normalize.hubs is not None
    assert normalize.hubs.nonzero()[:, 0].tolist() == [0, 1, 3]
    scores = means.scores(golden.W)
    before = scores.clone()
    found = normalize(scores)
    close(found[0], [0.142556, 0.120949, 0.132524, 0.133405])
    torch.testing.assert_close(scores, before, rtol=0, atol=0)
    plain = ~normalize.hubs[scores.argmax(dim=1)]
    torch.testing.assert_close(found[plain], scores[plain], rtol=0, atol=0)


def test_dual_softmax(golden: SimpleNamespace, means: Gallery) -> None:
    side = Similarity(golden.W, means, TEXT_TO_ITEM)
    close(normalize_by(normalization_of("dual-softmax"), side)(means.scores(golden.W))[0],
          [0.520623, 0.300439, 0.334396, 0.460239])


def test_a_constant_matrix_of_three_by_four_has_ranks_of_two_and_a_half() -> None:
    ranks = ranks_of(torch.ones(3, 4), torch.tensor([[0], [1], [3]]))
    assert ranks.rank.tolist() == [2.5, 2.5, 2.5]


def test_losses_of_pairs(golden: SimpleNamespace) -> None:
    text, item = golden.captions[:4], golden.images[:4]
    assert contra_loss(text, item).item() == pytest.approx(1.948732, abs=1e-6)
    assert clip_loss(text, item, 100).item() == pytest.approx(1.011617, abs=1e-6)
    assert geodesic_loss(text, item, 0.3, 100).item() == pytest.approx(1.121517, abs=1e-6)
    negative = unit(golden.captions[[1, 2, 0, 4]] + 0.1 * unit(waves((4, 8), 1.4)))
    for matrix, value in ((torch.eye(8), 1.692207), (torch.eye(8) + 0.05 * waves((8, 8), 2.7), 1.861340)):
        mapped = [unit(each @ matrix.double().T) for each in (text, negative)]
        assert hard_negative_loss(mapped[0], item, mapped[1], 100).item() == pytest.approx(value, abs=1e-6)
    scores = torch.tensor([[0.3, 0.5, 0.1, 0.2]])
    assert answer_hinge(scores, torch.tensor([1])).item() == pytest.approx(2.1, abs=1e-6)


def test_equal_vectors_mix_to_themselves_with_finite_slopes() -> None:
    """acos without a clamp gives NaN there."""
    same = unit(waves((3, 8), 2.0)).float().requires_grad_()
    mixed = geodesic_mix(same, same.detach(), 0.3)
    torch.testing.assert_close(mixed, same)
    mixed.sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    far = unit(waves((3, 8), 5.0)).float()
    torch.testing.assert_close(geodesic_mix(same.detach(), far, 1.0), same.detach())
    torch.testing.assert_close(geodesic_mix(same.detach(), far, 0.4).norm(dim=1), torch.ones(3))


def test_images_are_drawn_to_the_crops_that_phrases_name(golden: SimpleNamespace) -> None:
    image, crops = 2 * golden.U[:1], 1.5 * golden.V[:1, 1:4]
    assert comclip_scores(golden.W[:1], golden.W[None], image, crops).item() == pytest.approx(0.994800, abs=1e-6)
    plain = golden.W[:1] @ golden.U[:1].T
    against = torch.cat([-crops[:, :1], crops[:, 1:]], dim=1)  # products of which one is below 0 are no shares
    torch.testing.assert_close(comclip_scores(golden.W[:1], golden.W[None], image, against), plain)
