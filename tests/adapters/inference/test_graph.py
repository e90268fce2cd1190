"""Graphs of neighbours and what spreads over them, beside all pairs and a dense solve in float64."""

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters.inference import graph
from onceclip.adapters.ops import unit


@pytest.fixture
def rows():
    return unit(torch.randn(23, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


@pytest.mark.parametrize("elements", [1, 100, 2**20])
@pytest.mark.parametrize("number", [0, 1, 5, 40])
def test_neighbours_are_those_of_all_pairs_whatever_the_blocks(rows, elements, number, monkeypatch):
    monkeypatch.setattr(graph, "_ELEMENTS", elements)
    pairs = rows @ rows.T
    pairs.fill_diagonal_(-torch.inf)
    found, index = graph.nearest(rows, number)
    expected = pairs.topk(min(number, 22), dim=1)
    assert_close(found, expected.values)
    assert torch.equal(index, expected.indices)


def test_the_affinity_is_symmetric_and_has_no_loops(rows):
    dense = graph.affinity(rows, 3).to_dense()
    assert_close(dense, dense.T)
    assert not dense.diagonal().any()
    assert not graph.affinity(rows[:1], 3).to_dense().any()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.99])
def test_what_spreads_is_the_solution_of_the_dense_system(rows, alpha):
    matrix = graph.normalized(graph.affinity(rows, 4))
    seeds = torch.eye(23, 5, dtype=torch.float64)
    found, _ = graph.propagated(matrix, seeds, alpha, 1e-12, lambda done: None)
    dense = torch.linalg.solve(torch.eye(23, dtype=torch.float64) - alpha * matrix.to_dense(), seeds)
    assert_close(found, dense, rtol=1e-9, atol=1e-11)


def test_a_node_without_edges_keeps_its_seed():
    edges = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    matrix = graph.normalized(graph.symmetric(edges.to_sparse()))
    found, _ = graph.propagated(matrix, torch.eye(3), 0.5, 1e-7, lambda done: None)
    assert found[2].tolist() == [0, 0, 1]
