"""A computation written down as a graph of tensor operations, whose constants are inputs like all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node


def lifted(traced: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The graph with the tensors that it holds as further inputs, and these tensors.

    traced: what `make_fx` made of a function; it is changed.
    """
    constants: dict[str, Tensor] = {}
    inputs: dict[str, Node] = {}
    nodes = traced.graph.find_nodes(op="get_attr")
    last = traced.graph.find_nodes(op="placeholder")[-1]
    for node in nodes:
        name = str(node.target)
        if name not in constants:
            constants[name] = getattr(traced, name)
            delattr(traced, name)  # or a graph that serves all tasks would keep the first
            with traced.graph.inserting_after(last):
                last = traced.graph.placeholder(f"constant_{len(constants)}")
            inputs[name] = last
        node.replace_all_uses_with(inputs[name])
        traced.graph.erase_node(node)
    traced.recompile()
    return traced, list(constants.values())


def places(constants: Sequence[Tensor], found: Sequence[Any]) -> list[int] | None:
    """Where constants stand among the leaves of what a graph was made of; None if one does not."""
    known = {id(leaf): place for place, leaf in enumerate(found) if isinstance(leaf, Tensor)}
    return [known[id(each)] for each in constants] if all(id(each) in known for each in constants) else None
